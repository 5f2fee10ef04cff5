"""The span of an HTTP call: from its arrival until the last byte of its answer, whoever sends that."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from flask import Request

from ...telemetry.dbgpt import Caller, caller_in_body, caller_in_headers
from ...telemetry.spans import NOTHING, Span
from ...telemetry.tracing import Tracing

_WITH_BODY = ("POST", "PUT", "PATCH")


class Ended(Protocol):
    """What an access line knows of an answer that has ended."""

    status: int
    bytes: int
    pieces: int | None
    model: str | None
    error: str | None


class CallTrace:
    """One call's span, and its place as the thread's current one while the view runs."""

    __slots__ = ("_active", "_attributes", "_began", "_name", "_tracing", "span")

    def __init__(self, tracing: Tracing, call: Request) -> None:
        """Note when it came, and what it asks for."""
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
        self._active: AbstractContextManager[Any] | None = None
        self.span: Span = NOTHING

    def begin(self, caller: Caller | None) -> None:
        """Begin the span, below the caller's if that is known, and make it the current one."""
        if self._active is None:
            self.span = self._tracing.arrived(self._name, self._attributes, caller, self._began)
            self._active = self.span.active()
            self._active.__enter__()

    def leave(self) -> None:
        """Give the thread back: the view has ended, the answer perhaps not yet."""
        # A call that was refused before its body was read has not begun.
        self.begin(None)
        assert self._active is not None
        self._active.__exit__(None, None, None)

    def end(self, line: Ended) -> None:
        """End the span with what the access line says."""
        if self.span.recording:
            self.span.set(
                {
                    "http.response.status_code": line.status or None,
                    "http.response.body.size": line.bytes,
                    "gen_ai.request.model": line.model,
                    "modelyard.pieces": line.pieces,
                }
            )
        self.span.end(line.error or (str(line.status) if line.status >= 500 else None))


def arrived(tracing: Tracing, call: Request) -> CallTrace | None:
    """Return the trace of a call; None where nothing is traced, and the headers say of no span to pass on."""
    caller = caller_in_headers(call.environ)
    if caller is None and not tracing.on:
        return None
    trace = CallTrace(tracing, call)
    if caller is not None or call.method not in _WITH_BODY:
        trace.begin(caller)
    return trace


def read_body(tracing: Tracing, call: Request, trace: CallTrace | None, body: Mapping[str, object]) -> CallTrace | None:
    """Return the trace of a call whose body is here, which may say whose work it is where no header has."""
    if trace is None and "span_id" not in body:
        return None
    caller = caller_in_body(body.get("span_id"))
    if trace is None:
        if caller is None:
            return None
        trace = CallTrace(tracing, call)
    trace.begin(caller)
    return trace
