"""Addresses: which of them may do what without a token, which may be registered, which are this machine's."""

from __future__ import annotations

import functools
import ipaddress
import socket
import threading
import time
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

from ..errors import ConfigError, Forbidden
from .tokens import parse_scopes

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

RESOLVE_TIMEOUT = 2.0
"""Seconds that finding the addresses of a name may take."""
RESOLVED_FOR = 30.0
"""Seconds that what was found counts."""
RESOLVING_AT_ONCE = 8
NAMES_KEPT = 4096


def parse_networks(entries: Iterable[str], setting: str) -> tuple[Network, ...]:
    """Return the networks of a setting. ConfigError names the setting and each that is none."""
    found: list[Network] = []
    faults = []
    for entry in entries:
        try:
            found.append(ipaddress.ip_network(entry.strip()))
        except ValueError as error:
            faults.append(f"{setting}: {error}: expected something like 10.0.0.0/8, or one address")
    if faults:
        raise ConfigError("; ".join(faults))
    return tuple(found)


class TrustedNetworks:
    """Scopes that an address has without a token: ``10.1.0.0/16=infer+worker``."""

    def __init__(self, entries: Iterable[str]) -> None:
        """Read the setting. Raises ConfigError that names each entry at fault."""
        self._granted: list[tuple[Network, frozenset[str]]] = []
        faults = []
        for entry in entries:
            network, equals, scopes = entry.partition("=")
            try:
                if not equals:
                    raise ValueError(f"{entry!r} names no scopes: expected something like 10.0.0.0/8=infer+worker")
                granted = parse_scopes(scopes)
                self._granted += [(found, granted) for found in parse_networks([network], "trusted_networks")]
            except ValueError as error:
                faults.append(f"trusted_networks: {error}")
            except ConfigError as error:
                faults.append(str(error))
        if faults:
            raise ConfigError("; ".join(faults))

    def __bool__(self) -> bool:
        return bool(self._granted)

    def scopes_of(self, address: Address) -> frozenset[str]:
        """Return what an address may do: the scopes of all networks that it lies in."""
        return frozenset[str]().union(*(scopes for network, scopes in self._granted if address in network))


def address_of(text: str) -> Address | None:
    """Return an address as written, IPv4 within IPv6 as IPv4; None where it is none."""
    try:
        found = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, IPv6Address) else found


def is_of_this_machine(address: Address) -> bool:
    """Return whether an address is this machine's own: the kernel lets one listen on it."""
    if address.is_loopback:
        return True
    if address.is_multicast or str(address) == "255.255.255.255":
        return False
    return _can_be_bound(str(address), int(time.monotonic() / RESOLVED_FOR))


@functools.lru_cache(maxsize=1024)
def _can_be_bound(address: str, period: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


class Resolver:
    """Finds the addresses of names, within bounds: of time, and of names at once."""

    def __init__(self, timeout: float = RESOLVE_TIMEOUT) -> None:
        """Let each name take ``timeout`` seconds."""
        self._timeout = timeout
        self._slots = threading.BoundedSemaphore(RESOLVING_AT_ONCE)
        self._found: dict[str, tuple[float, frozenset[Address]]] = {}

    def addresses(self, host: str) -> frozenset[Address]:
        """Return all addresses of a host. Raises Forbidden where none is found in time."""
        literal = address_of(host)
        if literal is not None:
            return frozenset((literal,))
        kept = self._found.get(host)
        if kept is not None and time.monotonic() < kept[0]:
            return kept[1]
        found = self._ask(host)
        if len(self._found) >= NAMES_KEPT:
            self._found.clear()
        self._found[host] = (time.monotonic() + RESOLVED_FOR, found)
        return found

    def _ask(self, host: str) -> frozenset[Address]:
        if not self._slots.acquire(blocking=False):
            raise Forbidden(f"the address of {host} can't be looked up now: {RESOLVING_AT_ONCE} others are being asked")
        found: list[Address] = []
        reasons = [f"no answer within {self._timeout:g} s"]

        def ask() -> None:
            try:
                answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
                found.extend(a for a in (address_of(str(answer[4][0])) for answer in answers) if a is not None)
                reasons[:] = ["it has none"]
            except (OSError, UnicodeError) as error:
                reasons[:] = [getattr(error, "strerror", None) or str(error)]
            finally:
                self._slots.release()

        thread = threading.Thread(target=ask, name="modelyard-resolve", daemon=True)
        thread.start()
        thread.join(self._timeout)
        if thread.is_alive() or not found:
            raise Forbidden(f"the address of {host} is not known here ({reasons[0]}): advertise an address instead")
        return frozenset(found)
