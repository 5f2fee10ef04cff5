"""A thread drives an engine's iterator: its pieces come in order, silences show, and it never outlives its answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from modelyard import pump as pumps
from modelyard.errors import Cancelled, Draining, EngineError, NotReady
from modelyard.pump import Pump, pumped
from modelyard.streams import Cancel, OutputStream
from modelyard.types import Burst
from running import wait_until

A, B = Burst(["a"]), Burst(["b"], "stop")


@pytest.fixture
def brief_ticks(monkeypatch) -> None:
    monkeypatch.setattr(pumps, "TICK", 0.005)


def first(bursts: Iterator[Burst | None]) -> Burst:
    """Return the first burst, however long it takes."""
    return next(burst for burst in bursts if burst is not None)


def test_what_is_put_comes_out_in_order_and_then_it_ends():
    pump = Pump(lambda put: [put(Burst([str(n)])) for n in range(100)], Cancel(), "p")
    assert [piece for burst in pump if burst for piece in burst.pieces] == [str(n) for n in range(100)]
    pump.close()


def test_how_the_answer_ended_survives_the_joining():
    usage, metrics = {"total_tokens": 3}, {"speed": 1}

    def produce(put: Callable[[Burst], bool]) -> None:
        put(Burst(["a"]))
        put(Burst(["b", "c"]))
        put(Burst([], "length", usage, metrics))

    pump = Pump(produce, Cancel(), "p")
    pump._thread.join(30)
    assert list(pump) == [Burst(["a", "b", "c"], "length", usage, metrics)]
    pump.close()


def test_silence_is_told_by_none(brief_ticks):
    go = threading.Event()

    def produce(put: Callable[[Burst], bool]) -> None:
        go.wait(30)
        put(A)

    pump = Pump(produce, Cancel(), "p")
    assert [next(pump), next(pump)] == [None, None]
    go.set()
    assert [burst for burst in pump if burst] == [A]
    pump.close()


@pytest.mark.parametrize("error", [EngineError("broke"), RuntimeError("odd"), SystemExit(3)], ids=repr)
def test_what_the_producer_raises_is_raised_by_the_reader_after_what_was_put(error):
    def produce(put: Callable[[Burst], bool]) -> None:
        put(A)
        raise error

    pump = Pump(produce, Cancel(), "p")
    assert first(pump) == A
    with pytest.raises(type(error)) as caught:
        list(pump)
    assert caught.value is error
    pump.close()


def test_a_slow_reader_bounds_what_piles_up_and_gets_all_of_it():
    def produce(put: Callable[[Burst], bool]) -> None:
        assert all(put(Burst([f"{n} ", "|"])) for n in range(5000))

    pump = Pump(produce, Cancel(), "p", limit=100)
    wait_until(lambda: len(pump._ready) > 50, "the producer is ahead")
    pump._thread.join(0.1)
    assert pump._thread.is_alive(), "it does not wait for its reader"
    bursts = [burst for burst in pump if burst]
    assert max(len(burst.pieces) for burst in bursts) <= 102
    assert "".join(piece for burst in bursts for piece in burst.pieces) == "".join(f"{n} |" for n in range(5000))
    pump.close()


def test_a_cancel_wakes_a_reader_that_waits_and_ends_in_its_error(monkeypatch):
    monkeypatch.setattr(pumps, "TICK", 60.0)
    cancel, go, outcome = Cancel(), threading.Event(), []

    def produce(put: Callable[[Burst], bool]) -> None:
        go.wait(30)  # a step of the engine, which notices late

    pump = Pump(produce, cancel, "p")

    def read() -> None:
        try:
            while next(pump) is None:
                pass
        except Draining as error:
            outcome.append(error)
        except StopIteration:
            outcome.append(None)

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: pump._changed._waiters, "the reader waits")
    cancel.set(Draining("about to end"))
    reader.join(30)
    assert outcome == [cancel.error]
    go.set()
    pump.close()


def test_through_a_stream_a_cancel_midway_is_never_a_silent_end():
    closes: list[str] = []
    for _ in range(50):
        cancel = Cancel()

        def produce(put: Callable[[Burst], bool], cancel: Cancel = cancel) -> None:
            while put(A):
                pass

        stream = OutputStream(Pump(produce, cancel, "p"), cancel, lambda: closes.append("closed"))
        canceller = threading.Thread(target=cancel.set, args=(NotReady("stopped"),))
        with pytest.raises(NotReady, match="stopped"):
            for number, _burst in enumerate(stream):
                if number == 3:
                    canceller.start()
        canceller.join(30)
    assert closes == ["closed"] * 50
    assert not [t for t in threading.enumerate() if t.name.startswith("p-")]


def test_after_a_cancel_nothing_more_is_taken():
    cancel, taken = Cancel(), []
    first = threading.Event()

    def produce(put: Callable[[Burst], bool]) -> None:
        taken.append(put(A))
        first.set()
        cancel.wait(30)
        taken.append(put(B))

    pump = Pump(produce, cancel, "p")
    assert first.wait(30)
    cancel.set()
    pump.close()
    assert taken == [True, False]


def test_a_producer_that_waits_for_its_reader_is_freed_by_the_cancel():
    cancel, left = Cancel(), []

    def produce(put: Callable[[Burst], bool]) -> None:
        while put(A):
            pass
        left.append(True)

    pump = Pump(produce, cancel, "p", limit=3)
    wait_until(lambda: len(pump._ready) > 3, "the producer waits")
    cancel.set()
    pump.close()
    assert left == [True]


def test_closing_waits_until_the_thread_has_ended():
    cancel, ended = Cancel(), threading.Event()

    def produce(put: Callable[[Burst], bool]) -> None:
        cancel.wait(30)
        threading.Event().wait(0.05)  # one step of the engine
        ended.set()

    pump = Pump(produce, cancel, "slow-step")
    cancel.set()
    pump.close()
    assert ended.is_set()
    pump.close()


def test_its_thread_is_no_daemon_and_has_a_name():
    cancel = Cancel()
    pump = Pump(lambda put: cancel.wait(30), cancel, "generate-m")
    assert not pump._thread.daemon
    assert pump._thread.name.startswith("generate-m-")
    cancel.set()
    pump.close()


def test_a_finished_pump_leaves_no_callback_behind():
    cancel = Cancel()
    pump = Pump(lambda put: None, cancel, "p")
    assert list(pump) == []
    pump.close()
    assert cancel._callbacks == []


# pumped


def test_a_blocking_iterator_is_driven_and_closed_by_a_thread_of_its_own():
    threads = []

    def engine() -> Iterator[Burst | None]:
        try:
            threads.append(threading.current_thread())
            yield A
            yield None
            yield B
        finally:
            threads.append(threading.current_thread())

    pump = pumped(engine(), Cancel(), "p")
    assert [piece for burst in pump if burst for piece in burst.pieces] == ["a", "b"]
    pump.close()
    assert threads[0] is threads[1] is pump._thread is not threading.current_thread()


def test_a_blocking_iterator_that_is_cancelled_is_closed():
    cancel, closed = Cancel(), []

    def engine() -> Iterator[Burst]:
        try:
            while True:
                yield A
        finally:
            closed.append(True)

    pump = pumped(engine(), cancel, "p")
    assert first(pump).pieces[0] == "a"
    cancel.set()
    pump.close()
    assert closed == [True]


def test_a_plain_iterator_without_close_may_be_pumped():
    pump = pumped(iter([A, B]), Cancel(), "p")
    assert [piece for burst in pump if burst for piece in burst.pieces] == ["a", "b"]
    pump.close()


def test_a_client_that_has_gone_is_the_reason_when_none_is_given():
    cancel = Cancel()
    stream = OutputStream(pumped(iter([A] * 10**6), cancel, "p"), cancel, lambda: None)
    first(stream)
    cancel.set()
    with pytest.raises(Cancelled):
        list(stream)
