"""The cost of what `/metrics` shows: of a request, and of a token of its answer."""

from __future__ import annotations

import statistics
import time
import timeit
from collections.abc import Callable, Iterator
from itertools import repeat

from flask import Request
from modelyard.blueprints.request.access_log import AccessLine
from modelyard.streams import Cancel, OutputStream
from modelyard.telemetry.metrics import ENGINE, Metrics
from modelyard.types import Burst
from modelyard.worker.counting import CallCounts
from werkzeug.test import EnvironBuilder

from .. import ours
from ..client import run
from ..jobs import Job
from ..models import FAST, prompt
from ..plan import Plan
from ..report import Row, at_most, milliseconds

NAME = "metrics"
TITLE = "metrics: their share of a generate of 8 pieces, and what a token costs"
LIMITS = "one note a request, of ten values; a token costs two readings of the clock and some comparisons"

SHARE = 3.0
"""Percent of a request."""
A_TOKEN = 5.0
"""Microseconds."""
REPEATS = 20_000
TOKENS = 20_000


def measure(plan: Plan) -> Iterator[Row]:
    """Yield a row for a request, with its sums, and one for a token that comes alone."""
    spent = min(timeit.repeat(_request(), number=REPEATS, repeat=plan.rounds)) / REPEATS
    with ours.serving([FAST]) as server:
        job = Job(port=server.port, path="/api/worker/generate", body=prompt(FAST.name, 8), seconds=plan.seconds)
        whole = statistics.median(1 / run(job).per_second for _ in range(plan.rounds))
    share = 100 * spent / whole
    row = Row(NAME, "a request", f"{spent * 1e6:.2g} us", measured=f"{share:.2g} % of {milliseconds(whole)}")
    yield at_most(row, share, SHARE, "%")
    token = 1e6 * min(_seconds_a_token() for _ in range(plan.rounds))
    yield at_most(Row(NAME, "a token, in a stream of single tokens", f"{token:.2g} us"), token, A_TOKEN, "us")


def _request() -> Callable[[], object]:
    """Return a function that counts a request as the access line and its model do, sums included."""
    metrics = Metrics()
    counts = CallCounts(metrics, ENGINE, FAST.name, "llm")
    request = Request(EnvironBuilder("/api/worker/generate", method="POST").get_environ())
    stream = OutputStream(iter(()), Cancel(), lambda: None)
    stream.first, stream.pieces, stream.finish_reason = stream.began, 8, "stop"
    stream.usage = {"prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13}
    line = AccessLine(request, enabled=False, metrics=metrics)

    def count() -> None:
        counts.answered(stream, None)
        line.write()

    return count


def _seconds_a_token() -> float:
    """Return the seconds that a stream adds to each of its bursts: metrics, and all else that it looks after."""
    burst = Burst([" token"])
    began = time.perf_counter()
    for _ in repeat(burst, TOKENS):
        pass
    bare = time.perf_counter() - began
    stream = OutputStream(repeat(burst, TOKENS), Cancel(), lambda: None)
    began = time.perf_counter()
    for _ in stream:
        pass
    return (time.perf_counter() - began - bare) / TOKENS
