"""Engines in processes of their own, beside the same engines in the process that answers."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from .. import ours
from ..client import LoadFailed, run
from ..jobs import Job
from ..plan import Plan
from ..processes import Server
from ..report import Row, at_most, milliseconds
from ..rounds import in_turns
from .recovery import recovered

NAME = "isolation"
TITLE = "an engine in a process of its own: CPU of a piece, and from SIGKILL of the process to the next answer"
LIMITS = "a piece that is written and read once more; starting Python, and loading the weights"

PIECES = 200
CLIENTS = 8
DELAY = 0.005
"""Seconds between two pieces, as between tokens of a model: each leaves by itself."""
ADDED = 150.0
"""Microseconds of CPU."""
RESTART = 3.0
"""Seconds."""


def measure(plan: Plan) -> Iterator[Row]:
    """Yield the CPU of a piece in both ways, in turns, and the time that a restart takes."""
    table = {"engine": "echo", "delay": DELAY, "limit_model_concurrency": CLIENTS}
    tables = [{"name": "apart", "isolation": "process", **table}, {"name": "inside", **table}]
    with ours.serving([], tables=tables) as server:
        for name in ("apart", "inside"):
            _cpu_of_a_piece(server, name, 0.5)
        turns = in_turns(
            plan.rounds,
            lambda: _cpu_of_a_piece(server, "apart", plan.seconds),
            lambda: _cpu_of_a_piece(server, "inside", plan.seconds),
        )
    apart, inside = turns.median(lambda seconds: seconds * 1e6)
    assert inside is not None
    row = Row(NAME, f"{CLIENTS} streams, CPU of a piece", f"{apart:.0f} us", f"{inside:.0f} us (inside)")
    yield at_most(row, apart - inside, ADDED, "us added")
    times = [_restarted() for _ in range(plan.recoveries)]
    row = Row(NAME, "SmolLM2, from SIGKILL to the next answer", milliseconds(median(times)))
    yield at_most(row, median(times), RESTART, "s")


def _cpu_of_a_piece(server: Server, model: str, seconds: float) -> float:
    body = {"model": model, "prompt": "x", "max_new_tokens": PIECES}
    path, before = "/api/worker/generate_stream", server.cpu()
    job = Job(port=server.port, path=path, body=body, accept=ours.DELTA, connections=CLIENTS, seconds=seconds)
    pieces = run(job).pieces
    if not pieces:
        raise LoadFailed(f"no piece of {model} within {seconds:g} s")
    return (server.cpu() - before) / pieces


def _restarted() -> float:
    """Return the time of a first restart, which has no pause."""
    table = {"name": ours.SMOLLM2, "isolation": "process"}
    with ours.serving([], tables=[table]) as server:
        return recovered(server, level=2)
