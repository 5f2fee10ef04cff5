"""What a caller says of its trace, and what the next hop is told: W3C's ``traceparent``, and DB-GPT's ids.

DB-GPT says ``<trace>:<span>``, in a header or in the body's ``span_id``. 0.8's are W3C's digits already, 0.5's were
uuids: those, and whatever else comes, become W3C's ids by a rule, the same at every hop, so that it stays one trace.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
DBGPT_HEADER = "DB-GPT-Trace-Span-Id"
NO_SPAN = "empty_span"
"""What DB-GPT says where it does not trace."""

SAMPLED = 1
_MAX_STATE = 1024
_W3C = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_DBGPT = re.compile(r"([A-Za-z0-9._-]{1,128}):([A-Za-z0-9._-]{1,128})")
_MAX_MEMBERS = 32
_STATE_KEY = r"(?:[a-z][_0-9a-z*/-]{0,255}|[a-z0-9][_0-9a-z*/-]{0,240}@[a-z][_0-9a-z*/-]{0,13})"
_STATE_MEMBER = re.compile(_STATE_KEY + r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")


@dataclass(frozen=True, slots=True)
class Caller:
    """The span of whoever asks, as it was said. At least one of ``traceparent`` and ``dbgpt`` is there."""

    traceparent: str | None = None
    """Valid, and of version 00."""
    tracestate: str | None = None
    dbgpt: str | None = None
    """``<trace>:<span>``."""

    def ids(self) -> tuple[int, int]:
        """Return trace and span in W3C's numbers; ``traceparent`` wins."""
        if self.traceparent is not None:
            _, trace, span, _ = self.traceparent.split("-")
            return int(trace, 16), int(span, 16)
        assert self.dbgpt is not None
        return numbers_of(self.dbgpt)

    @property
    def flags(self) -> int | None:
        """W3C's flags, of which 1 means that the caller's span is recorded; None where only DB-GPT's id came."""
        return None if self.traceparent is None else int(self.traceparent[-2:], 16)

    @property
    def trace_name(self) -> str | None:
        """The trace as DB-GPT calls it, where that is the same trace."""
        if self.dbgpt is None or numbers_of(self.dbgpt)[0] != self.ids()[0]:
            return None
        return self.dbgpt.partition(":")[0]

    def headers(self) -> dict[str, str]:
        """Return what a hop that does not trace itself tells the next one: the same."""
        dbgpt = self.dbgpt
        if self.traceparent is None:
            return {DBGPT_HEADER: dbgpt or ""}
        told = {TRACEPARENT: self.traceparent, DBGPT_HEADER: dbgpt or dbgpt_id(*self.ids())}
        if self.tracestate:
            told[TRACESTATE] = self.tracestate
        return told


def caller_in_headers(environ: Mapping[str, Any]) -> Caller | None:
    """Return what the headers of a WSGI request say; None where they say nothing that can be read."""
    parent, dbgpt = environ.get("HTTP_TRACEPARENT"), environ.get("HTTP_DB_GPT_TRACE_SPAN_ID")
    if parent is None and dbgpt is None:
        return None
    said = _read_dbgpt(dbgpt)
    valid = _read_traceparent(parent)
    if valid is None:
        return None if said is None else Caller(dbgpt=said)
    return Caller(valid, _read_tracestate(environ.get("HTTP_TRACESTATE")), said)


def caller_in_body(span_id: object) -> Caller | None:
    """Return what the body's ``span_id`` says; None where it says nothing that can be read."""
    said = _read_dbgpt(span_id)
    return None if said is None else Caller(dbgpt=said)


def _read_traceparent(text: object) -> str | None:
    found = _W3C.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None:
        return None
    version, trace, span, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or int(trace, 16) == 0 or int(span, 16) == 0:
        return None
    # A version to come is told on as the one that is known here, as the specification asks.
    return f"00-{trace}-{span}-{flags}"


def _read_tracestate(text: object) -> str | None:
    """Return the state where all of it fits; OpenTelemetry would log, unasked, what a client sends instead."""
    if not isinstance(text, str) or len(text) > _MAX_STATE:
        return None
    members = [member.strip(" \t") for member in text.split(",")]
    keys = {member.partition("=")[0] for member in members}
    if len(keys) < len(members) or len(keys) > _MAX_MEMBERS or not all(map(_STATE_MEMBER.fullmatch, members)):
        return None
    return ",".join(members)


def _read_dbgpt(text: object) -> str | None:
    found = _DBGPT.fullmatch(text) if isinstance(text, str) else None
    return None if found is None or NO_SPAN in found.groups() else found[0]


def numbers_of(dbgpt: str) -> tuple[int, int]:
    """Return W3C's trace and span of ``<trace>:<span>``."""
    trace, _, span = dbgpt.partition(":")
    return _number(trace, 32), _number(span, 16)


def _number(text: str, digits: int) -> int:
    """Return the number that ``text`` is, where it has just as many digits (dashes aside), else one made of it."""
    plain = text.replace("-", "")
    if len(plain) == digits and re.fullmatch("[0-9a-fA-F]+", plain) and (number := int(plain, 16)):
        return number
    return int.from_bytes(blake2b(text.encode(), digest_size=digits // 2).digest(), "big") or 1


def dbgpt_id(trace: int, span: int, trace_name: str | None = None) -> str:
    """Return ``<trace>:<span>``, the trace under the name that DB-GPT gave it, if it did."""
    return f"{trace_name or format(trace, '032x')}:{span:016x}"
