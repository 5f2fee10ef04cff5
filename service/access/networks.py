"""Networks and addresses: their scopes without a token, and which addresses belong to this machine."""

from __future__ import annotations

import functools
import ipaddress
import socket
import threading
import time
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

from ..errors import ConfigError, Forbidden, Overloaded
from ..threads import start_thread
from .tokens import parse_scopes

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPNetwork: TypeAlias = IPv4Network | IPv6Network

RESOLVE_TIMEOUT = 2.0
"""Seconds that the lookup of a name may take."""
RESOLVED_FOR = 30.0
"""Seconds that a result is kept."""
MAX_LOOKUPS = 8
MAX_NAMES = 4096


def parse_networks(entries: Iterable[str], setting: str) -> tuple[IPNetwork, ...]:
    """Return the networks of a setting. Raises ConfigError with the setting and each entry that is not valid."""
    networks: list[IPNetwork] = []
    faults = []
    for entry in entries:
        try:
            networks.append(ipaddress.ip_network(entry.strip()))
        except ValueError as error:
            faults.append(f"{setting}: {error}: expected something like 10.0.0.0/8, or one address")
    if faults:
        raise ConfigError("; ".join(faults))
    return tuple(networks)


class TrustedNetworks:
    """The scopes that addresses have without a token: ``10.1.0.0/16=infer+worker``."""

    def __init__(self, entries: Iterable[str]) -> None:
        """Read the entries of the setting. Raises ConfigError with each that is not valid."""
        self._granted: list[tuple[IPNetwork, frozenset[str]]] = []
        faults = []
        for entry in entries:
            network, equals, scopes = entry.partition("=")
            try:
                if not equals:
                    raise ValueError(f"{entry!r} has no scopes: expected something like 10.0.0.0/8=infer+worker")
                granted = parse_scopes(scopes)
                self._granted += [(parsed, granted) for parsed in parse_networks([network], "trusted_networks")]
            except ValueError as error:
                faults.append(f"trusted_networks: {error}")
            except ConfigError as error:
                faults.append(str(error))
        if faults:
            raise ConfigError("; ".join(faults))

    def __bool__(self) -> bool:
        return bool(self._granted)

    def scopes_of(self, address: IPAddress) -> frozenset[str]:
        """Return the scopes of an address: of all networks that it is in."""
        return frozenset[str]().union(*(scopes for network, scopes in self._granted if address in network))


def address_of(text: str) -> IPAddress | None:
    """Return the address of a text, IPv4 mapped into IPv6 as IPv4; None if it is not an address."""
    try:
        address = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def is_of_this_machine(address: IPAddress) -> bool:
    """Return whether an address belongs to this machine: a socket can be bound to it."""
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
    """Looks up the addresses of names, with a limit of time and of lookups at once."""

    def __init__(self, timeout: float = RESOLVE_TIMEOUT) -> None:
        """Allow ``timeout`` seconds a name."""
        self._timeout = timeout
        self._slots = threading.BoundedSemaphore(MAX_LOOKUPS)
        self._kept: dict[str, tuple[float, frozenset[IPAddress]]] = {}

    def addresses(self, host: str) -> frozenset[IPAddress]:
        """Return all addresses of a host. Raises Forbidden if none is found in time."""
        literal = address_of(host)
        if literal is not None:
            return frozenset((literal,))
        kept = self._kept.get(host)
        if kept is not None and time.monotonic() < kept[0]:
            return kept[1]
        addresses = self._look_up(host)
        if len(self._kept) >= MAX_NAMES:
            self._kept.clear()
        self._kept[host] = (time.monotonic() + RESOLVED_FOR, addresses)
        return addresses

    def _look_up(self, host: str) -> frozenset[IPAddress]:
        if not self._slots.acquire(blocking=False):
            raise Forbidden(f"the address of {host} can't be looked up now: {MAX_LOOKUPS} others are being looked up")
        addresses: list[IPAddress] = []
        reasons = [f"no answer within {self._timeout:g} s"]

        def resolve() -> None:
            try:
                answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
                addresses.extend(a for a in (address_of(str(answer[4][0])) for answer in answers) if a is not None)
                reasons[:] = ["it has none"]
            except (OSError, UnicodeError) as error:
                reasons[:] = [getattr(error, "strerror", None) or str(error)]
            finally:
                self._slots.release()

        thread = threading.Thread(target=resolve, name="modelyard-resolve", daemon=True)
        try:
            start_thread(thread)
        except Overloaded:
            self._slots.release()
            raise
        thread.join(self._timeout)
        if thread.is_alive() or not addresses:
            raise Forbidden(f"the address of {host} is unknown ({reasons[0]}): advertise an address instead")
        return frozenset(addresses)
