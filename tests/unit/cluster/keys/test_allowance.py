"""What processes take of a key's limits, and give back: exact where they are small, in blocks where they are large."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest
from modelyard.access.keys import Key, Limits, new_key
from modelyard.access.tokens import digest_of, parse_scopes
from modelyard.cluster.keys.allowance import (
    IDLE,
    LARGEST_SHARE_OF_PLACES,
    OUTAGE_PAUSE,
    REFUSED_FOR,
    Allowance,
    Lender,
    Permit,
    shown_duration,
)
from modelyard.cluster.keys.base import LEASE, Amounts, Grant, Return
from modelyard.cluster.keys.sqlite import MemoryKeyStore
from modelyard.errors import RateLimited, RegistryUnavailable, Unauthorized


class World:
    """A store in memory, its clock, and the allowances of some processes in one key."""

    def __init__(self, **limits: int) -> None:
        self.now = 1000.0
        self.calls: Counter[str] = Counter()
        self.is_silent = False
        self.store = MemoryKeyStore(clock=lambda: self.now)
        self.key = new_key("ci", digest_of("x"), parse_scopes("infer"), limits=Limits(**limits))
        self.store.add(self.key)

    def process(self, name: str = "a") -> Allowance:
        return Allowance(Lender(self, name, lambda: self.now), self.key)  # type: ignore[arg-type]

    def take(self, key: Key, holder: str, held: int, need: Amounts, spare: Amounts) -> Grant:
        self._called("take")
        return self.store.take(key, holder, held, need, spare)

    def settle(self, holder: str, returns: Mapping[str, Return]) -> None:
        self._called("settle")
        self.store.settle(holder, returns)

    def _called(self, name: str) -> None:
        self.calls[name] += 1
        if self.is_silent:
            raise RegistryUnavailable("the store of keys is silent")


def admitted(allowance: Allowance, tokens: int = 0) -> Permit | None:
    try:
        return allowance.admit(tokens)
    except RateLimited:
        return None


def count(*allowances: Allowance, turns: int, tokens: int = 0) -> int:
    """Return how many requests are admitted, asked in turns; each ends at once with the tokens that it took."""
    total = 0
    for _ in range(turns):
        for allowance in allowances:
            if (permit := admitted(allowance, tokens)) is not None:
                permit.close(tokens)
                total += 1
    return total


# Requests


def test_small_limits_are_exact_over_processes():
    world = World(requests=7)
    a, b = world.process("a"), world.process("b")
    assert count(a, b, turns=6) == 7


def test_large_limits_hold_over_processes_with_few_calls():
    world = World(requests=10_000)
    processes = [world.process(name) for name in "abc"]
    total = 0
    for _ in range(40):
        total += count(*processes, turns=100)
        world.now += 0.1
    # What one holds unused when all is taken is at most a hundredth.
    assert 10_000 - 3 * 100 <= total <= 10_000
    assert world.calls["take"] < total / 20


def test_the_next_minute_begins_with_all():
    world = World(requests=3)
    a = world.process()
    assert count(a, turns=5) == 3
    world.now += 59.9
    assert count(a, turns=1) == 0
    world.now += 0.2
    assert count(a, turns=5) == 3


def test_a_refusal_says_what_is_reached_and_when_to_come_back():
    world = World(requests=1)
    a = world.process()
    a.admit(0)
    world.now += 20.5
    with pytest.raises(RateLimited, match="the key ci is reached: 1 requests a minute; repeat it in 40 s") as refused:
        a.admit(0)
    assert (refused.value.retry_after, refused.value.is_hopeless) == (40, False)


def test_refused_requests_do_not_ask_the_store_each_time():
    world = World(requests=1)
    a = world.process()
    assert count(a, turns=500) == 1
    assert world.calls["take"] == 2
    world.now += 1
    assert count(a, turns=500) == 0
    assert world.calls["take"] == 3


def test_what_is_idle_goes_back_to_others():
    world = World(requests=1000)
    a, b = world.process("a"), world.process("b")
    for _ in range(2):
        count(a, turns=20)
        world.now += 0.25
    count(a, turns=1)
    held = 1000 - 41 - world.store.take(world.key, "other", 0, Amounts(0), Amounts()).left.requests
    assert 0 < held <= 10
    a.give_back_idle()
    assert world.calls["settle"] == 0
    world.now += IDLE
    a.give_back_idle()
    a.give_back_idle()
    assert world.calls["settle"] == 1
    assert count(b, turns=1200) == 1000 - 41


# Tokens


def test_tokens_are_reserved_and_settled_by_those_that_were_used():
    world = World(tokens=100)
    a, b = world.process("a"), world.process("b")
    permit = a.admit(80)
    assert admitted(b, 30) is None
    permit.close(10)
    world.now += REFUSED_FOR
    permit = b.admit(90)
    permit.close(90)
    permit.close(0)
    assert admitted(a, 1) is None


def test_tokens_used_beyond_the_reservation_count_too():
    world = World(tokens=100)
    a, b = world.process("a"), world.process("b")
    a.admit(10).close(70)
    a.give_back()
    assert admitted(b, 31) is None
    world.now += REFUSED_FOR
    assert admitted(b, 30)


def test_a_debt_is_paid_in_the_next_minute():
    world = World(tokens=100)
    a = world.process()
    permit = a.admit(100)
    world.now += 61
    permit.close(150)
    assert admitted(a, 51) is None
    world.now += REFUSED_FOR
    assert admitted(a, 50)


def test_what_was_reserved_in_a_minute_that_is_over_does_not_come_back():
    world = World(tokens=100)
    a = world.process()
    permit = a.admit(100)
    world.now += 61
    later = a.admit(60)
    permit.close(0)
    assert admitted(a, 41) is None
    later.close(60)
    world.now += REFUSED_FOR
    assert admitted(a, 40)


def test_a_request_larger_than_the_limit_is_hopeless():
    world = World(tokens=100, requests=5)
    with pytest.raises(RateLimited, match="100 tokens a minute, and this request may use 101") as refused:
        world.process().admit(101)
    assert refused.value.is_hopeless
    assert world.calls["take"] == 0


# Places


def test_few_places_are_exact_and_come_back_at_once():
    world = World(parallel=2)
    a, b = world.process("a"), world.process("b")
    first, second = a.admit(0), b.admit(0)
    with pytest.raises(RateLimited, match="2 requests at once"):
        a.admit(0)
    first.close(0)
    first.close(0)
    assert b.admit(0)
    assert admitted(a) is None
    second.close(0)
    world.now += REFUSED_FOR
    assert admitted(a)


def test_many_places_need_few_calls_and_are_never_more_than_the_limit():
    world = World(parallel=80)
    a, b = world.process("a"), world.process("b")
    for _ in range(50):
        permits = [a.admit(0) for _ in range(5)]
        for permit in permits:
            permit.close(0)
    assert sum(world.calls.values()) < 20
    permits = [permit for allowance in (a, b) for _ in range(100) if (permit := admitted(allowance))]
    assert 80 - 10 <= len(permits) <= 80


@pytest.mark.parametrize("at_once", [1, 3, 20])
def test_requests_that_come_and_go_call_the_store_now_and_then(at_once):
    world = World(requests=120_000, tokens=10_000_000, parallel=64)
    a = world.process()
    running = [a.admit(300) for _ in range(at_once)]
    before = sum(world.calls.values())
    for _ in range(500):
        running.pop(0).close(20)
        running.append(a.admit(300))
        world.now += 0.001
    assert sum(world.calls.values()) - before < 25


def test_requests_that_come_and_go_in_waves_do_not_call_the_store_and_their_places_go_back_soon():
    world = World(parallel=64)
    a, b = world.process("a"), world.process("b")
    for _ in range(50):
        for permit in [a.admit(0) for _ in range(40)]:
            permit.close(0)
        world.now += 0.01
    assert sum(world.calls.values()) < 15
    assert sum(admitted(b) is not None for _ in range(64)) < 64 - 39
    world.now += REFUSED_FOR
    a.give_back_idle()
    assert sum(admitted(b) is not None for _ in range(64)) >= 39 - 64 // LARGEST_SHARE_OF_PLACES


def test_a_place_is_taken_without_more_of_the_other_limits():
    world = World(requests=120_000, tokens=3_000_000, parallel=16)
    a = world.process()
    for _ in range(400):
        for permit in [a.admit(20) for _ in range(6)]:
            permit.close(10)
        world.now += 0.003
    left = world.store.take(world.key, "other", 0, Amounts(0), Amounts()).left
    assert 120_000 - 2400 - left.requests <= 1200
    assert 3_000_000 - 24_000 - left.tokens <= 30_000


def test_a_key_that_is_used_evenly_calls_the_store_about_once_a_second():
    world = World(requests=10_000_000, tokens=1_000_000_000)
    a = world.process()
    for _ in range(10_000):
        a.admit(20).close(10)
        world.now += 0.001
    assert sum(world.calls.values()) < 30


def test_a_crashed_process_loses_its_places_and_a_living_one_keeps_them():
    world = World(parallel=2)
    crashed, living, new = (world.process(name) for name in ("crashed", "living", "new"))
    crashed.admit(0)
    kept = living.admit(0)
    for _ in range(int(LEASE)):
        world.now += 1.1
        living.give_back_idle()
    assert admitted(new)
    assert admitted(new) is None
    kept.close(0)
    world.now += 1
    assert admitted(new)


# The store


def test_a_silent_store_leaves_each_process_its_own_count_and_is_left_alone():
    world = World(requests=5, tokens=1000, parallel=3)
    a, b = world.process("a"), world.process("b")
    world.is_silent = True
    assert count(a, turns=8, tokens=10) == 5
    assert count(b, turns=8, tokens=10) == 5
    assert world.calls["take"] == 2
    world.is_silent = False
    world.now += max(OUTAGE_PAUSE, 60)
    assert count(a, b, turns=8, tokens=10) == 5


def test_a_key_that_is_forgotten_is_refused():
    world = World(requests=5)
    a = world.process()
    world.store.revoke("ci", forget=True)
    with pytest.raises(Unauthorized, match="ci was revoked"):
        a.admit(0)


# Headers


def test_headers_say_what_is_left_and_for_how_long():
    world = World(requests=10, tokens=2000)
    a = world.process()
    assert dict(a.headers()) == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "10",
        "x-ratelimit-reset-requests": "0ms",
        "x-ratelimit-limit-tokens": "2000",
        "x-ratelimit-remaining-tokens": "2000",
        "x-ratelimit-reset-tokens": "0ms",
    }
    permit = a.admit(500)
    world.now += 17.5
    headers = dict(a.headers())
    assert headers["x-ratelimit-remaining-requests"] == "9"
    assert headers["x-ratelimit-remaining-tokens"] == "1500"
    assert headers["x-ratelimit-reset-tokens"] == "42.5s"
    permit.close(100)
    assert dict(a.headers())["x-ratelimit-remaining-tokens"] == "1900"
    world.now += 60
    assert dict(a.headers())["x-ratelimit-remaining-requests"] == "10"


def test_places_have_no_headers():
    assert World(parallel=3).process().headers() == []


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0ms"), (0.0123, "12ms"), (1, "1s"), (6.5, "6.5s"), (59.9999, "1m0s"), (60, "1m0s"), (86.4, "1m26.4s")],
)
def test_durations_are_shown_as_openai_shows_them(seconds, shown):
    assert shown_duration(seconds) == shown
