"""A cancel is set once, by whoever comes first, and everybody who asked to be told is told once."""

from __future__ import annotations

import threading

import pytest
from modelyard.errors import Cancelled, Draining, NotReady
from modelyard.streams import Cancel


def test_it_is_not_set_until_somebody_sets_it():
    cancel = Cancel()
    assert not cancel.is_set()
    assert cancel.wait(0) is False
    cancel.set()
    assert cancel.is_set()
    assert cancel.wait(0) is True


def test_without_a_reason_the_client_has_gone():
    cancel = Cancel()
    cancel.set()
    assert isinstance(cancel.error, Cancelled)


def test_the_first_reason_stays():
    cancel = Cancel()
    first = Draining("about to end")
    cancel.set(first)
    cancel.set(NotReady("stopped"))
    cancel.set()
    assert cancel.error is first


def test_callbacks_run_once_in_order_and_late_ones_at_once():
    cancel, told = Cancel(), []
    cancel.on_set(lambda: told.append(1))
    cancel.on_set(lambda: told.append(2))
    assert told == []
    cancel.set()
    cancel.set()
    cancel.on_set(lambda: told.append(3))
    assert told == [1, 2, 3]


def test_a_callback_sees_the_reason():
    cancel, seen = Cancel(), []
    cancel.on_set(lambda: seen.append((cancel.is_set(), cancel.error)))
    reason = NotReady("stopped")
    cancel.set(reason)
    assert seen == [(True, reason)]


def test_a_callback_that_was_taken_back_is_not_called():
    cancel, told = Cancel(), []

    def callback() -> None:
        told.append(1)

    cancel.on_set(callback)
    cancel.forget(callback)
    cancel.forget(callback)
    cancel.set()
    cancel.forget(callback)
    assert told == []


def test_a_callback_may_use_the_cancel_that_calls_it():
    cancel, told = Cancel(), []

    def callback() -> None:
        cancel.forget(callback)
        cancel.set(Draining("too late"))
        cancel.on_set(lambda: told.append("inner"))

    cancel.on_set(callback)
    cancel.set()
    assert told == ["inner"]


def test_it_wakes_all_threads_that_wait():
    cancel = Cancel()
    woken: list[bool] = []
    threads = [threading.Thread(target=lambda: woken.append(cancel.wait()), daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert cancel.wait(0.01) is False
    assert woken == []
    cancel.set()
    for thread in threads:
        thread.join(30)
    assert woken == [True] * 3
    assert cancel.wait() is True


def test_of_many_that_set_it_one_wins_and_callbacks_run_once():
    for _ in range(50):
        cancel, told = Cancel(), []
        cancel.on_set(lambda told=told: told.append(1))
        reasons = [NotReady(str(n)) for n in range(8)]
        barrier = threading.Barrier(len(reasons))

        def race(reason: NotReady, cancel: Cancel = cancel, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(30)
            cancel.set(reason)

        threads = [threading.Thread(target=race, args=(reason,)) for reason in reasons]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert told == [1]
        assert cancel.error in reasons


def test_each_cancel_has_an_error_of_its_own():
    one, other = Cancel(), Cancel()
    with pytest.raises(Cancelled):
        raise one.error
    assert one.error is not other.error
    assert other.error.__traceback__ is None
