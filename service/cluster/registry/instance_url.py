"""The address of an instance: what it may be, and the form of it that DB-GPT's clients know: host and port."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import unquote, urlsplit

from .rows import URL_LENGTH

PEER_PREFIX = "/api"
"""Where the peers' clients look for a worker, whatever prefix it has here."""

_UNIX_PATH = 107
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,253}")
_PATH = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)*")  # what RFC 3986 lets stand in one
_PEER = re.compile(rf"http://(?P<host>\[[^\]]+\]|[^/:]+)(:(?P<port>\d+))?{PEER_PREFIX}")


def check(url: str) -> None:
    """Raise ValueError, which says what is wrong, where ``url`` is no address of an instance."""
    if len(url) > URL_LENGTH:
        raise ValueError(f"has {len(url)} characters, at most {URL_LENGTH} are taken")
    if not re.fullmatch(r"[!-~]+", url):
        raise ValueError("must be ASCII without spaces, and not empty")
    if not url.startswith(("http://", "https://", "http+unix://")):
        raise ValueError("must start with http://, https:// or http+unix://")
    if "?" in url or "#" in url:
        raise ValueError("must not have a query or a fragment")
    parts = urlsplit(url)  # raises ValueError for half an IPv6 address
    if "@" in parts.netloc:
        raise ValueError("must not have a user name or password")
    if not _PATH.fullmatch(parts.path) or {".", ".."} & set(parts.path.split("/")):
        raise ValueError(f"has the path {parts.path!r}: it must be a plain prefix as /api, without a slash at its end")
    if parts.scheme == "http+unix":
        _check_socket(parts.netloc)
    else:
        _check_host(parts.hostname or "", parts.netloc)
        if parts.port == 0 or parts.netloc.endswith(":"):
            raise ValueError("must have a port from 1 to 65535, or none")


def _check_socket(netloc: str) -> None:
    path = unquote(netloc)
    if not path.startswith("/") or not path.isprintable() or len(path.encode()) > _UNIX_PATH:
        raise ValueError("must name a socket by its whole path, quoted: http+unix://%2Frun%2Fworker.sock/api")


def _check_host(host: str, netloc: str) -> None:
    if netloc.startswith("["):
        ipaddress.IPv6Address(host)
    elif not _HOST.fullmatch(host):
        raise ValueError(f"has the host {host!r}, which is neither a name nor an address")


def of_host_and_port(host: str, port: int) -> str:
    """Return the address of a peer's worker."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    return f"http://[{bare}]:{port}{PEER_PREFIX}" if ":" in bare else f"http://{bare}:{port}{PEER_PREFIX}"


def host_and_port(url: str) -> tuple[str, int] | None:
    """Return what the peers call an address; None for those they can't reach: TLS, another prefix, a unix socket."""
    found = _PEER.fullmatch(url)
    return None if found is None else (found["host"].strip("[]"), int(found["port"] or 80))
