"""The time from SIGKILL of the worker process to the next answer of SmolLM2."""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
from collections.abc import Iterator

from .. import ours
from ..client import LoadFailed
from ..plan import Plan
from ..processes import Server
from ..report import Row

NAME = "recovery"
TITLE = "from SIGKILL of the worker process to the next answer of SmolLM2"
LIMITS = "starting Python, and loading the weights"

TIMEOUT = 60.0
QUESTION = {
    "model": ours.SMOLLM2,
    "messages": [{"role": "human", "content": "Say yes."}],
    "max_new_tokens": 1,
    "temperature": 0.0,
}


def measure(plan: Plan) -> Iterator[Row]:
    """Yield one row."""
    with ours.serving([], smollm2=True) as server:
        times = [recovered(server) for _ in range(plan.recoveries)]
    yield Row(
        "recovery", f"median of {len(times)}", f"{statistics.median(times):.2f} s", measured=f"worst {max(times):.2f} s"
    )


def recovered(server: Server, level: int = 1) -> float:
    """Return the seconds from a SIGKILL to the next answer: of the worker process, or of one so many levels below."""
    _await_answer(server)
    pids = server.pids()
    if len(pids) <= level:
        raise LoadFailed("the server has no such process to kill")
    began = time.monotonic()
    os.kill(pids[level], signal.SIGKILL)
    _await_answer(server)
    return time.monotonic() - began


def _await_answer(server: Server) -> None:
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        status, body = server.ask("/api/worker/generate", QUESTION, timeout=10.0)
        if status == 200 and json.loads(body)["error_code"] == 0:
            return
        time.sleep(0.02)
    raise LoadFailed(f"no answer of {ours.SMOLLM2} within {TIMEOUT:g} s")
