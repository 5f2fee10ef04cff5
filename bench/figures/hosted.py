"""The cost of a model host: four processes with one host, beside the same application with inline models."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..jobs import Job, Outcome
from ..models import FAST
from ..monolith import HOSTED, INLINE, PROCESSES, monolith
from ..pairs import CLIENTS, SHORT, STREAMS, TIMES, Pair, Way, added, load, share, speeds, times
from ..plan import Plan
from ..report import Row, at_least, at_most, count, milliseconds, of_clients
from ..rounds import in_turns
from .hop import ADDED, SHARES
from .smollm2 import speed_of, through

NAME = "hosted"
TITLE = "a model host beside four web processes, beside models inline in one"
LIMITS = "a request read and written twice; for pieces, web processes, host and load generator on the same cores"

SMOLLM2_SHARE = 0.97
"""Of inline's tokens a second."""


def measure(plan: Plan) -> Iterator[Row]:
    """Yield rows for the time of whole answers and of first pieces, for pieces a second, and for SmolLM2."""
    yield from _ways(plan)
    yield from _smollm2(plan)


def _ways(plan: Plan) -> Iterator[Row]:
    with (
        monolith([FAST], placement=INLINE) as inline,
        monolith([FAST], placement=HOSTED, workers=PROCESSES) as hosted,
    ):
        way, reversed_way = Way(inline, hosted), Way(hosted, inline)
        way.check()

        def pairs(job: Job) -> list[Pair]:
            # The first side changes from round to round.
            turns = [(reversed_way if number % 2 else way).measure(job) for number in range(plan.rounds)]
            return [pair if number % 2 == 0 else Pair(pair.hop, pair.direct) for number, pair in enumerate(turns)]

        pairs(load("generate", SHORT, "", 8, plan.seconds / 2))  # so that all processes have answered once
        for case, call, time_of in TIMES:
            yield _time_row(case, pairs(load(call, SHORT, "", 1, plan.seconds / 2)), time_of)
        for name, pieces, accept in STREAMS:
            for clients in CLIENTS:
                measured = pairs(load("generate_stream", pieces, accept, clients, plan.seconds / 2))
                left = share(measured)
                row = Row(NAME, f"{name}, {of_clients(clients)}", speeds(measured, INLINE), "", f"{left:.2f} x")
                yield at_least(row, left, SHARES[clients])


def _time_row(case: str, measured: list[Pair], time_of: Callable[[Outcome], float]) -> Row:
    more = added(measured, time_of)
    row = Row(NAME, case, times(measured, time_of, INLINE), "", f"{milliseconds(more)} added")
    return at_most(row, more * 1000, ADDED, "ms")


def _smollm2(plan: Plan) -> Iterator[Row]:
    with (
        monolith([], placement=INLINE, smollm2=True) as inline,
        monolith([], placement=HOSTED, workers=PROCESSES, smollm2=True) as hosted,
    ):
        for server in (inline, hosted):
            through(server, 4)
        turns = in_turns(plan.pairs, lambda: through(hosted, plan.tokens), lambda: through(inline, plan.tokens))
    speed, other = turns.median(speed_of)
    row = Row(NAME, "SmolLM2, 8 streams, tokens a second", f"{count(speed)}, {INLINE} {count(other)}")
    yield at_least(row, turns.ratio(speed_of), SMOLLM2_SHARE)
    first, others = turns.median(lambda o: o.first.p50)
    assert others is not None
    yield Row(
        NAME,
        "SmolLM2, 8 streams, time to the first token",
        f"{milliseconds(first)}, {INLINE} {milliseconds(others)}",
        measured=f"{milliseconds(first - others)} added",
    )
