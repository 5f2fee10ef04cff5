"""Open a registry: a controller or a store. Each kind is a module, which is imported when it is chosen."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from ...errors import ConfigError, MissingLibrary
from .address import StoreAddress, controller_urls, masked, sqlite_path
from .base import HEARTBEAT_TIMEOUT, Registry

if TYPE_CHECKING:
    from ...sessions.session import Session

Opener: TypeAlias = Callable[[str, float, "Session | None"], Registry]


def open_registry(
    url: str, heartbeat_timeout: float = HEARTBEAT_TIMEOUT, *, session: Session | None = None
) -> Registry:
    """Return the registry at ``url``; nothing is connected yet. The caller closes it.

    ``http(s)://host:port/api[,second]``, ``sqlite:///path``, ``postgresql://...``, ``mysql://...``, ``redis://...``,
    ``memory:``. ``session`` sends the requests to controllers; the caller closes it. Raises ConfigError if the address
    is not valid, and MissingLibrary if a driver is not installed; neither shows a password.
    """
    scheme = url.partition(":")[0].lower()
    if scheme not in SCHEMES or ":" not in url:
        kinds = "http, https, sqlite, postgresql, mysql, redis and memory"
        raise ConfigError(f"registry {masked(url)}: unknown kind: there are {kinds}, as in sqlite:////srv/registry.db")
    return SCHEMES[scheme](url, heartbeat_timeout, session)


def _memory(url: str, heartbeat_timeout: float, _session: Session | None) -> Registry:
    if url.partition(":")[2].strip("/"):
        raise ConfigError(f"registry {masked(url)}: memory: takes no name, as each process has its own")
    return _made("memory", "MemoryRegistry", "", heartbeat_timeout)


def _sqlite(url: str, heartbeat_timeout: float, _session: Session | None) -> Registry:
    return _made("sqlite", "SqliteRegistry", "", sqlite_path(url), heartbeat_timeout)


def _postgresql(url: str, heartbeat_timeout: float, _session: Session | None) -> Registry:
    return _made("postgresql", "PostgresqlRegistry", "sql,postgres", StoreAddress.parse(url), heartbeat_timeout)


def _mysql(url: str, heartbeat_timeout: float, _session: Session | None) -> Registry:
    return _made("mysql", "MysqlRegistry", "sql,mysql", StoreAddress.parse(url), heartbeat_timeout)


def _redis(url: str, heartbeat_timeout: float, _session: Session | None) -> Registry:
    return _made("redis", "RedisRegistry", "redis", StoreAddress.parse(url), heartbeat_timeout)


def _controllers(url: str, _heartbeat_timeout: float, session: Session | None) -> Registry:
    urls = controller_urls(url)
    if session is None:
        raise ValueError("the registry of a controller needs a session: open_registry(url, session=...)")
    return _made("client", "RegistryClient", "", urls, session)


def _made(module: str, name: str, extras: str, *arguments: Any) -> Registry:
    """Return a registry of the class ``name`` in a module of this package; ``extras`` install what it imports."""
    try:
        made: Registry = getattr(importlib.import_module(f"{__name__}.{module}"), name)(*arguments)
    except ModuleNotFoundError as error:
        if not extras or (error.name or "").startswith("modelyard"):
            raise
        raise MissingLibrary(
            f"registry {module}: {error.name} is not installed: pip install 'modelyard[{extras}]'"
        ) from error
    return made


SCHEMES: Mapping[str, Opener] = MappingProxyType(
    {
        "memory": _memory,
        "sqlite": _sqlite,
        **dict.fromkeys(("postgresql", "postgres"), _postgresql),
        **dict.fromkeys(("mysql", "mariadb"), _mysql),
        **dict.fromkeys(("redis", "rediss"), _redis),
        **dict.fromkeys(("http", "https", "http+unix"), _controllers),
    }
)
