"""Memory, as the proportional share of master and worker: idle, with slow streams, after many requests."""

from __future__ import annotations

import time
from collections.abc import Iterator

from .. import ours
from ..client import LoadFailed, Running, run
from ..jobs import Job
from ..models import FAST, SLOW, prompt
from ..plan import Plan
from ..processes import Server
from ..report import Row, at_most, kilobytes, megabytes
from ..sides import both

NAME = "memory"
TITLE = "memory: PSS of master and worker"
LIMITS = "what Python's libraries hold; a stream's thread: some 12 KB of C stack, the rest Python's frames and objects"

IDLE = 75e6
A_STREAM = 60e3
GROWTH = 2e6
"""The most bytes that 20,000 requests may add: 100 for each, less than the smallest leak of an object a request."""
STREAMS = 200
CLIENTS = 8
SETTLE = 2.0
HOLD = 6.0


def measure(plan: Plan) -> Iterator[Row]:
    """Yield a row for each of the three cases."""
    with ours.serving([]) as server:
        idle = _settled(server)
    theirs = None
    if plan.peer is not None:
        with plan.peer.serving([]) as other:
            theirs = _settled(other)
    yield at_most(Row("memory", "idle, no models", megabytes(idle), megabytes(theirs)), idle / 1e6, IDLE / 1e6, "MB")
    with both([SLOW], plan.peer) as (server, peers):
        a_stream = _per_stream(server)
        their_stream = None if peers is None else _per_stream(peers)
    row = Row("memory", f"each of {STREAMS} slow streams", kilobytes(a_stream), kilobytes(their_stream))
    yield at_most(row, a_stream / 1e3, A_STREAM / 1e3, "KB")
    with ours.serving([FAST]) as server:
        grown = _growth(server, plan.requests)
    row = Row("memory", f"grown by {plan.requests:,} requests", megabytes(grown))
    yield at_most(row, grown / 1e6, GROWTH / 1e6, "MB")


def _settled(server: Server) -> float:
    time.sleep(SETTLE)
    return server.pss()


def _per_stream(server: Server) -> float:
    path = "/api/worker/generate_stream"
    run(Job(port=server.port, path=path, body=prompt(SLOW.name, 2), connections=2, answers=2, seconds=10))
    before = _settled(server)
    pieces = int((HOLD + 2) / SLOW.delay)
    job = Job(
        port=server.port,
        path=path,
        body=prompt(SLOW.name, pieces),
        connections=STREAMS,
        spread=1.0,
        answers=1,
        seconds=HOLD,
    )
    with Running(job) as streams:
        time.sleep(HOLD - 1.5)
        during = server.pss()
        if streams.outcome().failed:
            raise LoadFailed(f"not all of {STREAMS} streams were accepted")
    return (during - before) / STREAMS


def _growth(server: Server, requests: int) -> float:
    job = Job(
        port=server.port,
        path="/api/worker/generate",
        body=prompt(FAST.name, 8),
        connections=CLIENTS,
        answers=requests // CLIENTS // 4,
        seconds=60,
    )
    run(job)
    before = _settled(server)
    job.answers = requests // CLIENTS
    if (done := run(job)).ok < requests - CLIENTS:
        raise LoadFailed(f"only {done.ok:,} of {requests:,} requests were answered in {job.seconds:g} s")
    return _settled(server) - before
