"""Server-sent events of an answer: what is ready together leaves in one write, an event for each piece."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import orjson

from ...errors import ModelyardError
from ...types import Burst, JSONObject
from ...wire.chunks import join_escaped
from .answers import Header, Usage, columns_of, finish_reason, offsets_of
from .choices import ChoiceBursts
from .errors import document
from .schemas import Generation

EVENTS_TYPE = "text/event-stream; charset=utf-8"
_DONE = b"data: [DONE]\n\n"
_KEEP_ALIVE = b": keep-alive\n\n"
"""A comment: clients read an event without data, and everything after a line ``id:``, as JSON, and fail."""


def named_event(kind: str, fields: JSONObject) -> bytes:
    """Return an event with its name, as Anthropic's messages and OpenAI's responses have it."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), json_bytes({"type": kind, **fields}))


def json_bytes(value: JSONObject) -> bytes:
    """Return ``value`` as JSON; half of a surrogate pair, which UTF-8 can't carry, becomes a question mark."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


class Events:
    """The events of one answer, whose choices may come at once."""

    object: ClassVar[str]
    text: ClassVar[tuple[bytes, bytes]]
    """The bytes before and after the escaped text of a choice."""
    nothing: ClassVar[bytes]
    """A choice without text."""
    silence = _KEEP_ALIVE
    content_type = EVENTS_TYPE
    one_write = True

    def __init__(self, header: Header, usage: Usage, generation: Generation) -> None:
        """Begin each event with ``header``; send ``usage`` at the end where ``generation`` asks for it."""
        self._count = len(generation.requests)
        self._usage = usage
        self._include_usage = include_usage = generation.include_usage
        self._head = b"data: " + orjson.dumps(header.of(self.object))[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._unended = list(range(self._count))
        """The choices without their finish reason."""

    def begin(self) -> bytes:
        """Return the events before the first burst."""
        return b""

    def alive(self) -> bytes:
        """Return an event without text: LangChain takes no comment for a sign of life."""
        return self._event(min(self._unended, default=0), self.nothing)

    def encode(self, burst: Burst) -> Iterable[bytes]:
        """Return the events of ``burst`` as one write; empty if it has nothing new."""
        if isinstance(burst, ChoiceBursts):
            events = b"".join(self._of_choice(index, part) for index, part in burst.parts)
        else:
            events = self._of_choice(0, burst)
        return [events] if events else []

    def _of_choice(self, index: int, burst: Burst) -> bytes:
        if burst.deltas:
            events = b"".join(self._delta(index, *pair) for pair in zip(burst.pieces, burst.deltas, strict=True))
        else:
            events = self._pieces(index, burst.pieces) if burst.pieces else b""
        self._usage.add(index, burst.usage)
        if burst.finish_reason is not None:
            events += self._finish(index, burst.finish_reason)
        return events

    def _pieces(self, index: int, pieces: list[str]) -> bytes:
        opening = b'%b{"index":%d,%b' % (self._head, index, self.text[0])
        closing = b'%b"finish_reason":null}%b' % (self.text[1], self._tail)
        return opening + join_escaped(pieces, closing + opening) + closing

    def _delta(self, index: int, piece: str, delta: JSONObject) -> bytes:
        """Return the event of a piece that comes with more than text."""
        content = {"content": piece} if piece else {}
        rest = {name: value for name, value in delta.items() if name != "logprobs"}
        fields = (json_bytes(content | rest), orjson.dumps(delta.get("logprobs")))
        return self._event(index, b'"delta":%b,"logprobs":%b,' % fields)

    def _finish(self, index: int, reason: str) -> bytes:
        if index in self._unended:
            self._unended.remove(index)
        return self._event(index, self.nothing, orjson.dumps(finish_reason(reason)))

    def _event(self, index: int, content: bytes, reason: bytes = b"null") -> bytes:
        return b'%b{"index":%d,%b"finish_reason":%b}%b' % (self._head, index, content, reason, self._tail)

    def end(self) -> bytes:
        """Return the events after the last burst."""
        events = b"".join(self._finish(index, "stop") for index in self._unended[:])
        if self._include_usage and (usage := self._usage.total()) is not None:
            events += self._head + b'],"usage":' + orjson.dumps(usage) + b"}\n\n"
        return events + _DONE

    def failure(self, error: ModelyardError) -> bytes:
        """Return the event of an error after the status has left: clients raise it."""
        return b"data: " + orjson.dumps(document(error)) + b"\n\n"


class ChatEvents(Events):
    """The events of a chat completion."""

    object = "chat.completion.chunk"
    text = (b'"delta":{"content":"', b'"},"logprobs":null,')
    nothing = b'"delta":{},"logprobs":null,'

    def begin(self) -> bytes:
        """Return the role of each choice: once, and in order, as clients add up what they read."""
        role = b'"delta":{"role":"assistant","content":""},"logprobs":null,'
        return b"".join(self._event(index, role) for index in range(self._count))


class CompletionEvents(Events):
    """The events of a completion."""

    object = "text_completion"
    text = (b'"text":"', b'","logprobs":null,')
    nothing = b'"text":"","logprobs":null,'

    def __init__(self, header: Header, usage: Usage, generation: Generation) -> None:
        """Begin each event with ``header``; send ``usage`` at the end where ``generation`` asks for it."""
        super().__init__(header, usage, generation)
        self._lengths = [0] * self._count
        """The length of the text of each choice so far."""

    def _pieces(self, index: int, pieces: list[str]) -> bytes:
        self._lengths[index] += sum(map(len, pieces))
        return super()._pieces(index, pieces)

    def _delta(self, index: int, piece: str, delta: JSONObject) -> bytes:
        """Return the event of a piece that comes with the probabilities of its tokens."""
        columns = None
        if (logprobs := delta.get("logprobs")) is not None:
            content = logprobs["content"]
            columns = columns_of(content, offsets_of(content, self._lengths[index]))
        self._lengths[index] += len(piece)
        return self._event(index, json_bytes({"text": piece, "logprobs": columns})[1:-1] + b",")


class PieceEvents(ABC):
    """The events of an answer of one choice whose parts have a beginning and an end, made piece by piece."""

    content_type = EVENTS_TYPE
    silence = _KEEP_ALIVE
    one_write = True

    def __init__(self, header: Header, usage: Usage, generation: Generation) -> None:
        """Begin the answer with ``header``, and count its ``usage``."""
        self._header = header
        self._usage = usage
        self._generation = generation
        self._reason = "stop"

    def alive(self) -> bytes:
        """Return what breaks a silence: these answers have no event without content."""
        return self.silence

    def encode(self, burst: Burst) -> Iterable[bytes]:
        """Return the events of ``burst`` as one write."""
        self._usage.add(0, burst.usage)
        self._reason = burst.finish_reason or self._reason
        deltas: Sequence[JSONObject] = burst.deltas or [{}] * len(burst.pieces)
        events = b"".join(self._piece(piece, delta) for piece, delta in zip(burst.pieces, deltas, strict=True))
        return [events] if events else []

    @abstractmethod
    def _piece(self, piece: str, delta: JSONObject) -> bytes:
        """Return the events of a piece and of what comes with it."""
