"""The keys as a process holds them: found without the store, read again when they change, kept while it is silent."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from modelyard.access.keys import Key, Limits, new_key
from modelyard.access.tokens import digest_of, parse_scopes
from modelyard.cluster.keys.ring import KEPT_FOR, LOOK_AGAIN, REFRESH, KeyRing
from modelyard.cluster.keys.sqlite import MemoryKeyStore, SqliteKeyStore
from modelyard.errors import NotReady, RateLimited, RegistryUnavailable, Unauthorized


class Store(MemoryKeyStore):
    """A store that counts its reads, and can be silent."""

    def __init__(self) -> None:
        super().__init__()
        self.is_silent = False
        self.stamps = self.reads = 0
        self.after_stamp: Callable[[], object] = int
        self.after_revoke: Callable[[], object] = int

    def stamp(self) -> str:
        self.stamps += 1
        if self.is_silent:
            raise RegistryUnavailable("the store of keys is silent")
        stamp = super().stamp()
        self.after_stamp()
        return stamp

    def revoke(self, name: str, *, forget: bool = False) -> Key:
        gone = super().revoke(name, forget=forget)
        self.after_revoke()
        return gone

    def all(self) -> list[Key]:
        self.reads += 1
        return super().all()


class Times:
    now = 1000.0


@pytest.fixture
def times() -> Times:
    return Times()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def ring(store: Store, times: Times) -> KeyRing:
    return KeyRing(store, lambda: times.now, lambda: times.now)


def add(store: Store, secret: str, **fields: object) -> Key:
    key = new_key(secret, digest_of(secret), parse_scopes("infer"), **fields)  # type: ignore[arg-type]
    store.add(key)
    return key


def look(ring: KeyRing, times: Times) -> None:
    """Let the ring's thread do its work when it is due."""
    times.now += REFRESH
    ring._work()


def test_a_key_is_found_by_its_secret_without_a_call_of_the_store(ring, store):
    made = add(store, "one")
    assert ring.find("one") == made
    for _ in range(100):
        assert ring.find("one") == made
    assert (store.stamps, store.reads) == (1, 1)


def test_unknown_secrets_ask_the_store_now_and_then(ring, store, times):
    add(store, "one")
    assert [ring.find(f"unknown {number}") for number in range(100)] == [None] * 100
    assert store.stamps == 1
    new = add(store, "new")
    times.now += LOOK_AGAIN
    assert ring.find("new") == new
    assert [ring.find(f"unknown {number}") for number in range(100)] == [None] * 100
    assert (store.stamps, store.reads) == (2, 2)


def test_keys_are_required_as_soon_as_there_is_one_and_for_ever(ring, store, times):
    assert not ring.is_required()
    add(store, "one")
    assert not ring.is_required()
    look(ring, times)
    assert ring.is_required()
    store.revoke("one", forget=True)
    look(ring, times)
    assert ring.is_required()
    assert ring.find("one") is None


def test_a_revoked_key_is_required_to_be_another(ring, store):
    add(store, "one")
    store.revoke("one")
    assert ring.is_required()
    with pytest.raises(Unauthorized, match="the key one was revoked at 20"):
        ring.find("one")


def test_a_revocation_acts_with_the_next_look(ring, store, times):
    add(store, "one")
    assert ring.find("one")
    store.revoke("one")
    look(ring, times)
    with pytest.raises(Unauthorized, match="revoked"):
        ring.find("one")


def test_an_expired_key_is_refused_with_its_time(ring, store, times):
    add(store, "one", expires=1010.0)
    assert ring.find("one")
    times.now += 10
    with pytest.raises(Unauthorized, match="the key one has expired at 1970-01-01T00:16:50Z"):
        ring.find("one")


def test_unchanged_keys_are_not_read_again(ring, store, times):
    add(store, "one")
    for _ in range(5):
        look(ring, times)
    assert (store.stamps, store.reads) == (5, 1)


