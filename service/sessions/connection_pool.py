"""Pool: the connections of one process that wait for their next request."""

from __future__ import annotations

import os
import time
from collections import deque

from .connection import Connection, Origin

IDLE_LIMIT = 30.0
"""Seconds that a connection is kept for another request; our servers keep theirs longer."""


class Pool:
    """The idle connections of one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._idle: dict[Origin, deque[Connection]] = {}
        self._swept = time.monotonic()
        self._closed = False

    def take(self, origin: Origin) -> Connection | None:
        """Return a connection that is still open; None where there is none."""
        idle = self._idle.get(origin)
        while idle:
            try:
                connection = idle.pop()
            except IndexError:  # another thread was faster
                break
            if connection.idle_since > time.monotonic() - IDLE_LIMIT and connection.is_quiet():
                return connection
            connection.close()
        return None

    def put(self, connection: Connection) -> None:
        """Keep a connection for the next request."""
        connection.idle_since = now = time.monotonic()
        self._idle.setdefault(connection.origin, deque()).append(connection)
        if self._closed:
            self._sweep(now)
        elif now - self._swept > IDLE_LIMIT:
            self._swept = now
            self._sweep(now - IDLE_LIMIT)

    def _sweep(self, since: float) -> None:
        """Close what has been idle ``since`` then, of every origin."""
        for idle in list(self._idle.values()):
            while idle:
                try:
                    connection = idle.popleft()
                except IndexError:
                    break
                if connection.idle_since > since:
                    idle.appendleft(connection)
                    break
                connection.close()

    def close(self) -> None:
        """Close all that is idle, and what is given back later."""
        self._closed = True
        self._sweep(time.monotonic())
