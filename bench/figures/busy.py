"""Health and count_token while all slots are busy and the line is full."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ..client import LoadFailed, Running, run
from ..jobs import Job, Outcome
from ..models import EchoModel, prompt
from ..plan import Plan
from ..processes import Server
from ..report import Row, at_most, milliseconds
from ..sides import both

NAME = "busy"
TITLE = "all slots busy and the line full"
LIMITS = "how long the streams' threads keep the GIL from the one that answers"

BUSY = EchoModel("echo-busy", delay=0.05, slots=64, waiting=64)
PROBES_A_SECOND = 50
DEADLINE = 2.0
BOUND = 100.0
FILLING = 10.0
COUNT = {"model": BUSY.name, "prompt": "Name the planets of the solar system, nearest first."}


def measure(plan: Plan) -> Iterator[Row]:
    """Yield a row for health and one for count_token. The peer's worker has no health call."""
    with both([BUSY], plan.peer) as (server, other):
        with _filled(server, plan.probes * 2):
            _await_refusal(server)
            health = _probe(server, "/healthz", None, plan.probes)
            count = _probe(server, "/api/worker/count_token", COUNT, plan.probes)
        theirs = None
        if other is not None:
            with _filled(other, plan.probes):
                time.sleep(1.0)
                theirs = _probe(other, "/api/worker/count_token", COUNT, plan.probes)
        yield _row("/healthz", health, None)
        yield _row("count_token", count, theirs)


def _row(case: str, outcome: Outcome, theirs: Outcome | None) -> Row:
    whole = not (outcome.late or outcome.failed or outcome.unsent or outcome.refused)
    p99 = outcome.latency.p99 if whole else DEADLINE
    row = Row("busy", f"{case}, p99", _shown(outcome), "" if theirs is None else _shown(theirs), milliseconds(p99))
    return at_most(row, p99 * 1000, BOUND, "ms")


def _shown(outcome: Outcome) -> str:
    sent = outcome.ok + outcome.late + outcome.failed + outcome.unsent + outcome.refused
    return f"{outcome.ok} of {sent} answered" + (f", p99 {milliseconds(outcome.latency.p99)}" if outcome.ok else "")


def _filled(server: Server, seconds: float) -> Running:
    held = FILLING + seconds
    return Running(
        Job(
            port=server.port,
            path="/api/worker/generate_stream",
            body=prompt(BUSY.name, int(2 * held / BUSY.delay)),
            connections=BUSY.slots + BUSY.waiting,
            seconds=held,
        )
    )


def _await_refusal(server: Server) -> None:
    deadline = time.monotonic() + FILLING / 2
    while time.monotonic() < deadline:
        if server.ask("/api/worker/generate", prompt(BUSY.name, 1), timeout=0.5)[0] == 503:
            return
        time.sleep(0.1)
    raise LoadFailed(f"{BUSY.slots + BUSY.waiting} streams do not fill {BUSY.slots} slots and a line of {BUSY.waiting}")


def _probe(server: Server, path: str, body: object, seconds: float) -> Outcome:
    job = Job(
        port=server.port,
        path=path,
        body=body,
        rate=PROBES_A_SECOND,
        connections=2 * PROBES_A_SECOND,
        deadline=DEADLINE,
        seconds=seconds + 0.5,
    )
    return run(job)
