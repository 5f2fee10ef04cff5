"""The thread in the background: when it works, how it is woken, and that it ends."""

from __future__ import annotations

import threading

import pytest
from modelyard import threads
from modelyard.errors import Overloaded
from modelyard.threads import BackgroundThread, WaitingThreads, startable
from running import wait_until


class Work:
    """Counts its calls, and returns or raises what it is given."""

    def __init__(self, pause: float | None = None) -> None:
        self.pause = pause
        self.calls = 0
        self.failure: Exception | None = None
        self.held: threading.Event | None = None
        self.names: set[str] = set()

    def __call__(self) -> float | None:
        self.calls += 1
        self.names.add(threading.current_thread().name)
        if self.held is not None:
            self.held.wait(30)
        if self.failure is not None:
            raise self.failure
        return self.pause


@pytest.fixture
def work():
    return Work()


@pytest.fixture
def thread(work):
    made = BackgroundThread("modelyard-test", work)
    yield made
    if work.held is not None:
        work.held.set()
    assert made.stop(30)


def test_it_works_in_a_thread_of_its_own_that_has_a_name(thread, work):
    thread.start()
    thread.start()
    wait_until(lambda: work.calls, "it works")
    assert work.names == {"modelyard-test"}
    assert [one.daemon for one in threading.enumerate() if one.name == "modelyard-test"] == [True]


def test_it_works_again_after_the_seconds_that_it_returned(thread, work):
    work.pause = 0.001
    thread.start()
    wait_until(lambda: work.calls > 3, "it works on")


def test_without_a_time_it_works_when_it_is_woken(thread, work):
    thread.start()
    wait_until(lambda: work.calls == 1, "it has worked once")
    thread.wake()
    wait_until(lambda: work.calls == 2, "and again")


def test_one_that_is_woken_while_it_works_works_once_more(thread, work):
    work.held = threading.Event()
    thread.start()
    wait_until(lambda: work.calls == 1, "it works")
    thread.wake()
    thread.wake()
    work.held.set()
    wait_until(lambda: work.calls == 2, "once more")


def test_a_failure_is_logged_with_the_threads_name_and_does_not_end_it(thread, work, caplog, monkeypatch):
    monkeypatch.setattr(threads, "FAILURE_PAUSE", 0.001)
    work.failure = ValueError("a bug")
    thread.start()
    wait_until(lambda: work.calls > 2, "it goes on")
    assert "modelyard-test" in caplog.text
    assert "a bug" in caplog.text


def test_a_stop_ends_it_and_the_last_call_comes_after_all_others():
    calls: list[str] = []
    began = threading.Event()

    def work() -> None:
        calls.append("work")
        began.set()

    thread = BackgroundThread("modelyard-test", work, lambda: calls.append("last"))
    thread.start()
    assert began.wait(30)
    assert thread.stop(30)
    assert thread.stop(30)
    thread.wake()
    thread.start()
    assert calls == ["work", "last"]
    assert not [one for one in threading.enumerate() if one.name == "modelyard-test"]


def test_a_stop_waits_for_a_call_under_way_only_so_long(thread, work):
    work.held = threading.Event()
    thread.start()
    wait_until(lambda: work.calls, "it works")
    assert not thread.stop(0.01)


def test_a_stop_ends_a_pause_within_the_work():
    entered = threading.Event()

    def work() -> None:
        entered.set()
        thread.pause(600)

    thread = BackgroundThread("modelyard-test", work)
    thread.start()
    assert entered.wait(30)
    assert thread.stop(30)


def test_one_that_never_started_has_ended_and_never_starts(work):
    thread = BackgroundThread("modelyard-test", work)
    assert thread.stop(0)
    thread.start()
    assert work.calls == 0
    assert not [one for one in threading.enumerate() if one.name == "modelyard-test"]


def test_a_thread_that_can_not_be_started_is_a_503_and_the_next_start_works(thread, work, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(Overloaded, match="limit of tasks or memory") as caught:
            thread.start()
    assert caught.value.status == 503
    assert caught.value.retry_after
    thread.start()
    wait_until(lambda: work.calls, "the first call")


def refuse(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_it_is_found_out_how_many_threads_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    before, start = threading.active_count(), threading.Thread.start
    assert startable(5) == 5

    def limited(thread: threading.Thread) -> None:
        if threading.active_count() >= before + 3:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    assert startable(5) == 3
    assert threading.active_count() == before


def test_a_call_that_waits_gives_signs_of_life_its_result_and_its_error() -> None:
    waiting, go = WaitingThreads("waiting", 1), threading.Event()
    try:
        calls = waiting.result(lambda: go.wait(20), 0.01, discard=lambda result: None)
        assert [next(calls), next(calls)] == [None, None]
        go.set()
        with pytest.raises(StopIteration) as end:
            while True:
                next(calls)
        assert end.value.value is True

        def late() -> None:
            raise TimeoutError("of the call itself")

        with pytest.raises(TimeoutError, match="of the call itself"):
            list(waiting.result(late, 0.01, discard=lambda result: None))
    finally:
        waiting.stop()


def test_a_result_that_nobody_waits_for_is_discarded() -> None:
    waiting, go = WaitingThreads("waiting", 1), threading.Event()
    discarded: list[bool] = []
    calls = waiting.result(lambda: go.wait(20), 0.01, discard=discarded.append)
    assert next(calls) is None
    calls.close()
    go.set()
    wait_until(lambda: discarded == [True], "it is discarded")
    waiting.stop()
    with pytest.raises(Overloaded):
        next(waiting.result(lambda: None, 0.01, discard=lambda result: None))
