"""The time from SIGKILL of one of two workers until the last request to it, and the failures that clients see."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

from .. import ours
from ..client import LoadFailed, Running
from ..deaf import DeadAddress
from ..jobs import Job, Outcome
from ..models import EchoModel, prompt
from ..plan import Plan
from ..report import Row, at_most, milliseconds

NAME = "detection"
TITLE = "from SIGKILL of one of two workers until the last request is sent there, under constant load"
LIMITS = "requests that were on their way when the first failed"

MODEL = EchoModel("echo-detected", slots=64)
PIECES = 16
RATE = 200
BEFORE, AFTER = 1.5, 5.0


@dataclass(frozen=True)
class _Killed:
    outcome: Outcome
    ready: float
    """Seconds from the kill until the listener was ready; the kernel refused earlier requests."""
    last: float
    """Seconds until the last request to the listener; 0 without any."""
    requests: int
    probes: int


def measure(plan: Plan) -> Iterator[Row]:
    """Yield the time, and the requests that failed."""
    kills = [_kill() for _ in range(plan.recoveries)]
    # Without a request at the listener, the last one was sent before it was ready.
    last = [max(kill.last, kill.ready) for kill in kills]
    shown = f"within {milliseconds(statistics.median(last))}, worst {milliseconds(max(last))}"
    seen = sum(kill.requests for kill in kills)
    probes = sum(kill.probes for kill in kills)
    yield Row(NAME, f"last request, of {RATE}/s", shown, measured=f"{seen} requests and {probes} probes seen there")
    failed = sum(kill.outcome.failed + kill.outcome.refused for kill in kills)
    ok = sum(kill.outcome.ok for kill in kills)
    row = Row(NAME, "whole answers that failed", f"{failed} of {ok + failed}")
    yield at_most(row, failed, 1, "failed")


def _kill() -> _Killed:
    with ours.cluster([[MODEL], [MODEL]]) as cluster:
        job = Job(
            port=cluster.gateways[0].port,
            path="/api/worker/generate",
            body=prompt(MODEL.name, PIECES),
            rate=RATE,
            connections=100,
            seconds=BEFORE + AFTER,
            deadline=AFTER,
        )
        with Running(job) as load:
            time.sleep(BEFORE)
            victim = cluster.workers[0]
            killed = time.monotonic()
            victim.kill()
            with DeadAddress(victim.port) as dead:
                outcome = load.outcome()
        if outcome.late or outcome.unsent:
            raise LoadFailed(f"{outcome.late} answers were late, {outcome.unsent} requests could not be sent")
        last = max(dead.requests, default=killed) - killed
        return _Killed(outcome, dead.began - killed, last, len(dead.requests), dead.probes)
