"""What every registry does, whatever keeps its rows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from modelyard.cluster.registry import forgetting
from modelyard.cluster.registry.base import ANY_GENERATION, Instance, Registry
from modelyard.errors import InvalidRequest
from registry_places import PLACES, Place
from running import wait_until
from stores import StoreServers

SOON = 0.2
"""Seconds after which a heartbeat is too old for a registry that is opened with it."""


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path, store_server: StoreServers) -> Iterator[Place]:
    made = PLACES[request.param](tmp_path, store_server)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def registry(place: Place) -> Registry:
    return place.open()


def instance(key: str = "chat@llm", port: int = 9001, **fields: object) -> Instance:
    return Instance(key, f"http://10.0.0.1:{port}/api", **fields)


def registered(registry: Registry, *instances: Instance) -> list[Instance]:
    """Register them, and return them with what they were issued."""
    receipts = registry.beat([replace(one, generation=None) for one in instances]).receipts
    return [replace(one, generation=receipt.generation) for one, receipt in zip(instances, receipts, strict=True)]


def only(registry: Registry, key: str | None = None) -> Instance:
    (found,) = registry.instances(key)
    return found


def test_an_empty_registry_has_no_instances(registry):
    assert registry.instances() == []
    assert registry.instances("chat@llm") == []
    assert registry.instances(healthy_only=True) == []


def test_what_is_registered_is_read_back_whole_and_healthy(registry):
    told = instance(
        weight=2.5,
        capabilities=["delta", "cancel"],
        load="slots=8;free=3;waiting=0",
        prompt_template="vicuna_v1.1 'quoted' ü \"too\"\n",
        check_healthy=True,
    )
    (receipt,) = registry.beat([told]).receipts
    assert (receipt.key, receipt.url, receipt.superseded) == (told.key, told.url, False)
    read = only(registry)
    assert read.last_heartbeat is not None
    assert read == replace(told, generation=receipt.generation, last_heartbeat=read.last_heartbeat, healthy=True)


def test_absent_values_are_read_back_as_absent(registry):
    registry.beat([instance(enabled=False, check_healthy=False, weight=0.5)])
    read = only(registry)
    assert (read.load, read.prompt_template, read.capabilities) == (None, None, [])
    assert (read.enabled, read.check_healthy, read.weight) == (False, False, 0.5)


def test_receipts_come_in_the_order_of_the_instances_one_each(registry):
    told = [instance("b@llm"), instance("a@llm"), instance("c@text2vec"), instance("a@llm", 9002)]
    receipts = registry.beat(told).receipts
    assert [(one.key, one.url) for one in receipts] == [(one.key, one.url) for one in told]


def test_a_beat_of_nothing_is_answered_with_the_interval_alone(registry):
    beaten = registry.beat([])
    assert beaten.receipts == []
    assert beaten.interval > 0
    assert registry.deregister([]) == []


def test_the_interval_is_a_third_of_the_timeout_and_twenty_seconds_at_most(place):
    assert place.open(6.0).beat([instance()]).interval == pytest.approx(2.0)
    assert place.open(600.0).beat([instance()]).interval == 20.0


def test_instances_are_ordered_by_key_and_address(registry):
    for key, port in (("b@llm", 2), ("a@llm", 9), ("B@llm", 1), ("a@llm", 10), ("ä@llm", 1), ("a b@llm", 1)):
        registry.beat([instance(key, port)])
    found = [(one.key, one.url) for one in registry.instances()]
    assert found == sorted(found)
    assert len(found) == 6


def test_one_key_is_read_without_the_others_and_in_full(registry):
    registry.beat([instance("a@llm", 1), instance("a@llm", 2), instance("A@llm", 3), instance("a@llm2", 4)])
    assert [one.url for one in registry.instances("a@llm")] == [instance(port=1).url, instance(port=2).url]
    assert registry.instances("a@") == []
    assert registry.instances("%") == []


@pytest.mark.parametrize(
    "key", ["Qwen/Qwen2.5-7B-Instruct@llm", "a b@llm", "模型@llm", "é@llm", "🦜@llm", "100%_\\'\";--@llm", "x{y}:z@llm"]
)
def test_names_are_kept_as_they_are(registry, key):
    url = "http+unix://%2Frun%2Fmodel%20yard%2Fw.sock/api;x='(%s:name,$1)"
    registry.beat([Instance(key, url)])
    assert (only(registry, key).key, only(registry).url) == (key, url)
    registry.deregister([Instance(key, url)], forget=True)
    assert registry.instances() == []


def test_names_that_differ_little_are_two(registry):
    keys = ["chat@llm", "Chat@llm", "chät@llm", "cha\u0308t@llm", "ss@llm", "ß@llm"]
    registry.beat([instance(key) for key in keys])
    assert sorted(one.key for one in registry.instances()) == sorted(keys)
    for key in keys:
        assert only(registry, key).key == key


def test_the_longest_names_and_texts_are_taken(registry):
    told = Instance(
        "模" * 508 + "@llm",
        "http://h/" + "p" * 1015,
        prompt_template="🦜" * 8192,
        load="l" * 255,
        capabilities=["c" * 64 for _ in range(32)],
    )
    registry.beat([told, replace(told, url=told.url[:-1] + "q")])
    first, second = registry.instances(told.key)
    assert (first.url, first.prompt_template, first.load) == (told.url, told.prompt_template, told.load)
    assert first.capabilities == told.capabilities
    assert second.url.endswith("q")


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"key": ""}, "[0].key"),
        ({"key": "k" * 513}, "[0].key"),
        ({"key": " chat@llm"}, "[0].key"),
        ({"key": "chat\n@llm"}, "[0].key"),
        ({"key": "chat\0@llm"}, "[0].key"),
        ({"key": "chat\ud800@llm"}, "[0].key"),
        ({"key": 7}, "[0].key"),
        ({"url": ""}, "[0].url"),
        ({"url": "u" * 1025}, "[0].url"),
        ({"url": None}, "[0].url"),
        ({"weight": float("nan")}, "[0].weight"),
        ({"weight": -1}, "[0].weight"),
        ({"weight": 1e300}, "[0].weight"),
        ({"load": "l" * 256}, "[0].load"),
        ({"prompt_template": "p" * 8193}, "[0].prompt_template"),
        ({"prompt_template": "\0"}, "[0].prompt_template"),
        ({"capabilities": ["c"] * 33}, "[0].capabilities"),
        ({"capabilities": ["c" * 65]}, "[0].capabilities"),
        ({"enabled": None}, "[0].enabled"),
        ({"generation": -1}, "[0].generation"),
        ({"generation": 2**53}, "[0].generation"),
        ({"generation": True}, "[0].generation"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_field_and_nothing_is_taken(registry, wrong, field):
    with pytest.raises(InvalidRequest) as refused:
        registry.beat([replace(instance(), **wrong), instance("other@llm")])
    assert [error["field"] for error in refused.value.errors] == [field]
    assert registry.instances() == []


def test_an_instance_that_is_named_twice_in_one_beat_is_refused(registry):
    with pytest.raises(InvalidRequest, match="twice"):
        registry.beat([instance(), instance(weight=2)])
    with pytest.raises(InvalidRequest, match="twice"):
        registry.deregister([instance(), instance()])


def test_a_key_that_no_instance_can_have_is_refused_when_it_is_looked_up(registry):
    with pytest.raises(InvalidRequest):
        registry.instances("k" * 513)
    with pytest.raises(InvalidRequest):
        registry.deregister([instance("")])


# Generations


def test_each_registration_is_issued_a_greater_generation(registry):
    issued = [registry.beat([instance()]).receipts[0].generation for _ in range(5)]
    assert issued == sorted(set(issued))
    assert issued[0] > 0
    assert only(registry).generation == issued[-1]


def test_a_beat_keeps_its_generation_and_brings_everything_anew(registry):
    (mine,) = registered(registry, instance(capabilities=["delta"], weight=2))
    (receipt,) = registry.beat([replace(mine, weight=3, load="slots=1;free=0;waiting=2", enabled=False)]).receipts
    assert (receipt.generation, receipt.superseded) == (mine.generation, False)
    read = only(registry)
    assert (read.weight, read.load, read.enabled) == (3, "slots=1;free=0;waiting=2", False)
    assert read.generation == mine.generation


def test_an_older_generation_changes_nothing_and_is_told_so(registry):
    (older,) = registered(registry, instance(weight=1))
    (newer,) = registered(registry, instance(weight=5))
    before = only(registry)
    (receipt,) = registry.beat([replace(older, weight=9, load="x", enabled=False)]).receipts
    assert receipt.superseded
    assert receipt.generation == newer.generation
    assert only(registry) == replace(before, last_heartbeat=only(registry).last_heartbeat)
    assert only(registry).last_heartbeat == before.last_heartbeat


def test_an_older_generation_does_not_bring_back_what_its_successor_deregistered(registry):
    (older,) = registered(registry, instance())
    (newer,) = registered(registry, instance())
    registry.deregister([newer])
    assert registry.beat([older]).receipts[0].superseded
    assert not only(registry).healthy


def test_one_beat_may_hold_old_and_new_and_each_gets_its_own_answer(registry):
    (older,) = registered(registry, instance("a@llm"))
    (newer,) = registered(registry, instance("a@llm"))
    (good,) = registered(registry, instance("b@llm"))
    receipts = registry.beat(
        [older, good, instance("c@llm"), replace(instance("d@llm"), generation=ANY_GENERATION)]
    ).receipts
    assert [one.superseded for one in receipts] == [True, False, False, False]
    assert [one.generation for one in receipts[:2]] == [newer.generation, good.generation]
    assert receipts[2].generation > 0
    assert receipts[3].generation > 0


def test_an_instance_whose_row_has_gone_is_taken_in_with_its_generation(place, registry):
    mine = registered(registry, instance("a@llm"), instance("b@llm"))
    place.empty()
    assert [one.generation for one in registry.beat(mine).receipts] == [one.generation for one in mine]
    assert [one.generation for one in registry.instances()] == [one.generation for one in mine]
    assert all(one.healthy for one in registry.instances())


def test_a_generation_newer_than_the_rows_is_taken(registry):
    # The store was put back from an older copy.
    (mine,) = registered(registry, instance())
    later = replace(mine, generation=mine.generation + 1000)
    assert registry.beat([later]).receipts[0].generation == later.generation
    assert registry.beat([mine]).receipts[0].superseded
    (next_one,) = registered(registry, instance())
    assert next_one.generation > later.generation


def test_generations_grow_also_after_the_store_was_emptied(place, registry):
    (before,) = registered(registry, instance())
    place.empty()
    (after,) = registered(registry, instance())
    assert after.generation > before.generation
    assert registry.beat([before]).receipts[0].superseded


def test_generations_grow_also_after_an_instance_was_forgotten(registry):
    (before,) = registered(registry, instance())
    registry.deregister([before], forget=True)
    (after,) = registered(registry, instance())
    assert after.generation > before.generation


def test_a_heartbeat_without_knowledge_of_generations_refreshes_the_row_and_nothing_else(registry):
    (mine,) = registered(registry, instance(weight=4, capabilities=["delta"], load="slots=1;free=1;waiting=0"))
    before = only(registry)
    (receipt,) = registry.beat([instance(weight=1, enabled=False, generation=ANY_GENERATION)]).receipts
    assert (receipt.generation, receipt.superseded) == (mine.generation, False)
    after = only(registry)
    assert after.last_heartbeat > before.last_heartbeat
    assert after == replace(before, last_heartbeat=after.last_heartbeat)


def test_a_heartbeat_without_knowledge_of_generations_registers_what_is_not_there(registry):
    (receipt,) = registry.beat([instance(weight=7, generation=ANY_GENERATION)]).receipts
    assert receipt.generation > 0
    assert not receipt.superseded
    assert (only(registry).weight, only(registry).generation) == (7, receipt.generation)


# Health


def test_health_is_a_comparison_when_read(place):
    patient, hasty = place.open(60), place.open(SOON)
    patient.beat([instance()])
    wait_until(lambda: not only(hasty).healthy, "the heartbeat is too old for one of them")
    assert only(patient).healthy
    assert hasty.instances(healthy_only=True) == []
    assert hasty.instances("chat@llm", healthy_only=True) == []
    assert patient.instances(healthy_only=True) == patient.instances()


def test_a_beat_makes_healthy_again(place):
    patient, hasty = place.open(60), place.open(SOON)
    (mine,) = registered(patient, instance())
    wait_until(lambda: not only(hasty).healthy, "the heartbeat is too old")
    stale = only(patient).last_heartbeat
    patient.beat([mine])
    assert only(patient).last_heartbeat >= stale + SOON

    def is_healthy() -> bool:
        hasty.beat([mine])
        return only(hasty).healthy

    wait_until(is_healthy, "it is healthy after a beat")


def test_one_that_needs_no_heartbeats_stays_healthy_until_it_is_deregistered(place):
    hasty = place.open(SOON)
    hasty.beat([instance("free@llm", check_healthy=False), instance("bound@llm")])
    wait_until(lambda: [one.healthy for one in hasty.instances()] == [False, True], "only the other one is too old")
    assert [one.key for one in hasty.instances(healthy_only=True)] == ["free@llm"]
    hasty.deregister([instance("free@llm")])
    assert hasty.instances(healthy_only=True) == []


def test_a_disabled_instance_is_healthy_all_the_same(registry):
    registry.beat([instance(enabled=False)])
    (found,) = registry.instances(healthy_only=True)
    assert (found.enabled, found.healthy) == (False, True)


# Deregistration


def test_what_is_deregistered_stays_unhealthy_until_it_beats_again(registry):
    mine, other = registered(registry, instance("a@llm"), instance("b@llm"))
    (receipt,) = registry.deregister([mine])
    assert (receipt.key, receipt.generation, receipt.superseded) == ("a@llm", mine.generation, False)
    assert [one.healthy for one in registry.instances()] == [False, True]
    registry.beat([mine, other])
    assert [one.healthy for one in registry.instances()] == [True, True]


@pytest.mark.parametrize("generation", [None, ANY_GENERATION], ids=["anew", "alive"])
def test_one_that_knows_no_generation_brings_back_what_was_deregistered(registry, generation):
    (mine,) = registered(registry, instance())
    registry.deregister([mine])
    registry.beat([instance(generation=generation)])
    assert only(registry).healthy


def test_what_is_forgotten_is_gone(registry):
    mine, _other = registered(registry, instance("a@llm"), instance("b@llm"))
    registry.deregister([mine], forget=True)
    assert registry.instances("a@llm") == []
    assert only(registry).key == "b@llm"


@pytest.mark.parametrize("forget", [False, True])
def test_an_older_generation_deregisters_nobody(registry, forget):
    (older,) = registered(registry, instance())
    (newer,) = registered(registry, instance())
    (receipt,) = registry.deregister([older], forget=forget)
    assert (receipt.generation, receipt.superseded) == (newer.generation, True)
    assert only(registry).healthy


@pytest.mark.parametrize("generation", [None, ANY_GENERATION], ids=["none", "any"])
@pytest.mark.parametrize("forget", [False, True])
def test_a_deregistration_without_a_generation_always_counts(registry, forget, generation):
    registered(registry, instance())
    (receipt,) = registry.deregister([instance(generation=generation)], forget=forget)
    assert not receipt.superseded
    assert [one.healthy for one in registry.instances()] == ([] if forget else [False])


@pytest.mark.parametrize("forget", [False, True])
def test_to_deregister_what_is_not_there_is_no_error(registry, forget):
    told = [instance(), instance("b@llm", generation=17)]
    receipts = registry.deregister(told, forget=forget)
    assert [(one.key, one.generation, one.superseded) for one in receipts] == [
        ("chat@llm", 0, False),
        ("b@llm", 17, False),
    ]
    assert registry.instances() == []


# What is dead for long


@pytest.fixture
def hasty_forgetting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is silent for a moment is forgotten when the next registers."""
    monkeypatch.setattr(forgetting, "FORGET_AFTER", SOON)
    monkeypatch.setattr(forgetting, "READ_INTERVAL", 0.0)


