"""Admission: a `Gate` for each model (slots and a line), and a `Budget` for each process (threads).

The budget is a bounded semaphore, the gate a bounded semaphore with a line. A request that does not fit is refused at
once, before anything is computed.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable

from ..errors import Cancelled, Conflict, ModelyardError, Overloaded
from ..streams import Cancel
from ..threads import bounded_semaphore
from ..types import JSONObject

BATCH_TURN = 8
"""Of so many slots that come free while requests of both kinds wait, one goes to a batch request."""

LOOK = 5.0
"""Seconds between two looks of a request in line at the time that it has left: a load of its model adds to it."""

BATCH_SHARE = 0.75
"""The share of the budget up to which batch requests are accepted: the rest is for interactive ones."""


class Ticket:
    """The right of a request to a slot, or its place in line. `release` it in any case."""

    __slots__ = (
        "_cancel",
        "_decided",
        "_gate",
        "_has_slot",
        "_line",
        "_released",
        "_since",
        "_until",
        "granted",
        "refusal",
    )

    def __init__(
        self, gate: Gate, cancel: Cancel | None = None, line: deque[Ticket] | None = None, *, has_slot: bool = True
    ) -> None:
        """Make a ticket that waits in ``line``; without a line, one that is granted, of a slot or beside the slots."""
        self._gate = gate
        self._cancel = cancel
        self._line = line
        self._has_slot = has_slot
        self._since = time.monotonic()
        self._until = self._since + gate.queue_timeout
        self._released = False
        self._decided = None if line is None else threading.Event()
        self.granted = line is None
        self.refusal: ModelyardError | None = None
        """The error of a refused request. In line, ``refusal`` is None and ``granted`` false; both change under the
        gate's lock."""

    def wait(self, timeout: float = math.inf) -> bool:
        """Wait in line, ``timeout`` seconds at most; return whether the slot is granted.

        Raises Overloaded when the ``queue_timeout`` has passed, Cancelled, or the error that the gate was closed with.
        """
        if self.granted:
            return True
        assert self._decided is not None
        until = time.monotonic() + timeout
        while not self._decided.wait(max(0.0, min(self._left(), until - time.monotonic(), LOOK))):
            if self._left() <= 0:
                self._gate._refuse(self, self._gate._too_slow())
            elif time.monotonic() >= until:
                return False
        if self.refusal is not None:
            raise self.refusal
        return self.granted

    def _left(self) -> float:
        """Return the seconds until it is refused; they do not pass while its model is being loaded."""
        return math.inf if self._gate.is_loading else self._until - time.monotonic()

    def release(self) -> None:
        """Release the slot, or leave the line; a second call does nothing."""
        if self._cancel is not None:
            self._cancel.forget(self._abandon)
        self._gate._give_back(self)

    def _abandon(self) -> None:
        assert self._cancel is not None
        self._gate._refuse(self, self._cancel.error)

    @property
    def _in_line(self) -> bool:
        return not self.granted and self.refusal is None

    def _leave_line(self) -> None:
        assert self._line is not None
        self._line.remove(self)

    def _decide(self, refusal: ModelyardError | None) -> None:
        self.refusal = refusal
        self.granted = refusal is None
        if self.granted and self._cancel is not None:
            self._cancel.queued = time.monotonic() - self._since
        if self._decided is not None:
            self._decided.set()


