"""A data-plane call from admission to its last byte, and its streamed answer as a WSGI response.

Bursts become what the client reads, a silence is broken, and all is released at the end.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from flask import Request, Response

from ...errors import Cancelled, EngineError, ModelyardError, WorkerLost
from ...streams import Cancel, OutputStream
from ...types import Burst
from ...wire.chunks import LOAD_HEADER
from ...worker.protocol import ClientOfServer, Permit, Service
from .access_log import AccessLine, current_line, naming
from .keys import prompt_tokens, reserved_tokens
from .problems import unforeseen

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


EVENT_TIMEOUT = 60.0
"""Seconds of silence in a stream until an event breaks it: LangChain gives up after 120 without one."""

_HAS_BEGUN = (EngineError, WorkerLost, Cancelled)
"""Errors that come when a model may have computed something."""


class Call:
    """Holds a thread of the budget and watches the client, until it is closed.

    The constructor raises Overloaded, Draining or NotReady.
    """

    __slots__ = (
        *("_client", "_closed", "_is_holding", "_permit", "_prompt", "_service", "_sock", "_timed", "_used"),
        *("cancel", "line"),
    )

    def __init__(self, service: Service, line: AccessLine) -> None:
        """Begin the call of the request of ``line``."""
        service.check_open()
        service.budget.enter()
        self._service = service
        self.line = line
        self._closed = False
        self._timed = False
        self._is_holding = False
        self._permit: Permit | None = None
        self._prompt = 0
        self._used: Callable[[], int | None] = lambda: None
        self.cancel = Cancel()
        service.requests.add(self.cancel)
        self._sock = socket_of(line.request)
        self._client = _client_of(line.request.environ, self._sock)
        if self._client is not None:
            try:
                service.watcher.watch(self._client, self.cancel.set)
            except BaseException:  # its thread can't be started
                self.close()
                raise

    def note_queue(self) -> None:
        """Write down how long the request stood in line, and where it was sent."""
        self.line.queued = self.cancel.queued
        self.line.instance = self.cancel.instance

    def admit(
        self, characters: int, answers: Sequence[int | None] = (), used: Callable[[], int | None] = lambda: None
    ) -> None:
        """Take a request from the limits of the client's API key, if it has any. Raises RateLimited.

        The tokens are those of a prompt of so many ``characters``, and of ``answers``, each with its limit of tokens.
        At the end those count that ``used`` returns; where it returns None, the prompt and the pieces of the answer.
        """
        key, keys = self.line.api_key, self._service.keys
        if key is None or keys is None or not key.limits:
            return
        self._prompt = prompt_tokens(characters)
        self._used = used
        self._permit = keys.admit(key, reserved_tokens(key, self._prompt, answers))

    def count(self, tokens: int | None) -> None:
        """Note the tokens that a whole answer has used; None: not known."""
        self._used = lambda: tokens

    def finish(self, error: BaseException | None = None) -> None:
        """Give back what was taken from the limits of the key: the model has ended. A second call does nothing.

        No tokens count if an ``error`` came before a model had begun.
        """
        permit, self._permit = self._permit, None
        if permit is None:
            return
        used = self._used() if error is None or isinstance(error, _HAS_BEGUN) else 0
        if used is None:
            used = self._prompt + (self.line.pieces or 0)
        permit.close(used)

    def bound_writes(self, seconds: float) -> None:
        """Limit each write to the client to ``seconds``."""
        if self._sock is not None:
            self._timed = bound_writes(self._sock, seconds)

    def hold_writes(self) -> None:
        """Let writes to the client wait for `send_held`, so that they leave in one packet; the kernel waits 200 ms."""
        with contextlib.suppress(OSError, AttributeError):  # a socket of another kind, or another system
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
            self._is_holding = True

    def send_held(self) -> None:
        """Send what `hold_writes` has held back."""
        if self._is_holding:
            self._is_holding = False
            with contextlib.suppress(OSError):  # it is closed
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)

    def close(self, error: BaseException | None = None) -> None:
        """Release the socket, the thread and the place of the key; a second call does nothing.

        ``error`` is what ended the call before an answer.
        """
        if self._closed:
            return
        self._closed = True
        self.send_held()
        self.note_queue()
        try:
            self.finish(error)
        finally:
            if self._timed:
                self._sock.settimeout(None)
            if self._client is not None:
                self._service.watcher.unwatch(self._client)
            self._service.requests.discard(self.cancel)
            self._service.budget.leave()


@contextlib.contextmanager
def called(service: Service) -> Iterator[Call]:
    """Give the call of the current request, for a body that computes its whole answer, and close it."""
    call = Call(service, current_line())
    try:
        yield call
    except BaseException as error:
        call.close(error)
        raise
    call.close()


def socket_of(request: Request) -> Any:
    """Return the socket of a request's client, where the server gives it; else None."""
    return request.environ.get("gunicorn.socket") or request.environ.get("werkzeug.socket")


