"""Span: what a request did, hop by hop; and the one that stands there when nobody traces, of which every call is free.

`current` is the span that this thread works for. It is put there only for as long as a call runs; what works later, or
in another thread, takes the span along by itself.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from ..errors import ModelyardError
from .dbgpt import DBGPT_HEADER, Caller

INTERNAL, SERVER, CLIENT = "INTERNAL", "SERVER", "CLIENT"

Attributes = Mapping[str, Any]


class Span:
    """A span that is none: the base of those that are. Use it in a ``with`` to be `current` within, and ended after."""

    __slots__ = ()
    recording = False
    """Whether anything is kept: attributes need not be put together for a span that keeps none."""
    content = False
    """Whether prompts and answers may be put into it."""

    def child(self, name: str, attributes: Attributes | None = None, kind: str = INTERNAL) -> Span:
        """Return a new span below this one, which its maker ends."""
        return self

    def set(self, attributes: Attributes) -> None:
        """Add attributes; those that are None are left out."""

    def event(self, name: str, attributes: Attributes | None = None) -> None:
        """Note that something happened now."""

    def end(self, error: BaseException | str | None = None) -> None:
        """End it, as a failure where there is an ``error``, or its code. A second call does nothing."""

    def headers(self) -> Mapping[str, str]:
        """Return the headers that tell the next hop whose work it does."""
        return {}

    def span_id(self) -> str | None:
        """Return what DB-GPT's servers want as the body's ``span_id``."""
        return None

    def active(self) -> AbstractContextManager[Any]:
        """Return a context within which this span is `current`; it is not ended by it."""
        return _Active(self)

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


NOTHING = Span()
_current: contextvars.ContextVar[Span] = contextvars.ContextVar("modelyard_span", default=NOTHING)

current: Callable[[], Span] = _current.get
"""Return the span that this thread works for; `NOTHING` where there is none."""


def outgoing_headers() -> Mapping[str, str]:
    """Return the headers that tell the next hop whose work this thread does."""
    return _current.get().headers()


class _Active:
    __slots__ = ("_before", "_span")

    def __init__(self, span: Span) -> None:
        self._span = span
        self._before = NOTHING

    def __enter__(self) -> Span:
        self._before = _current.get()
        _current.set(self._span)
        return self._span

    def __exit__(self, *raised: object) -> None:
        # Not by a token: whoever ends may run in another context than whoever began.
        _current.set(self._before)


class PassedOn(Span):
    """Keeps nothing, and tells the next hop what the caller said: a hop that does not trace cuts no trace."""

    __slots__ = ("_headers",)

    def __init__(self, caller: Caller) -> None:
        self._headers = caller.headers()

    def headers(self) -> Mapping[str, str]:
        """Return what the caller said."""
        return self._headers

    def span_id(self) -> str | None:
        """Return the caller's span."""
        return self._headers[DBGPT_HEADER]


def code_of(error: BaseException | str) -> str:
    """Return what tells errors apart: our code, or the class of one that is not ours."""
    if isinstance(error, str):
        return error
    return error.code if isinstance(error, ModelyardError) else type(error).__qualname__
