"""Chat through a gateway, by the second: ours with the engine openai, beside others over the same mock backend."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ..gateways import Ours
from ..gateways.backend import BURSTS, CHAT, PIECES
from ..gateways.loads import chat, sides
from ..jobs import Job, Outcome
from ..plan import Plan
from ..report import Row, at_least, count, of_clients
from ..rounds import all_in_turns

NAME = "gateway"
TITLE = "answers a second of chat through a gateway: one process each, one mock backend"
LIMITS = "Python: a request and each piece pass Flask, requests and urllib3; backend and load take the other core"

CLIENTS = (1, 8, 32)
LEAST: Mapping[str, Mapping[str, float]] = {
    "not streamed": {"LiteLLM": 10, "Portkey": 1},
    f"streams of {PIECES} pieces": {},
    f"streams of {PIECES} pieces in bursts": {"LiteLLM": 40, "vllm-router": 0.3},
}
"""By the kind of answer and the other gateway: the least ratio of our rate to its rate."""
JOBS: tuple[Job, ...] = (chat(CHAT), chat(CHAT, stream=True), chat(BURSTS, stream=True))


def measure(plan: Plan) -> Iterator[Row]:
    """Yield a row for each kind of answer, number of clients, and other gateway."""
    with sides(plan.gateways, lambda text: sys.stderr.write(f"{text}\n")) as running:
        for (kind, least), job in zip(LEAST.items(), JOBS, strict=True):
            for clients in CLIENTS:
                load = replace(job, connections=clients, seconds=plan.gateway_seconds)
                names = [name for name in running if name != "backend"]
                outcomes = all_in_turns(plan.gateway_rounds, {name: running[name].measured(load) for name in names})
                yield from _rows(f"{kind}, {of_clients(clients)}", outcomes, least)


def _rows(case: str, outcomes: Mapping[str, Sequence[Outcome]], least: Mapping[str, float]) -> Iterator[Row]:
    ours = outcomes[Ours.name]
    for name, theirs in outcomes.items():
        if name == Ours.name:
            continue
        row = Row(NAME, f"{case}, beside {name}", f"{_rate(ours)}/s", f"{_rate(theirs)}/s")
        ratio = statistics.median(one.per_second / other.per_second for one, other in zip(ours, theirs, strict=True))
        row.measured = f"{ratio:.3g} x"
        yield at_least(row, ratio, least[name]) if name in least else row
    if len(outcomes) == 1:
        yield Row(NAME, case, f"{_rate(ours)}/s")


def _rate(outcomes: Sequence[Outcome]) -> str:
    return count(statistics.median(outcome.per_second for outcome in outcomes))
