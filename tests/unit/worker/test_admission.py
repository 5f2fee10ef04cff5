"""Slots go to those who came first; whoever leaves, however, gives back exactly what was taken."""

from __future__ import annotations

import contextlib
import math
import random
import threading
import time
from collections.abc import Callable

import pytest
from modelyard.errors import Cancelled, Conflict, Draining, ModelyardError, NotReady, Overloaded
from modelyard.streams import Cancel
from modelyard.worker.admission import BATCH_TURN, Budget, Gate, Ticket
from running import wait_until


def gate(slots: int = 1, max_waiting: int = 10, queue_timeout: float = 60.0) -> Gate:
    return Gate("m", slots, max_waiting, queue_timeout)


class Waiter(threading.Thread):
    """A request that stands in line in a thread of its own."""

    def __init__(self, ticket: Ticket) -> None:
        super().__init__()
        self.ticket = ticket
        self.outcome: bool | BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self.ticket.wait()
        except ModelyardError as error:
            self.outcome = error

    def end(self) -> bool | BaseException | None:
        self.join(30)
        assert not self.is_alive()
        return self.outcome


# Slots


def test_as_many_as_there_are_slots_are_granted_at_once():
    one = gate(slots=2)
    tickets = [one.request() for _ in range(2)]
    assert all(ticket.granted and ticket.wait(0) for ticket in tickets)
    assert (one.free, one.waiting, one.load()) == (0, 0, "slots=2;free=0;waiting=0")
    for ticket in tickets:
        ticket.release()
    assert one.free == 2


def test_releasing_twice_gives_back_once():
    one = gate(slots=2)
    kept, given = one.request(), one.request()
    given.release()
    given.release()
    assert one.free == 1
    kept.release()
    assert one.free == 2


def test_the_next_in_line_gets_the_slot_and_not_who_comes_later():
    one = gate()
    first = one.request()
    second, third = one.request(), one.request()
    assert (one.waiting, second.granted, third.granted) == (2, False, False)
    first.release()
    assert (one.free, one.waiting, second.granted, third.granted) == (0, 1, True, False)
    second.release()
    assert third.wait() is True
    third.release()
    assert (one.free, one.waiting) == (1, 0)


def test_those_in_line_are_served_in_the_order_they_came():
    one = gate(max_waiting=50)
    held = one.request()
    tickets = [one.request() for _ in range(50)]
    served = []
    held.release()
    for _ in tickets:
        granted = [ticket for ticket in tickets if ticket.granted and ticket not in served]
        assert len(granted) == 1
        served += granted
        granted[0].release()
    assert served == tickets


def test_a_thread_in_line_is_woken_when_a_slot_is_free():
    one = gate()
    held = one.request()
    waiter = Waiter(one.request())
    held.release()
    assert waiter.end() is True


def test_a_wait_that_is_over_before_its_turn_leaves_it_in_line():
    one = gate()
    held = one.request()
    ticket = one.request()
    assert ticket.wait(0) is False
    assert ticket.wait(0.01) is False
    assert one.waiting == 1
    held.release()
    assert ticket.wait(0) is True
    ticket.release()


# Refusals


def test_a_full_line_is_refused_at_once_with_the_numbers_and_when_to_come_again():
    one = gate(slots=1, max_waiting=1, queue_timeout=3)
    held, waiting = one.request(), one.request()
    with pytest.raises(Overloaded) as caught:
        one.request()
    assert "'m'" in str(caught.value)
    assert "all 1 slots (limit_model_concurrency)" in str(caught.value)
    assert "1 wait already (max_waiting)" in str(caught.value)
    assert caught.value.retry_after == 3
    assert caught.value.load == "slots=1;free=0;waiting=1"
    assert (one.free, one.waiting) == (0, 1)
    waiting.release()
    held.release()
    assert (one.free, one.waiting) == (1, 0)


def test_who_does_not_wait_is_refused_although_there_is_room_in_line():
    one = gate()
    held = one.request(wait=False)
    with pytest.raises(Overloaded, match="the caller does not wait"):
        one.request(wait=False)
    held.release()
    one.request(wait=False).release()


@pytest.mark.parametrize(("queue_timeout", "retry_after"), [(0, 1), (0.2, 1), (2.5, 3), (60, 5)])
def test_the_time_to_come_again_is_whole_seconds_and_no_more_than_five(queue_timeout, retry_after):
    one = gate(max_waiting=0, queue_timeout=queue_timeout)
    held = one.request()
    with pytest.raises(Overloaded) as caught:
        one.request()
    assert caught.value.retry_after == retry_after
    held.release()


