"""The choice among instances: pure, so time and chance are given."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
from clocks import Clock
from modelyard.affinity import BOUND, Candidate, ranked
from modelyard.cluster.registry.base import Instance
from modelyard.cluster.routing import COOL_DOWN, LOAD_AGE, LONGEST_COOL_DOWN, Load, Routes, state_of
from modelyard.worker.states import State

KEY = "a@llm"


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def routes(clock: Clock) -> Routes:
    return Routes(clock=clock, random=random.Random(7))


def instance(number: int = 1, **fields: object) -> Instance:
    given = {"healthy": True, "generation": 10, **fields}
    return Instance(KEY, f"http://h{number}/api", **given)  # type: ignore[arg-type]


def fill(routes: Routes, one: Instance, requests: int) -> None:
    for _ in range(requests):
        routes.began(one)


def shares(routes: Routes, those: list[Instance], draws: int = 400) -> Counter[str]:
    """Count whom ``draws`` requests go to that are over at once."""
    found: Counter[str] = Counter()
    for _ in range(draws):
        taken = routes.take(those).instance
        assert taken is not None
        found[taken.url] += 1
        routes.ended(taken)
    return found


# Load


@pytest.mark.parametrize(
    ("text", "load"),
    [
        ("slots=8;free=3;waiting=2", Load(8, 3, 2)),
        ("waiting=0;slots=1;free=1;more=x", Load(1, 1, 0)),
        ("slots=8;free=0;waiting=1;loaded=0", Load(8, 0, 1, loaded=False)),
        ("slots=8;free=9;waiting=0", None),
        ("slots=8;free=-1;waiting=0", None),
        ("slots=8;free=x;waiting=0", None),
        ("slots=8", None),
        ("", None),
        (None, None),
    ],
)
def test_what_a_gate_says_is_read_and_nonsense_is_nothing(text, load):
    assert Load.parse(text) == load


def test_a_load_is_written_as_it_is_read():
    for load in (Load(8, 3, 2), Load(8, 0, 2, loaded=False)):
        assert Load.parse(str(load)) == load
    assert Load(8, 3, 2).busy == 7


# The choice


def test_of_none_none_is_taken(routes):
    assert routes.take([]) == (None, 0)


def test_those_that_are_unhealthy_disabled_or_tried_are_not_taken(routes):
    those = [instance(1, healthy=False), instance(2, enabled=False), instance(3)]
    assert routes.take(those, {"http://h3/api"}).instance is None
    taken = routes.take(those).instance
    assert taken is not None and taken.url == "http://h3/api"
    assert "heartbeat" in routes.why_not(those[0])
    assert "disabled" in routes.why_not(those[1])
    assert routes.why_not(those[2]) == ""


def test_the_one_with_less_under_way_is_taken(routes):
    one, two = instance(1), instance(2)
    fill(routes, one, 3)
    assert [routes.take([one, two]).instance for _ in range(3)] == [two] * 3
    assert set(shares(routes, [one, two], 50)) == {one.url, two.url}, "level, both are taken"


def test_equal_instances_get_equal_shares(routes):
    found = shares(routes, [instance(n) for n in range(4)])
    assert all(60 < found[f"http://h{n}/api"] < 140 for n in range(4))


def test_of_two_random_ones_the_most_loaded_is_never_taken(routes):
    those = [instance(n) for n in range(4)]
    for number, one in enumerate(those):
        fill(routes, one, number)
    found: Counter[str] = Counter()
    for _ in range(300):
        taken = routes.take(those).instance
        assert taken is not None
        routes.ended(taken)
        found[taken.url] += 1
    assert found[those[3].url] == 0
    assert found[those[0].url] > found[those[1].url] > found[those[2].url] > 0


def test_twice_the_weight_is_twice_the_work(routes):
    light, heavy = instance(1), instance(2, weight=2.0)
    for _ in range(30):
        routes.take([light, heavy])
    assert routes._traffic[KEY, heavy.url].in_flight in (19, 20, 21)


def test_more_slots_are_more_work(routes):
    small, large = instance(1), instance(2)
    routes.answered(small, "slots=2;free=2;waiting=0")
    routes.answered(large, "slots=8;free=8;waiting=0")
    for _ in range(10):
        routes.take([small, large])
    assert routes._traffic[KEY, small.url].in_flight == 2


def test_what_others_send_there_counts_until_it_is_old(routes, clock):
    busy, idle = instance(1), instance(2)
    routes.answered(busy, "slots=8;free=0;waiting=4")
    routes.answered(idle, "slots=8;free=8;waiting=0")
    fill(routes, idle, 5)
    assert routes.by_load([busy, idle]) == [idle, busy]
    clock.now += LOAD_AGE + 0.1
    assert routes.by_load([busy, idle]) == [busy, idle]


def test_own_requests_are_not_counted_twice(routes):
    one, two = instance(1), instance(2)
    fill(routes, one, 4)
    routes.answered(one, "slots=8;free=4;waiting=0")
    routes.answered(two, "slots=8;free=3;waiting=0")
    assert routes.by_load([one, two]) == [one, two]


def test_before_anything_was_sent_the_last_heartbeat_says_the_load(routes):
    busy, idle = instance(1, load="slots=8;free=0;waiting=9"), instance(2, load="slots=8;free=7;waiting=0")
    assert routes.take([busy, idle]).instance is idle


def test_one_of_no_weight_is_the_last_to_be_taken(routes):
    none, some = instance(1, weight=0.0), instance(2)
    fill(routes, some, 100)
    assert routes.take([none, some]).instance is some
    assert routes.take([none]).instance is none


# Sessions

SESSIONS = [f"session-{number}" for number in range(200)]


def order_of(session: str, those: list[Instance]) -> list[Instance]:
    order = ranked(session, [Candidate(one.url, 0, 8, one.weight) for one in those])
    return [one for candidate in order for one in those if one.url == candidate.url]


def test_a_session_stays_where_it_is_while_others_come_and_go(routes):
    those = [instance(n) for n in range(4)]
    first = routes.take(those, (), "s").instance
    assert first is not None and first == order_of("s", those)[0]
    for other in SESSIONS[:40]:
        taken = routes.take(those, (), other).instance
        routes.ended(taken)
        again = routes.take(those, (), "s").instance
        assert again == first
        routes.ended(again)


def test_a_session_goes_past_an_instance_over_the_bound_to_its_next(routes):
    those = [instance(n, load="slots=16;free=16;waiting=0") for n in range(4)]
    first, second, *_ = order_of("s", those)
    fill(routes, first, 7)
    assert routes.take(those, (), "s").instance == first, "half of its slots are always for its sessions"
    assert routes.take(those, (), "s").instance == second
    for one in those:
        fill(routes, one, 0 if one == first else 7)
    assert routes.take(those, (), "s").instance == first, "its 8 are what all have"


def test_all_requests_of_one_session_together_leave_no_instance_idle(routes):
    those = [instance(n, load="slots=8;free=8;waiting=0") for n in range(4)]
    taken = Counter(routes.take(those, (), "s").instance.url for _ in range(32))  # type: ignore[union-attr]
    assert set(taken.values()) == {8}


def test_with_many_sessions_no_instance_has_more_than_the_bound(routes):
    those = [instance(n, load="slots=64;free=64;waiting=0") for n in range(4)]
    taken = Counter(routes.take(those, (), session).instance.url for session in SESSIONS)  # type: ignore[union-attr]
    assert max(taken.values()) <= 50 * BOUND + 1


def test_a_full_instance_is_gone_past_while_another_has_a_free_slot_whatever_the_mean_is(routes):
    those = [instance(n, load="slots=2;free=2;waiting=0") for n in range(3)]
    first, second, third = order_of("s", those)
    fill(routes, first, 2)
    fill(routes, second, 2)
    assert routes.take(those, (), "s").instance == third
    assert routes.take(those, (), "s").instance == third
    assert routes.take(those, (), "s").instance == first, "now all are full"


def test_a_session_waits_in_its_own_line_while_it_is_not_much_longer(routes):
    those = [instance(n, load="slots=1;free=0;waiting=3") for n in range(3)]
    first, second, third = order_of("s", those)
    assert routes.by_load(those, "s")[0] == first
    fill(routes, first, 6)
    fill(routes, second, 3)
    fill(routes, third, 2)
    assert routes.by_load(those, "s")[:2] == [second, third]


def test_the_weight_of_an_instance_is_its_share_of_the_sessions(routes):
    none, some = instance(1, weight=0.0), instance(2)
    assert all(routes.take([none, some], (), session).instance is some for session in SESSIONS[:8])


def test_a_session_does_not_go_to_what_is_unhealthy_or_was_tried(routes):
    those = [instance(n) for n in range(3)]
    first, second, third = order_of("s", those)
    assert routes.take(those, {first.url}, "s").instance == second
    routes.failed(first, "refused")
    routes.failed(second, "refused")
    assert routes.take(those, (), "s") == (third, 1)


# Failures


def test_an_address_that_failed_is_left_alone_until_a_probe_reaches_it(routes, clock):
    one, other_key = instance(1), Instance("b@llm", "http://h1/api", healthy=True, generation=9)
    routes.failed(one, "connection refused")
    clock.now += 1000
    assert routes.take([one]).instance is None
    assert routes.take([other_key]).instance is None, "whatever runs there"
    assert "connection refused" in routes.why_not(one)
    assert routes.to_probe() == [one.url]
    routes.probed(one.url)
    assert routes.take([one]).instance is one


def test_pauses_between_probes_grow_to_a_limit(routes, clock):
    one = instance(1)
    routes.failed(one, "refused")
    pauses = []
    for _ in range(12):
        pause = routes.next_probe_in()
        assert pause is not None
        pauses.append(pause)
        assert routes.to_probe() == []
        clock.now += pause
        assert routes.to_probe() == [one.url]
        routes.probed(one.url, "refused")
    assert COOL_DOWN <= pauses[0] <= COOL_DOWN * 1.25
    assert all(later > earlier * 1.4 for earlier, later in pairwise(pauses[:7]))
    assert LONGEST_COOL_DOWN <= pauses[-1] <= LONGEST_COOL_DOWN * 1.25


def test_ten_requests_that_fail_together_are_one_failure(routes, clock):
    one = instance(1)
    for _ in range(10):
        routes.failed(one, "reset")
    assert routes.next_probe_in() <= COOL_DOWN * 1.25


def test_one_that_registered_anew_is_taken_at_once(routes):
    routes.failed(instance(1), "refused")
    routes.unwilling(instance(2), "draining", 60)
    assert routes.take([instance(1), instance(2)]).instance is None
    assert routes.take([instance(1, generation=11)]).instance is not None
    assert routes.take([instance(2, generation=11)]).instance is not None


def test_a_model_that_takes_nothing_now_is_left_alone_for_a_while_and_its_neighbours_are_not(routes, clock):
    one, other_key = instance(1), Instance("b@llm", "http://h1/api", healthy=True, generation=9)
    routes.unwilling(one, "it starts", 2.0)
    assert routes.take([one]).instance is None
    assert routes.take([other_key]).instance is other_key
    assert routes.to_probe() == []
    clock.now += 2.6
    assert routes.take([one]).instance is one


def test_an_answer_that_was_on_its_way_before_the_failure_changes_nothing(routes):
    one = instance(1)
    routes.failed(one, "reset")
    routes.answered(one)
    assert routes.take([one]).instance is None


def test_pauses_grow_where_probes_are_answered_and_requests_are_not(routes, clock):
    one = instance(1)

    def pause() -> float:
        routes.failed(one, "silence")
        found: float = routes.next_probe_in()
        clock.now += found
        routes.probed(one.url)
        assert routes.next_probe_in() is None
        assert routes.take([one]).instance is one
        return found

    pauses = [pause() for _ in range(4)]
    assert all(later > earlier * 1.4 for earlier, later in pairwise(pauses))
    routes.answered(one)
    assert pause() <= COOL_DOWN * 1.25, "an answer ends all doubt"


def test_requests_that_fail_long_after_the_first_do_not_lengthen_the_pause(routes, clock):
    one = instance(1)
    routes.failed(one, "silence")
    for _ in range(5):
        clock.now += COOL_DOWN * 2
        routes.failed(one, "silence")
    assert routes.to_probe() == [one.url]


def test_an_address_that_failed_is_left_alone_for_all_that_was_registered_there(routes):
    one, newer_key = instance(1), Instance("b@llm", "http://h1/api", healthy=True, generation=11)
    routes.seen([one, newer_key])
    routes.failed(one, "refused")
    assert routes.take([newer_key]).instance is None
    assert routes.take([instance(1, generation=12)]).instance is not None


def test_a_probe_of_an_address_that_nobody_doubts_changes_nothing(routes):
    routes.probed("http://h1/api", "refused")
    assert routes.next_probe_in() is None


def test_what_is_no_longer_registered_is_forgotten_but_for_what_is_under_way(routes):
    one, two = instance(1), instance(2)
    routes.failed(one, "refused")
    routes.began(two)
    routes.seen([])
    assert routes.next_probe_in() is None
    routes.ended(two)
    routes.seen([])
    assert routes.load_of([one, two]) is None


def test_the_load_that_is_seen_is_of_the_last_answer_or_heartbeat_and_of_what_is_under_way(routes, clock):
    silent, one = instance(2), instance(load="slots=4;free=4;waiting=0")
    assert routes.load_seen(silent) is None
    assert routes.load_seen(one) == Load(4, 4, 0)
    fill(routes, one, 1)
    assert routes.load_seen(one) == Load(4, 3, 0)
    routes.answered(one, "slots=4;free=1;waiting=0")
    assert routes.load_seen(one) == Load(4, 1, 0), "with two of others"
    fill(routes, one, 4)
    assert routes.load_seen(one) == Load(4, 0, 3)
    for _ in range(5):
        routes.ended(one)
    assert routes.load_seen(one) == Load(4, 2, 0)
    clock.now += LOAD_AGE + 1
    assert routes.load_seen(one) == Load(4, 4, 0), "as its heartbeat says"


def test_the_load_of_several_is_their_sum(routes):
    one, two = instance(1), instance(2)
    assert routes.load_of([one, two]) is None
    routes.answered(one, "slots=8;free=3;waiting=1")
    routes.busy(two, "slots=4;free=0;waiting=2")
    assert routes.load_of([one, two]) == Load(12, 3, 3)


# Models that are not loaded


def test_instances_that_have_the_model_loaded_come_first(routes, clock):
    resting = [instance(number, load="slots=8;free=0;waiting=0;loaded=0") for number in (1, 2, 3)]
    awake = instance(4, load="slots=8;free=8;waiting=0")
    fill(routes, awake, 7)
    for session in ("", "s"):
        taken = routes.take([*resting, awake], session=session)
        assert (taken.instance, taken.among) == (awake, 4)
    assert routes.take([*resting, awake], tried={awake.url}).instance in resting
    assert routes.take(resting).instance in resting


def test_what_an_answer_reports_counts_until_it_is_old_and_then_the_heartbeat(routes, clock):
    one, other = instance(1, load="slots=8;free=8;waiting=0"), instance(2, load="slots=8;free=0;waiting=0;loaded=0")
    routes.answered(one, "slots=8;free=0;waiting=0;loaded=0")
    routes.answered(other, "slots=8;free=8;waiting=0")
    assert [routes.take([one, other]).instance for _ in range(4)] == [other] * 4
    clock.now += 60
    assert [routes.take([one, other]).instance for _ in range(4)] == [one] * 4


def test_the_state_of_an_instance_is_that_of_its_last_heartbeat():
    loads = [None, "slots=8;free=8;waiting=0", "slots=8;free=0;waiting=0;loaded=0"]
    states = [state_of(instance(load=load)) for load in loads]
    assert states == [State.READY, State.READY, State.UNLOADED]
    assert state_of(instance(healthy=False)) is State.STOPPED


def test_a_model_is_loaded_if_one_of_its_instances_has_it(routes):
    one, other = instance(1, load="slots=8;free=8;waiting=0"), instance(2, load="slots=8;free=0;waiting=2;loaded=0")
    assert str(routes.load_of([one, other])) == "slots=16;free=8;waiting=2"
    assert str(routes.load_of([other])) == other.load
