"""Health and a view of the application while a model's slots and line are full, beside an idle system."""

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
"""The most milliseconds of p99, as in `busy`."""
FILLING = 10.0
PROBED = (("health", "/api/healthz"), ("a view", VIEW))


@dataclass(frozen=True)
class _Load:
    """Streams that saturate a model."""

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
    hosted = _measured(HOSTED, PROCESSES, plan.probes)
    inline = _measured(INLINE, 1, plan.probes)
    for load in LOADS:
        for case, path in PROBED:
            full = hosted[load.name, path]
            row = Row(
                NAME,
                f"{load.name}: {case}, p99",
                f"{_shown(full)}, idle {_shown(hosted['', path])}",
                f"{_shown(inline[load.name, path])}, idle {_shown(inline['', path])} (inline)",
                milliseconds(_p99(full)),
            )
            yield at_most(row, _p99(full) * 1000, BOUND, "ms")


def _measured(placement: str, workers: int, seconds: float) -> dict[tuple[str, str], Outcome]:
    """Return the outcomes of the probes by load and path; the load of the idle system is empty."""
    outcomes: dict[tuple[str, str], Outcome] = {}
    with monolith([BUSY], placement=placement, workers=workers, smollm2=True) as server:
        for _, path in PROBED:
            run(_probes(server, path, 1.0))  # so that all processes have answered once
            outcomes["", path] = run(_probes(server, path, seconds))
        for load in LOADS:
            with _filled(server, load, len(PROBED) * seconds):
                _await_full(server, load)
                for _, path in PROBED:
                    outcomes[load.name, path] = run(_probes(server, path, seconds))
    return outcomes


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
    """Wait until all slots are taken and the other streams wait in line."""
    deadline = time.monotonic() + FILLING / 2
    reported = ""
    while time.monotonic() < deadline:
        reported = server.load_of(load.model)
        if f"free=0;waiting={load.streams - load.slots}" in reported.replace(" ", ""):
            return
        time.sleep(0.1)
    raise LoadFailed(f"{load.streams} streams do not fill {load.model}: {reported or 'its load is not reported'}")


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


def _shown(outcome: Outcome) -> str:
    lost = outcome.late + outcome.failed + outcome.unsent + outcome.refused
    return milliseconds(outcome.latency.p99) + (f" ({lost} of {lost + outcome.ok} lost)" if lost else "")
