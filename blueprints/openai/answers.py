"""Answers of chat and completions: the whole choices of one request, and what they used."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...streams import OutputStream
from ...types import USAGE_DETAILS, Burst, JSONObject, details_of
from ...version import __version__
from .choices import parts_of
from .schemas import Generation

_OF_PROMPT, _OF_ANSWER = USAGE_DETAILS
_FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})


def new_id(prefix: str) -> str:
    """Return a random id that begins with ``prefix``."""
    return prefix + os.urandom(16).hex()


def finish_reason(reason: str | None) -> str:
    """Return a finish reason that clients know."""
    return reason if reason in _FINISH_REASONS else "stop"


@dataclass(frozen=True)
class Header:
    """The first fields of each object of one answer."""

    id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def new(cls, prefix: str, model: str) -> Header:
        """Return the header of a new answer; ``prefix`` begins its id."""
        return cls(new_id(prefix), model)

    def of(self, kind: str) -> JSONObject:
        """Return the first keys of an ``object`` of this ``kind``."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"modelyard-{__version__}",
        }


class Usage:
    """The tokens of one answer: a prompt counts once, however many choices it has."""

    def __init__(self, copies: int) -> None:
        """Count for an answer with ``copies`` choices a prompt."""
        self._copies = copies
        self._prompt_tokens = self._completion_tokens = 0
        self._is_known = False
        self._details: dict[str, int] = {}
        """The counts of the `USAGE_DETAILS` that were reported."""

    def add(self, index: int, usage: JSONObject | None) -> None:
        """Count the ``usage`` of the choice ``index``; None changes nothing."""
        if usage is None:
            return
        self._is_known = True
        self._completion_tokens += usage.get("completion_tokens") or 0
        details = details_of(usage)
        if index % self._copies == 0:
            self._prompt_tokens += usage.get("prompt_tokens") or 0
        else:
            details.pop(_OF_PROMPT, None)
        for name, detail in details.items():
            self._details[name] = self._details.get(name, 0) + detail[USAGE_DETAILS[name]]

    @property
    def cached_tokens(self) -> int | None:
        """The tokens of the prompts that an engine had in its cache; None if it has not reported them."""
        return self._details.get(_OF_PROMPT)

    @property
    def reasoning_tokens(self) -> int:
        """The tokens of the answer that are reasoning; 0 if the engine has not reported them."""
        return self._details.get(_OF_ANSWER, 0)

    def total(self) -> JSONObject | None:
        """Return the sum in OpenAI's keys; None if the engine has not reported it."""
        if not self._is_known:
            return None
        total: JSONObject = {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "total_tokens": self._prompt_tokens + self._completion_tokens,
        }
        for name, count in self._details.items():
            total[name] = {USAGE_DETAILS[name]: count}
        return total


@dataclass
class Choice:
    """One whole choice."""

    text: str = ""
    finish_reason: str = "stop"
    reasoning: str = ""
    tool_calls: list[JSONObject] = field(default_factory=list)
    logprobs: JSONObject | None = None
    offsets: list[int] = field(default_factory=list)
    """The place of each token of ``logprobs`` in the text."""
    refusal: str = ""
    """Why the model does not answer, where it says so apart from the text."""

    def add(self, piece: str, delta: JSONObject) -> None:
        """Add a piece, and what came with it."""
        offset, self.text = len(self.text), self.text + piece
        self.reasoning += delta.get("reasoning_content") or ""
        self.refusal += delta.get("refusal") or ""
        for part in delta.get("tool_calls") or ():
            self._add_call(part)
        if (logprobs := delta.get("logprobs")) is not None:
            self.logprobs = self.logprobs or {"content": [], "refusal": None}
            self.logprobs["content"] += logprobs["content"]
            self.offsets += offsets_of(logprobs["content"], offset)

    def _add_call(self, part: JSONObject) -> None:
        """Add a part of a call: its first has the name, each some of the arguments."""
        index = part.get("index", 0)
        while len(self.tool_calls) <= index:
            self.tool_calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        call, function = self.tool_calls[index], part.get("function") or {}
        call["id"] = part.get("id") or call["id"]
        call["function"]["name"] = function.get("name") or call["function"]["name"]
        call["function"]["arguments"] += function.get("arguments") or ""


def whole_choices(stream: OutputStream, count: int, usage: Usage) -> list[Choice]:
    """Return the ``count`` choices of a stream, and add up their ``usage``."""
    choices = [Choice() for _ in range(count)]
    for burst in stream:
        if burst is None:
            continue
        for index, part in parts_of(burst):
            _add(choices[index], part)
            usage.add(index, part.usage)
    return choices


def _add(choice: Choice, burst: Burst) -> None:
    if burst.deltas:
        for piece, delta in zip(burst.pieces, burst.deltas, strict=True):
            choice.add(piece, delta)
    else:
        choice.text += "".join(burst.pieces)
    if burst.finish_reason is not None:
        choice.finish_reason = finish_reason(burst.finish_reason)


def chat_answer(header: Header, choices: Sequence[Choice], usage: Usage, generation: Generation) -> JSONObject:
    """Return a whole chat completion."""
    return _answer(header.of("chat.completion"), [{"message": _message(choice)} for choice in choices], choices, usage)


def completion_answer(header: Header, choices: Sequence[Choice], usage: Usage, generation: Generation) -> JSONObject:
    """Return a whole completion."""
    answer = _answer(header.of("text_completion"), [{"text": choice.text} for choice in choices], choices, usage)
    for entry, choice in zip(answer["choices"], choices, strict=True):
        if choice.logprobs is not None:
            entry["logprobs"] = columns_of(choice.logprobs["content"], choice.offsets)
    return answer


def offsets_of(content: Sequence[JSONObject], offset: int) -> list[int]:
    """Return the place of each token in a text in which the first is at ``offset``."""
    return list(itertools.accumulate((len(token["token"]) for token in content), initial=offset))[:-1]


def columns_of(content: Sequence[JSONObject], offsets: Sequence[int]) -> JSONObject:
    """Return the probabilities of tokens as a completion has them; chat has an object for each token."""
    return {
        "tokens": [token["token"] for token in content],
        "token_logprobs": [token["logprob"] for token in content],
        "top_logprobs": [
            {other["token"]: other["logprob"] for other in token.get("top_logprobs") or ()} or None for token in content
        ],
        "text_offset": list(offsets),
    }


def _answer(answer: JSONObject, contents: list[JSONObject], choices: Sequence[Choice], usage: Usage) -> JSONObject:
    answer["choices"] = [
        {"index": index, **content, "logprobs": choice.logprobs, "finish_reason": choice.finish_reason}
        for index, (content, choice) in enumerate(zip(contents, choices, strict=True))
    ]
    if (total := usage.total()) is not None:
        answer["usage"] = total
    return answer


def _message(choice: Choice) -> JSONObject:
    nothing = None if choice.tool_calls or choice.refusal else ""
    message: JSONObject = {"role": "assistant", "content": choice.text or nothing, "refusal": choice.refusal or None}
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.tool_calls:
        message["tool_calls"] = choice.tool_calls
    return message
