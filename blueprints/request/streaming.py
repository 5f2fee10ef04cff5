"""The streamed answer of a call as a WSGI response.

Bursts become what the client reads, a silence is broken, and all is released at the end.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from flask import Response

from ...errors import Cancelled, ModelyardError
from ...streams import OutputStream
from ...types import Burst
from ...wire.chunks import LOAD_HEADER
from ...worker.protocol import Service
from .access_log import AccessLine, naming
from .calls import Call
from .problems import unforeseen

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


EVENT_TIMEOUT = 60.0
"""Seconds of silence in a stream until an event breaks it: LangChain gives up after 120 without one."""


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
