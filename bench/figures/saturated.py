"""All slots of a model busy and its line full: health and a view of the application's own, beside an idle system."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from .. import ours
from ..application import VIEW
from ..client import LoadFailed, Running, run
from ..jobs import Job, Outcome
from ..models import EchoModel, prompt
from ..monolith import HOSTED, INLINE, PROCESSES, Monolith, monolith
from ..plan import Plan
from ..report import Row, at_most, milliseconds

NAME = "saturated"
TITLE = "models saturated: health and the application's own views, beside an idle system"
LIMITS = "the cores that the model leaves; inline, how long its threads keep the GIL as well"

BUSY = EchoModel("echo-busy", delay=0.05, slots=64, waiting=64)
SMOLLM2_STREAMS = 24
PROBES_A_SECOND = 50
DEADLINE = 2.0
BOUND = 100.0
"""Milliseconds, as of a busy worker."""
FILLING = 10.0
PROBED = (("health", "/api/healthz"), ("a view", VIEW))


@dataclass(frozen=True)
class _Load:
    """What saturates a model, for the time given."""

    name: str
    model: str
    streams: int
    pieces: int
    slots: int


LOADS = (
    _Load("128 streams, 64 slots of echo", BUSY.name, BUSY.slots + BUSY.waiting, 2000, BUSY.slots),
    _Load("24 streams, 8 slots of SmolLM2", ours.SMOLLM2, SMOLLM2_STREAMS, 512, ours.SMOLLM2_SLOTS),
)


def measure(plan: Plan) -> Iterator[Row]:
    """Yield a row for each load and each path, of hosted models and of models inline."""
    hosted = _found(HOSTED, PROCESSES, plan.probes)
    inline = _found(INLINE, 1, plan.probes)
    for load in LOADS:
        for case, path in PROBED:
            full = hosted[load.name, path]
            row = Row(
                NAME,
                f"{load.name}: {case}, p99",
                f"{_said(full)}, idle {_said(hosted['', path])}",
                f"{_said(inline[load.name, path])}, idle {_said(inline['', path])} (inline)",
                milliseconds(_p99(full)),
            )
            yield at_most(row, _p99(full) * 1000, BOUND, "ms")


def _found(placement: str, workers: int, seconds: float) -> dict[tuple[str, str], Outcome]:
    """Return what became of the probes, by load and path; the idle system's load is empty."""
    found: dict[tuple[str, str], Outcome] = {}
    with monolith([BUSY], placement=placement, workers=workers, smollm2=True) as server:
        for _, path in PROBED:
            run(_probes(server, path, 1.0))  # so that all processes have answered once
            found["", path] = run(_probes(server, path, seconds))
        for load in LOADS:
            with _filled(server, load, len(PROBED) * seconds):
                _await_full(server, load)
                for _, path in PROBED:
                    found[load.name, path] = run(_probes(server, path, seconds))
    return found


def _filled(server: Monolith, load: _Load, seconds: float) -> Running:
    return Running(
        Job(
            port=server.port,
            path="/api/worker/generate_stream",
            body=prompt(load.model, load.pieces),
            accept=ours.DELTA,
            connections=load.streams,
            seconds=FILLING + seconds,
        )
    )


def _await_full(server: Monolith, load: _Load) -> None:
    """Wait until all slots are taken and the others stand in line."""
    deadline = time.monotonic() + FILLING / 2
    said = ""
    while time.monotonic() < deadline:
        said = server.load_of(load.model)
        if f"free=0;waiting={load.streams - load.slots}" in said.replace(" ", ""):
            return
        time.sleep(0.1)
    raise LoadFailed(f"{load.streams} streams do not fill {load.model}: {said or 'nobody says its load'}")


def _probes(server: Monolith, path: str, seconds: float) -> Job:
    return Job(
        port=server.port,
        path=path,
        rate=PROBES_A_SECOND,
        connections=2 * PROBES_A_SECOND,
        deadline=DEADLINE,
        seconds=seconds + 0.5,
    )


def _p99(outcome: Outcome) -> float:
    return DEADLINE if outcome.late or outcome.failed or outcome.unsent or outcome.refused else outcome.latency.p99


def _said(outcome: Outcome) -> str:
    lost = outcome.late + outcome.failed + outcome.unsent + outcome.refused
    return milliseconds(outcome.latency.p99) + (f" ({lost} of {lost + outcome.ok} lost)" if lost else "")
