"""Run an operation on several targets at once, and merge the outcomes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import TypeVar

from ..errors import ModelyardError
from ..threads import start_thread
from ..types import ApplyOutcome

T = TypeVar("T")
R = TypeVar("R")
log = logging.getLogger(__name__)


def in_parallel(
    targets: Sequence[T], operation: Callable[[T], R], name: Callable[[T], str]
) -> list[R | ModelyardError]:
    """Run ``operation`` on each target in a thread of its own; return the results and errors, in their order.

    An unexpected exception is logged, and becomes an error with the names of its target and class.
    """
    results: list[R | ModelyardError] = [ModelyardError("did not run") for _ in targets]

    def run(index: int, target: T) -> None:
        try:
            results[index] = operation(target)
        except ModelyardError as error:
            results[index] = error
        except Exception as error:
            log.exception("%s failed", name(target))
            results[index] = ModelyardError(f"{name(target)} failed: {type(error).__name__}")

    threads = [
        # In a copy of this thread's context, so that spans of the operation are below the current span.
        threading.Thread(target=copy_context().run, args=(run, *target), name=f"apply-{name(target[1])}", daemon=True)
        for target in enumerate(targets)
    ]
    started: list[threading.Thread] = []
    for index, thread in enumerate(threads):
        try:
            start_thread(thread)
            started.append(thread)
        except ModelyardError as error:
            results[index] = error
    for thread in started:
        thread.join()
    return results


def timed(operation: Callable[[], str]) -> ApplyOutcome:
    """Run ``operation`` and return its sentence, or its error's, with the seconds it took."""
    began = time.monotonic()
    try:
        message, success = operation(), True
    except ModelyardError as error:
        message, success = str(error), False
    return ApplyOutcome(message, success, round(time.monotonic() - began, 3))


def outcome_of(result: ApplyOutcome | ModelyardError, seconds: float = 0.0) -> ApplyOutcome:
    """Return a result of `in_parallel` as an outcome; an error becomes a failure that took ``seconds``."""
    return ApplyOutcome(str(result), False, seconds) if isinstance(result, ModelyardError) else result


def merged(outcomes: Sequence[ApplyOutcome]) -> ApplyOutcome:
    """Return one outcome of all: a success if all succeeded, with joined messages and the longest time."""
    return ApplyOutcome(
        message="; ".join(outcome.message for outcome in outcomes),
        success=all(outcome.success for outcome in outcomes),
        timecost=max((outcome.timecost for outcome in outcomes), default=0.0),
    )