def test_a_silent_store_leaves_the_keys_in_force_for_a_time(ring, store, times):
    add(store, "one")
    assert ring.find("one")
    store.is_silent = True
    look(ring, times)
    assert (ring.find("one").name, ring.find("two"), ring.is_required()) == ("one", None, True)
    assert ring.status() == {"count": 1, "error": "the store of keys is silent"}
    times.now += KEPT_FOR
    with pytest.raises(NotReady, match="can't be checked: the store of keys is silent"):
        ring.find("one")
    store.is_silent = False
    look(ring, times)
    assert ring.find("one")
    assert ring.status() == {"count": 1, "error": None}


def test_without_a_first_look_nothing_is_open(ring, store, times):
    store.is_silent = True
    for call in (ring.is_required, lambda: ring.find("one")):
        with pytest.raises(NotReady, match="the store of keys is silent"):
            call()
    assert store.stamps == 1
    assert ring.status() == {"count": None, "error": "the store of keys is silent"}
    store.is_silent = False
    times.now += LOOK_AGAIN
    assert not ring.is_required()


def test_the_status_counts_valid_keys(ring, store, times):
    for name in ("one", "two", "three"):
        add(store, name, expires=1001.0 if name == "one" else None)
    store.revoke("two")
    times.now += 1
    ring.find("three")
    assert ring.status()["count"] == 1


def test_a_process_that_stops_gives_back_what_it_holds(store, times):
    made = add(store, "one", limits=Limits(parallel=1, requests=200))
    first, second = (KeyRing(store, lambda: times.now, lambda: times.now) for _ in range(2))
    for _ in range(20):
        first.admit(made, 0).close(0)
    first.start()
    first.stop()
    admitted = 0
    with pytest.raises(RateLimited):
        while True:
            second.admit(made, 0).close(0)
            admitted += 1
    assert admitted == 180


def test_a_file_that_can_not_be_looked_at_is_not_one_without_keys(tmp_path: Path):
    assert not KeyRing(SqliteKeyStore(tmp_path / "none.db")).is_required()
    with pytest.raises(NotReady, match=r"whether keys are needed is not known: the store of keys in "):
        KeyRing(SqliteKeyStore(tmp_path / ("long" * 100))).is_required()


# Changes, and what is left


def test_a_change_of_this_process_holds_in_it_at_once(ring: KeyRing, store: Store, times: Times):
    key = new_key("ci", digest_of("secret"), parse_scopes("infer"))
    assert ring.find("secret") is None
    ring.add(key)
    assert ring.find("secret") == key
    assert ring.all() == [key]
    assert ring.revoke("ci").id == key.id
    with pytest.raises(Unauthorized):
        ring.find("secret")
    ring.revoke(key.id, forget=True)
    assert ring.find("secret") is None


def test_a_change_holds_at_once_though_another_thread_has_just_looked(ring: KeyRing, store: Store, times: Times):
    add(store, "one")
    assert ring.find("one")
    has_looked, has_changed = threading.Event(), threading.Event()

    def wait_for_change() -> None:
        store.after_stamp = int
        has_looked.set()
        assert has_changed.wait(10)

    store.after_stamp, store.after_revoke = wait_for_change, has_changed.set
    thread = threading.Thread(target=look, args=(ring, times))
    thread.start()
    assert has_looked.wait(10)
    ring.revoke("one")
    with pytest.raises(Unauthorized, match="revoked"):
        ring.find("one")
    thread.join()


def test_what_is_left_is_that_of_all_processes_and_to_look_takes_nothing(ring: KeyRing, store: Store, times: Times):
    key = add(store, "secret", limits=Limits(requests=5, parallel=3))
    other = KeyRing(store, lambda: times.now, lambda: times.now)
    other.admit(key, 7)
    assert [ring.left(key), ring.left(key)] == [Limits(4, None, 2)] * 2
    assert ring.left(add(store, "free")) == Limits()
    store.revoke("secret", forget=True)
    with pytest.raises(Unauthorized):
        ring.left(key)
