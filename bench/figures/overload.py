"""The answers in time at twice and ten times as many requests as fit."""

from __future__ import annotations

from collections.abc import Iterator

from ..client import run
from ..jobs import Job, Outcome
from ..models import EchoModel, prompt
from ..plan import Plan
from ..processes import Server
from ..report import Row, at_least
from ..rounds import Turns, in_turns
from ..sides import both

NAME = "overload"
TITLE = "goodput when more comes than fits: answers within 2 s, a second"
LIMITS = "the cost of a refusal: parsing and answering requests that don't fit, on the cores that the answers need"

PIECES = 20
SMALL = EchoModel("echo-small", delay=0.02, slots=8, waiting=8)
FITS = SMALL.slots / (PIECES * SMALL.delay)
"""Answers a second that the slots can give."""
DEADLINE = 2.0
STAYS = 0.9
CONNECTIONS = 600


def measure(plan: Plan) -> Iterator[Row]:
    """Yield a row for each load; the results at twice and ten times are compared with that at once."""
    with both([SMALL], plan.peer) as (server, other):
        once: Turns[Outcome] | None = None
        for times in (1, 2, 10):
            turns = in_turns(
                plan.overload_rounds,
                lambda: _load(server, times, plan.overload_seconds),  # noqa: B023 - called at once
                None if other is None else lambda: _load(other, times, plan.overload_seconds),  # noqa: B023
            )
            speed, their_speed = turns.median(lambda o: o.per_second)
            refused = turns.median(lambda o: o.refused / o.seconds)[0]
            row = Row(
                "overload",
                f"{times} x what fits ({times * FITS:g}/s)",
                f"{speed:.1f}/s, {refused:.0f}/s refused",
                "" if their_speed is None else f"{their_speed:.1f}/s",
            )
            if once is None:
                once = turns
                yield row
            else:
                yield at_least(row, speed / max(once.median(lambda o: o.per_second)[0], 0.1), STAYS, "of 1 x")


def _load(server: Server, times: int, seconds: float) -> Outcome:
    return run(
        Job(
            port=server.port,
            path="/api/worker/generate_stream",
            body=prompt(SMALL.name, PIECES),
            rate=times * FITS,
            connections=CONNECTIONS,
            deadline=DEADLINE,
            seconds=seconds,
        )
    )
