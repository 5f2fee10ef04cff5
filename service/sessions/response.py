"""Response: what comes back from one request, as it comes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import requests

from ..errors import ModelyardError, WorkerSilent, WorkerUnreachable
from ..streams import TICK, Cancel
from .calls import Call
from .connections import Incoming
from .faults import FOREIGN, fault_of

RECEIVE_SIZE = 64 * 1024
MAX_WHOLE = 1024**3
"""Bytes of a whole body: more is refused."""


class Response:
    """A response whose headers have come. One thread reads it; `close` it, which its end does too.

    All that reads raises WorkerUnreachable, or the error of the request's cancel, and raises it again when it is called
    again: what broke off never looks like a whole body.
    """

    def __init__(self, response: requests.Response, call: Call, cancel: Cancel | None) -> None:
        """Read ``response``, to ``call``, until ``cancel`` is set."""
        self.status_code = response.status_code
        self.headers: Mapping[str, str] = response.headers
        """The headers; their names are the same in upper and lower case."""
        self._raw = response.raw
        self._call = call
        self._cancel = cancel
        self._content: bytes | None = None
        self._failure: ModelyardError | None = None
        self._silence = 0.0
        if call.incoming is not None:
            call.incoming.source.is_in_head = False
        if fault := self._framing_fault():
            self.close()
            raise WorkerUnreachable(f"{call.origin} does not answer with HTTP: {fault}")

    def _framing_fault(self) -> str | None:
        """Return why nobody can say where the body ends, or what it says; None where all is well."""
        if self.status_code < 200:
            return f"an interim status, {self.status_code}, is all that comes"
        coding = self.headers.get("Transfer-Encoding", "chunked")
        if coding.lower() != "chunked":
            return f"the transfer-encoding {coding!r} is not understood"
        if "Content-Length" in self.headers and self._raw.length_remaining is None and not self._raw.chunked:
            return f"the content-length {self.headers['Content-Length']!r} is not a length"
        coding = self.headers.get("Content-Encoding", "identity")
        if coding.lower() != "identity":
            return f"the body is packed ({coding}), which was not asked for"
        return None

    @property
    def content(self) -> bytes:
        """The whole body, of `MAX_WHOLE` bytes at most."""
        return self.read_whole()

    def json(self) -> Any:
        """Return the whole body, parsed. ValueError where it is not JSON."""
        try:
            return json.loads(self.content)
        except RecursionError:  # of lists within lists
            raise ValueError("it is nested too deeply") from None

    def read_whole(self, limit: int = MAX_WHOLE) -> bytes:
        """Return the whole body, of ``limit`` bytes at most."""
        if self._content is None:
            parts, size = [], 0
            while data := self._read():
                parts.append(data)
                size += len(data)
                if size > limit:
                    self._failure = WorkerUnreachable(f"{self._call.origin} answers with over {limit} bytes")
                    self.close()
                    raise self._failure
            self._content = b"".join(parts)
        return self._content

    def read1(self) -> bytes | None:
        """Return what has come of the body: b"" at its end, None where nothing came for about a second."""
        incoming = self._call.incoming
        if incoming is None or self._failure is not None or self._raw.length_remaining == 0:
            return self._read()
        tick = min(TICK, self._call.read_timeout)
        if incoming.wait(tick):
            self._silence = 0.0
            data = self._read()
            return self._joined(data, incoming) if data else data
        self._silence += tick
        if self._silence >= self._call.read_timeout:
            raise self._failed(WorkerSilent(f"{self._call.origin} was silent for {self._call.read_timeout:g} s"))
        if self._cancel is not None and self._cancel.is_set():
            raise self._failed(self._cancel.error)
        return None

    def _joined(self, data: bytes, incoming: Incoming) -> bytes:
        """Return ``data`` with what has come behind it: each read gives one chunk of HTTP, however short.

        The end is left for the next call: a reader that gives up over the last chunk closes the connection, so that
        a server that is about to stop does not wait for it.
        """
        parts, size = [data], len(data)
        while size < RECEIVE_SIZE and incoming.has_more(end=False):
            try:
                parts.append(self._read())
            except ModelyardError:
                break  # it is raised by the next call
            size += len(parts[-1])
        return b"".join(parts)

    def _read(self) -> bytes:
        if self._failure is not None:
            raise self._failure
        try:
            data: bytes = self._raw.read1(RECEIVE_SIZE)
        except (*FOREIGN, ValueError) as error:
            raise self._failed(fault_of(error, self._call)) from error
        if not data:
            self.close()
        if self._cancel is not None and self._cancel.is_set():
            raise self._failed(self._cancel.error)
        return data

    def _failed(self, error: ModelyardError) -> ModelyardError:
        """Close it, and return what its reader is told."""
        if self._cancel is not None and self._cancel.is_set():
            error = self._cancel.error
        self._failure = error
        self.close()
        return error

    def hang_up(self) -> None:
        """End the call from any thread: a thread that reads or sends for it fails at once."""
        self._call.end()

    def close(self) -> None:
        """End it wherever it is: what was not read yet is given up. A second call does nothing."""
        if self._cancel is not None:
            self._cancel.forget(self._call.end)
        self._call.let_go()
        self._raw.close()

    def __enter__(self) -> Response:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
