"""Put a span over an HTTP call: from its arrival until the last byte of its answer was handed over."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextvars import Token
from typing import Any, Protocol

from flask import Request
from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind

from ...telemetry import dbgpt
from ...telemetry.tracing import Tracing, end, has_span, present

_WITH_BODY = ("POST", "PUT", "PATCH")
_MAX_HEADER = 1024
_STATE_KEY = r"(?:[a-z][_0-9a-z*/-]{0,255}|[a-z0-9][_0-9a-z*/-]{0,240}@[a-z][_0-9a-z*/-]{0,13})"
_STATE_MEMBER = _STATE_KEY + r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_STATE = re.compile(rf"[ \t]*{_STATE_MEMBER}(?:[ \t]*,[ \t]*{_STATE_MEMBER}){{0,31}}[ \t]*")


class Ended(Protocol):
    """The facts of an answer that has ended, in an access line."""

    status: int
    bytes: int
    pieces: int | None
    model: str | None
    answered_by: str | None
    error: str | None


class CallTrace:
    """One call's span, which is the thread's current one while the view runs."""

    __slots__ = ("_attributes", "_began", "_name", "_span", "_token", "_tracing")

    def __init__(self, tracing: Tracing, call: Request) -> None:
        """Note when the call came, and what it asks for."""
        rule = call.path if call.url_rule is None else call.url_rule.rule
        self._tracing = tracing
        self._began = time.time_ns()
        self._name = f"{call.method} {rule}"
        self._attributes = {
            "http.request.method": call.method,
            "http.route": rule,
            "url.path": call.path,
            "url.scheme": call.scheme,
            "client.address": call.remote_addr,
        }
        self._token: Token[Context] | None = None
        self._span: Span = INVALID_SPAN

    def begin(self, context: Context) -> None:
        """Begin the span, below that of ``context``, and make it the current one. A second call does nothing."""
        if self._token is not None:
            return
        received = dbgpt.received_id(context)
        attributes = {**self._attributes, "modelyard.dbgpt.span_id": received.text if received else None}
        self._span = self._tracing.span(
            self._name, attributes, SpanKind.SERVER, context=context, start_time=self._began
        )
        self._token = attach(self._tracing.context_of(self._span, context))

    def leave(self) -> None:
        """Take the span from the thread: the view has returned, the answer may still be on its way."""
        # A call that was refused before its body was read has not begun.
        self.begin(self._tracing.context_of_call({}))
        assert self._token is not None
        detach(self._token)

    def end(self, line: Ended) -> None:
        """End the span with what the access line holds."""
        if self._span.is_recording():
            self._span.set_attributes(
                present(
                    {
                        "http.response.status_code": line.status or None,
                        "http.response.body.size": line.bytes,
                        "gen_ai.request.model": line.model,
                        "gen_ai.response.model": line.answered_by,
                        "modelyard.pieces": line.pieces,
                    }
                )
            )
        end(self._span, line.error or (str(line.status) if line.status >= 500 else None))


def arrived(tracing: Tracing, call: Request) -> CallTrace | None:
    """Return the trace of a call; None if nothing is traced, and no header names a span to pass on."""
    headers = _headers(call.environ)
    if not headers and not tracing.on:
        return None
    trace = CallTrace(tracing, call)
    context = tracing.context_of_call(headers)
    # Otherwise the body may name the caller's span.
    if has_span(context) or call.method not in _WITH_BODY:
        trace.begin(context)
    return trace


def read_body(tracing: Tracing, call: Request, trace: CallTrace | None, body: Mapping[str, object]) -> CallTrace | None:
    """Return the trace of a call whose body has been read, and may name the caller's span where no header does."""
    span_id = body.get("span_id")
    if trace is None and dbgpt.ids_of(span_id) is None:
        return None
    trace = trace or CallTrace(tracing, call)
    trace.begin(tracing.context_of_call({dbgpt.HEADER: span_id} if isinstance(span_id, str) else {}))
    return trace


def _headers(environ: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers that may name a span, without those that OpenTelemetry's propagator logs as invalid."""
    headers: dict[str, str] = {}
    if (text := environ.get("HTTP_TRACEPARENT")) and len(text) <= _MAX_HEADER // 2:
        headers["traceparent"] = text
        state = environ.get("HTTP_TRACESTATE")
        if state and len(state) <= _MAX_HEADER and _STATE.fullmatch(state):
            headers["tracestate"] = state
    if text := environ.get("HTTP_DB_GPT_TRACE_SPAN_ID"):
        headers[dbgpt.HEADER] = text
    return headers
