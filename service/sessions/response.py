"""Response: the status, headers and body of one response, read as they come."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from types import TracebackType
from typing import Any

import requests

from ..errors import ModelyardError, WorkerSilent, WorkerUnreachable
from ..streams import TICK, Cancel
from .calls import Call
from .faults import FOREIGN, fault_of

RECEIVE_SIZE = 64 * 1024
MAX_WHOLE = 1024**3
"""The most bytes of a whole body."""


class Response:
    """A response whose headers have come. One thread reads it to its end, or closes it.

    Each call that reads raises WorkerUnreachable, or the error of the request's cancel. A later call raises the same
    error again, so a body that broke off never looks whole.
    """

    def __init__(self, response: requests.Response, call: Call, cancel: Cancel | None) -> None:
        """Read ``response``, the response to ``call``, until ``cancel`` is set."""
        self.status_code = response.status_code
        self.headers: Mapping[str, str] = response.headers
        """The headers; upper and lower case make no difference in their names."""
        self._raw = response.raw
        self._chunks: Generator[bytes] | None = self._raw.read_chunked(RECEIVE_SIZE) if self._raw.chunked else None
        self._is_in_chunk = False
        """Whether urllib3 has given a part of a chunk, and the rest may follow."""
        self._call = call
        self._cancel = cancel
        self._content: bytes | None = None
        self._failure: ModelyardError | None = None
        self._is_closed = False
        self._silence = 0.0
        if call.incoming is not None:
            call.incoming.source.is_in_head = False
        if fault := self._framing_fault():
            self.close()
            raise WorkerUnreachable(f"{call.origin} does not answer with HTTP: {fault}")

    def _framing_fault(self) -> str | None:
        """Return why the end or the encoding of the body is not clear; None if both are."""
        if self.status_code < 200:
            return f"an interim status, {self.status_code}, is all that comes"
        headers = self.headers  # asked at first whether it has a header: its `get` is slow for one that it has not
        if "Transfer-Encoding" in headers and headers["Transfer-Encoding"].lower() != "chunked":
            return f"the transfer-encoding {headers['Transfer-Encoding']!r} is not understood"
        if "Content-Length" in headers and self._raw.length_remaining is None and not self._raw.chunked:
            return f"the content-length {headers['Content-Length']!r} is not a length"
        if "Content-Encoding" in headers and headers["Content-Encoding"].lower() != "identity":
            return f"the body is compressed ({headers['Content-Encoding']}), which was not requested"
        return None

    @property
    def content(self) -> bytes:
        """The whole body, of `MAX_WHOLE` bytes at most."""
        return self.read_whole()

    def json(self) -> Any:
        """Return the whole body, parsed. Raises ValueError if it is not JSON."""
        try:
            return json.loads(self.content)
        except RecursionError:  # lists within lists
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
        """Return the bytes of the body that have come: b"" at its end, None if none came for about a second."""
        if self._call.incoming is None or self._raw.length_remaining == 0:
            return self._read()
        tick = min(TICK, self._call.read_timeout)
        data = self._read(tick)
        if data is not None:
            self._silence = 0.0
            return data
        self._silence += tick
        if self._silence >= self._call.read_timeout:
            raise self._failed(WorkerSilent(f"{self._call.origin} was silent for {self._call.read_timeout:g} s"))
        return None

    def _read(self, patience: float | None = None) -> bytes | None:
        """Return the bytes of the body that have come: b"" at its end, None if none came for ``patience`` seconds."""
        if self._failure is not None:
            raise self._failure
        if self._raw.length_remaining == 0:
            self.close()
            return b""
        incoming = self._call.incoming
        data: bytes | None = None
        try:
            if patience is None or incoming is None or incoming.wait(patience):
                data = self._raw.read1(RECEIVE_SIZE) if self._chunks is None else self._read_chunks(self._chunks)
        except (*FOREIGN, ValueError) as error:
            raise self._failed(fault_of(error, self._call)) from error
        if data == b"" or self._raw.length_remaining == 0:
            self.close()
        if self._cancel is not None and self._cancel.is_set():
            raise self._failed(self._cancel.error)
        return data

    def _read_chunks(self, chunks: Iterator[bytes]) -> bytes:
        """Return the content of all chunks of HTTP that have come whole, or of the next; b"" at the end.

        The end is left for the next call. So a reader that stops at the last chunk closes the connection, and a server
        that is about to stop does not wait for it.
        """
        incoming = self._call.incoming
        if incoming is not None and not self._is_in_chunk and (data := incoming.read_chunks()):
            return data
        data = next(chunks, b"")
        self._is_in_chunk = len(data) == RECEIVE_SIZE
        return data

    def _failed(self, error: ModelyardError) -> ModelyardError:
        """Close it, and return the error for its reader."""
        if self._cancel is not None and self._cancel.is_set():
            error = self._cancel.error
        self._failure = error
        self.close()
        return error

    def hang_up(self) -> None:
        """End the call from any thread: a thread that reads or sends for it fails at once."""
        self._call.end()

    def close(self) -> None:
        """End it, and discard what was not read. A second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._cancel is not None:
            self._cancel.forget(self._call.end)
        connection = self._call.let_go()
        if self._chunks is not None:
            self._chunks.close()
        is_whole = self._raw.closed or self._raw.length_remaining == 0
        self._raw.close()
        if connection is not None:
            connection.finish_call(is_whole=is_whole)

    def __enter__(self) -> Response:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