def test_too_long_in_line_is_refused_and_leaves_it():
    one = gate(queue_timeout=0.02)
    held = one.request()
    ticket = one.request()
    with pytest.raises(Overloaded, match=r"none came free in 0\.02 s \(queue_timeout\)"):
        ticket.wait()
    assert (one.free, one.waiting) == (0, 0)
    ticket.release()
    held.release()
    assert one.free == 1


def test_the_time_in_line_counts_from_the_request_and_over_many_waits():
    one = gate(queue_timeout=0.1)
    held = one.request()
    ticket = one.request()
    with pytest.raises(Overloaded):
        while ticket.wait(0.01) is False:
            pass
    held.release()


def test_a_line_without_patience_is_none():
    one = gate(queue_timeout=0)
    held = one.request()
    with pytest.raises(Overloaded, match="queue_timeout"):
        one.request().wait()
    held.release()


# Cancelling


def test_who_cancels_in_line_leaves_it_and_the_next_moves_up():
    one, cancel = gate(), Cancel()
    held = one.request()
    waiter, behind = Waiter(one.request(cancel)), one.request()
    cancel.set()
    assert isinstance(waiter.end(), Cancelled)
    assert one.waiting == 1
    held.release()
    assert behind.granted
    waiter.ticket.release()
    behind.release()
    assert (one.free, one.waiting) == (1, 0)


def test_the_reason_of_the_cancel_is_what_ends_the_wait():
    one, cancel = gate(), Cancel()
    held = one.request()
    ticket = one.request(cancel)
    cancel.set(Draining("about to end"))
    with pytest.raises(Draining, match="about to end"):
        ticket.wait()
    held.release()


def test_who_has_gone_before_the_request_does_not_stand_in_line():
    one, cancel = gate(), Cancel()
    held = one.request()
    cancel.set()
    ticket = one.request(cancel)
    assert one.waiting == 0
    with pytest.raises(Cancelled):
        ticket.wait()
    held.release()


def test_a_cancel_after_the_grant_keeps_the_slot_until_release():
    one, cancel = gate(), Cancel()
    held = one.request()
    ticket = one.request(cancel)
    held.release()
    cancel.set()
    assert ticket.wait() is True
    assert one.free == 0
    ticket.release()
    assert one.free == 1


def test_a_released_ticket_is_not_told_of_a_later_cancel():
    one, cancel = gate(), Cancel()
    held = one.request()
    ticket = one.request(cancel)
    ticket.release()
    assert cancel._callbacks == [], "the request would hold the ticket for as long as it lives"
    cancel.set()
    assert isinstance(ticket.refusal, Cancelled)
    assert one.waiting == 0
    held.release()
    assert one.free == 1


# Interactive before batch


def order_of(one: Gate, held: Ticket, tickets: dict[str, Ticket]) -> str:
    """Give the slot from one to the next, and return the names in the order in which they had it."""
    served = ""
    held.release()
    while len(served) < len(tickets):
        (name,) = (name for name, ticket in tickets.items() if ticket.granted and name not in served)
        served += name
        tickets[name].release()
    return served


def test_interactive_requests_stand_before_batch_ones_and_each_kind_in_its_order():
    one = gate()
    held = one.request()
    tickets = {name: one.request(batch=name.islower()) for name in "aABbC"}
    assert one.status() == {"running": 1, "waiting": {"interactive": 3, "batch": 2}}
    assert one.load() == "slots=1;free=0;waiting=5"
    assert order_of(one, held, tickets) == "ABCab"
    assert (one.free, one.waiting) == (1, 0)


def test_a_batch_request_is_not_passed_by_without_end():
    one = gate(max_waiting=100)
    held = one.request()
    tickets = {name: one.request(batch=name.islower()) for name in "xyABCDEFGHIJKLMNOPQ"}
    served = order_of(one, held, tickets)
    assert served == "ABCDEFGxHIJKLMNyOPQ"
    assert served.index("x") == BATCH_TURN - 1


def test_slots_that_went_to_one_kind_while_the_other_did_not_wait_do_not_count():
    one = gate(max_waiting=100)
    held = one.request()
    tickets = {name: one.request() for name in "ABCDEF"}
    order_of(one, held, tickets)
    held = one.request()
    tickets = {name: one.request(batch=name.islower()) for name in "xABCDEFGH"}
    assert order_of(one, held, tickets) == "ABCDEFGxH"


def test_a_free_slot_is_for_whoever_comes():
    one = gate()
    one.request(batch=True, wait=False).release()
    assert one.free == 1


def test_an_interactive_request_takes_the_place_of_the_last_batch_one_in_a_full_line():
    one = gate(max_waiting=3)
    held = one.request()
    first, last, interactive = one.request(batch=True), Waiter(one.request(batch=True)), one.request()
    newcomer = one.request()
    refusal = last.end()
    assert isinstance(refusal, Overloaded)
    assert "an interactive request took its place in line (max_waiting)" in str(refusal)
    assert refusal.retry_after == 5
    last.ticket.release()
    assert one.status()["waiting"] == {"interactive": 2, "batch": 1}
    held.release()
    for ticket in (interactive, newcomer, first):
        assert ticket.wait(0)
        ticket.release()
    assert (one.free, one.waiting) == (1, 0)


