"""SmolLM2 under 16 clients of OpenAI's API, with 1, 4 and 8 slots: our service beside llama.cpp's own server."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from .. import ours
from ..client import LoadFailed, run
from ..jobs import Job, Outcome
from ..places import run_folder
from ..plan import Plan
from ..processes import Server, free_port
from ..report import Row, at_least, count, milliseconds
from ..rounds import in_turns
from .smollm2 import QUESTION, TIMEOUT, speed_of

NAME = "engines"
TITLE = "SmolLM2, 16 clients at 1, 4 and 8 slots, beside llama.cpp's own server"
LIMITS = "the cores: what a service does with a token takes time that the model does not get"

CLIENTS = 16
SLOTS = (1, 4, 8)
TOKENS = 48
SHARE = 0.95
"""The least tokens a second, relative to llama.cpp's server."""


def measure(plan: Plan) -> Iterator[Row]:
    """Yield tokens a second and the time to the first piece, for each number of slots; both sides run in turns."""
    for slots in SLOTS:
        with ours.serving([], smollm2=True, slots=slots) as server, _llama_server(slots) as peer:
            for side in (server, peer):
                _load(side, clients=slots, tokens=4)
            turns = in_turns(plan.gateway_rounds, lambda server=server: _load(server), lambda peer=peer: _load(peer))
        speed, theirs = turns.median(speed_of)
        row = Row(NAME, f"{_of_slots(slots)}, tokens a second", count(speed), f"{count(theirs)} (llama-server)")
        yield at_least(row, turns.ratio(speed_of), SHARE)
        first, theirs = turns.median(lambda outcome: outcome.first_piece.p50)
        case = f"{_of_slots(slots)}, time to the first token"
        yield Row(NAME, case, milliseconds(first), f"{milliseconds(theirs)} (llama-server)")


def _of_slots(number: int) -> str:
    """Return the number of slots for the table."""
    return "1 slot" if number == 1 else f"{number} slots"


@contextlib.contextmanager
def _llama_server(slots: int) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "bench.llama_server", str(port), str(slots)]
    with Server("llama-server", command, port, {}, run_folder(f"llama-server-{port}") / "log.txt") as server:
        server.wait_ready("/health")
        yield server


def _load(server: Server, clients: int = CLIENTS, tokens: int = TOKENS) -> Outcome:
    """Request an answer by each client at once. Raises LoadFailed unless all succeed."""
    body = {
        "model": ours.SMOLLM2,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    path = "/v1/chat/completions"
    job = Job(port=server.port, path=path, body=body, mark="\n\n", connections=clients, answers=1, tokens=True)
    job.seconds, job.content = TIMEOUT, True
    outcome = run(job)
    if outcome.ok != clients or not outcome.tokens:
        raise LoadFailed(f"{outcome.ok} of {clients} answers of {server.name} succeeded")
    return outcome
