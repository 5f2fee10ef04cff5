"""Four processes with one model host beside four processes with a copy each: memory, and lost requests at a reload."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator

from .. import ours
from ..client import LoadFailed, Running
from ..jobs import Job, Outcome
from ..models import FAST, EchoModel, prompt
from ..monolith import HOSTED, INLINE, PROCESSES, Monolith, monolith
from ..plan import Plan
from ..report import Row, at_least, at_most, megabytes
from .smollm2 import through

NAME = "copies"
TITLE = "four web processes and one host, beside four processes with a copy each; a reload"
LIMITS = "at a reload, how long gunicorn needs to fork processes that import the application"

LESS = 2.0
"""The least ratio of the memory of four copies to that of one."""
SETTLE = 2.0
RATE = 40
"""Whole answers that are requested each second, each on a new connection."""
PACED = EchoModel("echo-paced", delay=0.05, slots=16)
PACED_PIECES = 20
PACED_STREAMS = 8
BEFORE, AFTER = 2.0, 6.0
"""Seconds of load before a reload, and after it."""
RELOADED = 30.0


def measure(plan: Plan) -> Iterator[Row]:
    """Yield a row for memory, and rows for reloads."""
    yield from _memory(plan)
    yield from _reloads(HOSTED, PROCESSES, plan.recoveries)
    yield from _reloads(INLINE, 1, plan.recoveries)


def _memory(plan: Plan) -> Iterator[Row]:
    with monolith([], placement=HOSTED, workers=PROCESSES, smollm2=True) as hosted:
        _ask_all(hosted, plan.tokens)
        time.sleep(SETTLE)
        single, web = hosted.pss(), hosted.pss_of_web()
    with contextlib.ExitStack() as stack:
        copies = [stack.enter_context(monolith([], placement=INLINE, smollm2=True)) for _ in range(PROCESSES)]
        for copy in copies:
            _ask_all(copy, plan.tokens)
        time.sleep(SETTLE)
        four = sum(copy.pss() for copy in copies)
    shown = f"{megabytes(single)}, four copies {megabytes(four)}"
    yield at_least(Row(NAME, "SmolLM2, memory of all processes", shown), four / single, LESS)
    yield Row(NAME, "of these, without the host", megabytes(web), measured=f"{megabytes(web / PROCESSES)} a process")


def _ask_all(server: Monolith, tokens: int) -> None:
    """Let each process answer, and the model use all its slots."""
    seen: set[int] = set()
    deadline = time.monotonic() + RELOADED
    while len(seen) < len(server.web_pids()):
        seen.add(server.answers(prompt(ours.SMOLLM2, 4))[1])
        if time.monotonic() > deadline:
            raise LoadFailed(f"{server.name}: not all processes answer")
    through(server, tokens)


def _reloads(placement: str, workers: int, number: int) -> Iterator[Row]:
    times, whole, streams = [], [], []
    with monolith([FAST, PACED], placement=placement, workers=workers, smollm2=True) as server:
        for _ in range(number):
            host = server.host_pid()
            with Running(_requests(server)) as requests, Running(_streams(server)) as paced:
                time.sleep(BEFORE)
                times.append(_reload(server))
                whole.append(requests.outcome())
                streams.append(paced.outcome())
            if server.host_pid() != host:
                raise LoadFailed("a reload has ended the model host")
    took = f"{statistics.median(times):.2f} s, worst {max(times):.2f} s"
    yield Row(NAME, f"reload, {placement}: until all processes answer of {ours.SMOLLM2}", took)
    for case, outcomes in (("whole answers", whole), ("streams of a second", streams)):
        sent, lost = _sent(outcomes), sum(o.failed + o.refused + o.unsent for o in outcomes)
        slowest = max(outcome.latency.most for outcome in outcomes)
        shown = f"{lost} of {sent} lost, slowest {slowest:.2f} s"
        row = Row(NAME, f"reload, {placement}: {case}", shown, measured=f"{lost} lost")
        # Inline models have no target.
        yield at_most(row, lost, 1, "lost") if placement == HOSTED else row


def _sent(outcomes: list[Outcome]) -> int:
    return sum(o.ok + o.failed + o.refused + o.unsent for o in outcomes)


def _requests(server: Monolith) -> Job:
    return Job(
        port=server.port,
        path="/api/worker/generate",
        body=prompt(FAST.name, 16),
        rate=RATE,
        connections=4 * RATE,
        seconds=BEFORE + AFTER,
        keep=False,
    )


def _streams(server: Monolith) -> Job:
    return Job(
        port=server.port,
        path="/api/worker/generate_stream",
        body=prompt(PACED.name, PACED_PIECES),
        accept=ours.DELTA,
        connections=PACED_STREAMS,
        spread=PACED_PIECES * PACED.delay,
        seconds=BEFORE + AFTER,
        keep=False,
    )


def _reload(server: Monolith) -> float:
    """Reload, and return the seconds until as many new processes as old ones have answered."""
    old = set(server.web_pids())
    seen: set[int] = set()
    began = time.monotonic()
    server.reload()
    while len(seen - old) < len(old):
        status, pid = server.answers(prompt(ours.SMOLLM2, 1))
        if status == 200:
            seen.add(pid)
        if time.monotonic() > began + RELOADED:
            raise LoadFailed(f"{len(seen - old)} of {len(old)} new processes answer within {RELOADED:g} s")
    return time.monotonic() - began
