"""API keys over several processes: limits hold over all of them, and a process that dies leaks nothing."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from key_places import KEY_PLACES, KeyPlace
from key_process import acting
from modelyard.access.keys import Key, Limits, new_key
from modelyard.access.tokens import digest_of, parse_scopes
from modelyard.cluster.keys import open_key_store
from modelyard.cluster.keys.base import NOTHING, Amounts
from running import Service, Services, wait_until
from stores import StoreServers

SHARED = ["sqlite", "postgresql", "redis"]


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, store_server: StoreServers) -> Iterator[KeyPlace]:
    made = KEY_PLACES[request.param](tmp_path, store_server)
    yield made
    made.close()


def added(place: KeyPlace, **limits: int) -> Key:
    key = new_key("ci", digest_of("ci"), parse_scopes("infer"), limits=Limits(**limits))
    place.open().add(key)
    return key


@pytest.mark.parametrize("place", SHARED, indirect=True)
@pytest.mark.parametrize("limits", [{"requests": 100}, {"tokens": 9000}], ids=["small", "large"])
def test_two_processes_do_not_exceed_a_limit(place, limits):
    key = added(place, parallel=40, **limits)
    with acting(place.url, "spend", 2) as processes:
        for process in processes:
            process.go()
        admitted = [json.loads(process.read()) for process in processes]
    most = limits.get("requests", 900)
    # What the processes held unused has come back when they ended.
    left = place.open().take(key, "test", 0, Amounts(), NOTHING).left
    assert sum(admitted) + (left.requests or left.tokens // 10) == most
    assert most * 0.95 <= sum(admitted) <= most


@pytest.mark.parametrize("place", SHARED, indirect=True)
def test_the_place_of_a_killed_process_comes_back(place):
    key = added(place, parallel=1)
    store = place.open()
    with acting(place.url, "hold") as (process,):
        process.go()
        assert process.read() == "held\n"
        assert store.take(key, "test", 0, Amounts(places=1), NOTHING).lacking == "places"
        process.process.send_signal(signal.SIGKILL)
        process.process.wait(10)
        wait_until(lambda: store.take(key, "test", 0, Amounts(places=1), NOTHING).taken.places, "the place is free")


def test_a_fork_inherits_no_connection_to_the_file(tmp_path):
    place = KEY_PLACES["sqlite"](tmp_path, StoreServers())
    key = added(place, requests=1000)
    with acting(place.url, "fork") as (process,):
        process.go()
        assert json.loads(process.read()) == [0] * 10
    assert place.open().take(key, "test", 0, Amounts(), NOTHING).left.requests == 1000 - 30
    place.close()


@pytest.fixture
def service(run: Services) -> Service:
    """Return a service of two processes with a model."""
    return run.start('[[models]]\nname = "echo"\n', workers=2, http_threads="gevent")


def test_a_key_counts_in_all_processes_of_a_service_from_its_making_to_its_end(service):
    def ask(_: int = 0, **headers: str) -> int:
        body = {"model": "echo", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        with requests.post(service.url("/v1/chat/completions"), json=body, headers=headers, timeout=30) as response:
            return response.status_code

    wait_until(lambda: {ask() for _ in range(8)} == {200}, "both processes answer")
    store = open_key_store(f"sqlite:///{service.folder / 'state' / f'standalone-{service.port}' / 'keys.db'}")
    store.add(new_key("ci", digest_of("ci"), parse_scopes("infer"), limits=Limits(25)))
    wait_until(lambda: {ask() for _ in range(8)} == {401}, "both processes require a key")
    with ThreadPoolExecutor(4) as pool:
        statuses = Counter(pool.map(lambda number: ask(number, Authorization="Bearer ci"), range(60)))
    assert statuses == {200: 25, 429: 35}
    store.revoke("ci")
    wait_until(lambda: {ask(**{"x-api-key": "ci"}) for _ in range(8)} == {401}, "both processes refuse the key")
    store.close()