def keys_of(registry: Registry) -> list[str]:
    return [one.key for one in registry.instances()]


def register_until_gone(registry: Registry, key: str) -> None:
    def is_gone() -> bool:
        registry.beat([instance("new@llm", 9999)])
        return key not in keys_of(registry)

    wait_until(is_gone, "a registration has forgotten it")


@pytest.mark.usefixtures("hasty_forgetting")
def test_a_registration_forgets_what_is_silent_for_long(place):
    registry = place.open(SOON)
    registered(registry, instance("old@llm", 1), instance("older@llm", 2))
    registry.deregister([instance("older@llm", 2)])
    register_until_gone(registry, "old@llm")
    assert keys_of(registry) == ["new@llm"]


@pytest.mark.usefixtures("hasty_forgetting")
def test_what_needs_no_heartbeats_and_what_stopped_at_an_address_that_beats_is_never_forgotten(place):
    registry = place.open(SOON)
    constant = [instance(key, 2, check_healthy=False) for key in ("constant@llm", "constant2@llm")]
    registered(registry, instance("old@llm", 1), *constant)
    registered(registry, instance("stopped@llm", 9999))
    registry.deregister([instance("stopped@llm", 9999), constant[1]])
    register_until_gone(registry, "old@llm")
    assert keys_of(registry) == ["constant2@llm", "constant@llm", "new@llm", "stopped@llm"]


