"""The cost of one more hop: a remote manager in a process of its own over one worker, beside direct calls."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

from .. import ours
from ..jobs import Job, Outcome
from ..models import FAST
from ..pairs import CLIENTS, SHORT, STREAMS, TIMES, Pair, Way, added, load, share, speeds, times
from ..plan import Plan
from ..report import Row, at_least, at_most, milliseconds, of_clients
from ..rounds import in_turns

NAME = "hop"
TITLE = "one hop more: a remote manager in a process of its own, beside the direct call"
LIMITS = "a request read and written twice; for pieces, two processes and the load generator on the same cores"

ADDED = 1.0
"""Milliseconds that the hop may add."""
SHARES = {1: 0.5, 8: 0.6}
"""By the number of clients: the least share of the direct call's pieces a second."""
PEERS_SECONDS = 3.0
"""The duration of a load on the peer: its remote manager gives some twenty answers a second."""


def measure(plan: Plan) -> Iterator[Row]:
    """Yield rows for the time of whole answers and of first pieces, and for pieces a second."""
    seconds = plan.seconds / 2
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(ours.cluster([[FAST]]))
        way = Way(cluster.workers[0], cluster.gateways[0])
        other = None if plan.peer is None else Way(*stack.enter_context(plan.peer.cluster([FAST])))
        way.check()
        if other is not None:
            other.check()

        def pairs(job: Job) -> tuple[list[Pair], list[Pair]]:
            turns = in_turns(
                plan.rounds,
                lambda: way.measure(job),
                None if other is None else lambda: other.measure(replace(job, seconds=PEERS_SECONDS)),
            )
            return turns.ours, turns.theirs

        for case, call, time_of in TIMES:
            yield _time_row(case, *pairs(load(call, SHORT, "", 1, seconds)), time_of)
        for name, pieces, accept in STREAMS:
            for clients in CLIENTS:
                measured = pairs(load("generate_stream", pieces, accept, clients, seconds))
                yield _speed_row(f"{name}, {of_clients(clients)}", *measured, SHARES[clients])


def _time_row(case: str, ours: list[Pair], theirs: list[Pair], time_of: Callable[[Outcome], float]) -> Row:
    row = Row(NAME, case, times(ours, time_of), times(theirs, time_of), f"{milliseconds(added(ours, time_of))} added")
    if theirs:
        row.measured += f", peer {milliseconds(added(theirs, time_of))}"
    return at_most(row, added(ours, time_of) * 1000, ADDED, "ms")


def _speed_row(case: str, ours: list[Pair], theirs: list[Pair], least: float) -> Row:
    row = Row(NAME, case, speeds(ours), speeds(theirs), f"{share(ours):.2f} x")
    if theirs:
        row.measured += f", peer {share(theirs):.2f} x"
    return at_least(row, share(ours), least)
