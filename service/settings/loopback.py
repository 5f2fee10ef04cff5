"""Hosts that only this machine can reach: loopback addresses, and names of the hosts file that lead to no other."""

from __future__ import annotations

import ipaddress
from pathlib import Path

HOSTS_FILE = Path("/etc/hosts")


def is_loopback_host(host: str) -> bool:
    """Return whether a host, as in a URL, is a loopback address, localhost, or another name of loopback addresses.

    Name servers are not used: their answers are outside of our control, and may change at any time.
    """
    name = host.strip("[]").rstrip(".").lower()
    return name == "localhost" or _is_loopback(name) or loopback_address(name) is not None


def loopback_address(name: str) -> str | None:
    """Return the address that a name of the hosts file stands for; None unless all of its addresses are loopback."""
    listed = _listed(name.rstrip(".").lower())
    if not listed or not all(map(_is_loopback, listed)):
        return None
    return min(listed, key=lambda address: ":" in address)


def _is_loopback(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False


def _listed(name: str) -> list[str]:
    """Return the addresses of a name in the hosts file, in its order."""
    try:
        lines = HOSTS_FILE.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    entries = (line.partition("#")[0].lower().split() for line in lines)
    return [address for address, *names in filter(None, entries) if name in names]