def bound_writes(sock: Any, seconds: float) -> bool:
    """Limit each write to a client to ``seconds``; return whether its socket has to lose its timeout in the end."""
    with contextlib.suppress(OSError, AttributeError):
        if os.get_blocking(sock.fileno()):
            # The kernel's limit: a timeout of Python's socket would cost a poll for each write.
            timeval = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        else:
            # gevent waits in its hub, where the kernel's limit has no effect.
            sock.settimeout(seconds)
            return True
    return False


def _client_of(environ: WSGIEnvironment, sock: Any) -> ClientOfServer | None:
    """Return how the watcher sees the client: as the number of its socket, or as the server's function that tells.

    None if the server offers neither.
    """
    if sock is not None:
        fileno = int(sock.fileno())
        return fileno if fileno >= 0 else None
    if "uwsgi.version" in environ:
        return int(sys.modules["uwsgi"].connection_fd())
    is_gone: Callable[[], bool] | None = environ.get("waitress.client_disconnected")
    return is_gone


class Encoder(Protocol):
    """Turns the bursts of one answer into what its client reads."""

    content_type: str
    silence: bytes
    """The bytes that break a silence, without a meaning."""
    one_write: bool
    """Whether each burst is one write at most."""

    def alive(self) -> bytes:
        """Return the same as an event, which some clients wait for; it leaves after `EVENT_TIMEOUT`."""

    def begin(self) -> bytes:
        """Return what stands before the first burst; it leaves with it, or with the headers."""

    def encode(self, burst: Burst) -> Iterable[bytes]:
        """Return the writes that carry ``burst``; they are taken before the next burst."""

    def end(self) -> bytes:
        """Return what stands after the last burst."""

    def failure(self, error: ModelyardError) -> bytes:
        """Return what stands at the end of an answer that failed."""


