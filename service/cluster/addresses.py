"""Find the address at which other processes reach this process."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from ..errors import ConfigError
from ..settings.settings import UNKNOWN_PORT, Settings
from .registry.limits import url_fault

NO_ADDRESS = (
    "not registered: the port that this application listens on is not known before its first request; set advertise, "
    "or port"
)
_EXAMPLE = ("192.0.2.1", 9)
"""An address for documentation (RFC 5737): nothing is sent there, only the route to it is looked up."""


def advertised_url(settings: Settings) -> str:
    """Return ``http://host:port/prefix`` of this process, as it is registered; empty while the port is unknown.

    Raises ConfigError.

    It is ``--advertise``, with the prefix if that has no path; otherwise the address that the service listens on. If
    the service listens on all addresses, it is the address of the interface that leads to the registry.
    """
    if settings.advertise:
        return checked(settings.advertise, settings.prefix)
    host = settings.host
    if host.startswith("unix:"):
        return f"http+unix://{quote(host.removeprefix('unix:'), safe='')}{settings.prefix}"
    if settings.port == UNKNOWN_PORT:
        return ""
    if _is_wildcard(host):
        host = _interface_to(settings.registry or "")
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}{settings.prefix}"


def listening_address(environ: Mapping[str, Any]) -> tuple[str, int] | None:
    """Return host and port of the server that has made a WSGI environment; None if it does not say.

    The host is empty where it is a name: what such a server listens on is not known. For a unix socket the port is 0;
    gunicorn gives the host there that the client has named.
    """
    connection = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
    if connection is not None and connection.family == socket.AF_UNIX:
        return f"unix:{connection.getsockname()}", UNKNOWN_PORT
    # What the server has set, before a proxy's headers replaced it.
    values = {**environ, **environ.get("werkzeug.proxy_fix.orig", {})}
    host, port = str(values.get("SERVER_NAME", "")), str(values.get("SERVER_PORT", ""))
    if not port.isdecimal() or not 0 < int(port) < 65_536:
        return None
    return (host if _is_ip(host) else ""), int(port)


def checked(url: str, prefix: str) -> str:
    """Return an advertised address without a slash at its end, and with ``prefix`` if it has no path.

    Raises ConfigError.
    """
    bare = url.rstrip("/")
    scheme, _, rest = bare.partition("://")
    complete = bare if "/" in rest else f"{scheme}://{rest}{prefix}"
    if fault := url_fault(complete):
        raise ConfigError(f"advertise {url!r} is not an address: it {fault}; expected http://HOST:PORT/PREFIX")
    return complete


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return host == ""


def _interface_to(registry: str) -> str:
    """Return the address of the interface that leads to the registry; the loopback address without a route."""
    towards = _EXAMPLE
    try:
        parts = urlsplit(registry.partition(",")[0])
        if parts.hostname and parts.scheme != "sqlite":
            towards = (parts.hostname, parts.port or 80)
    except ValueError:
        pass
    for target in (towards, _EXAMPLE):
        try:
            family = socket.getaddrinfo(*target, type=socket.SOCK_DGRAM)[0][0]
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(target)
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return "127.0.0.1"
