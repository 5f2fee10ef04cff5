"""Run the same load twice, one right after the other: direct, and with one more hop."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from . import ours
from .client import LoadFailed, run
from .jobs import Job, Outcome
from .models import FAST, prompt
from .processes import Server
from .report import count, milliseconds

SHORT = 16
"""Pieces of the answers whose time is taken."""
TIMES: tuple[tuple[str, str, Callable[[Outcome], float]], ...] = (
    ("whole answer, p50", "generate", lambda o: o.latency.p50),
    ("time to the first piece, p50", "generate_stream", lambda o: o.first_piece.p50),
)
STREAMS = (("64 pieces", 64, ""), ("1,024 pieces", 1024, ""), ("1,024 as pieces", 1024, ours.DELTA))
CLIENTS = (1, 8)


@dataclass(frozen=True)
class Way:
    """The servers without the hop, and with it."""

    direct: Server
    hop: Server

    def check(self) -> None:
        """Raise LoadFailed unless both give the whole answer: a failure has status 200 too, and takes no time."""
        for server in (self.direct, self.hop):
            status, body = server.ask("/api/worker/generate", prompt(FAST.name, SHORT), timeout=10.0)
            if status != 200 or body.count(b" token") != SHORT:
                raise LoadFailed(f"{server.name} does not answer as it should: {status}, {body[:200]!r}")

    def measure(self, job: Job) -> Pair:
        """Run ``job`` on both. Raises LoadFailed if one fails."""
        pair = Pair(*(run(replace(job, port=server.port)) for server in (self.direct, self.hop)))
        for outcome in (pair.direct, pair.hop):
            if outcome.failed or outcome.refused or not (outcome.ok or outcome.pieces):
                counts = f"{outcome.ok} answers, {outcome.failed} failed, {outcome.refused} refused"
                raise LoadFailed(f"{job.path}: {counts}")
        return pair


@dataclass(frozen=True)
class Pair:
    """The outcomes of one round: without the hop, and with it."""

    direct: Outcome
    hop: Outcome


def load(call: str, pieces: int, accept: str, clients: int, seconds: float) -> Job:
    """Return the load of a closed loop on ``FAST``, for any server."""
    return Job(
        port=0,
        path=f"/api/worker/{call}",
        body=prompt(FAST.name, pieces),
        accept=accept,
        connections=clients,
        seconds=seconds,
    )


def added(pairs: Sequence[Pair], time_of: Callable[[Outcome], float]) -> float:
    """Return the seconds that the hop adds."""
    return statistics.median(time_of(pair.hop) - time_of(pair.direct) for pair in pairs)


def share(pairs: Sequence[Pair]) -> float:
    """Return the share of pieces a second that is left with the hop."""
    return statistics.median(pair.hop.pieces_per_second / pair.direct.pieces_per_second for pair in pairs)


def times(pairs: Sequence[Pair], time_of: Callable[[Outcome], float], name: str = "direct") -> str:
    """Return the times of both for the table, ``name`` being the way without the hop; empty without any."""
    if not pairs:
        return ""
    direct = statistics.median(time_of(pair.direct) for pair in pairs)
    hop = statistics.median(time_of(pair.hop) for pair in pairs)
    return f"{milliseconds(hop)}, {name} {milliseconds(direct)}"


def speeds(pairs: Sequence[Pair], name: str = "direct") -> str:
    """Return the pieces a second of both for the table; like `times`."""
    if not pairs:
        return ""
    direct = statistics.median(pair.direct.pieces_per_second for pair in pairs)
    hop = statistics.median(pair.hop.pieces_per_second for pair in pairs)
    return f"{count(hop)}, {name} {count(direct)}"
