"""What a router sees of a registry, and what it goes on seeing while that is away or has lost its rows."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
from modelyard.cluster import view as registry_view
from modelyard.cluster.registry.base import MANAGER_KEY, Beaten, Instance, Receipt
from modelyard.cluster.registry.memory import MemoryRegistry, Table
from modelyard.cluster.view import RegistryView
from modelyard.errors import RegistryUnavailable
from running import wait_until

KEY = "a@llm"
ONE, TWO = "http://h1/api", "http://h2/api"


class Store:
    """A registry in memory that may be away, whose clock is set, and that counts its readers."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.away = False
        self.reads = 0
        self.held: threading.Event | None = None
        self.table = Table()
        self._registry = MemoryRegistry(60.0, self.table, lambda: self.now)

    def beat(self, instances: Sequence[Instance]) -> Beaten:
        return self._registry.beat(instances)

    def worker(self, url: str, *keys: str) -> None:
        """Let the worker at an address beat for all of its keys."""
        self.beat([Instance(key, url) for key in (MANAGER_KEY, *keys)])

    def deregister(self, instances: Sequence[Instance], *, forget: bool = False) -> list[Receipt]:
        return self._registry.deregister(instances, forget=forget)

    def instances(self, key: str | None = None, *, healthy_only: bool = False) -> list[Instance]:
        self.reads += 1
        if self.held is not None:
            self.held.wait(10)
        if self.away:
            raise RegistryUnavailable("away")
        return [replace(row) for row in self._registry.instances(key, healthy_only=healthy_only)]

    def close(self) -> None:
        self._registry.close()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def view(store: Store) -> RegistryView:
    return RegistryView(store, 60)


def healthy(view: RegistryView, key: str = KEY) -> list[str]:
    return [one.url for one in view._by_key.get(key, []) if one.healthy]


def test_while_the_registry_is_away_what_was_seen_last_stays(view: RegistryView, store: Store) -> None:
    store.worker(ONE, KEY)
    view.refresh()
    store.away = True
    view.refresh()
    assert healthy(view) == [ONE]
    assert (view.complete, view.error) == (True, "away")


def test_after_it_was_away_nobody_is_unhealthy_whose_heartbeats_had_nowhere_to_go(
    view: RegistryView, store: Store
) -> None:
    store.worker(ONE, KEY)
    store.worker(TWO, KEY)
    view.refresh()
    store.away = True
    view.refresh()
    store.now += 100
    store.away = False
    for _ in range(3):
        view.refresh()
        assert healthy(view) == [ONE, TWO]
    # One is heard of again, and what it says counts: its model has gone.
    store.worker(ONE)
    store.deregister([Instance(KEY, ONE)])
    view.refresh()
    assert healthy(view) == [TWO]
    assert healthy(view, MANAGER_KEY) == [ONE, TWO]
    view.refresh()
    assert healthy(view) == [TWO]


def test_what_a_worker_said_before_the_first_look_counts(view: RegistryView, store: Store) -> None:
    store.worker(ONE, KEY)
    view.refresh()
    store.away = True
    view.refresh()
    store.away, store.now = False, store.now + 100
    store.worker(ONE, KEY)
    store.deregister([Instance(KEY, ONE)])
    view.refresh()
    assert healthy(view) == []
    assert healthy(view, MANAGER_KEY) == [ONE]


def test_a_store_that_came_back_with_older_heartbeats_has_not_heard_of_anybody(
    view: RegistryView, store: Store
) -> None:
    store.worker(ONE, KEY)
    written = dict(store.table.rows)
    store.now += 10
    store.table.rows = {}
    store.worker(ONE, KEY)
    view.refresh()
    store.away = True
    view.refresh()
    store.away, store.now, store.table.rows = False, store.now + 100, written
    for _ in range(2):
        view.refresh()
        assert healthy(view) == [ONE]


def test_one_that_is_not_heard_of_after_all_is_unhealthy(
    view: RegistryView, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.worker(ONE, KEY)
    view.refresh()
    store.away = True
    view.refresh()
    store.away, store.now = False, store.now + 100
    view.refresh()
    assert healthy(view) == [ONE]
    monkeypatch.setattr(registry_view, "KEPT_FOR", 0.0)
    view.refresh()
    assert healthy(view) == []


def test_one_that_was_unhealthy_before_stays_so(view: RegistryView, store: Store) -> None:
    store.worker(ONE, KEY)
    store.deregister([Instance(KEY, ONE)])
    view.refresh()
    store.away = True
    view.refresh()
    store.away = False
    view.refresh()
    assert healthy(view) == []


def test_what_an_emptied_store_has_lost_stays_until_it_is_registered_again(view: RegistryView, store: Store) -> None:
    store.worker(ONE, KEY)
    store.worker(TWO, KEY)
    view.refresh()
    store.table.rows.clear()
    for _ in range(2):
        view.refresh()
        assert healthy(view) == [ONE, TWO]
    store.worker(ONE, "b@llm")
    view.refresh()
    assert healthy(view) == [TWO], "what a worker says of itself counts"
    assert healthy(view, "b@llm") == [ONE]


def test_what_is_lost_for_good_is_gone_after_a_while(
    view: RegistryView, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.worker(ONE, KEY)
    view.refresh()
    store.table.rows.clear()
    view.refresh()
    monkeypatch.setattr(registry_view, "KEPT_FOR", 0.0)
    view.refresh()
    assert view.all() == []


def test_a_model_that_was_forgotten_is_gone_at_once(view: RegistryView, store: Store) -> None:
    store.worker(ONE, KEY)
    view.refresh()
    store.deregister([Instance(KEY, ONE)], forget=True)
    view.refresh()
    assert [one.key for one in view.all()] == [MANAGER_KEY]


def test_a_refresh_now_sees_what_was_registered_before_it(view: RegistryView, store: Store) -> None:
    view.refresh()
    store.worker(ONE, KEY)
    view.refresh_now()
    assert healthy(view) == [ONE]


class Crowded:
    """A lock that counts who has come to it."""

    def __init__(self) -> None:
        self.came = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self.came += 1
        self._lock.acquire()

    def __exit__(self, *raised: object) -> None:
        self._lock.release()


@pytest.mark.parametrize(("away", "reads"), [(False, 2), (True, 1)])
def test_many_that_refresh_now_together_share_a_read(view: RegistryView, store: Store, away: bool, reads: int) -> None:
    """Those that came during a read share one more; a failure they share with it."""
    store.held, store.away = threading.Event(), away
    crowd = Crowded()
    view._reading = crowd  # type: ignore[assignment]
    threads = [threading.Thread(target=view.refresh_now) for _ in range(20)]
    try:
        threads[0].start()
        wait_until(lambda: store.reads, "the first reads")
        for thread in threads[1:]:
            thread.start()
        wait_until(lambda: crowd.came == 20, "all have come")
    finally:
        store.held.set()
        for thread in threads:
            thread.join(10)
    assert store.reads == reads
