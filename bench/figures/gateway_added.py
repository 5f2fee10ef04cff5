"""The time that a gateway adds to an answer, with one client, by the size of its prompt."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ..gateways import Ours
from ..gateways.loads import chat, sides
from ..jobs import Outcome
from ..plan import Plan
from ..report import Row, at_most, milliseconds
from ..rounds import all_in_turns

NAME = "gateway-added"
TITLE = "the time that a gateway adds to a chat, one client, beside the direct call"
LIMITS = "a request is read, checked, written and parsed once more; for long prompts, JSON and their copies"

PROMPTS = (("short prompt", 0), ("16 KiB prompt", 16 * 1024), ("100 KiB prompt", 100 * 1024))
BOUNDS: tuple[tuple[str, Callable[[Outcome], float], float], ...] = (
    ("p50", lambda outcome: outcome.latency.p50, 1.0),
    ("p99", lambda outcome: outcome.latency.p99, 3.0),
)
"""Name, value, and the most milliseconds that may be added."""
COMPARED = ("LiteLLM", "Portkey")


def measure(plan: Plan) -> Iterator[Row]:
    """Yield a row for each prompt and percentile."""
    peers = [peer for peer in plan.gateways if peer.name in COMPARED]
    with sides(peers, lambda text: sys.stderr.write(f"{text}\n")) as running:
        for case, size in PROMPTS:
            load = replace(chat(prompt_bytes=size), seconds=plan.gateway_seconds)
            outcomes = all_in_turns(plan.gateway_rounds, {name: side.measured(load) for name, side in running.items()})
            direct = outcomes.pop("backend")
            for name, value, most in BOUNDS:
                added = {side: _added(direct, through, value) for side, through in outcomes.items()}
                ours = added.pop(Ours.name)
                others = ", ".join(f"{side} {milliseconds(seconds)}" for side, seconds in added.items())
                row = Row(NAME, f"{case}, {name} added", milliseconds(ours), others)
                yield at_most(row, ours * 1000, most, "ms")


def _added(direct: Sequence[Outcome], through: Sequence[Outcome], value: Callable[[Outcome], float]) -> float:
    return statistics.median(value(one) - value(other) for one, other in zip(through, direct, strict=True))
