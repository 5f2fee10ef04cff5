"""The cost for a request of the calls that make spans, while tracing is off."""

from __future__ import annotations

import statistics
import timeit
from collections.abc import Callable, Iterator

from flask import Request
from modelyard.blueprints.request.traces import arrived, read_body
from modelyard.engines.base import ModelParams
from modelyard.telemetry.dbgpt import span_id
from modelyard.telemetry.tracing import Tracing, attached, current_tracing, outgoing_headers
from modelyard.types import GenerateRequest
from modelyard.worker.spans import CallSpan, spanned
from opentelemetry.context import get_current
from opentelemetry.trace import SpanKind
from werkzeug.test import EnvironBuilder

from .. import ours
from ..client import run
from ..jobs import Job
from ..models import FAST, prompt
from ..plan import Plan
from ..processes import Server
from ..report import Row, at_most

NAME = "tracing"
TITLE = "spans while tracing is off: their share of a generate of 8 pieces"
LIMITS = "some ten calls of OpenTelemetry's API for each hop, of 0.1 to 1 us each"

SHARE = 1.0
"""Percent of a request."""
REPEATS = 20_000


def measure(plan: Plan) -> Iterator[Row]:
    """Yield a row for a model of the same process, and one for a hop to another process."""
    with ours.cluster([[FAST]]) as cluster:
        for case, server, call in (
            ("off, a model of this process", cluster.workers[0], _local_call()),
            ("off, one hop to another process", cluster.gateways[0], _hop()),
        ):
            spent = min(timeit.repeat(call, number=REPEATS, repeat=plan.rounds)) / REPEATS
            whole = statistics.median(_request_time(server, plan.seconds) for _ in range(plan.rounds))
            share = 100 * spent / whole
            row = Row(NAME, case, f"{spent * 1e6:.2g} us", measured=f"{share:.2g} % of {whole * 1000:.2g} ms")
            yield at_most(row, share, SHARE, "%")


def _request_time(server: Server, seconds: float) -> float:
    """Return the seconds of a request of one client."""
    job = Job(port=server.port, path="/api/worker/generate", body=prompt(FAST.name, 8), seconds=seconds)
    return 1 / run(job).per_second


class _Manager:
    def __init__(self) -> None:
        self.tracing = Tracing()

    @spanned
    def generate_stream(self, request: GenerateRequest) -> None:
        """Do nothing: only the decorator is measured."""


def _local_call() -> Callable[[], object]:
    """Return a function with the calls for a model of this process, from the arrival of a request to the engine."""
    manager, params = _Manager(), ModelParams(model_name="echo", engine="echo")
    call = Request(EnvironBuilder("/api/worker/generate", method="POST").get_environ())
    request, body = GenerateRequest("echo", prompt="x"), {"model": "echo"}

    def calls() -> None:
        read_body(manager.tracing, call, arrived(manager.tracing, call), body)
        manager.generate_stream(request)
        CallSpan("generate", params).of_generation(request)

    return calls


def _hop() -> Callable[[], object]:
    """Return a function with the calls for another process, from the arrival of a request until it is sent on."""
    manager = _Manager()
    call = Request(EnvironBuilder("/api/worker/generate", method="POST").get_environ())
    request, body = GenerateRequest("echo", prompt="x"), {"model": "echo"}

    def calls() -> None:
        read_body(manager.tracing, call, arrived(manager.tracing, call), body)
        manager.generate_stream(request)
        with attached(get_current()):
            tracing = current_tracing()
            span = tracing.span("POST /worker/generate_stream", {}, SpanKind.CLIENT)
            context = tracing.context_of(span)
        with attached(context):
            span_id()
            outgoing_headers()

    return calls
