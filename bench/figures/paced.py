"""Streams with a piece every 50 ms: their gaps, their duration, and the CPU time of a piece."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..client import run
from ..jobs import Job, Outcome
from ..models import SLOW, prompt
from ..plan import Plan
from ..processes import Server
from ..report import Row, at_most, milliseconds
from ..rounds import in_turns
from ..sides import both

NAME = "paced"
TITLE = "paced streams, a piece every 50 ms"
LIMITS = "one wake-up, one encoding and one write for each piece, which compete for the GIL when many are due together"

GAP = 0.1
LATE = 1.1
"""The most that an answer may last, relative to the time of its pieces."""
BEGIN_WITHIN = 1.0
TIMEOUT = 60.0


@dataclass
class _Measured:
    outcome: Outcome
    cpu: float
    """Seconds of CPU for each piece, of the server's processes."""


def measure(plan: Plan) -> Iterator[Row]:
    """Yield three rows for each number of streams."""
    with both([SLOW], plan.peer) as (server, other):
        for streams in plan.paced:
            turns = in_turns(
                plan.paced_rounds,
                lambda: _stream(server, streams, plan.paced_pieces),  # noqa: B023 - called at once
                None if other is None else lambda: _stream(other, streams, plan.paced_pieces),  # noqa: B023
            )
            case = f"{streams} streams"
            gap, their_gap = turns.median(lambda m: m.outcome.gaps.p99)
            yield at_most(
                Row("paced", f"{case}, p99 gap", milliseconds(gap), milliseconds(their_gap)),
                gap * 1000,
                GAP * 1000,
                "ms",
            )
            ideal = plan.paced_pieces * SLOW.delay
            longest, their_longest = turns.median(lambda m: m.outcome.latency.most / ideal)  # noqa: B023
            whole = all(m.outcome.ok == streams for m in turns.ours)
            yield at_most(
                Row(
                    "paced",
                    f"{case}, slowest answer / ideal",
                    f"{longest:.2f}" if whole else "not all ended",
                    "" if their_longest is None else f"{their_longest:.2f}",
                ),
                longest if whole else float("inf"),
                LATE,
                "x",
            )
            cost, their_cost = turns.median(lambda m: m.cpu * 1e6)
            yield Row(
                "paced",
                f"{case}, CPU a piece",
                f"{cost:.0f} us",
                "" if their_cost is None else f"{their_cost:.0f} us",
                "" if not their_cost else f"{cost / their_cost:.2f} x",
            )


def _stream(server: Server, streams: int, pieces: int) -> _Measured:
    before = server.cpu()
    outcome = run(
        Job(
            port=server.port,
            path="/api/worker/generate_stream",
            body=prompt(SLOW.name, pieces),
            connections=streams,
            answers=1,
            seconds=TIMEOUT,
            spread=BEGIN_WITHIN,
            gaps=True,
        )
    )
    return _Measured(outcome, (server.cpu() - before) / max(1, outcome.pieces))
