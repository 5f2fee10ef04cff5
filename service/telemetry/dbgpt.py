"""Propagate DB-GPT's span ids beside W3C's: a propagator of OpenTelemetry for DB-GPT's header.

DB-GPT writes ``<trace>:<span>``, in the header or as ``span_id`` in a body. Version 0.8 writes W3C's digits, version
0.5 wrote uuids. Every hop turns a uuid, or any other text, into the same W3C ids, so that it stays one trace.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b

from opentelemetry import trace
from opentelemetry.context import Context, create_key, get_value, set_value
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

HEADER = "DB-GPT-Trace-Span-Id"
NO_SPAN = "empty_span"
"""What DB-GPT writes in place of an id where it does not trace."""

_PAIR = re.compile(r"([A-Za-z0-9._-]{1,128}):([A-Za-z0-9._-]{1,128})")
_DIGITS = re.compile(r"[0-9a-fA-F]+")
_RECEIVED = create_key("modelyard-dbgpt-span")


@dataclass(frozen=True, slots=True)
class ReceivedId:
    """DB-GPT's id of a caller's span, as it was received."""

    text: str
    """``<trace>:<span>``."""
    trace_id: int
    """W3C's id of the trace, made of the text."""
    parent: SpanContext
    """The caller's span by the headers: this id, or that of a ``traceparent`` beside it."""


class DBGPTPropagator(TextMapPropagator):
    """Reads and writes DB-GPT's header. Compose it after W3C's propagator: a valid ``traceparent`` has precedence."""

    def __init__(self, sample: float = 1.0) -> None:
        """Mark a share ``sample`` of the traces as recorded: DB-GPT's header does not tell whether it records them."""
        self._bound = round(sample * 2**64)

    def extract(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        getter: Getter[CarrierT] = default_getter,
    ) -> Context:
        """Return ``context`` with the caller's id, and with the caller's span if it has none. Ignore an invalid id."""
        context = Context() if context is None else context
        values = getter.get(carrier, HEADER)
        if not values or (ids := ids_of(values[0])) is None:
            return context
        parent = trace.get_current_span(context).get_span_context()
        if not parent.is_valid:
            is_kept = (ids[0] & (2**64 - 1)) < self._bound
            flags = TraceFlags(TraceFlags.SAMPLED if is_kept else TraceFlags.DEFAULT)
            parent = SpanContext(*ids, is_remote=True, trace_flags=flags)
            context = trace.set_span_in_context(NonRecordingSpan(parent), context)
        return set_value(_RECEIVED, ReceivedId(values[0], ids[0], parent), context)

    def inject(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        setter: Setter[CarrierT] = default_setter,
    ) -> None:
        """Write the span of ``context`` into ``carrier``, if it has a valid one."""
        if (text := span_id(context)) is not None:
            setter.set(carrier, HEADER, text)

    @property
    def fields(self) -> set[str]:
        """Return the header that `inject` writes."""
        return {HEADER}


def span_id(context: Context | None = None) -> str | None:
    """Return the span of ``context`` (default: the current one) as ``<trace>:<span>``; None without a valid span.

    The trace keeps the name that DB-GPT gave it. A caller's span that is passed on keeps its whole text.
    """
    current = trace.get_current_span(context).get_span_context()
    if not current.is_valid:
        return None
    received = received_id(context)
    if received is not None and received.parent == current:
        return received.text
    if received is not None and received.trace_id == current.trace_id:
        return f"{received.text.partition(':')[0]}:{current.span_id:016x}"
    return f"{current.trace_id:032x}:{current.span_id:016x}"


def received_id(context: Context | None = None) -> ReceivedId | None:
    """Return DB-GPT's id that `DBGPTPropagator.extract` has put into ``context`` (default: the current one)."""
    received = get_value(_RECEIVED, context)
    return received if isinstance(received, ReceivedId) else None


def ids_of(text: object) -> tuple[int, int] | None:
    """Return W3C's trace id and span id for ``<trace>:<span>``; None for any other value, and for ``empty_span``."""
    match = _PAIR.fullmatch(text) if isinstance(text, str) else None
    if match is None or NO_SPAN in match.groups():
        return None
    return _number(match[1], 32), _number(match[2], 16)


def _number(text: str, digits: int) -> int:
    """Return the number that ``text`` has if it is ``digits`` hexadecimal digits and dashes; else a hash of it."""
    plain = text.replace("-", "")
    if len(plain) == digits and _DIGITS.fullmatch(plain) and (number := int(plain, 16)):
        return number
    return int.from_bytes(blake2b(text.encode(), digest_size=digits // 2).digest(), "big") or 1
