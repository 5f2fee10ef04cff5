"""Cancel: the event that ends one request's work, whoever finds out first that nobody wants it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .errors import Cancelled, ModelyardError


class Cancel:
    """Set once, with the error that the request ends with; engines look at it or wait on it."""

    __slots__ = ("_callbacks", "_event", "_lock", "error")

    def __init__(self) -> None:
        """Make one that is not set."""
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self.error: ModelyardError = Cancelled("the client has gone")

    def set(self, error: ModelyardError | None = None) -> None:
        """Cancel, with ``error`` (default: the client has gone). Later calls change nothing.

        Callbacks run in this thread, so they must be short.
        """
        with self._lock:
            if self._event.is_set():
                return
            self.error = error or self.error
            self._event.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def is_set(self) -> bool:
        """Return whether the work is cancelled."""
        return self._event.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Block for ``timeout`` seconds at most, or until cancelled; return whether it is."""
        return self._event.wait(timeout)

    def on_set(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when it is cancelled: at once, if it is already."""
        with self._lock:
            if not self._event.is_set():
                self._callbacks.append(callback)
                return
        callback()

    def forget(self, callback: Callable[[], None]) -> None:
        """Take a callback back, if it has not been called."""
        with self._lock:
            if callback in self._callbacks:
                self._callbacks.remove(callback)
