"""Read HTTP/1.1 answers at little cost: their length, their pieces, and their end."""

from __future__ import annotations

import re

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*(?:\r|$)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r]*chunked", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[^\r]*close", re.IGNORECASE)


class BrokenAnswer(Exception):
    """The bytes are not an HTTP/1.1 answer whose end can be found."""


class Answer:
    """One answer, fed with the bytes of a socket. It keeps counts, and the body only with ``keep``.

    Bodies have a Content-Length or are chunked. A NUL byte ends a piece, or an empty line: neither JSON nor the framing
    of chunks can have one, so pieces are counted in the raw bytes.
    """

    def __init__(self, keep: bool = False, mark: bytes = b"\0") -> None:
        """Wait for an answer; ``keep`` its body. ``mark`` ends a piece: one byte, or one byte twice."""
        self.status = 0
        self.pieces = 0
        self.received = 0
        self.done = False
        self.closes = False
        self.body: list[bytes] = []
        self._keep = keep
        self._mark = mark
        self._is_half = False
        """Whether the bytes so far end with the first half of a mark."""
        self._head = b""
        self._left = 0
        self._chunked = False
        self._line = b""
        self._in_trailer = False

    def feed(self, data: bytes) -> int:
        """Take bytes, and return the number of pieces in them. Raises BrokenAnswer."""
        self.received += len(data)
        if not self.status:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return 0
            self._read_head(head)
        pieces = data.count(self._mark)
        if len(self._mark) > 1:
            pieces += self._is_half and data.startswith(self._mark[:1])
            self._is_half = data.endswith(self._mark[:1]) and not data.endswith(self._mark)
        self.pieces += pieces
        if self._chunked:
            self._read_chunks(data)
        else:
            self._take(data)
            self._left -= len(data)
            self.done = self._left <= 0
        return pieces

    def _read_head(self, head: bytes) -> None:
        try:
            self.status = int(head[:32].split(b" ", 2)[1])
        except (IndexError, ValueError) as error:
            raise BrokenAnswer(f"not an answer: {head[:80]!r}") from error
        self.closes = _CLOSE.search(head) is not None
        if length := _LENGTH.search(head):
            self._left = int(length[1])
        elif _CHUNKED.search(head):
            self._chunked = True
        else:
            raise BrokenAnswer("neither a length nor chunks: the connection can't be used again")

    def _read_chunks(self, data: bytes) -> None:
        at, size = 0, len(data)
        while at < size:
            if self._left:
                # The line end after a chunk counts as part of it.
                took = min(self._left, size - at)
                self._take(data[at : at + min(took, max(self._left - 2, 0))] if self._keep else b"")
                self._left -= took
                at += took
                continue
            end = data.find(b"\n", at)
            if end < 0:
                self._line += data[at:]
                return
            line, self._line = (self._line + data[at:end]).strip(), b""
            at = end + 1
            if self._in_trailer:
                self.done = not line
            elif line:
                self._begin_chunk(line)
            if self.done:
                return

    def _begin_chunk(self, line: bytes) -> None:
        try:
            length = int(line.split(b";", 1)[0], 16)
        except ValueError as error:
            raise BrokenAnswer(f"not the length of a chunk: {line[:40]!r}") from error
        if length:
            self._left = length + 2
        else:
            self._in_trailer = True

    def _take(self, data: bytes) -> None:
        if self._keep and data:
            self.body.append(data)
