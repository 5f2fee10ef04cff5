"""The same operation on several instances at once, and one outcome out of many."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from opentelemetry.context import get_current

from ..errors import ModelyardError
from ..telemetry.tracing import attached
from ..types import ApplyOutcome

T = TypeVar("T")
log = logging.getLogger(__name__)


def in_parallel(targets: Sequence[T], operation: Callable[[T], str], name: Callable[[T], str]) -> list[ApplyOutcome]:
    """Run ``operation`` on each target in a thread of its own; what it returns or raises becomes the message."""
    outcomes = [ApplyOutcome("did not run", False, 0.0) for _ in targets]
    context = get_current()

    def run(index: int, target: T) -> None:
        with attached(context):
            outcomes[index] = timed(lambda: operation(target))

    threads = [
        threading.Thread(target=run, args=(index, target), name=f"apply-{name(target)}", daemon=True)
        for index, target in enumerate(targets)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def timed(operation: Callable[[], str]) -> ApplyOutcome:
    """Run ``operation`` and return its sentence, or its error's, with the seconds it took."""
    began = time.monotonic()
    try:
        message, success = operation(), True
    except ModelyardError as error:
        message, success = str(error), False
    except Exception as error:
        log.exception("apply failed")
        message, success = f"failed: {type(error).__name__}", False
    return ApplyOutcome(message, success, round(time.monotonic() - began, 3))


def merged(outcomes: Sequence[ApplyOutcome]) -> ApplyOutcome:
    """Return one outcome: all must have succeeded, messages are joined, the longest time counts."""
    return ApplyOutcome(
        message="; ".join(outcome.message for outcome in outcomes),
        success=all(outcome.success for outcome in outcomes),
        timecost=max((outcome.timecost for outcome in outcomes), default=0.0),
    )
