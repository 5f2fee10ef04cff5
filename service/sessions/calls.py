"""Call: one request under way. Any thread may end it at once, wherever it waits."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING

from .address import Origin

if TYPE_CHECKING:
    from .connections import Connection, Incoming


class Ended(Exception):
    """`Call.end` was called before there was a socket to shut down."""


class Call:
    """The state of one request. The thread that sends it also reads its response; other threads may only call `end`."""

    def __init__(
        self, origin: Origin, read_timeout: float, until: float | None, *, fresh: bool = False, keep: bool = True
    ) -> None:
        """Set the limits: ``read_timeout`` is seconds of silence, ``until`` the monotonic time of the whole response.

        ``fresh`` asks for a new connection; without ``keep`` the connection is closed after the response.
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
        """The number of bytes of its response that have come."""
        return 0 if self.incoming is None else self.incoming.source.received

    def hold(self, connection: Connection) -> None:
        """Use ``connection``. Raises Ended."""
        with self._lock:
            if self.has_ended:
                raise Ended
            self._connection = connection

    def let_go(self) -> Connection | None:
        """Release its connection, and return it, if it had one: from now on `end` does not touch it."""
        with self._lock:
            connection, self._connection = self._connection, None
        return connection

    def end(self) -> None:
        """Shut its connection down: a thread that sends or receives on it fails at once."""
        # Under the lock: a connection that was released may already belong to another call.
        with self._lock:
            self.has_ended = True
            if self._connection is not None:
                self._connection.shut_down()


current_call: ContextVar[Call | None] = ContextVar("modelyard_call", default=None)
"""The call that this thread, or greenlet, is sending; None without one. It passes requests and urllib3 this way."""
