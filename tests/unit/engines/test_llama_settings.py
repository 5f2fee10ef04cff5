"""What the parameters of llama.cpp mean for a model and a machine: the context, the GPUs, the adapters."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny_gguf
from modelyard.engines.llama_settings import (
    AUTO,
    GPU,
    LlamaCppParams,
    check_gpus,
    context_of,
    memory_for,
    with_cache_type,
)
from modelyard.errors import StartFailed
from modelyard.models.inspection import Inspection, inspect
from modelyard.settings.params import from_json, params_of

GB = 1_000_000_000
TWO = [GPU("CUDA0", 8 * GB), GPU("CUDA1", 4 * GB)]


def params(**given: Any) -> LlamaCppParams:
    return LlamaCppParams(model_name="m", engine="llama.cpp", **{"limit_model_concurrency": 2, **given})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    """A model that was trained with 2048 tokens, each of which takes 2 layers x 4 heads x 2 x 16 x 2 bytes."""
    found = inspect(tiny_gguf.make(tmp_path_factory.mktemp("weights") / "m.gguf"))
    assert (found.context_length, found.kv_bytes_per_token) == (2048, 512)
    return found


# The context


def auto(weights: Inspection, free: float, *, is_on_gpus: bool = False, **given: Any) -> int:
    return context_of(params(n_ctx=AUTO, **given), weights, weights.weights_bytes + free, is_on_gpus=is_on_gpus)


def test_a_number_of_tokens_is_taken_up_to_those_of_the_training(weights):
    assert [context_of(params(n_ctx=n), weights, 0, is_on_gpus=False) for n in (100, 4096)] == [100, 2048]


def test_auto_is_half_of_what_the_weights_leave_for_all_slots(weights):
    assert auto(weights, 2 * 1024 * 2 * 512) == 1024
    assert auto(weights, 2 * 1024 * 2 * 512, limit_model_concurrency=1) == 2048
    assert auto(weights, 2 * 1100 * 2 * 512) == 1024, "in steps of 256"
    assert auto(weights, math.inf) == 2048, "never more than it was trained with"
    assert auto(weights, math.inf, memory=weights.weights_bytes + 1024 * 2 * 512) == 1024, "nor over its memory"
    assert auto(weights, 1200 * 2 * 512, is_on_gpus=True) == 1024


def test_a_smaller_cache_has_room_for_more(weights):
    assert [auto(weights, 2 * 600 * 2 * 512, cache_type=kind) for kind in ("f16", "q8_0", "q4_0")] == [512, 1024, 2048]
    assert with_cache_type(weights, "q4_0").kv_bytes_per_token == 144


def test_auto_of_texts_is_their_context_up_to_a_limit(tmp_path):
    for trained, chosen in ((512, 512), (9000, 8192)):
        embedder = inspect(tiny_gguf.make(tmp_path / f"{trained}.gguf", "embed", context=trained))
        assert auto(embedder, math.inf, worker_type="text2vec") == chosen


def test_auto_with_too_little_memory_says_what_helps(weights):
    message = "n_ctx: auto: 100 tokens for each of 2 slots fit into memory, 512 are needed: set fewer slots"
    with pytest.raises(StartFailed, match=message):
        auto(weights, 2 * 100 * 2 * 512)
    with pytest.raises(StartFailed, match="auto: 0 tokens"):
        context_of(params(n_ctx=AUTO), weights, 10, is_on_gpus=False)


def test_auto_is_a_word_or_its_number():
    n_ctx = params_of(LlamaCppParams)["n_ctx"]
    assert [n_ctx.parse("auto"), n_ctx.parse("0"), n_ctx.parse("4096")] == [AUTO, AUTO, 4096]
    assert from_json(LlamaCppParams, {"n_ctx": "auto"}) == {"n_ctx": AUTO}
    for value, message in (("big", "is not an integer or auto"), ("63", "63 is less than 64")):
        with pytest.raises(ValueError, match=message):
            n_ctx.parse(value)


# GPUs


def test_settings_of_gpus_without_one_are_warned_of_by_name():
    assert check_gpus(params(), []) == ""
    assert check_gpus(params(n_gpu_layers=0), []) == ""
    warning = check_gpus(params(n_gpu_layers=20, tensor_split=["1"], main_gpu=1, split_mode="row"), [])
    assert warning.startswith(
        "n_gpu_layers, split_mode, main_gpu, tensor_split: without effect: this build of xllamacpp finds no GPU"
    )


def test_a_gpu_that_is_not_there_is_refused_with_those_that_are():
    assert check_gpus(params(main_gpu=1, tensor_split=["3", "1.5"]), TWO) == ""
    with pytest.raises(StartFailed, match="main_gpu: there is no GPU 2: 0 is CUDA0, 1 is CUDA1"):
        check_gpus(params(main_gpu=2), TWO)
    for shares in (["1", "1", "1"], ["0", "0"]):
        with pytest.raises(StartFailed, match=rf"tensor_split: has {len(shares)} shares, one of them over 0, for 0 is"):
            check_gpus(params(tensor_split=shares), TWO)
    for share in ("-1", "half", "nan"):
        with pytest.raises(StartFailed, match=f"tensor_split: '{share}' is not a number from 0"):
            check_gpus(params(tensor_split=[share]), [])


def test_the_memory_is_of_the_gpus_where_all_weights_fit_there():
    assert memory_for(10 * GB, 64.0 * GB, params(), TWO) == (12 * GB, True)
    assert memory_for(13 * GB, 64.0 * GB, params(), TWO) == (64 * GB, False)
    assert memory_for(5 * GB, 64.0 * GB, params(split_mode="none", main_gpu=1), TWO) == (64 * GB, False)
    assert memory_for(GB, 64.0 * GB, params(n_gpu_layers=0), TWO) == (64 * GB, False)
    assert memory_for(GB, 64.0 * GB, params(), []) == (64 * GB, False)


# Adapters


def test_an_adapter_has_a_scale_of_one_unless_it_is_given():
    assert params(lora=["a.gguf", "b/c=d.gguf=-0.5"]).adapters == [("a.gguf", 1.0), ("b/c=d.gguf", -0.5)]
    with pytest.raises(StartFailed, match="lora: 'gguf' is not a number"):
        assert params(lora=["a=gguf"]).adapters
