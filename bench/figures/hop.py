"""One hop more: a remote manager in a process of its own over one worker, beside that worker asked directly."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from .. import ours
from ..client import LoadFailed, run
from ..jobs import Job, Outcome
from ..models import FAST, prompt
from ..plan import Plan
from ..processes import Server
from ..report import Row, at_least, at_most, count, milliseconds, of_clients
from ..rounds import in_turns

NAME = "hop"
TITLE = "one hop more: a remote manager in a process of its own, beside the direct call"
LIMITS = "a request read and written twice; for pieces, two processes and the load generator on the same cores"

ADDED = 1.0
"""Milliseconds that the hop may add."""
SHARE = 0.6
"""Of the direct call's pieces a second."""
PEERS_SECONDS = 3.0
"""Of one load of the peer's: its remote manager gives some twenty answers a second."""
SHORT = 16
"""Pieces of the answers whose time is taken."""
TIMES: tuple[tuple[str, str, Callable[[Outcome], float]], ...] = (
    ("whole answer, p50", "generate", lambda o: o.latency.p50),
    ("time to the first piece, p50", "generate_stream", lambda o: o.first_piece.p50),
)
STREAMS = (("64 pieces", 64, ""), ("1,024 pieces", 1024, ""), ("1,024 as pieces", 1024, ours.DELTA))
CLIENTS = (1, 8)


@dataclass(frozen=True)
class _Way:
    """A worker, and the remote manager over it."""

    worker: Server
    manager: Server


@dataclass(frozen=True)
class _Pair:
    """What one round gave: directly, and through the hop."""

    direct: Outcome
    hop: Outcome


def measure(plan: Plan) -> Iterator[Row]:
    """Yield rows for the time of whole answers and of first pieces, and for pieces a second."""
    seconds = plan.seconds / 2
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(ours.cluster([[FAST]]))
        own = _Way(cluster.workers[0], cluster.gateways[0])
        other = None if plan.peer is None else _Way(*stack.enter_context(plan.peer.cluster([FAST])))
        for way in (own, other):
            if way is not None:
                _check(way)

        def pairs(job: Job) -> tuple[list[_Pair], list[_Pair]]:
            turns = in_turns(
                plan.rounds,
                lambda: _pair(own, job),
                None if other is None else lambda: _pair(other, replace(job, seconds=PEERS_SECONDS)),
            )
            return turns.ours, turns.theirs

        for case, call, time_of in TIMES:
            yield _time_row(case, *pairs(_job(call, SHORT, "", 1, seconds)), time_of)
        for name, pieces, accept in STREAMS:
            for clients in CLIENTS:
                found = pairs(_job("generate_stream", pieces, accept, clients, seconds))
                yield _speed_row(f"{name}, {of_clients(clients)}", *found)


def _job(call: str, pieces: int, accept: str, clients: int, seconds: float) -> Job:
    return Job(
        port=0,
        path=f"/api/worker/{call}",
        body=prompt(FAST.name, pieces),
        accept=accept,
        connections=clients,
        seconds=seconds,
    )


def _check(way: _Way) -> None:
    """Raise LoadFailed unless both give the whole answer: a failure has status 200 too, and takes no time at all."""
    for server in (way.worker, way.manager):
        status, body = server.ask("/api/worker/generate", prompt(FAST.name, SHORT), timeout=10.0)
        if status != 200 or body.count(b" token") != SHORT:
            raise LoadFailed(f"{server.name} does not answer as it should: {status}, {body[:200]!r}")


def _pair(way: _Way, job: Job) -> _Pair:
    pair = _Pair(*(run(replace(job, port=server.port)) for server in (way.worker, way.manager)))
    for outcome in (pair.direct, pair.hop):
        if outcome.failed or outcome.refused or not (outcome.ok or outcome.pieces):
            raise LoadFailed(f"{job.path}: {outcome.ok} answers, {outcome.failed} failed, {outcome.refused} refused")
    return pair


def _time_row(case: str, ours: list[_Pair], theirs: list[_Pair], time_of: Callable[[Outcome], float]) -> Row:
    added = statistics.median(time_of(pair.hop) - time_of(pair.direct) for pair in ours)
    row = Row(NAME, case, _times(ours, time_of), _times(theirs, time_of), f"{milliseconds(added)} added")
    if theirs:
        their_added = statistics.median(time_of(pair.hop) - time_of(pair.direct) for pair in theirs)
        row.measured += f", peer {milliseconds(their_added)}"
    return at_most(row, added * 1000, ADDED, "ms")


def _times(pairs: list[_Pair], time_of: Callable[[Outcome], float]) -> str:
    if not pairs:
        return ""
    direct = statistics.median(time_of(pair.direct) for pair in pairs)
    hop = statistics.median(time_of(pair.hop) for pair in pairs)
    return f"{milliseconds(hop)}, direct {milliseconds(direct)}"


def _speed_row(case: str, ours: list[_Pair], theirs: list[_Pair]) -> Row:
    share = _share(ours)
    row = Row(NAME, case, _speeds(ours), _speeds(theirs), f"{share:.2f} x")
    if theirs:
        row.measured += f", peer {_share(theirs):.2f} x"
    return at_least(row, share, SHARE)


def _share(pairs: list[_Pair]) -> float:
    return statistics.median(pair.hop.pieces_per_second / pair.direct.pieces_per_second for pair in pairs)


def _speeds(pairs: list[_Pair]) -> str:
    if not pairs:
        return ""
    direct = statistics.median(pair.direct.pieces_per_second for pair in pairs)
    hop = statistics.median(pair.hop.pieces_per_second for pair in pairs)
    return f"{count(hop)}, direct {count(direct)}"