@pytest.mark.usefixtures("hasty_forgetting")
def test_what_still_counts_as_healthy_is_not_forgotten(place):
    patient, hasty = place.open(60), place.open(SOON)
    registered(patient, instance("old@llm", 1))
    wait_until(lambda: not only(hasty).healthy, "its heartbeat is older than what is forgotten")
    patient.beat([instance("new@llm", 2)])
    assert keys_of(patient) == ["new@llm", "old@llm"]
    register_until_gone(hasty, "old@llm")


@pytest.mark.usefixtures("hasty_forgetting")
def test_generations_grow_also_after_an_instance_was_forgotten_by_itself(place):
    registry = place.open(SOON)
    (before,) = registered(registry, instance("old@llm", 1))
    register_until_gone(registry, "old@llm")
    (after,) = registered(registry, instance("old@llm", 1))
    assert after.generation > before.generation
    assert registry.beat([before]).receipts[0].superseded


@pytest.mark.usefixtures("hasty_forgetting")
def test_a_generation_ahead_of_the_stores_clock_is_not_forgotten(place):
    registry = place.open(SOON)
    (mine,) = registered(registry, instance("ahead@llm", 1))
    ahead = replace(mine, generation=mine.generation + 3600 * 1_000_000)
    registry.beat([ahead])
    registered(registry, instance("old@llm", 2))
    register_until_gone(registry, "old@llm")
    (next_one,) = registered(registry, instance("ahead@llm", 1))
    assert next_one.generation > ahead.generation


