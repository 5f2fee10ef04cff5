"""The choices of one answer: computed at once in the slots that are free, the others as slots come free.

One choice at most waits in line, and only while no other runs. So an answer with many choices takes what is free, and
never more than one place from others.
"""

from __future__ import annotations

import queue
import threading
import time
from bisect import insort
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import replace
from typing import NamedTuple

from ...cluster.routing import SLOTS, Load
from ...errors import Overloaded
from ...pump import JOIN_TIMEOUT, Pump
from ...streams import TICK, Cancel, OutputStream
from ...threads import start_thread
from ...types import Burst, GenerateRequest, WorkerType
from ...worker.admission import Budget
from ...worker.protocol import WorkerManager
from ..request.fields import fault


class ChoiceBursts(Burst):
    """The bursts of several choices that are ready together; its pieces are those of all."""

    parts: tuple[tuple[int, Burst], ...]
    """Each burst, with the index of its choice."""

    @classmethod
    def of(cls, parts: Sequence[tuple[int, Burst]]) -> ChoiceBursts:
        """Return the bursts of ``parts`` as one."""
        made = cls([piece for _, burst in parts for piece in burst.pieces])
        made.parts = tuple(parts)
        return made


def parts_of(burst: Burst) -> tuple[tuple[int, Burst], ...]:
    """Return the bursts within ``burst``, each with the index of its choice."""
    return burst.parts if isinstance(burst, ChoiceBursts) else ((0, burst),)


def check_copies(manager: WorkerManager, model: str, copies: int) -> None:
    """Raise InvalidRequest if a prompt has more choices than the model has slots; unknown slots allow any number."""
    load = _load(manager, model) if copies > 1 else None
    if load is not None and copies > load.slots:
        raise fault(
            "n", f"is {copies}, but model {model!r} has {load.slots} slots, and each choice takes one: ask for fewer"
        )


def open_choices(
    manager: WorkerManager, budget: Budget, requests: Sequence[GenerateRequest], cancel: Cancel
) -> OutputStream:
    """Return the stream of all choices of an answer, one for each of ``requests``; close it.

    Of several choices the stream has `ChoiceBursts`. Each choice that runs beside another takes a thread of the
    ``budget``. An error of one choice ends all. Raises what the manager raises.
    """
    if len(requests) == 1:
        return manager.generate_stream(requests[0], cancel)
    return _ChoicesStream(_Choices(manager, budget, requests, cancel), cancel)


def _joined(bursts: Sequence[Burst]) -> Burst:
    return ChoiceBursts.of([part for burst in bursts for part in parts_of(burst)])


def _load(manager: WorkerManager, model: str) -> Load | None:
    return Load.parse(manager.load_of(model, WorkerType.LLM))


class _News(NamedTuple):
    """What the thread of a choice reports: that its first burst came, and later its end, with its error."""

    choice: int
    is_over: bool = False
    has_begun: bool = True
    error: BaseException | None = None


class _Running(NamedTuple):
    """A choice under way."""

    cancel: Cancel
    waits: bool
    """Whether it may wait in line. All others take a thread of the budget, and are opened again if they are refused."""


