"""Two models in memory for one, with clients on each: answers a second by turns, and the first token of a load."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from modelyard.engines.llama_cpp import LlamaCpp, LlamaCppParams
from modelyard.models.catalog import Catalog
from modelyard.worker.room import LINGER

from .. import ours
from ..client import Running, run
from ..jobs import Job, Outcome
from ..models import prompt
from ..places import ROOT
from ..plan import Plan
from ..processes import Server
from ..report import Row, at_least, at_most, count, milliseconds
from ..rounds import in_turns

NAME = "room"
TITLE = "two models in memory for one: 4 clients on each, and the first token of a model that is not loaded"
LIMITS = "the time of a load, which each change of the model costs: the larger the model, the more a turn gains"

NAMES = ("first", "second")
CLIENTS = 4
PIECES = 8
TURN = 5.0
"""Seconds of a turn with collation; without, a model makes room after the requests that run."""
TURNS = 6
"""The turns in one measurement."""
FASTER = 1.5
TIMES_LOAD = 1.5
"""The most of a first token in bare loads: the other model's unload, the load, and a token."""
LOADS = 5


def measure(plan: Plan) -> Iterator[Row]:
    """Yield the answers a second of both models with and without turns, and the time to the first token of a load."""
    with ExitStack() as stack:
        collated, alternating = (stack.enter_context(_serving(turn)) for turn in (TURN, 0.0))
        seconds = TURN * TURNS
        turns = in_turns(
            min(plan.rounds, 2), lambda: _answers(collated, seconds), lambda: _answers(alternating, seconds)
        )
        together, apart = turns.median(lambda rate: rate)
        row = Row(NAME, f"{CLIENTS} clients on each, answers a second", count(together), f"{count(apart)} (no turns)")
        yield at_least(row, turns.ratio(lambda rate: rate), FASTER)
        names = itertools.cycle(NAMES)
        loads = in_turns(LOADS, lambda: _first_piece(collated, next(names)), _bare_load)
        warm = statistics.median(_first_piece(collated, model) for model in [next(names)] * LOADS)
    first, bare = loads.median(lambda seconds: seconds)
    shown = f"{milliseconds(first)}, loaded {milliseconds(warm)}"
    row = Row(NAME, "first token of a model that is not loaded", shown, f"{milliseconds(bare)} (bare load)")
    yield at_most(row, loads.ratio(lambda seconds: seconds), TIMES_LOAD, "x")


def _serving(turn: float) -> AbstractContextManager[Server]:
    table = {"model_path": Catalog.load().get(ours.SMOLLM2).model_path, "n_ctx": 512, "memory": 100_000_000}
    tables = [{"name": name, "limit_model_concurrency": CLIENTS, **table} for name in NAMES]
    return ours.serving([], tables=tables, memory_budget="150MB", memory_turn=str(turn))


def _job(server: Server, model: str, connections: int, seconds: float, answers: int = 0) -> Job:
    body = prompt(model, PIECES)
    path = "/api/worker/generate_stream"
    return Job(port=server.port, path=path, body=body, connections=connections, seconds=seconds, answers=answers)


def _answers(server: Server, seconds: float) -> float:
    """Return the answers a second of both models together."""
    with ExitStack() as stack:
        loads = [stack.enter_context(Running(_job(server, name, CLIENTS, seconds))) for name in NAMES]
        outcomes: list[Outcome] = [load.outcome() for load in loads]
    return sum(outcome.per_second for outcome in outcomes)


def _first_piece(server: Server, model: str) -> float:
    """Return the seconds to the first piece of one answer, when no model was used for a while."""
    time.sleep(2 * LINGER)
    return run(_job(server, model, 1, 60.0, answers=1)).first_piece.p50


def _bare_load() -> float:
    """Return the seconds in which the engine loads the same model in this process."""
    path = Path(ROOT / "models" / str(Catalog.load().get(ours.SMOLLM2).model_path))
    engine = LlamaCpp(LlamaCppParams(model_name="m", engine="llama.cpp", n_ctx=512, limit_model_concurrency=CLIENTS))
    engine.path = path
    began = time.monotonic()
    engine.start(lambda sentence: None)
    seconds = time.monotonic() - began
    engine.stop()
    return seconds
