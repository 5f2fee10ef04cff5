"""Spans that are kept, by OpenTelemetry's API. Imported when tracing is on, and not before."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from .dbgpt import DBGPT_HEADER, SAMPLED, TRACEPARENT, TRACESTATE, Caller, dbgpt_id
from .spans import INTERNAL, SERVER, Attributes, Span, code_of

_FAILED = Status(StatusCode.ERROR)


class Recorder:
    """Makes spans with one tracer."""

    def __init__(self, tracer: trace.Tracer, *, content: bool, sample: float, join: bool) -> None:
        """With ``join``, spans without a parent of ours stand below the host application's current one."""
        self._tracer = tracer
        self._sample = sample
        self._join = join
        self.content = content

    def begin(self, name: str, attributes: Attributes | None, kind: str, parent: RecordedSpan | None = None) -> Span:
        """Return a new span below ``parent``; without one at the top of a trace, or in the host application's."""
        if parent is None:
            return self._made(self._begin(name, attributes, kind, self._no_parent()))
        context = trace.set_span_in_context(parent.otel, Context())
        return self._made(self._begin(name, attributes, kind, context), parent.trace_name)

    def arrived(self, name: str, attributes: Attributes, caller: Caller | None, began: int) -> Span:
        """Return the span of a call that came over HTTP at ``began``, in nanoseconds since 1970."""
        if caller is None or (self._join and trace.get_current_span().get_span_context().is_valid):
            return self._made(self._begin(name, attributes, SERVER, self._no_parent(), began=began))
        context = trace.set_span_in_context(NonRecordingSpan(self._remote(caller)), Context())
        otel = self._begin(name, {**attributes, "modelyard.dbgpt.span_id": caller.dbgpt}, SERVER, context, began=began)
        return self._made(otel, caller.trace_name)

    def _begin(
        self, name: str, said: Attributes | None, kind: str, context: Context | None, *, began: int | None = None
    ) -> trace.Span:
        began = time.time_ns() if began is None else began
        return self._tracer.start_span(name, context, SpanKind[kind], _said(said or {}), start_time=began)

    def _made(self, otel: trace.Span, trace_name: str | None = None) -> Span:
        return RecordedSpan(self, otel, trace_name)

    def _no_parent(self) -> Context | None:
        # None is the context of this thread, where the host application's span stands.
        return None if self._join else Context()

    def _remote(self, caller: Caller) -> SpanContext:
        trace_id, span_id = caller.ids()
        flags = caller.flags
        if flags is None:
            # DB-GPT does not say whether it records: the same share as of our own, by the trace.
            flags = SAMPLED if (trace_id & (2**64 - 1)) < self._sample * 2**64 else 0
        state = TraceState.from_header([caller.tracestate]) if caller.tracestate else None
        return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags), trace_state=state)


class RecordedSpan(Span):
    """A span of OpenTelemetry; where the sampler left it out, only its ids travel."""

    __slots__ = ("_active", "_ended", "_recorder", "content", "otel", "recording", "trace_name")

    def __init__(self, recorder: Recorder, otel: trace.Span, trace_name: str | None) -> None:
        self._recorder = recorder
        self._ended = False
        self._active: AbstractContextManager[Any] | None = None
        self.otel = otel
        self.recording = otel.is_recording()
        self.content = self.recording and recorder.content
        self.trace_name = trace_name
        """The trace as DB-GPT calls it, where that is not W3C's number."""

    def child(self, name: str, attributes: Attributes | None = None, kind: str = INTERNAL) -> Span:
        """Return a new span below this one, which its maker ends."""
        return self._recorder.begin(name, attributes, kind, self)

    def set(self, attributes: Attributes) -> None:
        """Add attributes; those that are None are left out."""
        self.otel.set_attributes(_said(attributes))

    def event(self, name: str, attributes: Attributes | None = None) -> None:
        """Note that something happened now."""
        self.otel.add_event(name, _said(attributes or {}))

    def end(self, error: BaseException | str | None = None) -> None:
        """End it. Of an error it keeps the code and never the text, which may quote what was said."""
        if self._ended:
            return
        self._ended = True
        if error is not None:
            self.otel.set_attribute("error.type", code_of(error))
            self.otel.set_status(_FAILED)
        self.otel.end()

    def headers(self) -> dict[str, str]:
        """Return ``traceparent``, ``tracestate`` where there is one, and DB-GPT's header."""
        own = self.otel.get_span_context()
        told = {
            TRACEPARENT: f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}",
            DBGPT_HEADER: dbgpt_id(own.trace_id, own.span_id, self.trace_name),
        }
        if own.trace_state:
            told[TRACESTATE] = own.trace_state.to_header()
        return told

    def span_id(self) -> str | None:
        """Return ``<trace>:<span>``."""
        return self.headers()[DBGPT_HEADER]

    def __enter__(self) -> Span:
        self._active = self.active()
        self._active.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._active is not None
        self._active.__exit__(kind, error, trace)
        self.end(error)


def _said(attributes: Attributes) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}
