"""Where the keys of a service are: what the settings come to."""

from __future__ import annotations

import gc
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from modelyard.access.keys import new_key
from modelyard.access.tokens import digest_of, parse_scopes
from modelyard.cluster.keys import check_key_store, key_ring, key_store_url, keys_exist, open_key_store
from modelyard.cluster.membership import registry_url
from modelyard.errors import ConfigError
from modelyard.settings.settings import Settings


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({}, "sqlite:////srv/state/standalone-8000/keys.db"),
        ({"role": "worker", "port": 9000}, "sqlite:////srv/state/worker-9000/keys.db"),
        ({"registry": "sqlite:////srv/registry.db"}, "sqlite:////srv/registry.keys.db"),
        ({"registry": "sqlite:////srv/a%20b.sqlite3"}, "sqlite:////srv/a%20b.keys.sqlite3"),
        ({"registry": "redis://:pw@db:6379/1"}, "redis://:pw@db:6379/1"),
        ({"registry": "mysql://db/cluster"}, "mysql://db/cluster"),
        ({"registry": "memory:"}, "memory:"),
        ({"registry": "http://one/api,http://two/api"}, None),
        ({"registry": "https://one/api", "key_store": "redis://db"}, "redis://db"),
        ({"registry": "redis://db", "key_store": "none"}, None),
    ],
)
def test_keys_are_in_the_store_of_the_registry_unless_it_is_said(settings, url):
    chosen = Settings(state_dir="/srv/state", **{"role": "standalone", **settings})
    assert key_store_url(chosen) == url
    if chosen.registry is None:
        assert registry_url(chosen) != url


@pytest.mark.parametrize(
    ("role", "registry", "store", "requires"),
    [
        ("standalone", None, None, True),
        ("gateway", "redis://db", None, True),
        ("gateway", "http://one/api", "redis://db", True),
        ("worker", "redis://db", None, False),
        ("controller", "redis://db", None, False),
        ("worker", "redis://db", "redis://db", True),
        ("worker", None, None, True),
    ],
)
def test_who_shares_the_store_of_a_cluster_and_answers_its_processes_alone_requires_no_key(
    role, registry, store, requires
):
    assert Settings(role=role, registry=registry, key_store=store).requires_keys is requires


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://x", "key_store ftp://x: unknown kind"),
        ("keys.db", "key_store keys.db: unknown kind"),
        ("sqlite:////absent/folder/keys.db", "there is no folder /absent/folder: make it"),
        ("sqlite:///", "key_store sqlite:///: a file name is missing"),
        ("redis://:s3cr3t@db:port", r"key_store redis://:\*\*\*@db:port: not a valid address"),
        ("redis://:s3cr3t@db/x", r"store of keys redis://:\*\*\*@db/x: not an address of a Redis"),
        ("postgresql://me:s3cr3t@db", r"store of keys postgresql://me:\*\*\*@db: names no database"),
    ],
)
def test_an_address_that_does_not_fit_is_refused_without_its_password(url, why):
    with pytest.raises(ConfigError, match=why) as refused:
        check_key_store(Settings(key_store=url))
    assert "s3cr3t" not in str(refused.value)


def test_without_a_store_no_key_is_accepted():
    settings = Settings(key_store="none")
    check_key_store(settings)
    assert (key_ring(settings), keys_exist(settings)) == (None, False)


def test_keys_exist_when_there_is_one_or_when_it_can_not_be_told(tmp_path: Path):
    path = tmp_path / "keys.db"
    settings = Settings(key_store=f"sqlite:///{path}")
    assert not keys_exist(settings)
    assert not path.exists()
    store = open_key_store(f"sqlite:///{path}")
    store.add(new_key("ci", digest_of("x"), parse_scopes("infer")))
    store.revoke("ci")
    store.close()
    assert keys_exist(settings)
    path.write_bytes(b"This is no database. " * 500)
    assert keys_exist(settings)


def test_a_file_that_is_dropped_without_a_close_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = []

    def connect(*words: Any, **options: Any) -> sqlite3.Connection:
        made.append(sqlite3.Connection(*words, **options))
        return made[-1]

    monkeypatch.setattr(sqlite3, "connect", connect)
    store = open_key_store(f"sqlite:///{tmp_path}/keys.db")
    store.add(new_key("ci", digest_of("ci"), parse_scopes("infer")))
    del store
    gc.collect()
    for connection in made:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("SELECT 1")
