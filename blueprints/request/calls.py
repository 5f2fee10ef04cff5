"""Call: one data-plane request, from admission to its last byte; and the access line that every request leaves."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import time
from collections.abc import Collection
from http import HTTPStatus
from typing import Any

import orjson
from flask import Blueprint, Request, Response, g, request

from ...streams import Cancel
from ...telemetry.tracing import Tracing
from ...worker.protocol import Service
from .traces import CallTrace, arrived

access_log = logging.getLogger("modelyard.access")


class Call:
    """Holds a thread of the budget and watches the client's socket. `close` it exactly where the answer ends.

    Raises Overloaded, Draining or NotReady when it is made.
    """

    __slots__ = ("_closed", "_fileno", "_runtime", "_sock", "_timed", "cancel")

    def __init__(self, runtime: Service, request: Request) -> None:
        runtime.check_open()
        runtime.budget.enter()
        self._runtime = runtime
        self._closed = False
        self._timed = False
        self.cancel = Cancel()
        runtime.requests.add(self.cancel)
        self._sock = _socket_of(request)
        self._fileno = -1 if self._sock is None else self._sock.fileno()
        if self._fileno >= 0:
            runtime.watcher.watch(self._fileno, self.cancel.set)

    def bound_writes(self, seconds: float) -> None:
        """Let a write to a client that accepts nothing fail after ``seconds``."""
        if self._sock is None:
            return
        with contextlib.suppress(OSError, AttributeError):
            if os.get_blocking(self._fileno):
                # In the kernel: a timeout of Python's socket would cost a poll a write.
                timeval = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
            else:
                # gevent's waits in the hub, where the kernel's limit means nothing.
                self._sock.settimeout(seconds)
                self._timed = True

    def close(self) -> None:
        """Let go of the socket and the thread; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._timed:
            self._sock.settimeout(None)
        if self._fileno >= 0:
            self._runtime.watcher.unwatch(self._fileno)
        self._runtime.requests.discard(self.cancel)
        self._runtime.budget.leave()


def _socket_of(request: Request) -> Any:
    """Return the client's socket; None where the server does not hand it over (tests, uWSGI)."""
    return request.environ.get("gunicorn.socket") or request.environ.get("werkzeug.socket")


class AccessLine:
    """One line of JSON a request: never its prompt or answer."""

    __slots__ = (
        *("_began", "_enabled", "_request", "bytes", "caller", "error", "first", "model"),
        *("pieces", "routine", "status", "trace"),
    )

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
        self.routine = False
        """Whether it comes every few seconds: then a success is worth a line at debug level only."""
        self.caller: str | None = None
        """The name of the token that the request was let in by."""
        self.trace: CallTrace | None = None
        """The span of the request, which ends when the line is written; None where nothing is traced."""

    def began_output(self) -> None:
        """Note that the first piece is ready."""
        if self.first is None:
            self.first = time.monotonic()

    def write(self) -> None:
        """Write the line: when the last byte of the answer was handed to the server, or the client has gone."""
        if self.trace is not None:
            self.trace.end(self)
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
        for name in ("model", "pieces", "error", "caller"):
            value = getattr(self, name)
            if value is not None:
                line[name] = value
        level = logging.DEBUG if self.routine and self.status < HTTPStatus.BAD_REQUEST else logging.INFO
        access_log.log(level, orjson.dumps(line).decode())


def log_access(
    blueprint: Blueprint, *, enabled: bool, tracing: Tracing | None = None, routine: Collection[str] = ()
) -> None:
    """Let every request of the blueprint leave an access line; a stream's body writes its own, in the end.

    With ``tracing`` each has a span as well, which is as long. ``routine`` are views whose successes are not worth a
    line, unless everything is logged.
    """

    @blueprint.before_request
    def begin() -> None:
        line = g.modelyard_line = AccessLine(request, enabled=enabled)
        line.routine = (request.endpoint or "").rpartition(".")[2] in routine
        if tracing is not None:
            line.trace = arrived(tracing, request)

    @blueprint.after_request
    def note(response: Response) -> Response:
        # Where an earlier before_request of the application has answered, `begin` was not called.
        if (line := g.get("modelyard_line")) is not None:
            line.status = response.status_code
            if not response.is_streamed:
                line.bytes = response.content_length or 0
        return response

    @blueprint.teardown_request
    def end(error: BaseException | None) -> None:
        line, response = g.get("modelyard_line"), g.pop("modelyard_stream", None)
        if line is not None and line.trace is not None:
            line.trace.leave()
        if response is None:
            if line is not None:
                line.write()
        elif not response.taken:
            # An after_request of the application failed, or put another response in its place.
            response.response.close()
