"""Call: one request on its way, which any thread may end at once, wherever it waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from .address import Origin

if TYPE_CHECKING:
    from .connections import Connection, Incoming


class Ended(Exception):
    """`Call.end` was called before there was a socket to shut down."""


class Call:
    """The state of one request. The thread that sends it reads its response too; only `end` may come from another."""

    def __init__(
        self, origin: Origin, read_timeout: float, until: float | None, *, fresh: bool = False, keep: bool = True
    ) -> None:
        """``read_timeout`` is seconds of silence; ``until`` the monotonic time when its response must be whole.

        With ``fresh`` its connection has served no other request; without ``keep`` it will serve none.
        """
        self.origin = origin
        self.read_timeout = read_timeout
        self.until = until
        self.fresh = fresh
        self.keep = keep
        self.has_ended = False
        self.was_kept = False
        """Whether its connection had served another request before."""
        self.incoming: Incoming | None = None
        """The bytes of its response; None until it is waited for."""
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    @property
    def received(self) -> int:
        """Bytes that have come of its response."""
        return 0 if self.incoming is None else self.incoming.source.received

    def hold(self, connection: Connection) -> None:
        """Go over ``connection``. Raises Ended."""
        with self._lock:
            if self.has_ended:
                raise Ended
            self._connection = connection

    def let_go(self) -> None:
        """Leave its connection to others: from now on `end` does not touch it."""
        with self._lock:
            self._connection = None

    def end(self) -> None:
        """Shut its connection down: what another thread does with it fails there, now."""
        # Under the lock: a connection that was let go may be another call's already.
        with self._lock:
            self.has_ended = True
            if self._connection is not None:
                self._connection.shut_down()

    @contextmanager
    def sent_here(self) -> Iterator[None]:
        """Be the call that the connections of this thread, or greenlet, work for."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


_current: ContextVar[Call | None] = ContextVar("modelyard_call", default=None)


def current_call() -> Call | None:
    """Return the call that this thread sends, if it sends one: so it comes through requests and urllib3."""
    return _current.get()