@pytest.mark.parametrize("batch", [False, True])
def test_a_full_line_without_batch_requests_refuses_all(batch):
    one = gate(max_waiting=1)
    held, waiting = one.request(), one.request()
    with pytest.raises(Overloaded, match="1 wait already"):
        one.request(batch=batch)
    assert not waiting.granted
    assert waiting.refusal is None
    held.release()


def test_a_batch_request_takes_nobodys_place():
    one = gate(max_waiting=1)
    held, waiting = one.request(), one.request(batch=True)
    with pytest.raises(Overloaded, match="1 wait already"):
        one.request(batch=True)
    held.release()
    assert waiting.granted


def test_a_cancelled_batch_request_leaves_its_line():
    one, cancel = gate(), Cancel()
    held = one.request()
    gone, behind = Waiter(one.request(cancel, batch=True)), one.request(batch=True)
    cancel.set()
    assert isinstance(gone.end(), Cancelled)
    assert one.waiting == 1
    held.release()
    assert behind.granted


def test_the_time_in_line_is_noted_when_the_slot_is_granted():
    one, cancel, refused = gate(), Cancel(), Cancel()
    held, ticket = one.request(), one.request(cancel)
    one.request(refused).release()
    assert cancel.queued == 0
    held.release()
    assert 0 < cancel.queued < 30
    assert refused.queued == 0
    ticket.release()
    one.request(at_once := Cancel()).release()
    assert at_once.queued == 0


# Closing


def test_a_closed_gate_refuses_those_in_line_and_those_who_come():
    one = gate()
    held = one.request()
    waiters = [Waiter(one.request(batch=number == 1)) for number in range(3)]
    one.close(lambda: NotReady("stopped"))
    outcomes = [waiter.end() for waiter in waiters]
    assert all(isinstance(outcome, NotReady) for outcome in outcomes)
    assert len(set(map(id, outcomes))) == 3, "an error that several threads raise mixes up their tracebacks"
    with pytest.raises(NotReady, match="stopped"):
        one.request()
    assert (one.free, one.waiting) == (0, 0)
    held.release()
    assert one.free == 1


def test_a_closed_gate_is_idle_when_the_last_slot_is_back():
    one = gate(slots=2)
    held = one.request()
    one.close(lambda: NotReady("stopped"))
    assert one.wait_idle(0.01) is False
    idle = []
    thread = threading.Thread(target=lambda: idle.append(one.wait_idle(30)))
    thread.start()
    held.release()
    thread.join(30)
    assert idle == [True]


# Many threads


