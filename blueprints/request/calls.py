"""Call: one data-plane request, from admission to its last byte."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import Any

from flask import Request

from ...streams import Cancel
from ...worker.protocol import Service


class Call:
    """Holds a thread of the budget and watches the client's socket, until it is closed.

    The constructor raises Overloaded, Draining or NotReady.
    """

    __slots__ = ("_closed", "_fileno", "_service", "_sock", "_timed", "cancel")

    def __init__(self, service: Service, request: Request) -> None:
        service.check_open()
        service.budget.enter()
        self._service = service
        self._closed = False
        self._timed = False
        self.cancel = Cancel()
        service.requests.add(self.cancel)
        self._sock = _socket_of(request)
        self._fileno = -1 if self._sock is None else self._sock.fileno()
        if self._fileno >= 0:
            service.watcher.watch(self._fileno, self.cancel.set)

    def bound_writes(self, seconds: float) -> None:
        """Limit each write to the client to ``seconds``."""
        if self._sock is None:
            return
        with contextlib.suppress(OSError, AttributeError):
            if os.get_blocking(self._fileno):
                # The kernel's limit: a timeout of Python's socket would cost a poll for each write.
                timeval = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
            else:
                # gevent waits in its hub, where the kernel's limit has no effect.
                self._sock.settimeout(seconds)
                self._timed = True

    def close(self) -> None:
        """Release the socket and the thread; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._timed:
            self._sock.settimeout(None)
        if self._fileno >= 0:
            self._service.watcher.unwatch(self._fileno)
        self._service.requests.discard(self.cancel)
        self._service.budget.leave()


def _socket_of(request: Request) -> Any:
    """Return the client's socket; None if the server does not provide it (tests, uWSGI)."""
    return request.environ.get("gunicorn.socket") or request.environ.get("werkzeug.socket")
