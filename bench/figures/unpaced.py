"""Streams without a pause between pieces: pieces a second, and bytes of an answer."""

from __future__ import annotations

from collections.abc import Iterator

from .. import ours
from ..client import run
from ..jobs import Job, Outcome
from ..models import FAST, prompt
from ..plan import Plan
from ..processes import Server
from ..report import Row, at_least, at_most, count, kilobytes, of_clients
from ..rounds import in_turns
from ..sides import both

NAME = "unpaced"
TITLE = "unpaced streams, pieces a second"
LIMITS = "the bytes of whole texts, which grow with the square of the length; with 64 pieces, the cost of a request"

CASES = (("64 pieces", 64, "", 10.0), ("1,024 pieces", 1024, "", 25.0), ("1,024 as pieces", 1024, ours.DELTA, 50.0))
SHARE_OF_BYTES = 5.0


def measure(plan: Plan) -> Iterator[Row]:
    """Yield a row for each length and number of clients, and one for the bytes."""
    with both([FAST], plan.peer) as (server, other):
        for name, pieces, accept, target in CASES:
            for clients in plan.clients:
                turns = in_turns(
                    plan.rounds,
                    lambda: _stream(server, clients, pieces, accept, plan.seconds),  # noqa: B023 - called at once
                    None if other is None else lambda: _stream(other, clients, pieces, accept, plan.seconds),  # noqa: B023
                )
                speed, their_speed = turns.median(lambda o: o.pieces_per_second)
                row = Row("unpaced", f"{name}, {of_clients(clients)}", count(speed), count(their_speed))
                yield at_least(row, turns.ratio(lambda o: o.pieces_per_second), target)
        size, their_size = _size(server), None if other is None else _size(other)
        row = Row("unpaced", "1,024 as pieces, bytes an answer", kilobytes(size), kilobytes(their_size))
        yield at_most(row, None if not their_size else 100 * size / their_size, SHARE_OF_BYTES, "%")


def _stream(server: Server, clients: int, pieces: int, accept: str, seconds: float) -> Outcome:
    return run(
        Job(
            port=server.port,
            path="/api/worker/generate_stream",
            body=prompt(FAST.name, pieces),
            accept=accept,
            connections=clients,
            seconds=seconds,
        )
    )


def _size(server: Server) -> float:
    job = Job(
        port=server.port,
        path="/api/worker/generate_stream",
        body=prompt(FAST.name, 1024),
        accept=ours.DELTA,
        answers=1,
        seconds=30,
    )
    return run(job).bytes_per_answer