class Gate:
    """The slots of a model: a bounded semaphore with a line of limited length.

    In line, interactive requests stand before batch ones; within each kind, first come, first served. Of `BATCH_TURN`
    slots that come free while both wait, the last goes to a batch request. In a full line, an interactive request takes
    the place of the last batch one, which is refused.

    Beyond `threading.BoundedSemaphore`, waiters keep their order and have a deadline, and leave the line when their
    request is cancelled or the gate is closed. While the gate is held, no slot is given: its model is not loaded, or is
    about to be unloaded.
    """

    def __init__(self, name: str, slots: int, max_waiting: int, queue_timeout: float) -> None:
        """Let ``slots`` requests run, and ``max_waiting`` wait, each for ``queue_timeout`` seconds at most."""
        self.name = name
        self.slots = slots
        self.max_waiting = max_waiting
        self.queue_timeout = queue_timeout
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._awaits_idle = 0
        """The threads that wait for `_idle`. Without them it is not notified: under gevent that costs a switch."""
        self._free = slots
        self._interactive: deque[Ticket] = deque()
        self._batch: deque[Ticket] = deque()
        self._passed_by = 0
        """Slots in a row that went to interactive requests while a batch one waited."""
        self._closed: Callable[[], ModelyardError] | None = None
        self._held = False
        self._beside = 0
        """Granted tickets without a slot."""
        self._loading_since: float | None = None

    def request(self, cancel: Cancel | None = None, *, wait: bool = True, batch: bool = False) -> Ticket:
        """Return a ticket: granted if a slot is free, else a place in line if ``wait``.

        Raises Overloaded at once without a slot or a place, and the error of `close` after it. A cancelled request
        leaves the line. Once granted, ``cancel`` has the time in line.
        """
        with self._lock:
            if self._closed is not None:
                raise self._closed()
            if self._free > 0 and not self._held:
                self._free -= 1
                return Ticket(self)
            if not wait:
                raise self._overloaded("and the caller does not wait")
            if self.waiting >= self.max_waiting:
                if batch or not self._batch:
                    raise self._overloaded(f"and {self.waiting} wait already (max_waiting)")
                last = self._batch.pop()
                last._decide(self._overloaded("and an interactive request took its place in line (max_waiting)"))
            line = self._batch if batch else self._interactive
            ticket = Ticket(self, cancel, line)
            line.append(ticket)
        if cancel is not None:
            cancel.on_set(ticket._abandon)
        return ticket

    def beside(self) -> Ticket | None:
        """Return a ticket that takes no slot: until its release the gate is not idle. None while the gate is held."""
        with self._lock:
            if self._closed is not None:
                raise self._closed()
            if self._held:
                return None
            self._beside += 1
        return Ticket(self, has_slot=False)

    def _refuse(self, ticket: Ticket, error: ModelyardError) -> None:
        with self._lock:
            if ticket._in_line:
                ticket._leave_line()
                ticket._decide(error)

    def _give_back(self, ticket: Ticket) -> None:
        with self._lock:
            if ticket._released:
                return
            ticket._released = True
            if ticket._in_line:
                ticket._leave_line()
                ticket._decide(Cancelled("left the line"))
            elif ticket.granted:
                self._take_back(has_slot=ticket._has_slot)

    def _take_back(self, *, has_slot: bool) -> None:
        if has_slot:
            self._free += 1
            self._grant()
        else:
            self._beside -= 1
        if self._awaits_idle and self.is_idle:
            self._idle.notify_all()

    def _grant(self) -> None:
        """Give the free slots to the requests in line."""
        while self._free and self.waiting and not self._held:
            self._free -= 1
            self._next_line().popleft()._decide(None)

    def _next_line(self) -> deque[Ticket]:
        """Return the line whose first request gets the slot that has come free."""
        if not self._batch or not self._interactive:
            self._passed_by = 0
            return self._interactive or self._batch
        self._passed_by = (self._passed_by + 1) % BATCH_TURN
        return self._interactive if self._passed_by else self._batch

    def close(self, error: Callable[[], ModelyardError]) -> None:
        """Refuse the requests in line and all later ones, each with a new ``error()``."""
        with self._lock:
            self._closed = error
            self._refuse_all(error)

    def refuse(self, error: Callable[[], ModelyardError]) -> None:
        """Refuse the requests in line, each with a new ``error()``."""
        with self._lock:
            self._loading_since = None
            self._refuse_all(error)

    def _refuse_all(self, error: Callable[[], ModelyardError]) -> None:
        for line in (self._interactive, self._batch):
            while line:
                line.popleft()._decide(error())

    def hold(self, *, only_idle: bool = False) -> bool:
        """Give no slot until `open`: requests stand in line. With ``only_idle``, return False if it is in use."""
        with self._lock:
            is_unused = self.is_idle and (self._held or not self.waiting)
            if only_idle and (not is_unused or self._closed is not None):
                return False
            self._held = True
            return True

    def loading(self) -> None:
        """Note that a load begins: until `open` no time passes for the requests in line."""
        with self._lock:
            self._held, self._loading_since = True, time.monotonic()

    def open(self) -> None:
        """Give slots again, first to the requests in line."""
        with self._lock:
            if self._loading_since is not None:
                for ticket in (*self._interactive, *self._batch):
                    ticket._until += time.monotonic() - max(ticket._since, self._loading_since)
            # In this order: a request that looks at its time sees one or the other.
            self._loading_since = None
            self._held = False
            self._grant()

    def wait_idle(self, timeout: float) -> bool:
        """Block until all slots are free, for ``timeout`` seconds at most; return whether they are."""
        with self._lock:
            self._awaits_idle += 1
            try:
                return self._idle.wait_for(lambda: self.is_idle, timeout)
            finally:
                self._awaits_idle -= 1

    @property
    def is_idle(self) -> bool:
        """Whether no request runs; some may stand in line."""
        return self._free == self.slots and not self._beside

    @property
    def is_loading(self) -> bool:
        """Whether the model is being loaded, for the requests in line."""
        return self._loading_since is not None

    @property
    def free(self) -> int:
        """The number of free slots."""
        return self._free

    @property
    def waiting(self) -> int:
        """The number of requests in line."""
        return len(self._interactive) + len(self._batch)

    def load(self) -> str:
        """Return the value of the header ``Modelyard-Load``; ``loaded=0`` is there while the gate is held."""
        if self._held:
            return f"slots={self.slots};free=0;waiting={self.waiting};loaded=0"
        return f"slots={self.slots};free={self._free};waiting={self.waiting}"

    def status(self) -> JSONObject:
        """Return how many requests run, and how many of each kind stand in line."""
        waiting = {"interactive": len(self._interactive), "batch": len(self._batch)}
        return {"running": self.slots - self._free, "waiting": waiting}

    def _too_slow(self) -> Overloaded:
        what = "its turn did not come" if self._held else "none came free"
        return self._overloaded(f"and {what} in {self.queue_timeout:g} s (queue_timeout)")

    def _overloaded(self, why: str) -> Overloaded:
        slots = f"is busy: all {self.slots} slots (limit_model_concurrency) run"
        return Overloaded(
            f"model {self.name!r} {'is not loaded' if self._held else slots}, {why}; try again later",
            retry_after=max(1, math.ceil(min(self.queue_timeout, 5))),
            load=self.load(),
        )


