"""Requests to embed that wait for each other: one call of the engine, and each has what it would have by itself."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from modelyard.engines.base import CancelEvent, OfTexts, TextCount, Vectors, cut_texts, tokens_of
from modelyard.errors import Cancelled, InputTooLong
from modelyard.streams import Cancel
from modelyard.worker.joint import JointTexts
from running import wait_until

LIMIT = 10.0


class Computing:
    """An engine's `embed`: a row is the length of its text. Calls with ``hold`` wait for `go`."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.cancels: list[CancelEvent] = []
        self.go = threading.Event()
        self.report: Callable[[Sequence[str]], Vectors] = lambda texts: OfTexts(
            [[float(len(text))] for text in texts], counts=[TextCount("cut" in text, len(text)) for text in texts]
        )

    def embed(self, texts: Sequence[str], cancel: CancelEvent) -> Vectors:
        self.calls.append(list(texts))
        self.cancels.append(cancel)
        if any("hold" in text for text in texts):
            assert self.go.wait(LIMIT)
        for number, text in enumerate(texts):
            if text == "long":
                raise InputTooLong("too long", [{"field": f"input[{number}]", "message": "is too long"}])
            if text == "exit" and len(texts) > 1:
                raise SystemExit(3)
        if cancel.is_set():
            raise Cancelled("the client has gone")
        return self.report(texts)


class Callers:
    """Threads that call `JointTexts.embed`, each once."""

    def __init__(self, texts: int = 8, letters: int = 1000, delay: float = 0.0) -> None:
        self.engine = Computing()
        self.joint = JointTexts(self.engine.embed, texts, letters, delay)

    def call(self, *texts: str, cancel: Cancel | None = None) -> Future[Any]:
        result: Future[Any] = Future()

        def run() -> None:
            try:
                result.set_result(self.joint.embed(list(texts), cancel or Cancel()))
            except BaseException as error:  # noqa: BLE001 - of the future
                result.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return result

    def hold(self) -> Future[Any]:
        """Occupy the engine until `go`."""
        first = self.call("hold")
        self.wait_for_calls(1)
        return first

    def in_line(self, *texts: str, cancel: Cancel | None = None) -> Future[Any]:
        """Add a request, and return once it stands in line."""
        before = len(self.joint._line)
        result = self.call(*texts, cancel=cancel)
        wait_until(lambda: len(self.joint._line) == before + 1, "it stands in line")
        return result

    def wait_for_calls(self, count: int) -> None:
        wait_until(lambda: len(self.engine.calls) == count, f"the engine is called {count} times")

    def go(self) -> None:
        self.engine.go.set()


def rows(result: Future[Any]) -> list[list[float]]:
    return list(result.result(LIMIT))


def test_a_request_by_itself_is_computed_at_once_with_its_own_cancel():
    callers, cancel = Callers(), Cancel()
    assert callers.joint.embed(["a", "bb"], cancel) == [[1.0], [2.0]]
    assert callers.engine.cancels == [cancel]


def test_those_that_wait_are_computed_together_and_each_has_its_own_rows_and_counts():
    callers = Callers()
    first = callers.hold()
    waiting = [callers.in_line("a"), callers.in_line("bb", "cut!"), callers.in_line("ccc")]
    callers.go()
    assert [rows(result) for result in (first, *waiting)] == [[[4.0]], [[1.0]], [[2.0], [4.0]], [[3.0]]]
    assert [cut_texts(result.result()) for result in waiting] == [0, 1, 0]
    assert [tokens_of(result.result()) for result in waiting] == [1, 6, 3]
    assert callers.engine.calls == [["hold"], ["a", "bb", "cut!", "ccc"]]


@pytest.mark.parametrize("limits", [{"texts": 3}, {"letters": 6}])
def test_a_call_has_so_many_texts_and_letters_at_most_in_the_order_of_arrival(limits):
    callers = Callers(**limits)
    callers.hold()
    waiting = [callers.in_line(letter * 2) for letter in "abcde"]
    callers.go()
    assert [rows(result) for result in waiting] == [[[2.0]]] * 5
    assert callers.engine.calls == [["hold"], ["aa", "bb", "cc"], ["dd", "ee"]]


@pytest.mark.parametrize("large", [["a"] * 8, ["a" * 1000]])
def test_a_request_that_fills_a_call_by_itself_waits_for_nobody(large):
    callers = Callers()
    callers.hold()
    assert len(rows(callers.call(*large))) == len(large)
    callers.go()


@pytest.mark.parametrize("texts", [0, 1])
def test_without_joint_calls_each_request_is_computed_by_itself(texts):
    callers = Callers(texts=texts)
    callers.hold()
    assert rows(callers.call("a")) == [[1.0]]
    callers.go()


def test_a_refused_text_fails_its_own_request_alone_which_names_its_own_index():
    callers = Callers()
    callers.hold()
    waiting = [callers.in_line("a"), callers.in_line("b", "long"), callers.in_line("cc")]
    callers.go()
    assert (rows(waiting[0]), rows(waiting[2])) == ([[1.0]], [[2.0]])
    with pytest.raises(InputTooLong) as caught:
        rows(waiting[1])
    assert caught.value.errors[0]["field"] == "input[1]"


def test_a_call_that_ends_its_thread_fails_that_request_alone():
    callers = Callers()
    callers.hold()
    leader, other = callers.in_line("exit"), callers.in_line("a")
    callers.go()
    with pytest.raises(SystemExit):
        rows(leader)
    assert (rows(other), rows(callers.call("bb"))) == ([[1.0]], [[2.0]])


