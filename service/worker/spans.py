"""What the span over an engine's work says, in OpenTelemetry's names for generative models, where it has any.

Prompts and answers stand in it only where the span may have them (`tracing_content`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from ..engines.base import ModelParams
from ..streams import Cancel
from ..telemetry.resource import shown
from ..telemetry.spans import Span
from ..types import Burst, GenerateRequest, JSONObject, worker_key
from ..wire.messages import text_of_content

_ROLES = {"human": "user", "ai": "assistant"}


def engine_span(parent: Span, operation: str, params: ModelParams) -> Span:
    """Return a span for what an engine does: ``chat``, ``text_completion``, ``embeddings`` or ``rerank``."""
    return parent.child(
        f"{operation} {params.registered_name}",
        {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": params.engine,
            "gen_ai.request.model": params.registered_name,
        },
    )


def note_slot(span: Span, asked: float) -> None:
    """Note that a request got its slot now, that ``asked`` for it at that time of the monotonic clock."""
    waited = time.monotonic() - asked
    span.event("modelyard.slot")
    span.set({"modelyard.time_in_line": waited})


def note_texts(span: Span, texts: Sequence[str]) -> None:
    """Note how many texts there are, a query included, and what they say where the span may have it."""
    span.set({"modelyard.texts": len(texts)})
    if span.content:
        span.set({"modelyard.input.texts": _as_json(list(texts))})


class WatchedBursts:
    """An engine's bursts on their way, and the span over them: it ends where they do."""

    def __init__(self, bursts: Iterator[Burst | None], span: Span, request: GenerateRequest, cancel: Cancel) -> None:
        self._ended = False
        self._bursts = bursts
        self._span = span
        self._cancel = cancel
        self._began = time.monotonic()
        self._pieces = 0
        self._answer: list[str] = []
        self._reason: str | None = None
        span.set(_asked(request))
        if span.content:
            span.set({"gen_ai.input.messages": _as_json(_messages(request))})

    def __iter__(self) -> Iterator[Burst | None]:
        return self

    def __next__(self) -> Burst | None:
        try:
            burst = next(self._bursts)
        except BaseException as error:
            # An engine that was told to stop ends, or says no more than that.
            self._end(self._cancel.error if self._cancel.is_set() else error)
            raise
        if burst is not None:
            self._note(burst)
        return burst

    def _note(self, burst: Burst) -> None:
        if burst.pieces and not self._pieces:
            seconds = time.monotonic() - self._began
            self._span.event("modelyard.first_piece", {"modelyard.seconds": seconds})
            self._span.set({"modelyard.time_to_first_piece": seconds})
        self._pieces += len(burst.pieces)
        if self._span.content:
            self._answer += burst.pieces
        if burst.finish_reason is not None:
            self._reason = burst.finish_reason
            self._span.set({"gen_ai.response.finish_reasons": [burst.finish_reason]})
        if burst.usage is not None:
            counts = {"input": burst.usage.get("prompt_tokens"), "output": burst.usage.get("completion_tokens")}
            self._span.set({f"gen_ai.usage.{name}_tokens": count for name, count in counts.items()})

    def close(self) -> None:
        """End the bursts, which whoever closes them before their end has cancelled."""
        try:
            close = getattr(self._bursts, "close", None)
            if close is not None:
                close()
        finally:
            self._end(self._cancel.error)

    def _end(self, error: BaseException) -> None:
        if self._ended:
            return
        self._ended = True
        self._span.set({"modelyard.pieces": self._pieces})
        if self._span.content:
            answer = {"role": "assistant", "parts": [_part("".join(self._answer))], "finish_reason": self._reason}
            self._span.set({"gen_ai.output.messages": _as_json([answer])})
        self._span.end(None if isinstance(error, StopIteration) else error)


def _asked(request: GenerateRequest) -> JSONObject:
    return {
        "gen_ai.request.max_tokens": request.max_new_tokens,
        "gen_ai.request.temperature": request.temperature,
        "gen_ai.request.top_p": request.top_p,
        "gen_ai.request.top_k": request.top_k,
        "gen_ai.request.seed": request.seed,
        "gen_ai.request.presence_penalty": request.presence_penalty,
        "gen_ai.request.frequency_penalty": request.frequency_penalty,
    }


def _messages(request: GenerateRequest) -> list[JSONObject]:
    if not request.uses_messages:
        return [{"role": "user", "parts": [_part(request.prompt or "")]}]
    return [
        {"role": _ROLES.get(said["role"], said["role"]), "parts": [_part(text_of_content(said["content"]))]}
        for said in request.messages
    ]


def _part(text: str) -> JSONObject:
    return {"type": "text", "content": text}


def _as_json(value: Any) -> str:
    return orjson.dumps(value).decode()


def facts_of(own: ModelParams) -> JSONObject:
    """Return the facts of a model."""
    facts: JSONObject = {
        "modelyard.model": worker_key(own.registered_name, own.worker_type),
        "gen_ai.provider.name": own.engine,
        "gen_ai.request.model": own.registered_name,
    }
    return facts | shown("modelyard.param", own)
