"""Short requests with whole answers, by the second."""

from __future__ import annotations

from collections.abc import Iterator

from ..client import run
from ..jobs import Job, Outcome
from ..models import EMBEDDER, FAST, prompt
from ..plan import Plan
from ..processes import Server
from ..report import Row, at_least, count, of_clients
from ..rounds import in_turns
from ..sides import both

NAME = "requests"
TITLE = "requests a second: generate, count_token, embeddings of 4 x 384 floats"
LIMITS = "Python's part of a request in gunicorn (parser, environ, response) and Flask (contexts, routing)"

TEXT = "Name the planets of the solar system, nearest first."
CALLS: tuple[tuple[str, object, float], ...] = (
    ("generate", prompt(FAST.name, 8), 1.0),
    ("count_token", {"model": FAST.name, "prompt": TEXT}, 0.6),
    ("embeddings", {"model": EMBEDDER.name, "input": [TEXT] * 4}, 3.0),
)


def measure(plan: Plan) -> Iterator[Row]:
    """Yield a row for each call and number of clients."""
    with both([FAST, EMBEDDER], plan.peer) as (server, other):
        for name, body, target in CALLS:
            for clients in plan.clients:
                turns = in_turns(
                    plan.rounds,
                    lambda: _load(server, name, body, clients, plan.seconds),  # noqa: B023 - called at once
                    None if other is None else lambda: _load(other, name, body, clients, plan.seconds),  # noqa: B023
                )
                speed, their_speed = turns.median(lambda o: o.per_second)
                row = Row("requests", f"{name}, {of_clients(clients)}", f"{count(speed)}/s", f"{count(their_speed)}/s")
                yield at_least(row, turns.ratio(lambda o: o.per_second), target)


def _load(server: Server, call: str, body: object, clients: int, seconds: float) -> Outcome:
    return run(Job(port=server.port, path=f"/api/worker/{call}", body=body, connections=clients, seconds=seconds))
