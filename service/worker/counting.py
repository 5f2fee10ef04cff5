"""Count the calls of one model for the metrics: each call once, at its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from ..engines.base import tokens_of
from ..errors import EngineError, ModelyardError
from ..streams import Cancel, OutputStream
from ..telemetry.metrics import LOAD_FAILURES, LOAD_SECONDS, CallFamilies, Metrics

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
        metrics, families, labels = self._metrics, self._families, self._labels
        usage = stream.usage or {}
        tokens = usage.get("completion_tokens") or stream.pieces
        if tokens:
            metrics.add(families.generation_tokens, *labels, amount=tokens)
        if prompt_tokens := usage.get("prompt_tokens"):
            metrics.add(families.prompt_tokens, *labels, amount=prompt_tokens)
        if error is not None:
            self.failed(error)
            return
        if stream.first is not None:
            metrics.observe(families.first_token, stream.first - stream.began, *labels)
            if tokens > 1:
                metrics.observe(families.time_per_token, (stream.last - stream.first) / (tokens - 1), *labels)
        self._succeeded(stream.began, stream.cancel, stream.finish_reason)

    def computed(self, texts: Sequence[str], cancel: Cancel, call: Callable[[], R]) -> R:
        """Return the result of ``call``, which embeds or ranks ``texts``, and count it; raises what it raises."""
        began = time.monotonic()
        try:
            results = call()
        except BaseException as error:
            self.failed(error)
            raise
        self._metrics.add(self._families.texts, *self._labels, amount=len(texts))
        self._metrics.observe(self._families.texts_a_call, len(texts), *self._labels)
        if tokens := tokens_of(results):
            self._metrics.add(self._families.prompt_tokens, *self._labels, amount=tokens)
        self._succeeded(began, cancel, "stop")
        return results

    def _succeeded(self, began: float, cancel: Cancel, finish_reason: str | None) -> None:
        metrics, families, labels = self._metrics, self._families, self._labels
        reason = finish_reason if finish_reason in FINISH_REASONS else "other"
        metrics.add(families.success, *labels, reason)
        metrics.observe(families.queue_time, cancel.queued, *labels)
        metrics.observe(families.duration, time.monotonic() - began, *labels)

    def started(self, seconds: float) -> None:
        """Count a start of the model that has succeeded."""
        self._metrics.observe(LOAD_SECONDS, seconds, *self._labels)

    def start_failed(self, error: ModelyardError) -> None:
        """Count a start of the model that has failed."""
        self._metrics.add(LOAD_FAILURES, *self._labels, error.code)