def test_a_cancel_in_line_ends_the_wait_at_once_and_its_texts_are_not_computed():
    callers, cancel = Callers(), Cancel()
    callers.hold()
    gone, other = callers.in_line("a", cancel=cancel), callers.in_line("bb")
    cancel.set()
    with pytest.raises(Cancelled):
        rows(gone)
    callers.go()
    assert rows(other) == [[2.0]]
    assert callers.engine.calls == [["hold"], ["bb"]]


class Held(Computing):
    """Computing whose second call waits for ``go``, and not its first."""

    def __init__(self) -> None:
        super().__init__()
        self.first = threading.Event()

    def embed(self, texts: Sequence[str], cancel: CancelEvent) -> Vectors:
        if not self.calls:
            self.calls.append(list(texts))
            assert self.first.wait(LIMIT)
            return self.report(texts)
        return super().embed(texts, cancel)


@pytest.fixture
def joint_call() -> tuple[Callers, list[Cancel], list[Future[Any]]]:
    """A joint call of three requests, which is being computed until ``go``; the first of them leads."""
    callers = Callers()
    callers.engine = engine = Held()
    callers.joint = JointTexts(engine.embed, 8, 1000, 0.0)
    callers.call("first")
    callers.wait_for_calls(1)
    cancels = [Cancel() for _ in range(3)]
    texts = ["hold", "a", "bb"]
    waiting = [callers.in_line(text, cancel=cancel) for text, cancel in zip(texts, cancels, strict=True)]
    engine.first.set()
    callers.wait_for_calls(2)
    return callers, cancels, waiting


def test_a_request_that_is_cancelled_while_it_is_computed_leaves_at_once(joint_call):
    callers, cancels, waiting = joint_call
    cancels[1].set()
    with pytest.raises(Cancelled):
        rows(waiting[1])
    assert not callers.engine.cancels[-1].is_set()
    callers.go()
    assert (rows(waiting[0]), rows(waiting[2])) == ([[4.0]], [[2.0]])


def test_a_leader_that_is_cancelled_computes_for_the_others(joint_call):
    callers, cancels, waiting = joint_call
    cancels[0].set()
    callers.go()
    assert (rows(waiting[1]), rows(waiting[2])) == ([[1.0]], [[2.0]])
    with pytest.raises(Cancelled):
        rows(waiting[0])


def test_the_engine_is_cancelled_once_all_are(joint_call):
    callers, cancels, waiting = joint_call
    for cancel in cancels:
        assert not callers.engine.cancels[-1].is_set()
        cancel.set()
    assert callers.engine.cancels[-1].is_set()
    callers.go()
    for result in waiting:
        with pytest.raises(Cancelled):
            rows(result)


@pytest.mark.parametrize(
    ("report", "calls"),
    [
        (lambda texts: [[float(len(text))] for text in texts], 2),
        (lambda texts: OfTexts([[float(len(text))] for text in texts], tokens=99), 2),
        (lambda texts: OfTexts([[float(len(text))] for text in texts], cut=1), 4),
        (lambda texts: [[float(len(texts[0]))]], 4),
    ],
    ids=["bare rows", "tokens of all", "a cut text that is not named", "too few rows"],
)
def test_what_is_not_known_of_each_is_not_guessed(report, calls):
    callers = Callers()
    callers.engine.report = report
    callers.hold()
    waiting = [callers.in_line("a"), callers.in_line("bb")]
    callers.go()
    assert [rows(result) for result in waiting] == [[[1.0]], [[2.0]]]
    assert len(callers.engine.calls) == calls
    if calls == 2:
        assert [(cut_texts(result.result()), tokens_of(result.result())) for result in waiting] == [(0, None)] * 2


def test_with_a_delay_a_request_waits_for_others_until_the_call_is_full():
    callers = Callers(texts=2, delay=LIMIT * 3)
    assert [rows(result) for result in (callers.call("a"), callers.call("a"))] == [[[1.0]]] * 2
    assert callers.engine.calls == [["a", "a"]]


def test_a_delay_ends():
    assert Callers(delay=0.01).joint.embed(["a"], Cancel()) == [[1.0]]


def test_of_many_threads_with_failures_and_cancels_each_has_its_own():
    callers = Callers(texts=6)
    wrong: list[object] = []
    first = callers.hold()

    def run(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(60):
            texts = ["x" * chance.randrange(1, 40) for _ in range(chance.randrange(1, 4))]
            fails = chance.random() < 0.1
            cancel = Cancel()
            if chance.random() < 0.1:
                cancel.set()
            try:
                found = list(callers.joint.embed([*texts, "long"] if fails else texts, cancel))
                if fails or cancel.is_set() or found != [[float(len(text))] for text in texts]:
                    wrong.append((texts, found))
            except InputTooLong as error:
                if not fails or error.errors[0]["field"] != f"input[{len(texts)}]":
                    wrong.append(error)
            except Cancelled as error:
                if not cancel.is_set():
                    wrong.append(error)

    threads = [threading.Thread(target=run, args=(seed,), daemon=True) for seed in range(12)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(callers.joint._line) >= 6, "some stand in line")
    callers.go()
    rows(first)
    for thread in threads:
        thread.join(LIMIT * 3)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    assert any(len(call) > 4 for call in callers.engine.calls)
