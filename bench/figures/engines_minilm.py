"""MiniLM as GGUF in llama.cpp beside the same weights in sentence-transformers: speed, memory, start, vectors."""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from .. import ours
from ..client import LoadFailed, run
from ..jobs import Job, Outcome
from ..plan import Plan
from ..processes import Server
from ..report import Row, at_least, count, megabytes
from ..rounds import all_in_turns
from .joint import CLIENTS, TEXT, minilm

NAME = "engines-minilm"
TITLE = "MiniLM, 32 clients with one text each: llama.cpp beside sentence-transformers"
LIMITS = "nothing but the vectors has a target: 16 bits against 32 differ by a few ten-thousandths"

SENTENCES = (
    "A man is eating food.",
    "The girl carries a baby through the park.",
    "Shares fell by three percent after the announcement.",
    "How do I reset the password of my account?",
    "Der Zug nach Berlin hat zwanzig Minuten Verspätung.",
    "def add(a, b): return a + b",
)
LEAST_COSINE = 0.999


def measure(plan: Plan) -> Iterator[Row]:
    """Yield texts a second, memory and start of both engines, and the least cosine of their vectors."""
    if importlib.util.find_spec("sentence_transformers") is None:
        yield Row(NAME, "not measured", "", measured=f"needs .venv-torch/bin/python -m bench {NAME} (make test-torch)")
        return
    folder = minilm()
    torch = {"engine": "sentence-transformers", "worker_type": "text2vec", "device": "cpu", "model_path": folder.name}
    gguf = {"name": "minilm-l6"}
    with ExitStack() as stack:
        servers, starts = {}, {}
        for name, tables in {"gguf": [gguf], "torch": [{"name": "minilm-l6", **torch}]}.items():
            began = time.monotonic()
            folders = {} if name == "gguf" else {"models_dirs": str(folder.parent)}
            servers[name] = stack.enter_context(ours.serving([], tables=tables, **folders))
            starts[name] = time.monotonic() - began
        joint = stack.enter_context(ours.serving([], tables=[{**gguf, "joint_texts": 32}]))
        sides = {**servers, "joint": joint}
        vectors = {name: _vectors(server) for name, server in servers.items()}
        for server in sides.values():
            _load(server, plan.seconds)
        loads = {name: lambda server=server: _load(server, plan.seconds) for name, server in sides.items()}
        rounds = all_in_turns(plan.rounds, loads)
        memory = {name: server.pss() for name, server in servers.items()}
    speed = {name: sorted(outcome.per_second for outcome in rounds[name])[len(rounds[name]) // 2] for name in sides}
    beside = "(sentence-transformers)"
    yield Row(NAME, "texts a second", count(speed["gguf"]), f"{count(speed['torch'])} {beside}")
    yield Row(NAME, "texts a second with joint_texts = 32", count(speed["joint"]), f"{count(speed['gguf'])} (without)")
    yield Row(NAME, "memory of the service", megabytes(memory["gguf"]), f"{megabytes(memory['torch'])} {beside}")
    yield Row(NAME, "from the command to ready", f"{starts['gguf']:.1f} s", f"{starts['torch']:.1f} s {beside}")
    least = min(map(_cosine, vectors["gguf"], vectors["torch"]))
    yield at_least(Row(NAME, "least cosine of the vectors", f"{least:.5f}"), least, LEAST_COSINE, "")


def _load(server: Server, seconds: float) -> Outcome:
    body = {"model": "minilm-l6", "input": TEXT}
    return run(Job(port=server.port, path="/v1/embeddings", body=body, connections=CLIENTS, seconds=seconds))


def _vectors(server: Server) -> list[list[float]]:
    status, answer = server.ask("/v1/embeddings", {"model": "minilm-l6", "input": list(SENTENCES)}, timeout=60)
    if status != 200:
        raise LoadFailed(f"{server.name} answered {status}")
    return [row["embedding"] for row in json.loads(answer)["data"]]


def _cosine(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True)) / (math.hypot(*left) * math.hypot(*right))
