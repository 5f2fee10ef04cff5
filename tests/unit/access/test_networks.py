"""Networks and addresses: how they are read, which belong to this machine, and the limits of looking up names."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest
from modelyard.access import networks
from modelyard.access.networks import Resolver, TrustedNetworks, address_of, is_of_this_machine, parse_networks
from modelyard.errors import ConfigError, Forbidden

ELSEWHERE = "203.0.113.7"
"""An address that no machine has."""


@pytest.fixture
def own_address() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((ELSEWHERE, 9))  # Nothing is sent: it only finds the route.
        return str(probe.getsockname()[0])


def test_an_address_is_read_in_every_form():
    assert str(address_of("10.0.0.1")) == "10.0.0.1"
    assert str(address_of("::ffff:10.0.0.1")) == "10.0.0.1"
    assert str(address_of("[fe80::1%eth0]")) == "fe80::1"
    assert address_of("localhost") is None
    assert address_of("010.0.0.1") is None


def test_this_machine_knows_its_own_addresses(own_address):
    for text in ("127.0.0.1", "127.1.2.3", "::1", own_address):
        assert is_of_this_machine(address_of(text)), text
    for text in (ELSEWHERE, "2001:db8::7", "224.0.0.1", "255.255.255.255"):
        assert not is_of_this_machine(address_of(text)), text


def test_networks_are_read_or_named():
    assert [str(network) for network in parse_networks([" 10.0.0.0/8 ", "::1"], "x")] == ["10.0.0.0/8", "::1/128"]
    with pytest.raises(ConfigError, match="x: "):
        parse_networks(["y"], "x")
    assert not TrustedNetworks([])
    assert TrustedNetworks(["0.0.0.0/0=infer"]).scopes_of(address_of(ELSEWHERE)) == {"infer"}


def test_a_name_server_that_does_not_answer_is_given_up(monkeypatch):
    answered: list[str] = []
    held = threading.Event()

    def getaddrinfo(host: str, *args: object, **options: object) -> list[Any]:
        held.wait(20)
        answered.append(host)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    resolver = Resolver(timeout=0.05)
    try:
        for number in range(networks.MAX_LOOKUPS):
            with pytest.raises(Forbidden, match="no answer within"):
                resolver.addresses(f"slow{number}")
        with pytest.raises(Forbidden, match="others are being looked up"):
            resolver.addresses("one more")
        assert answered == []
        assert str(*resolver.addresses("10.0.0.1")) == "10.0.0.1", "an address needs no asking"
    finally:
        held.set()


def test_what_a_name_resolved_to_is_kept_for_a_while(monkeypatch):
    asked_for: list[str] = []

    def getaddrinfo(host: str, *args: object, **options: object) -> list[Any]:
        asked_for.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    resolver = Resolver()
    assert resolver.addresses("worker") == resolver.addresses("worker")
    assert asked_for == ["worker"]
    monkeypatch.setattr(networks, "RESOLVED_FOR", -1.0)
    resolver.addresses("other")
    resolver.addresses("other")
    assert asked_for == ["worker", "other", "other"]
