"""The address that others reach this process at: given, or found by itself."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import quote, urlsplit

from ..errors import ConfigError
from ..settings.settings import Settings

_ANYWHERE = ("192.0.2.1", 9)
"""An address for documentation (RFC 5737): nothing is sent there, only the way to it is looked up."""


def advertised_url(settings: Settings) -> str:
    """Return ``http://host:port/prefix`` of this process, as it is registered.

    ``--advertise`` wins (one without a path gets the prefix). Otherwise it is the address that the service listens on;
    of one that listens everywhere, the address of the interface that leads to the registry.
    """
    if settings.advertise:
        return checked(settings.advertise, settings.prefix)
    host = settings.host
    if host.startswith("unix:"):
        return f"http+unix://{quote(host.removeprefix('unix:'), safe='')}{settings.prefix}"
    if _is_wildcard(host):
        host = _own_address(settings.registry or "")
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}{settings.prefix}"


def checked(url: str, prefix: str) -> str:
    """Return an advertised address without a slash at its end. Raises ConfigError."""
    parts = urlsplit(url)
    try:
        sound = parts.scheme in ("http", "https", "http+unix") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        sound = False
    if not sound or parts.query or parts.fragment or "@" in parts.netloc:
        raise ConfigError(f"advertise {url!r} is no address: expected http://HOST:PORT/PREFIX or https://...")
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path or prefix}"


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return host == ""


def _own_address(registry: str) -> str:
    """Return this machine's address on the way to the registry; the loopback where there is no way at all."""
    towards = _ANYWHERE
    try:
        parts = urlsplit(registry.partition(",")[0])
        if parts.hostname and parts.scheme != "sqlite":
            towards = (parts.hostname, parts.port or 80)
    except ValueError:
        pass
    for target in (towards, _ANYWHERE):
        try:
            family = socket.getaddrinfo(*target, type=socket.SOCK_DGRAM)[0][0]
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(target)
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return "127.0.0.1"
