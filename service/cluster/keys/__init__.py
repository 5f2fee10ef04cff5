"""API keys in a store that processes share: the store, and the part of a process in the limits of its keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote

from ...errors import ConfigError, MissingLibrary, RegistryUnavailable
from ...settings.settings import Settings
from ..registry.address import StoreAddress, masked, sqlite_path
from .base import LEASE, SETTING, KeyStore
from .ring import KeyRing

NO_STORE = (
    "a controller has no keys: to accept keys, set key_store to the address of a store, as in "
    "redis://host:6379/0 or sqlite:////srv/keys.db"
)
"""Why a process that knows no store but a controller has no keys."""


def open_key_store(url: str, lease: float = LEASE) -> KeyStore:
    """Return the store of keys at ``url``; nothing is connected yet. The caller closes it.

    ``sqlite:///path``, ``postgresql://...``, ``mysql://...``, ``redis://...`` or ``memory:``, as for a registry. Places
    are leased for ``lease`` seconds. Raises ConfigError if the address is not valid, and MissingLibrary if a driver is
    not installed.
    """
    scheme = url.partition(":")[0].lower()
    if scheme not in _SCHEMES or ":" not in url:
        raise ConfigError(
            f"{SETTING} {masked(url)}: unknown kind: there are sqlite, postgresql, mysql, redis and memory, as in "
            "sqlite:////srv/keys.db, and none for no keys"
        )
    opener, extras = _SCHEMES[scheme]
    try:
        return opener(url, lease)
    except ModuleNotFoundError as error:
        if not extras or (error.name or "").startswith("modelyard"):
            raise
        raise MissingLibrary(
            f"{SETTING} {masked(url)}: {error.name} is not installed: pip install 'modelyard[{extras}]'"
        ) from error


# Each imports the module of its store when it is chosen.


def _memory(url: str, lease: float) -> KeyStore:
    from .sqlite import MemoryKeyStore  # noqa: PLC0415

    return MemoryKeyStore(lease)


def _sqlite(url: str, lease: float) -> KeyStore:
    from .sqlite import SqliteKeyStore  # noqa: PLC0415

    return SqliteKeyStore(sqlite_path(url, SETTING), lease)


def _postgresql(url: str, lease: float) -> KeyStore:
    from ..registry.postgresql import PostgresqlDatabase  # noqa: PLC0415
    from .sql import POSTGRESQL, SqlKeyStore  # noqa: PLC0415

    return SqlKeyStore(PostgresqlDatabase, StoreAddress.parse(url, SETTING), POSTGRESQL, lease)


def _mysql(url: str, lease: float) -> KeyStore:
    from ..registry.mysql import MysqlDatabase  # noqa: PLC0415
    from .sql import MYSQL, SqlKeyStore  # noqa: PLC0415

    return SqlKeyStore(MysqlDatabase, StoreAddress.parse(url, SETTING), MYSQL, lease)


def _redis(url: str, lease: float) -> KeyStore:
    from .redis import RedisKeyStore  # noqa: PLC0415

    return RedisKeyStore(StoreAddress.parse(url, SETTING), lease)


_SCHEMES: Mapping[str, tuple[Callable[[str, float], KeyStore], str]] = {
    "memory": (_memory, ""),
    "sqlite": (_sqlite, ""),
    **dict.fromkeys(("postgresql", "postgres"), (_postgresql, "sql,postgres")),
    **dict.fromkeys(("mysql", "mariadb"), (_mysql, "sql,mysql")),
    **dict.fromkeys(("redis", "rediss"), (_redis, "redis")),
}
"""What opens a store of each kind, and the extras that install what it imports."""


def key_store_url(settings: Settings) -> str | None:
    """Return the address of the store of keys; None if there is none.

    It is the setting, or the store of the registry (beside its file), or a file in the folder of this service.
    """
    if settings.key_store is not None:
        return None if settings.key_store == "none" else settings.key_store
    if not settings.registry:
        return file_url(settings.state_path / settings.instance_name / "keys.db")
    scheme = settings.registry.partition(":")[0].lower()
    if scheme == "sqlite":
        path = sqlite_path(settings.registry)
        return file_url(path.with_suffix(f".keys{path.suffix}"))
    return None if scheme in ("http", "https", "http+unix") else settings.registry


def file_url(path: Path) -> str:
    """Return the address of a store in a file."""
    return f"sqlite:///{quote(str(path))}"


def key_ring(settings: Settings) -> KeyRing | None:
    """Return the keys that a process accepts; None without a store of keys. Raises ConfigError and MissingLibrary."""
    url = key_store_url(settings)
    return None if url is None else KeyRing(open_key_store(url))


def check_key_store(settings: Settings) -> None:
    """Raise ConfigError or MissingLibrary if the store of keys can't be opened; nothing is connected."""
    url = key_store_url(settings)
    if url is None:
        return
    open_key_store(url).close()
    if url.startswith("sqlite:") and settings.key_store and not (folder := sqlite_path(url).parent).is_dir():
        raise ConfigError(f"{SETTING} {url}: there is no folder {folder}: make it")


def keys_exist(settings: Settings) -> bool:
    """Return whether the store of keys has, or ever had, a key; True also if it does not answer."""
    url = key_store_url(settings)
    if url is None:
        return False
    store = open_key_store(url)
    try:
        return bool(store.stamp())
    except RegistryUnavailable:
        return True
    finally:
        store.close()