def test_what_is_silent_for_less_than_a_day_is_not_forgotten(monkeypatch, place):
    monkeypatch.setattr(forgetting, "READ_INTERVAL", 0.0)
    hasty = place.open(SOON)
    registered(hasty, instance("old@llm", 1))
    wait_until(lambda: not only(hasty).healthy, "its heartbeat is too old")
    hasty.beat([instance("new@llm", 2)])
    assert keys_of(hasty) == ["new@llm", "old@llm"]


def test_the_table_is_not_read_for_what_is_dead_at_every_registration(monkeypatch, place):
    monkeypatch.setattr(forgetting, "FORGET_AFTER", SOON)
    registry = place.open(SOON)
    registered(registry, instance("old@llm", 1))
    wait_until(lambda: not only(registry).healthy, "its heartbeat is too old")
    registry.beat([instance("new@llm", 2)])
    assert keys_of(registry) == ["new@llm", "old@llm"]


# Several at once


def test_several_registries_see_the_same_rows(place):
    one, other = place.open(), place.open()
    (mine,) = registered(one, instance())
    assert only(other).generation == mine.generation
    (next_one,) = registered(other, instance())
    assert one.beat([mine]).receipts[0].superseded
    other.deregister([next_one], forget=True)
    assert one.instances() == []


