"""Put spans over the calls of managers, models and engines.

Names are OpenTelemetry's for generative models, where it has them. Prompts and answers are put into the span of an
engine only where `tracing_content` allows it.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import orjson
from opentelemetry.trace import INVALID_SPAN, Span

from ..engines.base import ModelParams
from ..errors import ModelyardError
from ..streams import OutputStream
from ..telemetry.resource import shown
from ..telemetry.tracing import Attributes, Tracing, attached, current_tracing, end, present
from ..types import Burst, GenerateRequest, JSONObject, worker_key
from ..wire.messages import openai_messages

P = ParamSpec("P")
R = TypeVar("R")

MAX_TEXT = 64 * 1024
"""The most characters of an attribute that holds prompts, answers or texts."""


# Managers


class Traced(Protocol):
    """An object that has a tracing."""

    tracing: Tracing


T = TypeVar("T", bound=Traced)


def spanned(method: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[T, P], R]:
    """Put a span over each call of a manager's method; the span of a stream ends when the stream is closed."""
    name = f"manager.{method.__name__}"

    @functools.wraps(method)
    def call(self: T, /, *args: P.args, **kwargs: P.kwargs) -> R:
        tracing = self.tracing
        if not tracing.on:
            return method(self, *args, **kwargs)
        span = tracing.span(name, _called(type(self).__name__, args, kwargs))
        try:
            with attached(tracing.context_of(span)):
                result = method(self, *args, **kwargs)
        except BaseException as error:
            end(span, error)
            raise
        if isinstance(result, OutputStream):
            result.when_closed(functools.partial(end, span))
        else:
            end(span)
        return result

    return call


def _called(manager: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Attributes:
    first = args[0] if args else kwargs.get("model", kwargs.get("request"))
    name = first.model if isinstance(first, GenerateRequest) else first
    return {"modelyard.manager": manager, "gen_ai.request.model": name if isinstance(name, str) else None}


# Models


@contextmanager
def start_span(tracing: Tracing, params: ModelParams) -> Iterator[None]:
    """Put a span over the start of a model, with its parameters; private ones are masked."""
    span = tracing.span("model.start")
    if span.is_recording():
        span.set_attributes(_attributes_of(params))
    with tracing.running(span):
        try:
            yield
        except ModelyardError as error:
            span.set_attribute("modelyard.reason", str(error))
            raise


def _attributes_of(params: ModelParams) -> JSONObject:
    attributes: JSONObject = {
        "modelyard.model": worker_key(params.registered_name, params.worker_type),
        "gen_ai.provider.name": params.engine,
        "gen_ai.request.model": params.registered_name,
    }
    return attributes | shown("modelyard.param", params)


class CallSpan:
    """The span of one call of a model of this process, below the current span, with the engine's span below it."""

    __slots__ = ("_began", "_params", "_span", "_tracing", "recording")

    def __init__(self, call: str, params: ModelParams) -> None:
        """Begin the span of ``call``, if the current span belongs to a tracing that is on."""
        self._tracing = current_tracing()
        self._params = params
        self._began = time.monotonic()
        self._span: Span = INVALID_SPAN
        if self._tracing.on:
            key = worker_key(params.registered_name, params.worker_type)
            self._span = self._tracing.span(f"worker.{call}", {"modelyard.model": key})
        self.recording = self._span.is_recording()
        """Whether the span keeps anything."""

    def note_slot(self) -> None:
        """Note that the request gets its slot now."""
        self._span.add_event("modelyard.slot")
        self._span.set_attribute("modelyard.time_in_line", time.monotonic() - self._began)

    def end(self, error: BaseException | None = None) -> None:
        """End the span. A second call does nothing."""
        end(self._span, error)

    def __enter__(self) -> CallSpan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(error)

    def of_generation(self, request: GenerateRequest) -> GenerationSpan | None:
        """Note that ``request`` gets its slot now, and return the span of its engine; None without recording."""
        if not self.recording:
            return None
        self.note_slot()
        span = self._engine_span("chat" if request.uses_messages else "text_completion")
        return GenerationSpan(span, request, content=self._tracing.content)

    def running_engine(self, operation: str, texts: Sequence[str]) -> AbstractContextManager[object]:
        """Return a context manager for the engine's ``embeddings`` or ``rerank``: a span with the number of texts."""
        span = self._engine_span(operation)
        span.set_attribute("modelyard.texts", len(texts))
        if self._tracing.content:
            span.set_attribute("modelyard.input.texts", _as_json(list(texts)))
        return self._tracing.running(span)

    def _engine_span(self, operation: str) -> Span:
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": self._params.engine,
            "gen_ai.request.model": self._params.registered_name,
        }
        context = self._tracing.context_of(self._span)
        return self._tracing.span(f"{operation} {self._params.registered_name}", attributes, context=context)


# Engines


class GenerationSpan:
    """The span of an engine's answer, from the moment it has a slot to its end."""

    def __init__(self, span: Span, request: GenerateRequest, *, content: bool) -> None:
        """Note ``request`` in ``span``; with ``content`` its prompt and the answer too."""
        self._span = span
        self._content = content
        self._began = time.monotonic()
        self._pieces = 0
        self._answer: list[str] = []
        self._reason: str | None = None
        span.set_attributes(present(_requested(request)))
        if content:
            span.set_attribute("gen_ai.input.messages", _as_json(_messages(request)))

    def note(self, burst: Burst | None) -> None:
        """Note a burst of the answer."""
        if burst is None:
            return
        if burst.pieces and not self._pieces:
            seconds = time.monotonic() - self._began
            self._span.add_event("modelyard.first_piece", {"modelyard.seconds": seconds})
            self._span.set_attribute("modelyard.time_to_first_piece", seconds)
        self._pieces += len(burst.pieces)
        if self._content:
            self._answer += burst.pieces
        if burst.finish_reason is not None:
            self._reason = burst.finish_reason
            self._span.set_attribute("gen_ai.response.finish_reasons", [burst.finish_reason])
        if burst.usage is not None:
            counts = {"input": burst.usage.get("prompt_tokens"), "output": burst.usage.get("completion_tokens")}
            self._span.set_attributes({f"gen_ai.usage.{name}_tokens": n for name, n in present(counts).items()})

    def end(self, error: BaseException | None) -> None:
        """End the span, as failed where there is an ``error``."""
        self._span.set_attribute("modelyard.pieces", self._pieces)
        if self._content:
            answer = {"role": "assistant", "parts": [_part("".join(self._answer))], "finish_reason": self._reason}
            self._span.set_attribute("gen_ai.output.messages", _as_json([answer]))
        end(self._span, error)


def _requested(request: GenerateRequest) -> JSONObject:
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
    messages = openai_messages(request.messages)
    return [{"role": message["role"], "parts": [_part(message["content"])]} for message in messages]


def _part(text: str) -> JSONObject:
    return {"type": "text", "content": text}


def _as_json(value: Any) -> str:
    try:
        text = orjson.dumps(value).decode()
    except TypeError:  # a lone surrogate, which UTF-8 does not have
        text = json.dumps(value)
    return text[:MAX_TEXT]
