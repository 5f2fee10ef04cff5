"""What engines say that a model needs in memory, before it is loaded."""

from __future__ import annotations

from pathlib import Path

import tiny_gguf
from modelyard.engines.echo import Echo
from modelyard.engines.llama_cpp import LlamaCpp, LlamaCppParams
from modelyard.models.inspection import inspect


def needed(path: Path, **params: int) -> int:
    return LlamaCpp(LlamaCppParams(model_name="m", engine="llama.cpp", **params), path).memory_needed()


def test_llama_cpp_needs_its_weights_and_the_context_of_all_slots(tmp_path):
    path = tiny_gguf.make(tmp_path / "m.gguf", context=512)
    weights = inspect(path)
    for slots, tokens in ((1, 128), (4, 512)):
        assert needed(path, limit_model_concurrency=slots, n_ctx=tokens) == weights.memory(tokens, slots)
    assert needed(path, limit_model_concurrency=1, n_ctx=4096) == weights.memory(512, 1), "the model takes no more"


def test_an_engine_without_weights_needs_nothing():
    assert Echo(Echo.Params(model_name="m", engine="echo")).memory_needed() == 0
