"""Eight streams of SmolLM2 through HTTP, beside the same model in the same process without HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator

from .. import ours
from ..client import LoadFailed, run
from ..jobs import Job, Outcome, Spread
from ..plan import Plan
from ..processes import Server
from ..report import Row, at_least, count, milliseconds
from ..rounds import in_turns

NAME = "smollm2"
TITLE = "SmolLM2, 8 streams through HTTP beside the library without it"
LIMITS = "the cores: HTTP takes time that the model does not get"

LIBRARY = "/bench/library"
"""The route of `bench.embedded`."""
STREAMS = 8
SHARE = 0.95
TIMEOUT = 120.0
QUESTION = "Tell me a long story about a lighthouse keeper, his dog, and a ship that came too near."


def measure(plan: Plan) -> Iterator[Row]:
    """Yield the tokens a second and the time to the first, as the pairs' medians."""
    with ours.serving([], smollm2=True, application="bench.embedded:app") as server:
        _without(server, 4)
        through(server, 4)
        turns = in_turns(plan.pairs, lambda: through(server, plan.tokens), lambda: _without(server, plan.tokens))
        speed, bare = turns.median(speed_of)
        row = Row("smollm2", "8 streams, tokens a second", count(speed), f"{count(bare)} (library)")
        yield at_least(row, turns.ratio(speed_of), SHARE)
        first, bare_first = turns.median(lambda o: o.first.p50)
        assert bare_first is not None
        yield Row(
            "smollm2",
            "8 streams, time to the first token",
            milliseconds(first),
            f"{milliseconds(bare_first)} (library)",
            f"{milliseconds(first - bare_first)} added",
        )


def speed_of(outcome: Outcome) -> float:
    """Return its tokens a second."""
    return outcome.tokens / outcome.seconds


def through(server: Server, tokens: int) -> Outcome:
    """Request eight streams of ``tokens`` at once. Raises LoadFailed unless all succeed."""
    body = {
        "model": ours.SMOLLM2,
        "messages": [{"role": "human", "content": QUESTION}],
        "max_new_tokens": tokens,
        "temperature": 0.0,
    }
    outcome = run(
        Job(
            port=server.port,
            path="/api/worker/generate_stream",
            body=body,
            accept=ours.DELTA,
            connections=STREAMS,
            answers=1,
            seconds=TIMEOUT,
            tokens=True,
        )
    )
    if outcome.ok != STREAMS or not outcome.tokens:
        raise LoadFailed(f"{outcome.ok} of {STREAMS} streams of {ours.SMOLLM2} succeeded")
    return outcome


def _without(server: Server, tokens: int) -> Outcome:
    body = {
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": tokens,
        "temperature": 0.0,
        "stream": True,
        "return_progress": True,
        "stream_options": {"include_usage": True},
    }
    task = {"model": ours.SMOLLM2, "body": body, "streams": STREAMS, "answers": 1}
    status, answer = server.ask(LIBRARY, task, timeout=TIMEOUT)
    if status != 200:
        raise LoadFailed(f"the run of the library answered {status}")
    values = json.loads(answer)
    return Outcome(seconds=values["seconds"], tokens=values["tokens"], first=Spread.of(values["firsts"]))
