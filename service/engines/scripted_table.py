"""What `Scripted` answers: one step for each call, from a test, or from a table of answers in a TOML file."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import ConfigError, EngineError, ModelyardError, Overloaded, PromptTooLong
from ..types import GenerateRequest, JSONObject
from .tool_calls import new_call_id

_ERRORS: Mapping[str, Callable[[], ModelyardError]] = {
    "engine": lambda: EngineError("the table says that the engine breaks"),
    "overloaded": lambda: Overloaded("all slots are busy: the table refuses this call", 1),
    "too_long": lambda: PromptTooLong("the table says that the context is shorter than this prompt"),
}
_TYPES: Mapping[str, Any] = {"tool_calls": list, "pause": int | float}
"""The types of a row's entries that are not texts."""
_PROBABILITY = -0.25
"""The logarithm of the probability of each piece, where a request wants to read it."""


@dataclass
class Step:
    """One answer: its pieces with what comes with each, and how it ends."""

    pieces: tuple[str, ...] = ()
    delay: float = 0.0
    finish_reason: str = "stop"
    holds: bool = False
    error: ModelyardError | None = None
    deltas: tuple[JSONObject, ...] | None = None

    @property
    def is_for_vectors(self) -> bool:
        """Whether it applies to calls that generate no text."""
        return self.error is not None and not self.pieces


def text_step(text: str, request: GenerateRequest | None, **more: Any) -> Step:
    """Return the step that answers ``text`` word by word, at most the ``max_new_tokens`` of ``request``."""
    first, *others = text.split(" ")
    pieces = (first, *(f" {word}" for word in others))
    if request is not None and request.max_new_tokens is not None and len(pieces) > request.max_new_tokens:
        pieces, more = pieces[: request.max_new_tokens], more | {"finish_reason": "length"}
    if request is not None and request.options.get("logprobs"):
        more["deltas"] = tuple({"logprobs": {"content": [_probability(piece, request)]}} for piece in pieces)
    return Step(pieces, **more)


def _probability(piece: str, request: GenerateRequest) -> JSONObject:
    entry: JSONObject = {"token": piece, "logprob": _PROBABILITY, "bytes": list(piece.encode())}
    return {**entry, "top_logprobs": [entry] if request.options.get("top_logprobs") else []}


@dataclass(frozen=True)
class AnswerRow:
    """One row of a table: the requests that it answers, and its answer. Every condition that is given must hold."""

    when: str | None = None
    """A regular expression that is searched for in the last message of the user, or in the raw prompt."""
    role: str | None = None
    """The role of the last message: ``tool`` where the client brings the result of a call."""
    tool: str | None = None
    """The name of a tool that the request offers."""
    text: str = ""
    reasoning: str = ""
    tool_calls: list[JSONObject] = field(default_factory=list)
    """Calls, each with ``name`` and ``arguments``."""
    finish_reason: str = "stop"
    pause: float = 0.0
    """Seconds before each piece."""
    error: str | None = None
    """How the answer fails at its end: ``engine``, ``overloaded`` or ``too_long``."""

    def answers(self, prompt: str, request: GenerateRequest) -> bool:
        """Return whether the row applies to a request."""
        tools = [tool["function"]["name"] for tool in request.options.get("tools") or ()]
        return (
            (self.when is None or re.search(self.when, prompt) is not None)
            and (self.role is None or self.role == _last_role(request))
            and (self.tool is None or self.tool in tools)
        )

    def step(self, request: GenerateRequest) -> Step:
        """Return the answer to a request."""
        error = _ERRORS[self.error]() if self.error else None
        if not self.reasoning and not self.tool_calls:
            if not self.text:
                return Step(delay=self.pause, finish_reason=self.finish_reason, error=error)
            return text_step(self.text, request, delay=self.pause, finish_reason=self.finish_reason, error=error)
        deltas: list[JSONObject] = [{"reasoning_content": piece} for piece in _halves(self.reasoning)]
        text = [""] * len(deltas)
        if self.text:
            step = text_step(self.text, request)
            text += step.pieces
            deltas += step.deltas or [{}] * len(step.pieces)
        calls = [part for index, call in enumerate(self.tool_calls) for part in _parts_of_call(index, call)]
        reason = "tool_calls" if calls else self.finish_reason
        text += [""] * len(calls)
        return Step(tuple(text), self.pause, reason, error=error, deltas=(*deltas, *calls))


def _halves(text: str) -> list[str]:
    middle = len(text) // 2
    return [half for half in (text[:middle], text[middle:]) if half]


def _parts_of_call(index: int, call: JSONObject) -> Iterator[JSONObject]:
    """Yield the deltas of one call: the first has its name, the others the arguments."""
    head = {"index": index, "id": new_call_id(), "type": "function"}
    yield {"tool_calls": [{**head, "function": {"name": call["name"], "arguments": ""}}]}
    for half in _halves(json.dumps(call.get("arguments", {}))):
        yield {"tool_calls": [{"index": index, "function": {"arguments": half}}]}


def _last_role(request: GenerateRequest) -> str | None:
    messages = request.options.get("messages") or request.messages
    return messages[-1]["role"] if messages else None


def read_table(path: str | Path) -> list[AnswerRow]:
    """Return the rows ``[[answer]]`` of a TOML file. Raises ConfigError with the row that is wrong."""
    try:
        entries = tomllib.loads(Path(path).read_text())["answer"]
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"the table of answers {str(path)!r} has no [[answer]] that can be read: {error}") from error
    return [_row(f"{path}, answer {number}", entry) for number, entry in enumerate(entries, 1)]


def _row(place: str, entry: Mapping[str, Any]) -> AnswerRow:
    unknown = sorted(set(entry) - {column.name for column in fields(AnswerRow)})
    if unknown:
        names = ", ".join(column.name for column in fields(AnswerRow))
        raise ConfigError(f"{place}: {unknown[0]!r} is unknown; there are {names}")
    for name, value in entry.items():
        if not isinstance(value, _TYPES.get(name, str)):
            raise ConfigError(f"{place}: {name} is {value!r}, which is of another type")
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in entry.get("tool_calls", ())):
        raise ConfigError(f"{place}: tool_calls must be a list of tables with a name")
    if entry.get("error") not in (None, *_ERRORS):
        raise ConfigError(f"{place}: error must be one of {', '.join(_ERRORS)}")
    try:
        re.compile(entry.get("when", ""))
    except re.error as error:
        raise ConfigError(f"{place}: when is not a regular expression: {error}") from error
    return AnswerRow(**entry)


def step_of(rows: Sequence[AnswerRow], prompt: str, request: GenerateRequest) -> Step | None:
    """Return the answer of the first row that applies to a request; None if there is none."""
    return next((row.step(request) for row in rows if row.answers(prompt, request)), None)
