"""Decode the chunks in a stream of bytes: each is a JSON object followed by one NUL byte. No I/O."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..types import JSONObject

NUL = b"\0"
MAX_CHUNK = 64 * 1024 * 1024
"""The most bytes of one chunk."""


class ChunkDecoder:
    """Takes bytes as they come, and returns the chunks that are complete."""

    def __init__(self, loads: Callable[[bytes | bytearray], Any] = json.loads, limit: int = MAX_CHUNK) -> None:
        """Parse chunks by ``loads``; refuse a chunk of over ``limit`` bytes."""
        self._loads = loads
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[JSONObject]:
        """Return the objects that ``data`` completes. Raises ValueError if one is not a JSON object, or too long."""
        return [self.parse(chunk) for chunk in self.split(data)]

    def split(self, data: bytes) -> list[bytearray]:
        """Return the chunks that ``data`` completes, for `parse`. Raises ValueError if one is over the limit."""
        self._buffer += data
        parts = self._buffer.split(NUL) if NUL in data else [self._buffer]
        if max(map(len, parts)) > self._limit:
            raise ValueError(f"a chunk is over {self._limit} bytes")
        *whole, self._buffer = parts
        return [chunk for chunk in whole if chunk]

    def parse(self, chunk: bytes | bytearray) -> JSONObject:
        """Return the object in a chunk. Raises ValueError if it is not a JSON object."""
        try:
            value = self._loads(chunk)
        except RecursionError:  # of json, for lists within lists
            raise ValueError("a chunk is nested too deeply") from None
        if not isinstance(value, dict):
            raise ValueError("a chunk is not a JSON object")  # noqa: TRY004 - the data is at fault, not the caller
        return value

    def flush(self) -> None:
        """End the stream. Raises ValueError if it broke off inside a chunk."""
        if self._buffer:
            raise ValueError(f"the stream broke off inside a chunk, after {len(self._buffer)} bytes of it")


class WholeText:
    """Finds the new part of a text that comes whole each time. A part that was returned can't be taken back."""

    def __init__(self) -> None:
        self._last = ""

    def new_in(self, text: str) -> str:
        """Return the part of ``text`` that the previous text did not have.

        A text that only lost its end (trimmed blanks) has no new part. A text that changed before its end (half a
        character that became whole) is new from that place on.
        """
        last = self._last
        if text.startswith(last):
            self._last = text
            return text[len(last) :]
        if last.startswith(text):
            return ""
        self._last = text
        same = 0
        for mine, theirs in zip(last, text, strict=False):
            if mine != theirs:
                break
            same += 1
        return text[same:]