class Budget:
    """A bounded semaphore of the threads that data-plane requests may hold. The rest serve administration."""

    def __init__(self, threads: int, reserve: int) -> None:
        """Keep ``reserve`` of the ``threads`` free."""
        self.threads = threads
        self.reserve = reserve
        self.total = threads - reserve
        self._free = bounded_semaphore(self.total)
        # One item for each thread that is taken: a semaphore does not tell its value.
        self._taken: deque[None] = deque()

    def enter(self) -> None:
        """Take a thread; `leave` returns it. Raises Overloaded if none is free."""
        if not self._free.acquire(blocking=False):
            raise Overloaded(
                f"this process is busy: {self.total} requests run or wait, which is all that its {self.threads} "
                f"threads less {self.reserve} in reserve allow; try again later, or raise --threads"
            )
        self._taken.append(None)

    def check_batch(self) -> None:
        """Raise Overloaded if a batch request, which has entered, leaves too few threads for interactive ones."""
        most = max(1, int(self.total * BATCH_SHARE))
        if self.held > most:
            raise Overloaded(
                f"this process is busy: {self.held} requests run or wait, and batch requests are accepted up to "
                f"{most}, {BATCH_SHARE:.0%} of all that it may have; try again later, or raise --threads"
            )

    def leave(self) -> None:
        """Return a thread. Raises IndexError if none is taken."""
        self._taken.pop()
        self._free.release()

    @property
    def held(self) -> int:
        """Return how many requests hold a thread now."""
        return len(self._taken)

    def check_room(self, name: str, wanted: int, taken: int) -> None:
        """Raise Conflict if ``wanted`` slots and the ``taken`` ones exceed the budget."""
        if taken + wanted > self.total:
            raise Conflict(
                f"no room for model {name!r}: it asks for {wanted} slots (limit_model_concurrency), the other models "
                f"have {taken} of the {self.total} that {self.threads} threads less {self.reserve} in reserve allow; "
                f"ask for at most {max(0, self.total - taken)}, stop a model, or raise --threads"
            )
