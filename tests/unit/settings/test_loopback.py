"""Hosts that only this machine can reach, by the hosts file and without a name server."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from modelyard.errors import ConfigError
from modelyard.settings import loopback
from modelyard.settings.loopback import is_loopback_host, loopback_address
from modelyard.settings.settings import Settings

HOSTS = """
127.0.0.1   localhost
::1         localhost ip6-localhost ip6-loopback  # as Debian has it
127.0.1.1   box.example box
10.0.0.7    lan
127.0.0.1   both
10.0.0.8    both
not-an-address odd
"""


@pytest.fixture(autouse=True)
def hosts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The hosts file of this test; a look-up elsewhere fails."""

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a name server was asked")

    path = tmp_path / "hosts"
    path.write_text(HOSTS)
    monkeypatch.setattr(loopback, "HOSTS_FILE", path)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return path


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("ip6-localhost", "::1"),
        ("IP6-Loopback.", "::1"),
        ("localhost", "127.0.0.1"),
        ("box", "127.0.1.1"),
        ("box.example", "127.0.1.1"),
    ],
)
def test_a_name_that_leads_to_loopback_addresses_only_is_loopback(host: str, address: str) -> None:
    settings = Settings(host=host, port=9)
    assert is_loopback_host(host)
    assert settings.is_loopback
    settings.refuse_open_door()
    assert settings.bind_host == address
    assert settings.address == (f"[{address}]:9" if ":" in address else f"{address}:9")


@pytest.mark.parametrize("host", ["lan", "both", "odd", "nowhere", "as", "#", "", "0.0.0.0", "10.0.0.7"])
def test_another_name_is_not(host: str) -> None:
    settings = Settings(host=host)
    assert not settings.is_loopback
    assert loopback_address(host) is None
    assert settings.bind_host == host
    with pytest.raises(ConfigError, match="can be reached from other machines"):
        settings.refuse_open_door()


def test_without_a_hosts_file_localhost_and_addresses_are_left(hosts: Path) -> None:
    hosts.unlink()
    assert [host for host in ("localhost", "127.0.0.1", "[::1]", "box") if is_loopback_host(host)] == [
        *("localhost", "127.0.0.1", "[::1]")
    ]
