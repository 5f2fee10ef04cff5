"""What every store of keys does, wherever it has them."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from key_places import KEY_PLACES, KeyPlace
from modelyard.access.keys import Key, Limits, new_key
from modelyard.access.tokens import digest_of, parse_scopes
from modelyard.cluster.keys import open_key_store
from modelyard.cluster.keys.base import NOTHING, WINDOW, Amounts, Grant, KeyStore, Return
from modelyard.errors import ConfigError, RegistryUnavailable, Unauthorized
from running import wait_until
from stores import StoreServers


@pytest.fixture(params=KEY_PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path, store_server: StoreServers) -> Iterator[KeyPlace]:
    made = KEY_PLACES[request.param](tmp_path, store_server)
    yield made
    made.close()


@pytest.fixture
def store(place: KeyPlace) -> KeyStore:
    return place.open()


def key(name: str = "ci", **limits: int) -> Key:
    return new_key(name, digest_of(name), parse_scopes("infer"), limits=Limits(**limits))


def added(store: KeyStore, name: str = "ci", **limits: int) -> Key:
    made = key(name, **limits)
    store.add(made)
    return made


def take(store: KeyStore, key: Key, holder: str = "a", held: int = 0, spare: Amounts = NOTHING, **need: int) -> Grant:
    return store.take(key, holder, held, Amounts(**need), spare)


# Keys


def test_a_store_without_keys_has_no_stamp_and_reading_makes_nothing(place, store, tmp_path):
    assert (store.all(), store.stamp()) == ([], "")
    assert list(tmp_path.iterdir()) == []


def test_a_key_is_read_back_whole(store):
    whole = new_key(
        "proof@host",
        digest_of("secret"),
        parse_scopes("infer+worker"),
        ["small", "qwen*", "模型", '"\\'],
        expires=2_000_000_000.5,
        limits=Limits(600, 10**12, 3),
    )
    store.add(whole)
    bare = added(store, "bare")
    assert store.all() == [whole, bare]


def test_each_change_has_another_stamp_for_every_process(place, store):
    beside = place.open()
    stamps = [beside.stamp()]
    made = added(store)
    stamps.append(beside.stamp())
    added(store, "second")
    stamps.append(beside.stamp())
    store.revoke(made.id)
    stamps.append(beside.stamp())
    store.revoke("second", forget=True)
    stamps.append(beside.stamp())
    assert len(set(stamps)) == len(stamps)
    assert beside.stamp() == stamps[-1]


def test_a_name_is_that_of_one_valid_key(store):
    first = added(store)
    with pytest.raises(ConfigError, match="a key named ci already"):
        added(store)
    assert store.revoke("ci").id == first.id
    second = added(store)
    revoked, valid = store.all()
    assert (revoked.id, valid.id) == (first.id, second.id)
    assert revoked.revoked == pytest.approx(time.time(), abs=60)
    assert valid.revoked is None


def test_a_revoked_key_stays_as_it_is_when_it_is_revoked_again(store):
    made = added(store)
    once = store.revoke(made.id)
    assert store.revoke(made.id).revoked == once.revoked
    assert store.all() == [once]


def test_a_key_that_is_forgotten_has_gone(store):
    made = added(store, requests=5)
    assert store.revoke("ci", forget=True).id == made.id
    assert store.all() == []
    with pytest.raises(ConfigError, match="no key 'ci'"):
        store.revoke("ci")
    with pytest.raises(Unauthorized, match="ci was revoked"):
        take(store, made, requests=1)
    store.settle("a", {made.id: Return(0, 0, 0, 0)})


# Limits


def test_what_is_needed_is_granted_until_the_limit_and_then_nothing(store):
    made = added(store, requests=5, tokens=100)
    first = take(store, made, requests=2, tokens=40)
    assert (first.taken, first.left, first.lacking) == (Amounts(2, 40, 0), Amounts(3, 60, 0), "")
    assert 0 < first.remaining <= WINDOW
    assert first.window == pytest.approx(time.time() * 1_000_000, abs=60_000_000)
    refused = take(store, made, requests=1, tokens=61)
    assert (refused.taken, refused.left, refused.lacking) == (NOTHING, Amounts(3, 60, 0), "tokens")
    assert take(store, made, requests=4, tokens=1).lacking == "requests"
    last = take(store, made, requests=3, tokens=60)
    assert (last.left, last.window) == (NOTHING, first.window)
    assert take(store, made, requests=1).lacking == "requests"


def test_the_spare_is_granted_as_far_as_there_is_more(store):
    made = added(store, requests=10, tokens=100, parallel=4)
    assert take(store, made, requests=1, spare=Amounts(4, 20, 1)).taken == Amounts(5, 20, 1)
    assert take(store, made, "b", requests=1, spare=Amounts(100, 100, 100)).taken == Amounts(5, 80, 3)


def test_limits_hold_over_processes_at_once(place):
    made = added(place.open(), requests=60, tokens=600, parallel=30)
    stores = [place.open() for _ in range(3)]

    def spend(number: int) -> tuple[int, int, int]:
        taken = [0, 0, 0]
        for _ in range(40):
            held = taken[2]
            granted = take(stores[number], made, f"p{number}", held, requests=1, tokens=10, places=1)
            taken = [have + more for have, more in zip(taken, granted.taken, strict=True)]
            if granted.lacking:
                granted = take(stores[number], made, f"p{number}", taken[2], requests=1, tokens=10)
                taken = [have + more for have, more in zip(taken, granted.taken, strict=True)]
        return tuple(taken)

    with ThreadPoolExecutor(3) as pool:
        spent = list(pool.map(spend, range(3)))
    assert [sum(column) for column in zip(*spent, strict=True)] == [60, 600, 30]


def test_what_is_given_back_can_be_taken_again(store):
    made = added(store, requests=10, tokens=100)
    window = take(store, made, requests=10, tokens=100).window
    store.settle("a", {made.id: Return(window, 4, 30, 0)})
    assert take(store, made, "b", requests=4, tokens=30).left == NOTHING
    store.settle("a", {made.id: Return(window, 0, -20, 0)})
    store.settle("a", {made.id: Return(window, 0, 19, 0)})
    assert take(store, made, requests=0, tokens=1).lacking == "tokens"


def test_what_is_of_another_window_is_not_given_back_but_a_debt_counts(store):
    made = added(store, requests=10, tokens=100)
    window = take(store, made, requests=10, tokens=50).window
    store.settle("a", {made.id: Return(window - 1, 10, 50, 0)})
    assert take(store, made, requests=1).lacking == "requests"
    store.settle("a", {made.id: Return(window - 1, 0, -10, 0)})
    assert take(store, made, tokens=1).left == Amounts(0, 39, 0)


# Places


def test_places_are_those_of_all_processes(store):
    made = added(store, parallel=3)
    assert take(store, made, "a", 0, places=2).taken.places == 2
    assert take(store, made, "b", 0, places=2).lacking == "places"
    assert take(store, made, "b", 0, places=1).taken.places == 1
    assert take(store, made, "a", 2, places=1).lacking == "places"
    store.settle("a", {made.id: Return(0, 0, 0, 1)})
    assert take(store, made, "b", 1, places=1).taken.places == 1
    store.settle("a", {made.id: Return(0, 0, 0, 0)})
    assert take(store, made, "c", 0, places=1).left.places == 0


def test_places_that_are_not_renewed_are_free_again(place):
    brief, lasting = place.open(0.2), place.open(600)
    made = added(brief, parallel=2)
    assert take(brief, made, "crashed", 0, places=1).taken.places == 1

    def is_free() -> bool:
        lasting.settle("alive", {made.id: Return(0, 0, 0, 1)})
        return take(lasting, made, "new", 0, places=1).taken.places == 1

    wait_until(is_free, "the place of the crashed process is free")
    assert take(lasting, made, "other", 0, places=1).lacking == "places"


# Sign-ins


def test_a_sign_in_that_has_ended_is_known_to_all_processes_while_its_cookie_lives(place, store):
    other = place.open()
    assert not other.has_ended("a" * 32)
    for number in "a" * 32, "a" * 32, "b" * 32:
        store.end_sign_in(number, 3600)
    store.end_sign_in("c" * 32, 0.001)
    wait_until(lambda: not other.has_ended("c" * 32), "the cookie would not be valid any more")
    store.end_sign_in("d" * 32, 3600)
    assert [other.has_ended(letter * 32) for letter in "abcde"] == [True, True, False, True, False]
    assert other.stamp() == "", "there is no key"


# Versions


def test_a_newer_file_is_refused(tmp_path):
    place = KEY_PLACES["sqlite"](tmp_path, StoreServers())
    added(place.open())
    with contextlib.closing(sqlite3.connect(tmp_path / "keys.db")) as connection, connection:
        connection.execute("UPDATE modelyard_api_keys_schema SET version = 3")
    with pytest.raises(ConfigError, match=r"store of keys .*keys\.db.*version 3.*up to 2"):
        place.open().all()


def test_a_newer_redis_is_refused(store_server, tmp_path):
    server = store_server("redis")
    store = open_key_store(server.url())
    made = added(store)
    server.execute("SET modelyard:api-keys:schema 2")
    for call in (store.all, store.stamp, lambda: take(store, made), lambda: store.revoke("ci")):
        with pytest.raises(ConfigError, match=r"store of keys redis://.*version 2.*up to 1"):
            call()
    store.close()


def test_a_broken_file_is_an_error_and_stays_in_its_place(tmp_path):
    place = KEY_PLACES["sqlite"](tmp_path, StoreServers())
    path = tmp_path / "keys.db"
    path.write_bytes(b"This is no database. " * 500)
    with pytest.raises(RegistryUnavailable, match=r"the store of keys in .*keys\.db can't be used"):
        place.open().all()
    assert [entry.name for entry in tmp_path.iterdir()] == ["keys.db"]


def test_a_folder_that_is_not_there_has_no_keys_and_one_that_can_not_be_read_is_an_error(tmp_path):
    assert open_key_store(f"sqlite:///{tmp_path / 'absent' / 'keys.db'}").all() == []
    (tmp_path / "a file").touch()
    assert open_key_store(f"sqlite:///{tmp_path / 'a file' / 'keys.db'}").all() == []
    with pytest.raises(RegistryUnavailable, match=r"the store of keys in .*File name too long"):
        open_key_store(f"sqlite:///{tmp_path / ('x' * 300)}").all()
