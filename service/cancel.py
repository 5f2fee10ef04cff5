"""Cancel: the event that ends one request's work, whoever finds out first that nobody wants it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .errors import Cancelled, ModelyardError


class Cancel:
    """Set once, with the error that the request ends with; engines look at it or wait on it."""

    __slots__ = ("_barrier", "_callbacks", "_lock", "_set", "error")

    def __init__(self) -> None:
        """Make one that is not set."""
        self._set = False
        self._lock = threading.Lock()
        # Held until it is set. There is one a stream, waited on once a piece: a lock is a tenth of an Event in memory,
        # and its wait allocates nothing.
        self._barrier = threading.Lock()
        self._barrier.acquire()
        self._callbacks: list[Callable[[], None]] = []
        self.error: ModelyardError = Cancelled("the client has gone")

    def set(self, error: ModelyardError | None = None) -> None:
        """Cancel, with ``error`` (default: the client has gone). Later calls change nothing.

        Callbacks run in this thread, so they must be short.
        """
        with self._lock:
            if self._set:
                return
            self.error = error or self.error
            self._set = True
            callbacks, self._callbacks = self._callbacks, []
        self._barrier.release()
        for callback in callbacks:
            callback()

    def is_set(self) -> bool:
        """Return whether the work is cancelled."""
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        """Block for ``timeout`` seconds at most, or until cancelled; return whether it is."""
        if not self._set and self._barrier.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            self._barrier.release()
        return self._set

    def on_set(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when it is cancelled: at once, if it is already."""
        with self._lock:
            if not self._set:
                self._callbacks.append(callback)
                return
        callback()

    def forget(self, callback: Callable[[], None]) -> None:
        """Take a callback back, if it has not been called."""
        with self._lock:
            if callback in self._callbacks:
                self._callbacks.remove(callback)
