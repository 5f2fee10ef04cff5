"""Parse the address of a service, as a person writes it, and find the server behind the URL of a request."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

from urllib3.util import make_headers

from ..errors import ConfigError

URL_VARIABLE = "MODELYARD_URL"
TOKEN_VARIABLE = "MODELYARD_TOKEN"  # noqa: S105 - a name
TOKEN_FILE_VARIABLE = "MODELYARD_TOKEN_FILE"  # noqa: S105 - a name
DEFAULT_URL = "http://127.0.0.1:8000/api"
DEFAULT_PATH = "/api"

_PORTS = {"http": 80, "https": 443}
_CACHED = 4096
"""URLs whose origin is kept: parsing one costs 5 microseconds."""


class ServiceAddress(NamedTuple):
    """The address of a service."""

    base: str
    """The URL that its calls stand under: without a slash at its end, without a user and password."""
    authorization: str | None
    """The ``Authorization`` header made of the user and password in the URL; None without them."""

    @property
    def is_tls(self) -> bool:
        """Whether its certificate is checked."""
        return self.base.startswith("https:")

    def parents(self) -> Iterator[str]:
        """Yield ``base``, and then each URL above it, up to the root."""
        parts = urlsplit(self.base)
        path = parts.path
        while True:
            yield urlunsplit((parts.scheme, parts.netloc, path, "", ""))
            if not path:
                return
            path = path.rpartition("/")[0]


def parse_address(url: str) -> ServiceAddress:
    """Return the address that ``url`` names. A URL without a path (and slash) gets ``/api``. Raises ConfigError."""
    try:
        parts = urlsplit(url)
        good = parts.port != 0 if parts.scheme in _PORTS else parts.scheme == "http+unix"
    except ValueError:
        good = False
    if not good or not parts.netloc or not parts.hostname:
        raise ConfigError(f"{url!r} is not an address of a service: expected something like {DEFAULT_URL}")
    path = parts.path.rstrip("/") or ("" if parts.path else DEFAULT_PATH)
    if parts.scheme == "http+unix":
        if not unquote(parts.netloc).startswith("/"):
            raise ConfigError(f"{url!r} is not an address of a service: expected http+unix://%2Fpath%2Fof.sock{path}")
        return ServiceAddress(urlunsplit((parts.scheme, parts.netloc, path, "", "")), None)
    user, at, host = parts.netloc.rpartition("@")
    authorization = make_headers(basic_auth=unquote(user))["authorization"] if at else None
    return ServiceAddress(urlunsplit((parts.scheme, host, path, "", "")), authorization)


class Origin(NamedTuple):
    """The address that a server listens on. For a unix socket ``host`` is its path, and ``port`` is 0."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        """Return the address for people."""
        if self.scheme == "http+unix":
            return f"unix:{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port == _PORTS[self.scheme] else f":{self.port}")


@lru_cache(_CACHED)
def origin_of(url: str) -> Origin:
    """Return the server that ``url`` leads to. Raises ValueError for a URL that a request can't be sent to."""
    parts = urlsplit(url)
    target = parts.path + parts.query
    if not target.isascii() or not (target.isprintable() and " " not in target) or parts.fragment:
        raise ValueError(f"{url!r} is not a valid address: the path must be quoted")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"the address of {parts.hostname} has a name or password in it: give a token instead")
    if parts.scheme == "http+unix":
        path = unquote(parts.netloc)
        if not path.startswith("/"):
            raise ValueError(f"{url!r} is not a valid address: expected http+unix://%2Fpath%2Fof.sock/...")
        return Origin(parts.scheme, path, 0)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError(f"{url!r} is not a valid address: expected http://, https:// or http+unix://")
    return Origin(parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme])
