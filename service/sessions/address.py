"""The address of a service as a person writes it: http, https, or a unix socket, with the API's prefix or without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

from ..errors import ConfigError

URL_VARIABLE = "MODELYARD_URL"
TOKEN_VARIABLE = "MODELYARD_TOKEN"  # noqa: S105 - a name
TOKEN_FILE_VARIABLE = "MODELYARD_TOKEN_FILE"  # noqa: S105 - a name
DEFAULT_URL = "http://127.0.0.1:8000/api"
DEFAULT_PATH = "/api"


class Address(NamedTuple):
    """Where a service is."""

    base: str
    """What its calls stand under, without a slash at the end; of a unix socket that of ``localhost``."""
    shown: str
    """The same for people: without a password."""
    socket: str | None
    """The path of a unix socket."""

    def parents(self) -> Iterator[str]:
        """Yield ``base``, and then all that it stands under, up to the root."""
        parts = urlsplit(self.base)
        path = parts.path
        while True:
            yield urlunsplit((parts.scheme, parts.netloc, path, "", ""))
            if not path:
                return
            path = path.rpartition("/")[0]


def parse_address(url: str) -> Address:
    """Return what ``url`` names. Without a path, not even a slash, it gets ``/api``. Raises ConfigError."""
    try:
        parts = urlsplit(url)
        good = parts.port != 0 if parts.scheme in ("http", "https") else parts.scheme == "http+unix"
    except ValueError:
        good = False
    if not good or not parts.netloc or not parts.hostname:
        raise ConfigError(f"{url!r} is no address of a service: expected something like {DEFAULT_URL}")
    path = parts.path.rstrip("/") or ("" if parts.path else DEFAULT_PATH)
    if parts.scheme == "http+unix":
        socket = unquote(parts.netloc)
        if not socket.startswith("/"):
            raise ConfigError(f"{url!r} is no address of a service: expected http+unix://%2Fpath%2Fof.sock{path}")
        return Address(f"http://localhost{path}", urlunsplit((parts.scheme, parts.netloc, path, "", "")), socket)
    host = parts.netloc.rpartition("@")[2]
    return Address(
        urlunsplit((parts.scheme, parts.netloc, path, "", "")),
        urlunsplit((parts.scheme, host, path, "", "")),
        None,
    )
