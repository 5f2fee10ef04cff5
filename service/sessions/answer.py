"""Answer: one HTTP request on its way, and what comes back."""

from __future__ import annotations

import socket
import ssl
import threading
from types import TracebackType
from typing import Any, NamedTuple

import orjson

from ..errors import NotConnected, WorkerUnreachable
from ..streams import Cancel
from .connection import TICK, Aborted, Connection, Origin
from .connection_pool import Pool
from .http_parsing import MAX_HEAD, Body, Head, Headers, body_of, parse_head

MAX_WHOLE = 1024**3
"""Bytes of a whole answer: more is refused."""


class Request(NamedTuple):
    """A request as it goes over the wire, where to, and how long it may take in seconds."""

    origin: Origin
    method: str
    data: bytes
    connect_timeout: float
    read_timeout: float
    reuse: bool
    """Whether the connection may have served other requests, and may serve more."""


class Answer:
    """The answer to one request, as it comes. One thread reads it; whoever got it closes it.

    Everything that reads may raise WorkerUnreachable, or the error of the request's cancel.
    """

    def __init__(self, pool: Pool, tls: ssl.SSLContext | None, request: Request, cancel: Cancel | None) -> None:
        """Ask for nothing yet: `begin` does."""
        self._pool = pool
        self._tls = tls
        self._request = request
        self._cancel = cancel
        self._holding = threading.Lock()
        self._connection: Connection | None = None
        self._reused = False
        self._silent = 0.0
        self._received = b""
        self._head: Head | None = None
        self._body: Body | None = None
        self._whole: bytes | None = None

    # What came

    @property
    def status_code(self) -> int:
        """The HTTP status."""
        assert self._head is not None
        return self._head.status

    @property
    def headers(self) -> Headers:
        """The headers; names in any case."""
        assert self._head is not None
        return self._head.headers

    @property
    def content(self) -> bytes:
        """The whole body."""
        return self.read_whole()

    @property
    def text(self) -> str:
        """The whole body as text."""
        return self.read_whole().decode("utf-8", "replace")

    def json(self) -> Any:
        """Return the whole body, parsed. ValueError where it is no JSON."""
        return orjson.loads(self.read_whole())

    # How it comes

    def begin(self) -> None:
        """Send the request, on a kept connection where there is one."""
        self._begin_on(self._pool.take(self._request.origin) if self._request.reuse else None)

    def _begin_on(self, connection: Connection | None) -> None:
        self._reused = connection is not None
        self._connection = connection or Connection(self._request.origin)
        if self._cancel is not None:
            self._cancel.on_set(self._abort)
        try:
            if not self._reused:
                self._connection.connect(self._request.connect_timeout, self._tls)
        except (OSError, Aborted, UnicodeError) as error:
            why = _why_not_connected(error, self._request.connect_timeout)
            raise self._failure(why, NotConnected) from error
        try:
            self._connection.send(self._request.data, self._request.read_timeout)
        except (BrokenPipeError, ConnectionResetError):
            # It may have answered before it read all of the request: reading shows it.
            return
        except OSError as error:
            raise self._failure(f"did not take the request: {error}") from error

    def wait_head(self) -> bool:
        """Wait about a second for status and headers; return whether they are there."""
        while self._head is None:
            data = self._receive()
            if data is None:
                return False
            if not data:
                if self._reused and not self._received:
                    self._again()
                    continue
                raise self._failure("closed the connection before its answer")
            self._received += data
            self._look_for_head()
        return True

    def _look_for_head(self) -> None:
        head, found, rest = self._received.partition(b"\r\n\r\n")
        if not found:
            if len(head) > MAX_HEAD or not (head.startswith(b"HTTP/") or b"HTTP/".startswith(head[:5])):
                raise self._failure(f"does not answer with HTTP: {head[:40]!r}")
            return
        try:
            parsed = parse_head(head)
            if not parsed.is_interim:
                self._body = body_of(self._request.method, parsed)
                self._head = parsed
        except ValueError as error:
            raise self._failure(f"does not answer with HTTP: {error}") from None
        self._received = rest
        if parsed.is_interim and rest:
            self._look_for_head()

    def _again(self) -> None:
        """Send the request once more: the server closed the kept connection while it was on its way."""
        self._let_go()
        self._begin_on(None)

    def read1(self) -> bytes | None:
        """Return what has come of the body: b"" at its end, None where nothing came for about a second."""
        assert self._head is not None
        while (body := self._body) is not None:
            received, self._received = self._received, b""
            if not received:
                if body.ended:
                    self._finish(body)
                    return b""
                data = self._receive()
                if data is None:
                    return None
                if not data:
                    if not body.end():
                        raise self._failure("broke off its answer")
                    continue
                received = data
            try:
                part = body.feed(received)
            except ValueError as error:
                raise self._failure(f"broke off its answer: {error}") from None
            if part:
                if body.ended:
                    self._finish(body)
                return part
        return b""

    def read_whole(self) -> bytes:
        """Return the whole body, of `MAX_WHOLE` bytes at most."""
        if self._whole is None:
            parts, size = [], 0
            while (data := self.read1()) != b"":
                if data is not None:
                    parts.append(data)
                    size += len(data)
                    if size > MAX_WHOLE:
                        raise self._failure(f"answers with over {MAX_WHOLE} bytes")
            self._whole = b"".join(parts)
        return self._whole

    def _receive(self) -> bytes | None:
        assert self._connection is not None
        tick = min(TICK, self._request.read_timeout)
        try:
            data = self._connection.receive(tick)
        except ConnectionResetError as error:
            # Before the headers it is the same as an end: then the request may be sent once more.
            if self._head is not None:
                raise self._failure("broke off its answer") from error
            data = b""
        except OSError as error:
            raise self._failure(f"broke off: {error}") from error
        if self._cancel is not None and self._cancel.is_set():
            raise self._cancel.error
        if data is not None:
            self._silent = 0.0
            return data
        self._silent += tick
        if self._silent >= self._request.read_timeout:
            raise self._failure(f"was silent for {self._request.read_timeout:g} s")
        return None

    # The end

    def _abort(self) -> None:
        # Under the lock: a connection that was given back may be another request's already.
        with self._holding:
            if self._connection is not None:
                self._connection.abort()

    def _failure(self, what: str, kind: type[WorkerUnreachable] = WorkerUnreachable) -> Exception:
        if self._cancel is not None and self._cancel.is_set():
            return self._cancel.error
        return kind(f"{self._request.origin} {what}")

    def _finish(self, body: Body) -> None:
        """Keep the connection for another request, if it may be."""
        assert self._head is not None
        keep = self._request.reuse and self._head.keeps_alive and body.ended and not body.excess
        self._body = None
        self._let_go(keep=keep)

    def _let_go(self, *, keep: bool = False) -> None:
        with self._holding:
            connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._cancel is not None:
            self._cancel.forget(self._abort)
        if keep and not connection.is_aborted:
            self._pool.put(connection)
        else:
            connection.close()

    def close(self) -> None:
        """End it wherever it is: what has not been read yet is given up. A second call does nothing."""
        self._body = None
        self._let_go()

    def __enter__(self) -> Answer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _why_not_connected(error: Exception, timeout: float) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"shows a certificate that is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"does not speak TLS as expected: {error.reason or error}"
    if isinstance(error, TimeoutError):
        return f"did not accept a connection within {timeout:g} s (connect_timeout)"
    if isinstance(error, ConnectionRefusedError):
        return "refused the connection"
    if isinstance(error, socket.gaierror | UnicodeError):
        return f"has a name that can't be looked up: {error}"
    return f"can't be connected to: {error}"
