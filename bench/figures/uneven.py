"""The time of answers from two instances with unequal load, by our choice and by a random one."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from .. import ours
from ..client import LoadFailed, Running, run
from ..jobs import Job, Outcome
from ..models import EchoModel, prompt
from ..plan import Plan
from ..processes import Server
from ..report import Row, milliseconds
from ..rounds import in_turns

NAME = "uneven"
TITLE = "two instances under uneven load: answers by our choice, and by a random one (in the column of the peer)"
LIMITS = "the age of the load that an instance last reported"

PIECES = 20
EVEN = EchoModel("echo-uneven", delay=0.01, slots=8, waiting=200)
SLOW = dataclasses.replace(EVEN, delay=0.03)
IDEAL = PIECES * EVEN.delay
SHARE = 0.6
"""The share of the capacity of both that is requested."""
OTHERS = 6
"""Slots of one instance that another client keeps busy, without the gateway."""
CONNECTIONS = 400
LEAD = 2.0


def measure(plan: Plan) -> Iterator[Row]:
    """Yield a row for an instance with fewer free slots, and a row for a slower one."""
    full = EVEN.slots / IDEAL
    cases = (
        (f"one has {OTHERS} of {EVEN.slots} slots taken by others", EVEN, OTHERS, (2 * EVEN.slots - OTHERS) / IDEAL),
        ("one is three times as slow", SLOW, 0, full + full * EVEN.delay / SLOW.delay),
    )
    seconds = plan.overload_seconds
    for case, second, others, gives in cases:
        rate = round(SHARE * gives)
        held = (seconds + LEAD) * 2 * plan.overload_rounds + LEAD
        with (
            # All prompts are the same: as one session they would go to one instance while it has room.
            ours.cluster(
                [[EVEN], [second]], ("wsgi:app", "bench.random_choice:app"), session_affinity="false"
            ) as cluster,
            _taken(cluster.workers[1], others, held),
        ):
            chosen, random = cluster.gateways
            turns = in_turns(
                plan.overload_rounds,
                lambda: _load(chosen, rate, seconds),  # noqa: B023 - called at once
                lambda: _load(random, rate, seconds),  # noqa: B023
            )
        p50, other_p50 = turns.median(lambda o: o.latency.p50)
        p99, other_p99 = turns.median(lambda o: o.latency.p99)
        yield Row(
            NAME,
            f"{case}, {rate}/s",
            f"p99 {milliseconds(p99)}, p50 {milliseconds(p50)}",
            f"p99 {milliseconds(other_p99)}, p50 {milliseconds(other_p50)} (random)",
            f"{turns.ratio(lambda o: o.latency.p99):.2f} x",
        )


def _taken(server: Server, slots: int, seconds: float) -> contextlib.AbstractContextManager[object]:
    """Keep ``slots`` busy, one short answer after the other."""
    if not slots:
        return contextlib.nullcontext()
    body = prompt(EVEN.name, PIECES)
    return Running(
        Job(port=server.port, path="/api/worker/generate_stream", body=body, connections=slots, seconds=seconds)
    )


def _load(server: Server, rate: float, seconds: float) -> Outcome:
    outcome = run(
        Job(
            port=server.port,
            path="/api/worker/generate",
            body=prompt(EVEN.name, PIECES),
            rate=rate,
            connections=CONNECTIONS,
            seconds=seconds,
        )
    )
    if not outcome.ok or outcome.failed or outcome.refused or outcome.unsent:
        raise LoadFailed(f"{outcome.ok} answers, {outcome.failed} failed, {outcome.refused} refused")
    return outcome