@pytest.mark.parametrize("seed", range(4))
def test_whatever_many_threads_do_no_slot_is_lost_or_made(seed):
    slots, one = 3, gate(slots=3, max_waiting=6, queue_timeout=0.004)
    running, most, lock = 0, 0, threading.Lock()
    seen: set[str] = set()

    def work(chance: random.Random) -> None:
        nonlocal running, most
        for _ in range(150):
            cancel = Cancel()
            if chance.random() < 0.3:
                threading.Timer(chance.random() * 0.004, cancel.set).start()
            try:
                ticket = one.request(cancel, wait=chance.random() < 0.9, batch=chance.random() < 0.5)
            except Overloaded:
                seen.add("refused")
                continue
            try:
                while not ticket.wait(chance.choice([0, 0.001, math.inf])):
                    if chance.random() < 0.1:
                        seen.add("left")
                        break
                else:
                    with lock:
                        running += 1
                        most = max(most, running)
                    time.sleep(chance.random() * 0.001)
                    with lock:
                        running -= 1
                    seen.add("ran")
            except Overloaded:
                seen.add("too slow")
            except Cancelled:
                seen.add("cancelled")
            finally:
                ticket.release()
                if chance.random() < 0.5:
                    ticket.release()

    threads = [threading.Thread(target=work, args=(random.Random(f"{seed} {n}"),)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    wait_until(lambda: not any(isinstance(t, threading.Timer) for t in threading.enumerate()), "all timers ended")
    assert (one.free, one.waiting) == (slots, 0)
    assert one.wait_idle(0)
    assert most <= slots
    assert "ran" in seen


@pytest.mark.parametrize(
    "leave", [lambda ticket, cancel: ticket.release(), lambda ticket, cancel: cancel.set()], ids=["release", "cancel"]
)
def test_a_grant_and_a_departure_at_the_same_time_lose_no_slot(leave: Callable[[Ticket, Cancel], None]):
    one = gate()
    for _ in range(300):
        cancel = Cancel()
        held, ticket = one.request(), one.request(cancel)
        barrier = threading.Barrier(2)

        def go(cancel: Cancel = cancel, ticket: Ticket = ticket, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(30)
            leave(ticket, cancel)

        thread = threading.Thread(target=go)
        thread.start()
        barrier.wait(30)
        held.release()
        thread.join(30)
        ticket.release()
        assert (one.free, one.waiting) == (1, 0)


# The budget


def test_the_budget_holds_what_the_threads_allow_less_the_reserve():
    budget = Budget(threads=10, reserve=8)
    budget.enter()
    budget.enter()
    with pytest.raises(Overloaded, match=r"2 requests run or wait.*10 threads less 8 in reserve.*--threads"):
        budget.enter()
    assert budget.held == 2
    budget.leave()
    budget.enter()
    assert budget.held == 2


def test_no_more_threads_come_back_than_were_taken():
    budget = Budget(threads=10, reserve=8)
    with pytest.raises(IndexError):
        budget.leave()
    assert budget.held == 0


def test_the_budget_is_exact_under_many_threads():
    budget = Budget(threads=12, reserve=8)

    def work() -> None:
        for _ in range(2000):
            with contextlib.suppress(Overloaded):
                budget.enter()
                assert 0 < budget.held <= budget.total
                budget.leave()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert budget.held == 0


def test_the_last_threads_are_for_interactive_requests():
    budget = Budget(threads=16, reserve=8)
    for _ in range(6):
        budget.enter()
    budget.check_batch()
    budget.enter()
    with pytest.raises(Overloaded, match=r"7 requests run or wait.*accepted up to 6, 75% of all.*--threads"):
        budget.check_batch()
    budget.leave()
    budget.check_batch()


def test_a_small_budget_has_room_for_a_batch_request_too():
    budget = Budget(threads=9, reserve=8)
    budget.enter()
    budget.check_batch()


def test_slots_that_do_not_fit_the_budget_are_refused_with_the_numbers():
    budget = Budget(threads=30, reserve=10)
    budget.check_room("m", wanted=8, taken=12)
    with pytest.raises(Conflict) as caught:
        budget.check_room("m", wanted=9, taken=12)
    assert "'m': it asks for 9 slots (limit_model_concurrency)" in str(caught.value)
    assert "12 of the 20 that 30 threads less 10 in reserve allow" in str(caught.value)
    assert "ask for at most 8" in str(caught.value)


def test_a_budget_that_is_full_offers_no_negative_number():
    with pytest.raises(Conflict, match="ask for at most 0"):
        Budget(threads=10, reserve=8).check_room("m", wanted=1, taken=5)


# A model that is not loaded


def test_while_a_gate_is_held_requests_stand_in_line_and_its_opening_serves_them():
    one = gate(slots=2)
    running = one.request()
    one.hold()
    first, second, third = (one.request() for _ in range(3))
    running.release()
    assert (one.is_idle, one.waiting, one.load()) == (True, 3, "slots=2;free=0;waiting=3;loaded=0")
    one.open()
    assert [ticket.granted for ticket in (first, second, third)] == [True, True, False]
    first.release()
    assert (third.granted, one.load()) == (True, "slots=2;free=0;waiting=0")


def test_a_gate_is_held_if_it_is_idle_and_nobody_waits():
    one = gate()
    beside = one.beside()
    assert beside is not None
    assert (one.free, one.is_idle, one.hold(only_idle=True)) == (1, False, False)
    beside.release()
    ticket = one.request()
    assert not one.hold(only_idle=True)
    ticket.release()
    assert one.hold(only_idle=True)
    assert one.beside() is None
    waiting = one.request()
    assert one.hold(only_idle=True), "who waits for a held gate does not use the model"
    waiting.release()


def test_the_time_of_a_load_does_not_count_for_those_in_line(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("modelyard.worker.admission.time.monotonic", lambda: now[0])
    one = gate(queue_timeout=10)
    one.hold()
    early = one.request()
    now[0] += 6
    one.loading()
    late = one.request()
    now[0] += 60
    assert not early.wait(0)
    one.hold()
    one.open()
    held, waiting = (early, late) if early.granted else (late, early)
    assert held is early
    now[0] += 9
    assert not waiting.wait(0), "it has waited for 9 seconds"
    now[0] += 1
    with pytest.raises(Overloaded, match="none came free in 10 s"):
        waiting.wait(0)


def test_those_in_line_may_be_refused_without_closing_the_gate():
    one = gate()
    one.hold()
    waiting = one.request()
    one.refuse(lambda: NotReady("could not be loaded"))
    with pytest.raises(NotReady, match="could not be loaded"):
        waiting.wait()
    later = one.request()
    one.open()
    assert later.granted
