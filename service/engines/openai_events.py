"""The events of a stream of OpenAI's API as bytes: their framing, and texts without the JSON around them."""

from __future__ import annotations

import re
from collections.abc import Callable

import orjson

MAX_EVENT = 64 * 1024 * 1024
"""Bytes of one event: more is refused."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_TEXT = re.compile(rb'"(?:content|text)"\s*:\s*"((?:[^"\\]++|\\.)++)"')
"""The text of an event, within its quotes. Possessive: else each letter takes 140 bytes to go back to."""
_OPENING, _CLOSING = b"data: ", b"\n\n"
_BETWEEN = b'","'
"""The bytes between two strings of a JSON list."""
_PROBE = b"?!"
_MOST_TRIES = 4
"""Events that become the model of the next ones, of which none is like them: a field of some servers always changes."""


def first_events(data: bytes, count: int) -> tuple[bytes, bytes]:
    """Return the first ``count`` events of ``data``, with their framing, and the rest; fewer if there are no more."""
    end = 0
    for _ in range(count):
        end = data.find(_CLOSING, end) + len(_CLOSING)
        if end < len(_CLOSING):
            return data, b""
    return data[:end], data[end:]


class EventDecoder:
    """Takes the bytes of server-sent events as they come, and gives the data of those that are whole. No I/O."""

    __slots__ = ("_data", "_has_begun", "_rest", "_size")

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        """The parts of a line whose end has not come: joined once it has."""
        self._data: list[bytes] = []
        self._size = 0
        """The bytes of the event whose end has not come, with their framing in all reads but the first."""
        self._has_begun = False

    @property
    def is_within_event(self) -> bool:
        """Whether a part of an event has come, and not its end."""
        return bool(self._rest or self._data)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the data of each event that ``data`` completes. ValueError where one is over `MAX_EVENT`."""
        if goes_on := bool(self._rest or self._data):
            self._size += len(data)
            if self._size > MAX_EVENT:
                raise ValueError(f"an event is over {MAX_EVENT} bytes")
            if self._rest:
                self._rest.append(data)
                if b"\n" not in data:
                    return []
                data, self._rest = b"".join(self._rest), []
        *lines, rest = data.replace(b"\r\n", b"\n").split(b"\n")
        if lines and not self._has_begun:
            self._has_begun = True
            lines[0] = lines[0].removeprefix(_BYTE_ORDER_MARK)
        events: list[bytes] = []
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line.removeprefix(b"data:").removeprefix(b" "))
            elif not line and self._data:
                if event := b"\n".join(self._data):
                    events.append(event)
                self._data = []
        if rest:
            self._rest.append(rest)
        if (rest or self._data) and (events or not goes_on or not self._data):
            self._size = len(rest) + sum(map(len, self._data))
        return events


class TextEvents:
    """Reads events that differ from an earlier one in their text alone, in half the time that their JSON takes.

    What stands before and after the text is compared byte by byte.
    """

    __slots__ = ("_after", "_before", "_seam", "_tries")

    def __init__(self) -> None:
        """Know no event yet."""
        self._before = self._after = self._seam = b""
        self._tries = 0

    def leading(self, data: bytes) -> tuple[list[str], bytes]:
        """Return the texts of the events that ``data`` begins with, and the rest of it.

        No texts, and all of it, where something else than the text is new in one of the events, or may be.
        """
        before, after = _OPENING + self._before, self._after + _CLOSING
        end = data.rfind(after) if self._before and data.startswith(before) else -1
        if end < 0:
            return [], data
        texts = data[len(before) - 1 : end + 1].split(self._seam)
        listed = _BETWEEN.join(texts)
        # Only the quotes around the texts: so each of them is a JSON string exactly if all are.
        if listed.count(b'"') != 2 * len(texts) or b'\\"' in listed:
            return [], data
        try:
            strings: list[str] = orjson.loads(b"[%b]" % listed)
        except orjson.JSONDecodeError:
            return [], data
        self._tries = 0
        return (strings, data[end + len(after) :]) if all(strings) else ([], data)

    def text_of(self, event: bytes) -> str | None:
        """Return the text of ``event``; None where something else is new."""
        before, after = self._before, self._after
        if not before or not event.startswith(before) or not event.endswith(after):
            return None
        try:
            # With its quotes: a text that has a bare one is not JSON.
            text: str = orjson.loads(event[len(before) - 1 : len(event) - len(after) + 1])
        except orjson.JSONDecodeError:
            return None
        self._tries = 0
        return text

    def learn(self, event: bytes, text_in: Callable[[bytes], str | None]) -> None:
        """Take ``event``, which says nothing but its text, as the model of the next ones.

        ``text_in`` reads any event. It is called for one that is made up, to see that the text was found.
        """
        # One of several lines has other bytes in its framing.
        fields = list(_TEXT.finditer(event)) if self._tries < _MOST_TRIES and b"\n" not in event else []
        self._tries += 1
        if len(fields) == 1:
            before, after = event[: fields[0].start(1)], event[fields[0].end(1) :]
            if text_in(before + _PROBE + after) == _PROBE.decode():
                self._before, self._after = before, after
                self._seam = after + _CLOSING + _OPENING + before
