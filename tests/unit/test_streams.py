"""An answer ends once, says how, and gives back what it held; a thread that makes one never outlives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar

import pytest
from modelyard.errors import Cancelled, Draining, EngineError, NotReady
from modelyard.streams import Cancel, OutputStream, Relay, whole_answer
from modelyard.types import Burst


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
