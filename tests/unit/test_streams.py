"""An answer ends once, says how, and gives back what it held; a thread that makes one never outlives it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import pytest
from modelyard import streams
from modelyard.errors import Cancelled, Draining, EngineError, NotReady
from modelyard.streams import Cancel, OutputStream, Pump, Relay, pumped, whole_answer
from modelyard.types import Burst
from running import wait_until


class Bursts:
    """An iterator that can be closed, and tells how often it was."""

    def __init__(self, *items: Burst | BaseException | None) -> None:
        self.items = list(items)
        self.closed = 0

    def __iter__(self) -> Iterator[Burst | None]:
        return self

    def __next__(self) -> Burst | None:
        if not self.items:
            raise StopIteration
        item = self.items.pop(0)
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        self.closed += 1


A, B = Burst(["a"]), Burst(["b"], "stop")


@pytest.fixture
def closes() -> list[str]:
    return []


@pytest.fixture
def make(closes) -> Callable[..., OutputStream]:
    return lambda bursts, cancel=None: OutputStream(bursts, cancel or Cancel(), lambda: closes.append("closed"))


@pytest.fixture
def brief_ticks(monkeypatch) -> None:
    monkeypatch.setattr(streams, "TICK", 0.005)


def first(bursts: Iterator[Burst | None]) -> Burst:
    """Return the first burst, however long it takes."""
    return next(burst for burst in bursts if burst is not None)


# OutputStream


def test_bursts_pass_as_they_are_and_the_end_closes(make, closes):
    bursts = Bursts(A, None, B)
    assert list(make(bursts)) == [A, None, B]
    assert (closes, bursts.closed) == (["closed"], 1)


def test_closing_twice_closes_once(make, closes):
    bursts = Bursts(A, B)
    stream = make(bursts)
    assert next(stream) == A
    stream.close()
    stream.close()
    assert (closes, bursts.closed) == (["closed"], 1)
    assert stream.cancel.is_set()


def test_a_stream_that_nobody_read_is_closed_all_the_same(make, closes):
    bursts = Bursts(A, B)
    make(bursts).close()
    assert (closes, bursts.closed, bursts.items) == (["closed"], 1, [A, B])


def test_after_the_end_there_is_nothing_more(make, closes):
    stream = make(Bursts(A))
    assert list(stream) == [A]
    assert list(stream) == []
    stream.close()
    assert closes == ["closed"]


def test_leaving_the_with_closes(make, closes):
    with make(Bursts(A, B)) as stream:
        next(stream)
    assert closes == ["closed"]
    with pytest.raises(KeyError), make(Bursts(A, B)):
        raise KeyError
    assert closes == ["closed"] * 2


@pytest.mark.parametrize("error", [EngineError("broke"), RuntimeError("odd"), SystemExit(3)], ids=repr)
def test_an_error_passes_and_closes(make, closes, error):
    stream = make(Bursts(A, error, B))
    assert next(stream) == A
    with pytest.raises(type(error)) as caught:
        next(stream)
    assert caught.value is error
    assert closes == ["closed"]
    assert list(stream) == []


def test_a_cancelled_stream_ends_in_the_cancels_error(make, closes):
    cancel = Cancel()
    stream = make(Bursts(A, B), cancel)
    assert next(stream) == A
    cancel.set(Draining("about to end"))
    with pytest.raises(Draining, match="about to end"):
        next(stream)
    assert closes == ["closed"]


def test_an_engine_that_just_ends_when_cancelled_is_not_taken_for_the_end(make, closes):
    cancel = Cancel()

    def engine() -> Iterator[Burst]:
        yield A
        cancel.set(NotReady("stopped"))

    stream = make(engine(), cancel)
    assert next(stream) == A
    with pytest.raises(NotReady, match="stopped"):
        next(stream)
    assert closes == ["closed"]


def test_an_engine_that_knows_only_that_it_was_cancelled_does_not_hide_the_reason(make, closes):
    cancel = Cancel()

    def engine() -> Iterator[Burst]:
        yield A
        cancel.set(NotReady("stopped"))
        raise Cancelled("the client has gone")

    with pytest.raises(NotReady, match="stopped"):
        list(make(engine(), cancel))
    assert closes == ["closed"]


def test_the_slot_is_given_back_although_the_engine_fails_at_its_end(make, closes):
    class Stubborn(Bursts):
        def close(self) -> None:
            raise RuntimeError("I will not")

    with pytest.raises(RuntimeError, match="I will not"):
        make(Stubborn(A)).close()
    assert closes == ["closed"]


def test_the_engine_is_told_before_its_iterator_is_closed(make):
    cancel, told = Cancel(), []

    class Asking(Bursts):
        def close(self) -> None:
            told.append(cancel.is_set())

    make(Asking(A), cancel).close()
    assert told == [True]


# Pump


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
    monkeypatch.setattr(streams, "TICK", 60.0)
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


def test_through_a_stream_a_cancel_midway_is_never_a_silent_end(make, closes):
    for _ in range(50):
        cancel = Cancel()

        def produce(put: Callable[[Burst], bool], cancel: Cancel = cancel) -> None:
            while put(A):
                pass

        stream = make(Pump(produce, cancel, "p"), cancel)
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


def test_a_client_that_has_gone_is_the_reason_when_none_is_given(make):
    cancel = Cancel()
    stream = make(pumped(iter([A] * 10**6), cancel, "p"), cancel)
    first(stream)
    cancel.set()
    with pytest.raises(Cancelled):
        list(stream)


def test_a_whole_answer_joins_all_pieces_and_has_the_last_of_everything_else():
    last = Burst(["b", "c"], "stop", {"n": 2, "prompt_tokens_details": {"cached_tokens": 1}}, {"speed": 1.0})
    bursts = [Burst(["a"], None, {"n": 1}), None, last, Burst([])]
    output = whole_answer(iter(bursts))
    assert (output.text, output.finish_reason, output.usage, output.metrics) == (
        "abc",
        "stop",
        {"n": 2},
        {"speed": 1.0},
    )


def test_an_answer_without_a_burst_is_empty():
    assert whole_answer(iter([None, None])).text == ""


# Relay

NUMBER: ContextVar[int] = ContextVar("number")


class Streams:
    """A source of streams, each with what it gives; notes what the relay tells it."""

    def __init__(self, *streams: Bursts, again: bool = True) -> None:
        self.left = list(streams)
        self.again = again
        self.cancels: list[Cancel] = []
        self.begins = 0
        self.ends: list[BaseException | None] = []
        self.numbers: list[int] = []

    def open(self, cancel: Cancel) -> OutputStream:
        self.cancels.append(cancel)
        self.numbers.append(NUMBER.get())
        return OutputStream(self.left.pop(0), cancel, lambda: None, load=f"load {len(self.cancels)}")

    def begun(self, stream: OutputStream) -> None:
        self.begins += 1

    def ended(self, error: BaseException | None) -> bool:
        self.ends.append(error)
        return self.again


def relayed(source: Streams, cancel: Cancel | None = None) -> OutputStream:
    NUMBER.set(7)
    try:
        return Relay(source, cancel or Cancel())
    finally:
        NUMBER.set(8)


def test_a_stream_that_fails_before_its_first_burst_is_replaced_by_the_next():
    failure, first, second = NotReady("no"), Bursts(None, NotReady("no")), Bursts(A, B)
    first.items[1] = failure
    source = Streams(first, second)
    stream = relayed(source)
    assert list(stream) == [None, None, A, B]
    assert (source.begins, source.ends) == (1, [failure, None])
    assert (first.closed, second.closed) == (1, 1)
    assert source.numbers == [7, 7], "each is opened in the context that the relay was made in"
    assert stream.load == "load 1"


def test_a_stream_that_fails_after_its_first_burst_ends_the_answer():
    failure = NotReady("too late")
    source = Streams(Bursts(A, failure), Bursts(A, B))
    stream = relayed(source)
    assert next(stream) is A
    with pytest.raises(NotReady, match="too late"):
        next(stream)
    assert source.ends == [failure]


def test_a_failure_that_nothing_helps_against_is_that_of_the_stream():
    with pytest.raises(EngineError, match="it broke"):
        list(relayed(Streams(Bursts(EngineError("it broke")), again=False)))


def test_a_cancel_ends_the_stream_that_is_open_and_no_other_is_opened():
    cancel = Cancel()
    source = Streams(Bursts(None, None), Bursts(A))
    stream = relayed(source, cancel)
    assert next(stream) is None
    cancel.set(Draining("enough"))
    assert source.cancels[0].is_set()
    with pytest.raises(Draining, match="enough"):
        next(stream)
    assert len(source.cancels) == len(source.ends) == 1


def test_closing_a_relay_closes_the_stream_that_is_open():
    inner = Bursts(A, B)
    source = Streams(inner)
    stream = relayed(source)
    assert next(stream) is A
    stream.close()
    assert (inner.closed, source.ends) == (1, [None])
