"""Count the calls of one model for the metrics: each call once, at its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from ..engines.base import tokens_of
from ..errors import EngineError, ModelyardError
from ..streams import Cancel, OutputStream
from ..telemetry.metrics import BATCH, LOAD_FAILURES, LOAD_SECONDS, LOADS, UNLOADS, CallFamilies, Metrics, Value

R = TypeVar("R")

FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
"""The values of ``finished_reason``. Any other, which a server behind an engine may send, is ``other``."""


def code_of(error: BaseException) -> str:
    """Return the value of ``error`` for an error: a few codes, whatever has failed."""
    return error.code if isinstance(error, ModelyardError) else EngineError.code


class CallCounts:
    """The counts of the calls of one model, in the families of the process that has it, or of a router."""

    def __init__(self, metrics: Metrics, families: CallFamilies, model: str, worker_type: str) -> None:
        """Count in ``families`` of ``metrics``. ``model`` exists: it is not just what a client has sent."""
        self._metrics = metrics
        self._families = families
        self._labels = (model, worker_type)

    def failed(self, error: BaseException) -> None:
        """Count a call that an error has ended, or refused."""
        self._metrics.add(self._families.failure, *self._labels, code_of(error))

    def answered(self, stream: OutputStream, error: BaseException | None) -> None:
        """Count an answer that has ended, by an ``error`` or without.

        Without a usage, as of an answer that broke off, each piece counts as a token.
        """
        families, labels, usage = self._families, self._labels, stream.usage or {}
        tokens = usage.get("completion_tokens") or stream.pieces
        values: list[Value] = [
            (families.prompt_tokens, labels, usage.get("prompt_tokens") or 0),
            (families.generation_tokens, labels, tokens),
        ]
        if error is not None:
            self._metrics.note(*values, (families.failure, (*labels, code_of(error)), 1))
            return
        if stream.first is not None:
            values.append((families.first_token, labels, stream.first - stream.began))
            if tokens > 1:
                values.append((families.time_per_token, labels, (stream.last - stream.first) / (tokens - 1)))
        self._metrics.note(*values, *self._success(stream.began, stream.cancel, stream.finish_reason))

    def computed(self, texts: Sequence[str], cancel: Cancel, call: Callable[[], R]) -> R:
        """Return the result of ``call``, which embeds or ranks ``texts``, and count it; raises what it raises."""
        began = time.monotonic()
        try:
            results = call()
        except BaseException as error:
            self.failed(error)
            raise
        families, labels = self._families, self._labels
        self._metrics.note(
            (families.texts, labels, len(texts)),
            (families.texts_a_call, labels, len(texts)),
            (families.prompt_tokens, labels, tokens_of(results) or 0),
            *self._success(began, cancel, "stop"),
        )
        return results

    def batch(self, texts: int) -> None:
        """Count a call of the engine that embeds so many ``texts``, of one request or of several."""
        self._metrics.observe(BATCH, texts, *self._labels)

    def _success(self, began: float, cancel: Cancel, finish_reason: str | None) -> tuple[Value, ...]:
        families, labels = self._families, self._labels
        reason = finish_reason if finish_reason in FINISH_REASONS else "other"
        return (
            (families.success, (*labels, reason), 1),
            (families.queue_time, labels, cancel.queued),
            (families.duration, labels, time.monotonic() - began),
        )

    def started(self, seconds: float, cause: str) -> None:
        """Count a start of the model that has succeeded."""
        self._metrics.note((LOAD_SECONDS, self._labels, seconds), (LOADS, (*self._labels, cause), 1))

    def unloaded(self, cause: str) -> None:
        """Count that the model was unloaded, until a request wants it."""
        self._metrics.add(UNLOADS, *self._labels, cause)

    def start_failed(self, error: ModelyardError) -> None:
        """Count a start of the model that has failed."""
        self._metrics.add(LOAD_FAILURES, *self._labels, error.code)