class StreamBody:
    """The iterable that the server sends. `close` closes the stream and the call, once."""

    def __init__(
        self, call: Call, stream: OutputStream, line: AccessLine, encoder: Encoder, *, silence_timeout: float
    ) -> None:
        self._call = call
        self._stream = stream
        self._line = line
        self._encoder = encoder
        self._prefix = encoder.begin()
        """The part of the beginning that was not sent yet."""
        self._silence_timeout = silence_timeout
        self._silence = 0.0
        """Seconds without an event."""
        self._first: Burst | None = None
        self._writes: Iterator[bytes] = iter(())
        self._taken = 0
        """The writes that the server has taken."""
        self._closed = False
        self._ended = False

    def prime(self, timeout: float) -> None:
        """Wait ``timeout`` seconds for the first burst, so that a failure before it gets its HTTP status.

        Raises the errors of the stream.
        """
        self._call.hold_writes()  # the headers leave with the first write
        deadline = time.monotonic() + timeout
        while self._first is None:
            try:
                self._first = next(self._stream)
            except StopIteration:
                self._end()
                return
            if time.monotonic() >= deadline:
                # The server sends the headers with the first write.
                self._writes = iter((self._taken_prefix() or self._encoder.silence,))
                return

    def _taken_prefix(self) -> bytes:
        prefix, self._prefix = self._prefix, b""
        return prefix

    def _end(self) -> None:
        self._ended = True
        data = self._taken_prefix() + self._encoder.end()
        self._call.finish()  # before the last byte leaves: the client's next request may come at once
        self._call.hold_writes()  # what the server puts after the last write leaves with it
        self._writes = iter((data,) if data else ())

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self._taken += 1
        if self._taken == 2 and not self._ended:  # the first is written
            self._call.send_held()
        data = self._next_data()
        self._line.bytes += len(data)
        return data

    def _next_data(self) -> bytes:
        for write in self._writes:
            return write
        if self._ended:
            raise StopIteration
        if self._first is not None:
            first, self._first = self._first, None
            if (data := self._encode(first)) is not None and not self._is_last(first, data):
                return data
        quiet_until = time.monotonic() + self._silence_timeout
        try:
            for burst in self._stream:
                if burst is not None and (data := self._encode(burst)) is not None and not self._is_last(burst, data):
                    return data
                if time.monotonic() >= quiet_until:
                    return self._break_silence()
        except Exception as error:  # noqa: BLE001 - the end of the answer has every error
            self._ended = True
            return self._taken_prefix() + self._failure(error)
        self._end()
        return next(self._writes)

    def _is_last(self, burst: Burst, data: bytes) -> bool:
        """Return whether a burst is the last: then its ``data`` leaves with what stands after it."""
        if burst.finish_reason is None or not self._encoder.one_write:
            return False
        self._prefix = data
        return True

    def _break_silence(self) -> bytes:
        self._silence += self._silence_timeout
        if self._silence < EVENT_TIMEOUT:
            return self._encoder.silence
        self._silence = 0.0
        return self._taken_prefix() + self._encoder.alive()

    def _encode(self, burst: Burst) -> bytes | None:
        self._silence = 0.0
        self._line.began_output()
        self._line.pieces = (self._line.pieces or 0) + len(burst.pieces)
        self._line.keep_answer(burst.pieces)
        self._writes = iter(self._encoder.encode(burst))
        data = next(self._writes, None)
        return self._taken_prefix() + data if data is not None and self._prefix else data

    def _failure(self, error: Exception) -> bytes:
        if not isinstance(error, ModelyardError):
            error = unforeseen(error)
        self._line.error = error.code
        if isinstance(error, Cancelled):
            raise StopIteration
        return self._encoder.failure(error)

    def release(self, error: BaseException | None = None) -> None:
        """Cancel the stream, and release slot, thread and socket; a second call does nothing.

        ``error`` is what ended the call before an answer.
        """
        try:
            self._stream.close()
        finally:
            self._call.close(error)

    def close(self) -> None:
        """Release everything and write the access line; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if not self._ended:
            self._line.error = self._line.error or self._call.cancel.error.code
        self._line.answered_by = self._stream.model
        self._line.note_answer(self._stream)
        try:
            self.release()
        finally:
            self._line.write()


class Body(Protocol):
    """What a streamed response sends."""

    def __iter__(self) -> Iterator[bytes]: ...

    def __next__(self) -> bytes: ...

    def close(self) -> None:
        """End the request and write its access line; a second call does nothing."""


class StreamResponse(Response):
    """A response that knows whether the server has taken it: then the server closes it.

    An application may read it as a whole, wrap or replace what it iterates over, and call functions at its end.
    """

    def __init__(self, body: Body, content_type: str, load: str | None = None, status: int = 200) -> None:
        """Send ``body``, and close it once."""
        super().__init__(body, status, content_type=content_type)
        self._body = body
        self.call_on_close(body.close)
        self.headers["X-Accel-Buffering"] = "no"
        self.headers["Cache-Control"] = "no-cache"
        if load:
            self.headers[LOAD_HEADER] = load
        self.taken = False

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Return the body, and note that the server has it."""
        body = super().__call__(environ, start_response)
        self.taken = True
        return body

    def iter_encoded(self) -> Iterator[bytes]:
        """Return the body as it is: it yields bytes."""
        return self._body if self.response is self._body else super().iter_encoded()


def stream_response(
    service: Service, call: Call, stream: OutputStream, line: AccessLine, encoder: Encoder
) -> StreamResponse:
    """Return the response with ``stream`` once its first burst is ready, or its client has waited long enough.

    Raises the errors that come before that; then ``stream`` and ``call`` are closed.
    """
    body = StreamBody(call, stream, line, encoder, silence_timeout=service.settings.silence_timeout)
    try:
        body.prime(service.settings.first_output_timeout)
        call.note_queue()
        call.bound_writes(service.settings.write_timeout)
        return naming(stream.model, StreamResponse(body, encoder.content_type, stream.load))
    except BaseException as error:
        body.release(error)
        raise
