"""Many slow streams through one process of our gateway, its memory, and what a second process adds."""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

from ..client import LoadFailed, Running
from ..gateways import Ours, mock_backend
from ..gateways.backend import PACE, SLOW, SLOW_PIECES
from ..gateways.loads import Side, chat, sides
from ..jobs import Outcome
from ..plan import Plan
from ..report import Row, at_least, at_most, count, kilobytes, megabytes, milliseconds
from ..rounds import in_turns

NAME = "gateway-streams"
TITLE = "1,000 slow streams in one process of our gateway, its memory, two processes beside one"
LIMITS = "two processes, backend and load share two cores"

STREAMS = 1000
BEGIN_WITHIN = 2.0
GAP = 50.0
"""Milliseconds that may be added to the 99th percentile of the gaps."""
A_STREAM = 60e3
IDLE = 90e6
TWICE = 1.7
CLIENTS = 32
SETTLE = 2.0
GRACE = 20.0


def measure(plan: Plan) -> Iterator[Row]:
    """Yield rows for memory, gaps and processes."""
    with sides(plan.gateways, lambda text: sys.stderr.write(f"{text}\n")) as running:
        time.sleep(SETTLE)
        idle = {name: side.server.pss() for name, side in running.items() if name != "backend"}
        ours = idle.pop(Ours.name)
        others = ", ".join(f"{name} {megabytes(size)}" for name, size in idle.items())
        yield at_most(Row(NAME, "idle", megabytes(ours), others), ours / 1e6, IDLE / 1e6, "MB")
    with contextlib.ExitStack() as stack:
        backend = stack.enter_context(mock_backend())
        side = Side(stack.enter_context(Ours().serving(backend.port)), {})
        side.check()
        yield from _slow(side, Side(backend, {}))
        two = Side(stack.enter_context(Ours(workers=2).serving(backend.port)), {})
        two.check()
        load = replace(chat(), connections=CLIENTS, seconds=plan.gateway_seconds)
        turns = in_turns(plan.gateway_rounds, two.measured(load), side.measured(load))
        rates = [statistics.median(o.per_second for o in outcomes) for outcomes in (turns.ours, turns.theirs)]
        row = Row(
            NAME, f"not streamed, {CLIENTS} clients, two processes", f"{count(rates[0])}/s, one {count(rates[1])}/s"
        )
        yield at_least(row, turns.ratio(lambda outcome: outcome.per_second), TWICE)


def _slow(side: Side, direct: Side) -> Iterator[Row]:
    time.sleep(SETTLE)
    before = side.server.pss()
    through, held = _streams(side)
    alone, _ = _streams(direct)
    case = f"{STREAMS:,} slow streams"
    if through.failed or through.refused or through.ok < STREAMS:
        raise LoadFailed(f"{case}: {through.ok} answers, {through.failed} failed, {through.refused} refused")
    added = through.gaps.p99 - alone.gaps.p99
    row = Row(NAME, f"{case}, p99 gap added", milliseconds(added), "", f"{milliseconds(through.gaps.p99)} in all")
    yield at_most(row, added * 1000, GAP, "ms")
    each = (held - before) / STREAMS
    yield at_most(Row(NAME, f"{case}, each", kilobytes(each)), each / 1e3, A_STREAM / 1e3, "KB")


def _streams(side: Side) -> tuple[Outcome, float]:
    """Run all streams at once; return their outcome, and the memory of the server while all are under way."""
    ideal = SLOW_PIECES * PACE
    job = replace(
        chat(SLOW, stream=True),
        port=side.server.port,
        connections=STREAMS,
        answers=1,
        spread=BEGIN_WITHIN,
        seconds=BEGIN_WITHIN + ideal + GRACE,
        gaps=True,
    )
    with Running(job) as load:
        time.sleep(BEGIN_WITHIN + (ideal - BEGIN_WITHIN) / 2)
        held = side.server.pss()
        return load.outcome(), held
