"""Many operations at once, one outcome: all must succeed, every sentence is kept, the longest time counts."""

from __future__ import annotations

import threading
from contextvars import ContextVar

from modelyard.errors import EngineError
from modelyard.types import ApplyOutcome
from modelyard.worker.outcomes import in_parallel, merged, timed
from running import wait_until


def test_targets_run_at_the_same_time():
    barrier = threading.Barrier(4)

    def meet(target: int) -> str:
        barrier.wait(30)
        return f"{target} met"

    assert in_parallel(range(4), meet, str) == ["0 met", "1 met", "2 met", "3 met"]


def test_each_runs_in_a_thread_that_bears_its_name():
    assert in_parallel(["a", "b"], lambda target: threading.current_thread().name, str) == ["apply-a", "apply-b"]


def test_each_runs_in_the_context_of_the_caller():
    number: ContextVar[int] = ContextVar("number")
    number.set(3)
    assert in_parallel(["a", "b"], lambda target: number.get(), str) == [3, 3]


def test_one_failure_leaves_the_others():
    def operation(target: int) -> str:
        if target == 1:
            raise EngineError("1 broke")
        return f"{target} done"

    first, second, third = in_parallel(range(3), operation, str)
    assert (first, third) == ("0 done", "2 done")
    assert isinstance(second, EngineError)
    assert str(second) == "1 broke"


def test_an_unforeseen_failure_is_told_by_its_kind_and_logged(caplog):
    (outcome,) = in_parallel(range(1), lambda target: timed(lambda: str(1 // target)), str)
    assert str(outcome) == "0 failed: ZeroDivisionError"
    assert "ZeroDivisionError" in caplog.text


def test_a_failure_is_an_outcome_with_its_sentence():
    def broken() -> str:
        raise EngineError("it broke")

    assert (timed(broken).message, timed(broken).success) == ("it broke", False)


def test_the_time_is_that_of_the_operation_in_seconds():
    outcome = timed(lambda: str(threading.Event().wait(0.03)))
    assert outcome.success
    assert 0.03 <= outcome.timecost < 30


def test_no_thread_is_left_behind():
    in_parallel(range(5), str, str)
    wait_until(lambda: not any(t.name.startswith("apply-") for t in threading.enumerate()), "all ended")


def test_merged_all_must_succeed_and_the_longest_counts():
    good, bad = ApplyOutcome("a started", True, 0.5), ApplyOutcome("b broke", False, 2.0)
    assert merged([good, bad, good]) == ApplyOutcome("a started; b broke; a started", False, 2.0)
    assert merged([good]) == good


def test_nothing_to_do_is_a_success():
    assert merged([]).success
