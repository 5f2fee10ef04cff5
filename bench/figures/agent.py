"""The turns of an agent over four workers with SmolLM2: with the affinity of its session, and without."""

from __future__ import annotations

import http.client
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .. import ours
from ..client import LoadFailed
from ..plan import Plan
from ..processes import Server
from ..report import Row, at_least, at_most, milliseconds
from ..rounds import Turns, in_turns

NAME = "agent"
TITLE = "20 turns of an agent over four workers with SmolLM2, beside a gateway that knows no sessions"
LIMITS = "other requests that keep the agent's worker busy"

WORKERS = 4
SLOTS = 4
TURNS = 20
TOKENS = 8
SHARE = 0.9
RATIO = 0.5
TIMEOUT = 60.0
LINE_TIMEOUT = 5.0
SYSTEM = "You are an agent that repairs a program. In each turn you are given the result of a tool; reply in few words."
RESULT = "Result {turn}: the file part{turn}.py reads the settings, checks each line and writes a report. What is next?"
CALL = "/api/worker/generate_stream"

_tasks = itertools.count(1)


@dataclass
class Conversation:
    """The turns of one agent."""

    share: float
    """The share of the turns that went to the worker with most of them."""
    firsts: list[float]
    """Seconds to the first token of each turn."""


def measure(plan: Plan) -> Iterator[Row]:
    """Yield the share of the turns at one worker, and the times to the first token."""
    with ours.smollm2_cluster(WORKERS, SLOTS) as cluster:
        with_affinity, without = cluster.gateways
        turns = in_turns(
            plan.agents,
            lambda: converse(with_affinity, cluster.workers),
            lambda: converse(without, cluster.workers),
        )
    share, other_share = turns.median(lambda c: c.share)
    row = Row(NAME, f"{TURNS} turns, share at one worker", f"{share:.2f}", f"{other_share:.2f} (no affinity)")
    yield at_least(row, share, SHARE, "")
    # Without a target: one turn of four without affinity goes to the worker of the turn before.
    yield _time_row(f"turn {TURNS}", turns, lambda c: c.firsts[-1])

    def mean(conversation: Conversation) -> float:
        return statistics.mean(conversation.firsts[1:])

    row = _time_row("mean of all turns but the first", turns, mean)
    yield at_most(row, turns.ratio(mean), RATIO, "x")


def _time_row(case: str, turns: Turns[Conversation], time_of: Callable[[Conversation], float]) -> Row:
    first, other = turns.median(time_of)
    ratio = turns.ratio(time_of)
    return Row(
        NAME,
        f"{case}, time to the first token",
        milliseconds(first),
        f"{milliseconds(other)} (no affinity)",
        "" if ratio is None else f"{ratio:.3g} x",
    )


def converse(gateway: Server, workers: list[Server]) -> Conversation:
    """Send the turns of one agent, each with all messages before it. Raises LoadFailed."""
    before = [worker.logged(CALL) for worker in workers]
    task = next(_tasks)
    messages = [{"role": "system", "content": f"{SYSTEM} Your task has the number {task}."}]
    firsts: list[float] = []
    for turn in range(1, TURNS + 1):
        messages.append({"role": "user", "content": RESULT.format(turn=turn)})
        first, answer = _ask(gateway, messages)
        firsts.append(first)
        messages.append({"role": "assistant", "content": answer})
    return Conversation(max(_calls(workers, before)) / TURNS, firsts)


def _calls(workers: list[Server], before: list[int]) -> list[int]:
    """Return the turns at each worker, which writes a line after the last byte of an answer. Raises LoadFailed."""
    deadline = time.monotonic() + LINE_TIMEOUT
    while time.monotonic() < deadline:
        counts = [worker.logged(CALL) - count for worker, count in zip(workers, before, strict=True)]
        if sum(counts) >= TURNS:
            return counts
        time.sleep(0.05)
    raise LoadFailed(f"not all of {TURNS} turns are in the logs of the workers")


def _ask(gateway: Server, messages: list[dict[str, str]]) -> tuple[float, str]:
    """Return the seconds to the first token of an answer, and the answer. Raises LoadFailed."""
    body = {"model": ours.SMOLLM2, "messages": messages, "max_tokens": TOKENS, "temperature": 0, "stream": True}
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=TIMEOUT)
    try:
        began = time.monotonic()
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise LoadFailed(f"a turn was answered with status {response.status}")
        first, pieces = 0.0, []
        for line in response:
            event = line.removeprefix(b"data: ")
            if event == line or event.startswith(b"[DONE]"):
                continue
            if piece := _piece_of(event):
                first = first or time.monotonic() - began
                pieces.append(piece)
    except (OSError, http.client.HTTPException) as error:
        raise LoadFailed(f"a turn was not answered: {error}") from error
    finally:
        connection.close()
    if not pieces:
        raise LoadFailed("a turn was answered without a token")
    return first, "".join(pieces)


def _piece_of(event: bytes) -> str:
    choices = json.loads(event).get("choices") or [{}]
    return (choices[0].get("delta") or {}).get("content") or ""