class _Choices:
    """The work on several choices: `compute` opens them one after the other, a thread runs each."""

    def __init__(
        self, manager: WorkerManager, budget: Budget, requests: Sequence[GenerateRequest], cancel: Cancel
    ) -> None:
        """Compute ``requests`` until ``cancel`` is set. Spans are made below that of this call."""
        self._manager = manager
        self._budget = budget
        self._requests = requests
        self._cancel = cancel
        self._context = copy_context()
        self._pending = list(range(len(requests)))
        self._running: dict[int, _Running] = {}
        self._news: queue.SimpleQueue[_News] = queue.SimpleQueue()
        self.model: str | None = None
        """The `OutputStream.model` of the choice that began last."""

    def compute(self, put: Callable[[Burst], bool]) -> None:
        """Put the bursts of all choices. Raises the error of the first choice that fails."""
        self._cancel.on_set(self._cancel_all)
        try:
            self._open(self._free(), put)
            while self._running:
                self._open(self._noted(self._next_news()), put)
        finally:
            self._cancel.forget(self._cancel_all)
            self._end()

    def _free(self) -> int:
        """Return how many slots are free, by the last report."""
        load = _load(self._manager, self._requests[0].model)
        return SLOTS if load is None else load.free

    def _open(self, room: int, put: Callable[[Burst], bool]) -> None:
        """Open ``room`` more choices at most, and one that may wait if none runs."""
        for _ in range(max(room, 0 if self._running else 1)):
            if not self._pending:
                return
            waits = not self._running
            try:
                self._start(self._pending[0], waits, put)
            except Overloaded:
                if waits:
                    raise
                return
            del self._pending[0]

    def _start(self, index: int, waits: bool, put: Callable[[Burst], bool]) -> None:
        if not waits:
            self._budget.enter()
        running = _Running(Cancel(), waits)
        stream: OutputStream | None = None
        try:
            request = self._requests[index]
            if not waits:
                request = replace(request, terms=replace(request.terms, wait=False))
            stream = self._context.run(self._manager.generate_stream, request, running.cancel)
            thread = threading.Thread(target=self._run, args=(index, stream, put), name=f"choice-{index}", daemon=False)
            start_thread(thread)
        except BaseException:
            if stream is not None:
                stream.close()
            self._leave(running)
            raise
        self._running[index] = running
        if self._cancel.is_set():
            running.cancel.set(self._cancel.error)

    def _run(self, index: int, stream: OutputStream, put: Callable[[Burst], bool]) -> None:
        has_begun, error = False, None
        try:
            with stream:
                for burst in stream:
                    if burst is None:
                        continue
                    if not has_begun:
                        has_begun, self.model = True, stream.model
                        self._cancel.queued = max(self._cancel.queued, stream.cancel.queued)
                        self._news.put(_News(index))
                    if not put(ChoiceBursts.of([(index, burst)])):
                        break
        except BaseException as raised:  # noqa: BLE001 - it is raised again by `compute`
            error = raised
        self._news.put(_News(index, True, has_begun, error))

    def _next_news(self) -> _News:
        while True:
            try:
                return self._news.get(timeout=TICK)
            except queue.Empty:
                continue

    def _noted(self, news: _News) -> int:
        """Note what a choice reports; return how many others may be opened. Raises its error."""
        if not news.is_over:
            return self._free() if self._pending else 0
        running = self._over(news)
        if news.error is None:
            return max(1, self._free()) if self._pending else 0
        if isinstance(news.error, Overloaded) and not news.has_begun and not running.waits:
            insort(self._pending, news.choice)
            return 0
        raise news.error

    def _over(self, news: _News) -> _Running:
        running = self._running.pop(news.choice)
        self._leave(running)
        return running

    def _leave(self, running: _Running) -> None:
        if not running.waits:
            self._budget.leave()

    def _cancel_all(self) -> None:
        for running in list(self._running.values()):
            running.cancel.set(self._cancel.error)

    def _end(self) -> None:
        """Cancel the choices that still run, and wait until their threads have ended."""
        self._cancel_all()
        deadline = time.monotonic() + JOIN_TIMEOUT
        while self._running and time.monotonic() < deadline:
            news = self._next_news()
            if news.is_over:
                self._over(news)


class _ChoicesStream(OutputStream):
    """The stream of several choices, and the name of the model that answers."""

    def __init__(self, choices: _Choices, cancel: Cancel) -> None:
        super().__init__(Pump(choices.compute, cancel, "choices", join=_joined), cancel, lambda: None)
        self._choices = choices

    def __next__(self) -> Burst | None:
        burst = super().__next__()
        self.model = self._choices.model
        return burst
