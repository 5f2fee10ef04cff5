"""Pump: an engine's blocking iterator in a thread of its own, so that the sender of the answer can break a silence.

Pieces that wait for a slow reader are joined into one burst, and their number is limited.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence

from .streams import TICK, Cancel
from .threads import start_thread
from .types import Burst, JSONObject

JOIN_TIMEOUT = 30.0
"""Seconds that a cancelled engine gets to notice."""
_numbers = itertools.count(1)


def _joined(bursts: Sequence[Burst]) -> Burst:
    pieces = [piece for burst in bursts for piece in burst.pieces]
    deltas: list[JSONObject] | None = None
    if any(burst.deltas for burst in bursts):
        deltas = [delta for burst in bursts for delta in burst.deltas or ({} for _ in burst.pieces)]
    last = bursts[-1]
    return Burst(pieces, last.finish_reason, last.usage, last.metrics, deltas)


class Pump:
    """A thread that drives ``produce(put)``, and the iterator of what it put.

    ``put(burst)`` returns False once it is cancelled: then ``produce`` must end. It blocks while more than
    ``limit`` pieces wait for a slow reader. The thread is not a daemon: a native engine must not be cut at exit.
    """

    def __init__(
        self,
        produce: Callable[[Callable[[Burst], bool]], None],
        cancel: Cancel,
        name: str,
        limit: int = 4096,
        join: Callable[[Sequence[Burst]], Burst] = _joined,
    ) -> None:
        """Start the thread; ``cancel`` ends it. ``join`` makes one burst of those that wait. Raises Overloaded."""
        self._join = join
        self._cancel = cancel
        self._limit = limit
        self._changed = threading.Condition(threading.Lock())
        self._ready: list[Burst] = []
        self._pieces = 0
        self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, args=(produce,), name=f"{name}-{next(_numbers)}", daemon=False
        )
        start_thread(self._thread)
        cancel.on_set(self._wake)

    def _run(self, produce: Callable[[Callable[[Burst], bool]], None]) -> None:
        error: BaseException | None = None
        try:
            produce(self._put)
        except BaseException as raised:  # noqa: BLE001 - it is raised again in the thread that reads
            error = raised
        with self._changed:
            self._error = error
            self._ended = True
            self._changed.notify_all()

    def _put(self, burst: Burst) -> bool:
        with self._changed:
            while self._pieces > self._limit and not self._cancel.is_set():
                self._changed.wait(TICK)
            if self._cancel.is_set():
                return False
            self._ready.append(burst)
            self._pieces += len(burst.pieces)
            self._changed.notify_all()
        return True

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Burst | None]:
        return self

    def __next__(self) -> Burst | None:
        with self._changed:
            if not self._ready and not self._ended and not self._cancel.is_set():
                self._changed.wait(TICK)
            if self._ready:
                ready, self._ready, self._pieces = self._ready, [], 0
                self._changed.notify_all()
                return ready[0] if len(ready) == 1 else self._join(ready)
            if self._cancel.is_set() and not self._ended:
                raise self._cancel.error
            if not self._ended:
                return None
        if self._error is not None:
            raise self._error
        raise StopIteration

    def close(self) -> None:
        """Wait until the thread has ended: at most one step of the engine, which looks at ``cancel``."""
        self._cancel.forget(self._wake)
        self._wake()
        self._thread.join(JOIN_TIMEOUT)


def pumped(bursts: Iterator[Burst | None], cancel: Cancel, name: str) -> Pump:
    """Return a Pump over a blocking iterator, which is closed in the thread that ran it."""

    def produce(put: Callable[[Burst], bool]) -> None:
        try:
            for burst in bursts:
                if cancel.is_set() or (burst is not None and not put(burst)):
                    return
        finally:
            close = getattr(bursts, "close", None)
            if close is not None:
                close()

    return Pump(produce, cancel, name)
