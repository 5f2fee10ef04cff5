"""An HTTP/1.1 answer as bytes: its head, and where its body ends. State machines without I/O.

Strict where servers differ: what is not understood is a ValueError, never a guess at where an answer ends.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol

MAX_HEAD = 64 * 1024
"""Bytes that status line and headers may have together."""

_MAX_LINE = 8 * 1024
_STATUS_LINE = re.compile(r"HTTP/(1\.[01]) ([1-5]\d\d)(?: .*)?")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")
_LENGTH = re.compile(r"\d{1,18}", re.ASCII)


class Headers(dict[str, str]):
    """Headers by name; upper and lower case are the same. Of a name that came twice, the values joined by a comma."""

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(name.lower())

    def get(self, name: str, default: str | None = None) -> str | None:  # type: ignore[override]
        """Return the value of a header, or ``default``."""
        return super().get(name.lower(), default)


class Head(NamedTuple):
    """The status line and the headers of an answer."""

    version: str
    status: int
    headers: Headers

    @property
    def is_interim(self) -> bool:
        """Whether another head follows: 100 Continue, 103 Early Hints."""
        return self.status < 200

    @property
    def keeps_alive(self) -> bool:
        """Whether the server lets another request follow on the connection."""
        return self.version == "1.1" and "close" not in (self.headers.get("connection") or "").lower()


def parse_head(data: bytes) -> Head:
    """Return the head in ``data``, without the empty line that ends it. ValueError where it is none."""
    first, *lines = data.decode("latin-1").split("\r\n")
    if (status := _STATUS_LINE.fullmatch(first)) is None:
        raise ValueError(f"{first[:60]!r} is no status line of HTTP/1.1")
    headers = Headers()
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or not name or name != name.strip():
            raise ValueError(f"{line[:60]!r} is no header")
        value = value.strip(" \t")
        # Not by our own `get`: the name is in lower case already.
        before = dict.get(headers, name)
        headers[name] = value if before is None else f"{before}, {value}"
    return Head(status[1], int(status[2]), headers)


class Body(Protocol):
    """Finds the end of a body in the bytes that come."""

    ended: bool
    excess: bytes
    """What came behind the end."""

    def feed(self, data: bytes) -> bytes:
        """Return what ``data`` adds to the body. ValueError where it can't be part of one."""

    def end(self) -> bool:
        """The connection has ended: return whether the body is whole."""


def body_of(method: str, head: Head) -> Body:
    """Return the body that follows ``head``. ValueError where its length is said in no way that is understood."""
    coding, length = head.headers.get("transfer-encoding"), head.headers.get("content-length")
    if (packed := head.headers.get("content-encoding", "identity")) != "identity":
        raise ValueError(f"the body is packed ({packed}), which was not asked for")
    if method == "HEAD" or head.status in (204, 304):
        return _Counted(0)
    if coding is not None:
        if coding.lower() != "chunked" or head.version == "1.0":
            raise ValueError(f"transfer-encoding {coding!r} is not understood")
        return _Chunked()
    if length is not None:
        if _LENGTH.fullmatch(length) is None:
            raise ValueError(f"content-length {length!r} is no length")
        return _Counted(int(length))
    return _UntilClosed()


class _Counted:
    """A body of so many bytes."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.ended = length == 0
        self.excess = b""

    def feed(self, data: bytes) -> bytes:
        if len(data) > self._left:
            data, self.excess = data[: self._left], data[self._left :]
        self._left -= len(data)
        self.ended = self._left == 0
        return data

    def end(self) -> bool:
        return self.ended


class _UntilClosed:
    """A body that ends with its connection: nobody can tell whether it is whole."""

    def __init__(self) -> None:
        self.ended = False
        self.excess = b""

    def feed(self, data: bytes) -> bytes:
        return data

    def end(self) -> bool:
        self.ended = True
        return True


class _Chunked:
    """A body in chunks, each led by its size; it ends with an empty one."""

    def __init__(self) -> None:
        self._rest = b""
        """The beginning of a size line or of the trailer."""
        self._left = 0
        self._line_ends = b""
        """What ends the chunk before: nothing before the first."""
        self._in_trailer = False
        self.ended = False
        self.excess = b""

    def feed(self, data: bytes) -> bytes:
        if self._rest:
            data, self._rest = self._rest + data, b""
        parts: list[bytes] = []
        at, size = 0, len(data)
        while at < size and not self._in_trailer:
            if self._left:
                part = data[at : at + self._left]
                parts.append(part)
                at += len(part)
                self._left -= len(part)
            elif (following := self._read_size(data, at)) > 0:
                at = following
            else:
                self._rest = data[at:]
                break
        if self._in_trailer:
            self._read_trailer(data[at:])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_size(self, data: bytes, at: int) -> int:
        """Read a size line; return where its chunk begins, 0 where the line is not whole."""
        begin = at + len(self._line_ends)
        if not self._line_ends.startswith(data[at:begin]):
            raise ValueError(f"{data[at : at + 20]!r} is not the end of a chunk of that size")
        end = data.find(b"\r\n", begin)
        if end < 0:
            if len(data) - at > _MAX_LINE:
                raise ValueError("a chunk's size has no end")
            return 0
        size = _CHUNK_SIZE.fullmatch(data, begin, end)
        if size is None:
            raise ValueError(f"{data[begin : begin + 20]!r} is no size of a chunk")
        self._line_ends = b"\r\n"
        self._left = int(size[1], 16)
        # The line's own end is left before the trailer, so that an empty trailer looks like any other.
        self._in_trailer = self._left == 0
        return end if self._in_trailer else end + 2

    def _read_trailer(self, data: bytes) -> None:
        end = data.find(b"\r\n\r\n")
        if end >= 0:
            self.ended, self.excess = True, data[end + 4 :]
        elif len(data) > _MAX_LINE:
            raise ValueError("the trailer has no end")
        else:
            self._rest = data

    def end(self) -> bool:
        return self.ended