def test_those_that_register_the_same_at_once_get_different_generations(place):
    registries = [place.open() for _ in range(4)]
    start = threading.Barrier(4)

    def register(registry: Registry) -> list[int]:
        start.wait(30)
        return [registry.beat([instance()]).receipts[0].generation for _ in range(20)]

    with ThreadPoolExecutor(4) as pool:
        issued = [generation for many in pool.map(register, registries) for generation in many]
    assert len(set(issued)) == 80
    assert only(registries[0]).generation == max(issued)


def test_nothing_is_lost_when_many_threads_beat_and_read(registry):
    keys = [f"m{number}@llm" for number in range(6)]

    def live(port: int) -> None:
        mine = registered(registry, *(instance(key, port) for key in keys))
        for number in range(8):
            # Each in another order: whoever locks rows as they come meets the others head on.
            mine = mine[number % 6 :] + mine[: number % 6]
            receipts = registry.beat(mine).receipts
            assert [one.generation for one in receipts] == [one.generation for one in mine]
            assert len([one for one in registry.instances(keys[number % 6]) if one.url == mine[0].url]) == 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(live, range(1, 9)))
    assert len(registry.instances(healthy_only=True)) == 48


def test_no_deadlock_where_many_beat_the_same_rows_in_all_orders(registry):
    keys = [f"m{number}@llm" for number in range(8)]
    mine = registered(registry, *(instance(key) for key in keys))

    def live(number: int) -> None:
        for turn in range(10):
            first = (number * 3 + turn) % 8
            shuffled = mine[first:] + mine[:first]
            shuffled = shuffled[:: 1 if number % 2 else -1]
            if turn % 3 == 2:
                shuffled[0] = replace(shuffled[0], generation=None)
            if turn % 4 == 3:
                registry.deregister(shuffled)
            registry.beat(shuffled)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(live, range(8)))
    assert len(registry.instances(healthy_only=True)) == 8


def test_many_instances_in_one_beat_are_all_taken(registry):
    told = [instance(f"m{number % 7}@llm", 1 + number) for number in range(1200)]
    mine = registered(registry, *told)
    assert len(registry.instances()) == 1200
    assert {one.generation for one in registry.beat(mine).receipts} == {one.generation for one in mine}
    registry.deregister(mine[:600], forget=True)
    assert len(registry.instances(healthy_only=True)) == 600


def test_it_can_be_closed_twice(place):
    registry = place.open()
    registry.beat([instance()])
    registry.close()
    registry.close()
