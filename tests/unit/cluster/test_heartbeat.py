"""Heartbeats: what they say, when, and what they say last."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import pytest
from modelyard.cluster.heartbeat import Heartbeat
from modelyard.cluster.registry.base import Beaten, Instance, Receipt
from modelyard.cluster.registry.memory import MemoryRegistry
from modelyard.errors import Forbidden, RegistryUnavailable
from running import wait_until

URL = "http://127.0.0.1:8000/api"


class Recording:
    """A registry in memory that notes each call, and fails when it is told to."""

    def __init__(self) -> None:
        self.inner = MemoryRegistry(heartbeat_timeout=60)
        self.calls: list[tuple[str, list[Instance]]] = []
        self.failure: Exception | None = None
        self.interval: float | None = None
        self.hold: threading.Event | None = None

    def said(self, what: str) -> list[list[str]]:
        return [[one.key for one in those] for call, those in self.calls if call == what]

    def _note(self, what: str, instances: Sequence[Instance]) -> None:
        self.calls.append((what, list(instances)))
        if self.hold is not None:
            self.hold.wait(10)
        if self.failure is not None:
            raise self.failure

    def beat(self, instances: Sequence[Instance]) -> Beaten:
        self._note("beat", instances)
        beaten = self.inner.beat(instances)
        return Beaten(beaten.receipts, self.interval or beaten.interval)

    def deregister(self, instances: Sequence[Instance], *, forget: bool = False) -> list[Receipt]:
        self._note("forget" if forget else "deregister", instances)
        return self.inner.deregister(instances, forget=forget)

    def instances(self, key: str | None = None, *, healthy_only: bool = False) -> list[Instance]:
        return self.inner.instances(key, healthy_only=healthy_only)

    def close(self) -> None:
        self.inner.close()


@pytest.fixture
def registry() -> Recording:
    return Recording()


@pytest.fixture
def heartbeat(registry: Recording) -> Iterator[Heartbeat]:
    made = Heartbeat(registry)
    yield made
    if registry.hold is not None:
        registry.hold.set()
    made.stop()


def describe(key: str, **fields: object) -> Callable[[], Instance]:
    return lambda: Instance(key, URL, **fields)  # type: ignore[arg-type]


def healthy(registry: Recording) -> list[str]:
    return [one.key for one in registry.instances(healthy_only=True)]


def test_nothing_is_said_before_the_start(heartbeat, registry):
    heartbeat.add("a@llm", describe("a@llm"), 0.05)
    assert registry.calls == []
    assert [t for t in threading.enumerate() if t.name == "modelyard-heartbeat"] == []


def test_all_keys_of_a_process_go_in_one_beat_each_whole(heartbeat, registry):
    heartbeat.add("a@llm", describe("a@llm", weight=2.0, load="slots=1;free=1;waiting=0"), 20)
    heartbeat.add("b@llm", describe("b@llm"), 20)
    heartbeat.start()
    wait_until(lambda: healthy(registry) == ["a@llm", "b@llm"], "both are registered")
    (said,) = [those for call, those in registry.calls if call == "beat"]
    assert said[0].weight == 2.0 and said[0].load == "slots=1;free=1;waiting=0"
    wait_until(lambda: heartbeat.registered() == ["a@llm", "b@llm"], "known here too")


def test_a_key_that_comes_later_is_registered_at_once_and_the_thread_beats_on(heartbeat, registry):
    heartbeat.add("a@llm", describe("a@llm"), 0.05)
    heartbeat.start()
    wait_until(lambda: len(registry.said("beat")) >= 3, "it beats")
    heartbeat.add("b@llm", describe("b@llm"), 20)
    wait_until(lambda: "b@llm" in healthy(registry), "b is there")


def test_the_shortest_interval_counts_also_the_one_the_registry_wants(heartbeat, registry):
    registry.interval = 0.03
    heartbeat.add("a@llm", describe("a@llm"), 3600)
    heartbeat.start()
    wait_until(lambda: len(registry.said("beat")) >= 3, "the registry's interval is taken")


def test_the_second_beat_has_the_generation_that_the_first_was_given(heartbeat, registry):
    heartbeat.add("a@llm", describe("a@llm"), 0.03)
    heartbeat.start()
    wait_until(lambda: len(registry.said("beat")) >= 2, "two beats")
    generations = [those[0].generation for call, those in registry.calls if call == "beat"][:2]
    assert generations[0] is None
    assert generations[1] == registry.instances("a@llm")[0].generation


def test_one_that_sends_no_heartbeats_is_registered_once(heartbeat, registry):
    heartbeat.add("a@llm", describe("a@llm", check_healthy=False), 0.02, beats=False)
    heartbeat.add("b@llm", describe("b@llm"), 0.02)
    heartbeat.start()
    wait_until(lambda: len(registry.said("beat")) >= 4, "several beats")
    assert sum("a@llm" in keys for keys in registry.said("beat")) == 1
    assert healthy(registry) == ["a@llm", "b@llm"]


def test_a_refresh_beats_at_once_with_the_present_load_and_the_same_registration(heartbeat, registry):
    assert not heartbeat.refresh("a@llm")
    load = ["slots=1;free=1;waiting=0"]
    heartbeat.add("a@llm", lambda: Instance("a@llm", URL, load=load[0]), 3600)
    heartbeat.start()
    wait_until(lambda: heartbeat.registered() == ["a@llm"], "it is registered")
    load[0] += ";loaded=0"
    assert heartbeat.refresh("a@llm")
    wait_until(lambda: registry.instances()[0].load == load[0], "the registry has it")
    first, second = ([one.generation for one in those] for call, those in registry.calls if call == "beat")
    assert (first, second) == ([None], [registry.instances()[0].generation])


def test_a_removed_key_is_deregistered_and_beats_no_more(heartbeat, registry):
    heartbeat.add("a@llm", describe("a@llm"), 0.02)
    heartbeat.add("b@llm", describe("b@llm"), 0.02)
    heartbeat.start()
    wait_until(lambda: len(healthy(registry)) == 2, "both")
    heartbeat.remove("a@llm")
    wait_until(lambda: healthy(registry) == ["b@llm"], "a has left")
    heartbeat.remove("b@llm", forget=True)
    wait_until(lambda: [one.key for one in registry.instances()] == ["a@llm"], "b is forgotten, a's row stays")
    assert registry.said("forget") == [["b@llm"]]


def test_a_key_that_is_back_before_it_was_deregistered_stays(heartbeat, registry):
    heartbeat.add("a@llm", describe("a@llm"), 20)
    heartbeat.start()
    wait_until(lambda: healthy(registry) == ["a@llm"], "registered")
    registry.hold = threading.Event()
    heartbeat.add("b@llm", describe("b@llm"), 20)
    wait_until(lambda: ["a@llm", "b@llm"] in registry.said("beat"), "a beat is under way")
    heartbeat.remove("a@llm")
    heartbeat.add("a@llm", describe("a@llm"), 20)
    registry.hold.set()
    wait_until(lambda: heartbeat.registered() == ["a@llm", "b@llm"], "both are registered")
    assert healthy(registry) == ["a@llm", "b@llm"]
    assert registry.said("deregister") == []


def test_the_deregistration_is_the_last_word_also_while_a_beat_is_under_way(heartbeat, registry):
    heartbeat.add("a@llm", describe("a@llm"), 0.02)
    heartbeat.start()
    wait_until(lambda: len(registry.said("beat")) >= 2, "it beats")
    registry.hold = threading.Event()
    seen = len(registry.calls)
    wait_until(lambda: len(registry.calls) > seen, "a beat is under way")
    stopping = threading.Thread(target=heartbeat.stop)
    stopping.start()
    registry.hold.set()
    stopping.join(10)
    assert registry.calls[-1][0] == "deregister"
    assert healthy(registry) == []
    heartbeat.add("b@llm", describe("b@llm"), 0.02)
    heartbeat.stop()
    assert registry.calls[-1][0] == "deregister"


def test_a_stop_without_a_start_says_nothing(heartbeat, registry):
    heartbeat.add("a@llm", describe("a@llm"), 0.02)
    heartbeat.stop()
    heartbeat.start()
    assert registry.calls == []


def test_a_registry_that_hangs_holds_a_stop_only_so_long(heartbeat, registry):
    registry.hold = threading.Event()
    heartbeat.add("a@llm", describe("a@llm"), 0.02)
    heartbeat.start()
    wait_until(lambda: registry.calls, "a beat hangs")
    heartbeat.stop(timeout=0.1)


def test_while_the_registry_is_away_it_is_said_once_and_its_return_too(heartbeat, registry, caplog):
    caplog.set_level(logging.INFO, "modelyard.cluster.heartbeat")
    registry.failure = RegistryUnavailable("nobody answers")
    heartbeat.add("a@llm", describe("a@llm"), 0.02)
    heartbeat.start()
    wait_until(lambda: len(registry.said("beat")) >= 4, "it tries on")
    assert heartbeat.error == "nobody answers"
    registry.failure = None
    wait_until(lambda: healthy(registry) == ["a@llm"], "registered after all")
    wait_until(lambda: not heartbeat.error, "and known")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    assert "nobody answers" in said[0]
    assert said[1:] == [f"registered at {URL}: a@llm", said[2]]
    assert "answers again" in said[2]


def test_pauses_grow_up_to_the_interval_while_the_registry_is_away():
    heartbeat = Heartbeat(Recording())
    heartbeat.add("a@llm", describe("a@llm"), 20)
    pauses = []
    for failures in range(1, 9):
        heartbeat._failures = failures
        pauses.append(heartbeat._pause())
    assert pauses[0] <= 0.5
    assert all(later > earlier for earlier, later in pairwise(pauses[:6]))
    assert 18 <= pauses[-1] <= 20
    heartbeat._failures = 10_000
    assert heartbeat._pause() <= 20


def test_intervals_differ_from_beat_to_beat():
    heartbeat = Heartbeat(Recording())
    heartbeat.add("a@llm", describe("a@llm"), 20)
    pauses = {heartbeat._pause() for _ in range(20)}
    assert len(pauses) > 10
    assert all(18 <= pause <= 20 for pause in pauses)


def test_a_refusal_is_said_with_its_reason_and_tried_again(heartbeat, registry, caplog):
    registry.failure = Forbidden("10.0.0.1 lies in none of allowed_networks")
    heartbeat.add("a@llm", describe("a@llm"), 0.02)
    heartbeat.start()
    wait_until(lambda: len(registry.said("beat")) >= 2, "it tries again")
    assert "allowed_networks" in heartbeat.error
    assert sum("allowed_networks" in record.getMessage() for record in caplog.records) == 1


def test_an_error_of_no_kind_of_ours_does_not_end_the_thread(heartbeat, registry):
    registry.failure = ValueError("a bug")
    heartbeat.add("a@llm", describe("a@llm"), 0.02)
    heartbeat.start()
    wait_until(lambda: registry.calls, "one failed")
    registry.failure = None
    wait_until(lambda: healthy(registry) == ["a@llm"], "it goes on")


def test_a_store_that_was_emptied_is_right_again_after_one_beat(heartbeat, registry):
    heartbeat.add("a@llm", describe("a@llm"), 0.05)
    heartbeat.start()
    wait_until(lambda: healthy(registry) == ["a@llm"], "registered")
    registry.inner = MemoryRegistry(heartbeat_timeout=60)
    wait_until(lambda: healthy(registry) == ["a@llm"], "registered again")


def test_one_that_sends_no_heartbeats_is_registered_again_where_the_store_has_lost_it(heartbeat, registry):
    heartbeat.add("a@llm", describe("a@llm", check_healthy=False), 3600, beats=False)
    heartbeat.add("b@llm", describe("b@llm"), 0.02)
    heartbeat.start()
    wait_until(lambda: healthy(registry) == ["a@llm", "b@llm"], "registered")
    generation = registry.instances("a@llm")[0].generation
    registry.inner = MemoryRegistry(heartbeat_timeout=60)
    wait_until(lambda: healthy(registry) == ["a@llm", "b@llm"], "registered again")
    assert registry.instances("a@llm")[0].generation == generation
    seen = len(registry.calls)
    wait_until(lambda: len(registry.calls) > seen + 3, "it beats on")
    assert all([one.key for one in those] == ["b@llm"] for _, those in registry.calls[seen + 1 :])


def test_one_that_a_newer_process_has_replaced_says_no_more_of_it(heartbeat, registry, caplog):
    heartbeat.add("a@llm", describe("a@llm"), 0.02)
    heartbeat.add("b@llm", describe("b@llm"), 0.02)
    heartbeat.start()
    wait_until(lambda: healthy(registry) == ["a@llm", "b@llm"], "registered")
    registry.inner.beat([Instance("a@llm", URL)])
    wait_until(lambda: heartbeat.registered() == ["b@llm"], "it knows")
    seen = len(registry.calls)
    wait_until(lambda: len(registry.calls) > seen + 2, "it beats on")
    assert all([one.key for one in those] == ["b@llm"] for _, those in registry.calls[seen + 1 :])
    heartbeat.stop()
    assert healthy(registry) == ["a@llm"], "its deregistration does not reach its successor"
    assert sum("newer process" in record.getMessage() for record in caplog.records) == 1


def test_one_whose_successor_has_gone_registers_anew(heartbeat, registry):
    heartbeat.add("a@llm", describe("a@llm"), 0.02)
    heartbeat.start()
    wait_until(lambda: healthy(registry) == ["a@llm"], "registered")
    (newer,) = registry.inner.beat([Instance("a@llm", URL)]).receipts
    wait_until(lambda: heartbeat.registered() == [], "it knows of its successor")
    registry.inner.deregister([Instance("a@llm", URL, generation=newer.generation)])
    wait_until(lambda: heartbeat.registered() == ["a@llm"], "it is back")
    assert healthy(registry) == ["a@llm"]
    assert registry.instances("a@llm")[0].generation > newer.generation
