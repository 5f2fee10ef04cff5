"""Chat through a gateway, by the second: ours with the engine openai, beside others over the same mock backend."""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from ..client import LoadFailed
from ..gateways import Ours
from ..gateways.backend import BURSTS, EVENTS, PIECES
from ..gateways.loads import Side, chat, sides
from ..jobs import Job
from ..plan import Plan
from ..report import Row, at_least, count, of_clients
from ..rounds import all_in_turns

NAME = "gateway"
TITLE = "chat through a gateway, answers or pieces a second: one process each, one mock backend"
LIMITS = "Python: a request and each piece pass Flask, requests and urllib3; backend and load take the other core"

CLIENTS = (1, 8, 32)
LEAST: Mapping[str, Mapping[str, float]] = {
    "not streamed": {"LiteLLM": 10, "Portkey": 1},
    f"streams of {PIECES} pieces": {},
    f"streams of {PIECES} pieces in bursts": {"LiteLLM": 40, "vllm-router": 0.3},
}
"""By the kind of answer and the other gateway: the least ratio of our rate to its rate."""
JOBS: tuple[Job, ...] = (chat(), chat(EVENTS, stream=True), chat(BURSTS, stream=True))


def measure(plan: Plan) -> Iterator[Row]:
    """Yield a row for each kind of answer, number of clients, and other gateway."""
    with sides(plan.gateways, lambda text: sys.stderr.write(f"{text}\n")) as running:
        del running["backend"]
        for (kind, least), job in zip(LEAST.items(), JOBS, strict=True):
            for clients in CLIENTS:
                load = replace(job, connections=clients, seconds=plan.gateway_seconds)
                rates = all_in_turns(
                    plan.gateway_rounds, {name: _rate_of(side, load) for name, side in running.items()}
                )
                yield from _rows(f"{kind}, {of_clients(clients)}", rates, least)


def _rate_of(side: Side, load: Job) -> Callable[[], float]:
    """Return a function that measures a rate: of answers, or of the pieces of streams. It is 0 if another fails."""

    def measure() -> float:
        with contextlib.nullcontext() if side.server.name == Ours.name else contextlib.suppress(LoadFailed):
            outcome = side.measure(load)
            return outcome.pieces_per_second if outcome.pieces else outcome.per_second
        return 0.0

    return measure


def _rows(case: str, rates: Mapping[str, Sequence[float]], least: Mapping[str, float]) -> Iterator[Row]:
    ours = rates[Ours.name]
    for name, theirs in rates.items():
        if name == Ours.name:
            continue
        row = Row(NAME, f"{case}, beside {name}", f"{_median(ours)}/s", f"{_median(theirs)}/s")
        ratios = [one / other for one, other in zip(ours, theirs, strict=True) if other]
        ratio = statistics.median(ratios) if ratios else None
        row.measured = "" if ratio is None else f"{ratio:.3g} x"
        yield at_least(row, ratio, least[name]) if name in least else row
    if len(rates) == 1:
        yield Row(NAME, case, f"{_median(ours)}/s")


def _median(rates: Sequence[float]) -> str:
    return count(statistics.median(rates))
