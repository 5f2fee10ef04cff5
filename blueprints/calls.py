"""Call: one data-plane request, from admission to its last byte; and the access line that it leaves."""

from __future__ import annotations

import logging
import time
from typing import Any

import orjson
from flask import Request

from ..cancel import Cancel
from ..runtime import Runtime

access_log = logging.getLogger("modelyard.access")


class Call:
    """Holds a thread of the budget and watches the client's socket. `close` it exactly where the answer ends.

    Raises Overloaded, Draining or NotReady when it is made.
    """

    __slots__ = ("_closed", "_fileno", "_runtime", "cancel")

    def __init__(self, runtime: Runtime, request: Request) -> None:
        runtime.check_open()
        runtime.budget.enter()
        self._runtime = runtime
        self._closed = False
        self.cancel = Cancel()
        runtime.requests.add(self.cancel)
        self._fileno = _socket_of(request)
        if self._fileno >= 0:
            runtime.watcher.watch(self._fileno, self.cancel.set)

    def close(self) -> None:
        """Let go of the socket and the thread; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._fileno >= 0:
            self._runtime.watcher.unwatch(self._fileno)
        self._runtime.requests.discard(self.cancel)
        self._runtime.budget.leave()


def _socket_of(request: Request) -> int:
    """Return the number of the client's socket; -1 where the server does not hand it over (tests, uWSGI)."""
    sock: Any = request.environ.get("gunicorn.socket") or request.environ.get("werkzeug.socket")
    return sock.fileno() if sock is not None else -1


class AccessLine:
    """One line of JSON a request: never its prompt or answer."""

    __slots__ = ("_began", "_enabled", "_request", "bytes", "error", "first", "model", "pieces", "status")

    def __init__(self, request: Request, *, enabled: bool) -> None:
        self._enabled = enabled
        self._request = (request.method, request.path, request.remote_addr)
        self._began = time.monotonic()
        self.status = 0
        self.bytes = 0
        self.pieces: int | None = None
        self.first: float | None = None
        self.model: str | None = None
        self.error: str | None = None

    def began_output(self) -> None:
        """Note that the first piece is ready."""
        if self.first is None:
            self.first = time.monotonic()

    def write(self) -> None:
        """Write the line: when the last byte of the answer was handed to the server, or the client has gone."""
        if not self._enabled:
            return
        method, path, remote = self._request
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "method": method,
            "path": path,
            "status": self.status,
            "ms": round((time.monotonic() - self._began) * 1000, 1),
            "bytes": self.bytes,
            "remote": remote,
        }
        if self.first is not None:
            line["first_ms"] = round((self.first - self._began) * 1000, 1)
        for name in ("model", "pieces", "error"):
            value = getattr(self, name)
            if value is not None:
                line[name] = value
        access_log.info(orjson.dumps(line).decode())
