"""The chunks in a stream of bytes: each a JSON object followed by one NUL byte. No I/O."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..types import JSONObject

NUL = b"\0"
MAX_CHUNK = 64 * 1024 * 1024
"""Bytes of one chunk: more is refused."""


class ChunkDecoder:
    """Takes bytes as they come and gives the chunks that are whole."""

    def __init__(self, loads: Callable[[bytes | bytearray], Any] = json.loads, limit: int = MAX_CHUNK) -> None:
        """Parse chunks by ``loads``; refuse one of over ``limit`` bytes."""
        self._loads = loads
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[JSONObject]:
        """Return the objects that ``data`` completes; ValueError where one is no JSON object, or over the limit."""
        return [self.parse(chunk) for chunk in self.split(data)]

    def split(self, data: bytes) -> list[bytearray]:
        """Return the chunks that ``data`` completes, for `parse`; ValueError where one is over the limit."""
        self._buffer += data
        parts = self._buffer.split(NUL) if NUL in data else [self._buffer]
        if max(map(len, parts)) > self._limit:
            raise ValueError(f"a chunk is over {self._limit} bytes")
        *whole, self._buffer = parts
        return [chunk for chunk in whole if chunk]

    def parse(self, chunk: bytes | bytearray) -> JSONObject:
        """Return the object in a chunk; ValueError where it is not a JSON object."""
        try:
            value = self._loads(chunk)
        except RecursionError:  # json's, of lists within lists
            raise ValueError("a chunk is nested too deeply") from None
        if not isinstance(value, dict):
            raise ValueError("a chunk is no JSON object")  # noqa: TRY004 - the data is at fault, not the caller
        return value

    def flush(self) -> None:
        """End the stream; ValueError where it broke off inside a chunk."""
        if self._buffer:
            raise ValueError(f"the stream broke off inside a chunk, after {len(self._buffer)} bytes of it")


class WholeText:
    """What is new in a text that comes whole each time. A word once given out can't be taken back."""

    def __init__(self) -> None:
        self._last = ""

    def new_in(self, text: str) -> str:
        """Return what ``text`` has beyond the one before.

        One that only lost its end, as when blanks are trimmed, has nothing new. One that changed further ahead, as when
        half a character became whole, is new from there on.
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
