"""JointTexts: requests to embed that wait for each other are computed in one call of the engine.

The first request leads: it computes at once. Those that come meanwhile stand in line. Then the first of the line leads,
and computes the texts of as many as one call takes. So a request by itself never waits for others (unless a delay is
set), and the busier the model is, the more texts a call has. Each request keeps the errors, the cancel and the counts
that it would have by itself: where a joint call fails, each of its requests is computed alone.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from ..engines.base import CancelEvent, Vectors, part_of
from ..errors import Cancelled, EngineError
from ..streams import Cancel

log = logging.getLogger(__name__)

Embed: TypeAlias = Callable[[Sequence[str], CancelEvent], Vectors]


class _Request:
    """A request, whose event is set when it leads, has its rows, is to be computed alone, or is cancelled."""

    __slots__ = ("cancel", "decided", "leads", "letters", "rows", "texts")

    def __init__(self, texts: Sequence[str], cancel: Cancel, letters: int) -> None:
        self.texts = texts
        self.cancel = cancel
        self.letters = letters
        self.decided = threading.Event()
        self.leads = False
        self.rows: Vectors | None = None

    def wait(self) -> None:
        """Block until it is decided: by the leader of the moment, however its call ends, or by a cancel."""
        self.cancel.on_set(self.decided.set)
        try:
            self.decided.wait()
        finally:
            self.cancel.forget(self.decided.set)


class JointTexts:
    """The requests to embed of one model. All threads of its slots call `embed`, and one of them computes."""

    def __init__(self, embed: Embed, texts: int, letters: int, delay: float) -> None:
        """Let a joint call of ``embed`` have so many ``texts`` and ``letters`` at most; with 0 or 1 texts none is made.

        A leader waits ``delay`` seconds for others, unless the call is full before.
        """
        self._embed = embed
        self._texts = texts
        self._letters = letters
        self._delay = delay
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._line: deque[_Request] = deque()
        self._has_leader = False

    def embed(self, texts: Sequence[str], cancel: Cancel) -> Vectors:
        """Return one row for each text, which may be computed together with those of other threads.

        Raises what the engine raises for these texts, and Cancelled.
        """
        letters = sum(map(len, texts))
        if len(texts) >= self._texts or letters >= self._letters:
            return self._embed(texts, cancel)
        request = _Request(texts, cancel, letters)
        self._enter(request)
        if request.leads:
            self._lead(request)
        if cancel.is_set():
            raise Cancelled("the client has gone")
        return self._embed(texts, cancel) if request.rows is None else request.rows

    def _enter(self, request: _Request) -> None:
        """Make the request the leader, or wait in line until it is decided."""
        with self._lock:
            if not self._has_leader:
                self._has_leader = request.leads = True
                return
            self._line.append(request)
            self._arrived.notify()
        request.wait()
        with self._lock:
            if request in self._line:  # it is cancelled
                self._line.remove(request)

    def _lead(self, request: _Request) -> None:
        members: list[_Request] = []
        try:
            members = self._members(request)
            if len(members) > 1 or request not in members:
                self._compute(members)
            elif members:
                request.rows = self._embed(request.texts, request.cancel)
        finally:
            for member in members:
                member.decided.set()
            self._pass_on()

    def _members(self, leader: _Request) -> list[_Request]:
        """Take the requests of the next call out of the line: the leader, and those after it that fit."""
        with self._lock:
            if self._delay:
                self._arrived.wait_for(lambda: self._is_full(leader), self._delay)
            members = [] if leader.cancel.is_set() else [leader]
            texts, letters = (len(leader.texts), leader.letters) if members else (0, 0)
            while self._line:
                request = self._line[0]
                texts, letters = texts + len(request.texts), letters + request.letters
                if texts > self._texts or letters > self._letters:
                    break
                members.append(self._line.popleft())
            return members

    def _is_full(self, leader: _Request) -> bool:
        waiting = [leader, *self._line]
        texts, letters = sum(len(request.texts) for request in waiting), sum(request.letters for request in waiting)
        return texts >= self._texts or letters >= self._letters

    def _compute(self, members: list[_Request]) -> None:
        """Compute the texts of all, and give each its rows. A request without rows is computed by itself."""
        texts = [text for member in members for text in member.texts]
        try:
            with _cancelled_with_all([member.cancel for member in members]) as cancel:
                rows = self._embed(texts, cancel)
            if len(rows) != len(texts):
                raise EngineError(f"the engine gave {len(rows)} rows for {len(texts)} texts")
            first = 0
            for member in members:
                member.rows = part_of(rows, slice(first, first + len(member.texts)))
                first += len(member.texts)
        except Exception as error:  # noqa: BLE001 - the requests are computed again, each by itself
            log.debug("%d texts of %d requests are computed one by one: %s", len(texts), len(members), error)

    def _pass_on(self) -> None:
        """Let the first of the line lead, if there is one."""
        with self._lock:
            self._has_leader = bool(self._line)
            if self._line:
                leader = self._line.popleft()
                leader.leads = True
                leader.decided.set()


@contextmanager
def _cancelled_with_all(cancels: Sequence[Cancel]) -> Iterator[Cancel]:
    """Yield a cancel that is set once all of ``cancels`` are."""
    joint = Cancel()

    def check() -> None:
        if all(cancel.is_set() for cancel in cancels):
            joint.set()

    for cancel in cancels:
        cancel.on_set(check)
    try:
        yield joint
    finally:
        for cancel in cancels:
            cancel.forget(check)
