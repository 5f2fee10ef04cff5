"""The answers of the engine transformers: tokens in, bursts of text, calls of tools and probabilities out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import orjson

from ..errors import EngineError
from ..types import Burst, GenerateRequest, JSONObject
from .token_text import HermesCalls, StopTexts, TokenText
from .transformers_rows import Row, Token


class Answer:
    """One answer: turns tokens into bursts of text, calls of tools and probabilities."""

    def __init__(self, request: GenerateRequest, tokenizer: Any, row: Row) -> None:
        """Read the tokens of ``row`` by the library's ``tokenizer``."""
        self._row = row
        self._decode_token = tokenizer.decode
        self._text = TokenText(lambda tokens: str(tokenizer.decode(list(tokens), skip_special_tokens=True)))
        self._stop = StopTexts(request.stop)
        at_most = 1 if request.options.get("parallel_tool_calls") is False else None
        self._calls = HermesCalls(at_most) if request.options.get("tools") else None
        self._wants_metrics = request.metrics
        self._count = 0
        self._started = self._first = _now_ms()
        self.is_over = False
        """Whether the last burst was returned."""

    def burst(self, items: Sequence[Token | str | Exception]) -> Burst | None:
        """Return what tokens add, None for nothing; the last burst has the end. Raises what the computation raised."""
        pieces: list[str] = []
        deltas: list[JSONObject] = []
        finish: str | None = None
        for item in items:
            if isinstance(item, Exception):
                raise EngineError(f"transformers failed: {first_line(item)}") from item
            if isinstance(item, str):
                self._add(*self._rest(), {}, pieces, deltas)
                finish = item
                break
            self._first = self._first if self._count else _now_ms()
            self._count += 1
            self._add(*self._taken(self._text.feed(item.id)), self._probabilities(item), pieces, deltas)
            if self._stop.hit or (self._calls is not None and self._calls.is_over):
                finish = "stop"
                break
        has_deltas = any(deltas)
        if finish is None:
            return Burst(pieces, deltas=deltas if has_deltas else None) if pieces else None
        self.is_over = True
        self._row.end("stop")
        if self._calls is not None and self._calls.count and finish == "stop":
            finish = "tool_calls"
        usage = self._usage()
        metrics = self._metrics(usage) if self._wants_metrics else None
        return Burst(pieces, finish, usage, metrics, deltas if has_deltas else None)

    def _taken(self, text: str) -> tuple[str, list[JSONObject]]:
        text = self._stop.feed(text)
        return (text, []) if self._calls is None else self._calls.feed(text)

    def _rest(self) -> tuple[str, list[JSONObject]]:
        text = self._stop.feed(self._text.rest()) + self._stop.rest()
        if self._calls is None:
            return text, []
        outside, calls = self._calls.feed(text)
        more, last = self._calls.rest()
        return outside + more, calls + last

    def _add(
        self, text: str, calls: list[JSONObject], probabilities: JSONObject, pieces: list[str], deltas: list[JSONObject]
    ) -> None:
        delta = {"tool_calls": calls, **probabilities} if calls else probabilities
        if text or delta:
            pieces.append(text)
            deltas.append(delta)

    def _probabilities(self, token: Token) -> JSONObject:
        if token.logprob is None:
            return {}
        entry = self._logprob(token.id, token.logprob)
        entry["top_logprobs"] = [self._logprob(other, logprob) for other, logprob in token.others]
        return {"logprobs": {"content": [entry], "refusal": None}}

    def _logprob(self, token: int, logprob: float) -> JSONObject:
        text = str(self._decode_token([token]))
        is_whole = "\ufffd" not in text
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode()) if is_whole else None}

    def _usage(self) -> JSONObject:
        prompt = len(self._row.prompt)
        return {"prompt_tokens": prompt, "completion_tokens": self._count, "total_tokens": prompt + self._count}

    def _metrics(self, usage: JSONObject) -> JSONObject:
        """Return DB-GPT's inference metrics; times are milliseconds of the wall clock."""
        now = _now_ms()
        return {
            "start_time_ms": self._started,
            "first_token_time_ms": self._first,
            "current_time_ms": now,
            "end_time_ms": now,
            **usage,
            "speed_per_second": round(1000 * self._count / max(now - self._started, 1), 2),
        }


def messages_for_template(messages: Sequence[JSONObject]) -> list[JSONObject]:
    """Return messages as chat templates read them: the arguments of a call are an object."""
    return [
        {**message, "tool_calls": [_with_object(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _with_object(call: JSONObject) -> JSONObject:
    function = call["function"]
    try:
        arguments = orjson.loads(function.get("arguments") or "{}")
    except orjson.JSONDecodeError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def first_line(error: BaseException) -> str:
    """Return the type and the first line of a foreign exception."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _now_ms() -> int:
    return int(time.time() * 1000)
