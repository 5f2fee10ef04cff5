"""The parameters of llama.cpp, and what they mean for a model on this machine: its context, its GPUs, its adapters."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..errors import StartFailed
from ..models.inspection import KV_BYTES, Inspection
from ..settings.params import param
from ..types import WorkerType
from .base import ModelParams
from .text_limit import TRUNCATE

AUTO = 0
"""The value of ``n_ctx`` that is chosen from memory."""
AUTO_STEP = 256
"""The library rounds a context up to a multiple of it."""
AUTO_LEAST = 512
"""Tokens of context under which a model is of no use, unless it was trained with fewer."""
AUTO_SHARE = 0.5
"""The share of the memory that the weights leave which the context of all slots may have: other models need some."""
AUTO_SHARE_OF_GPU = 0.9
AUTO_MOST_OF_TEXTS = 8192
"""The most tokens of a text to embed or rank that are chosen."""
PROJECTOR_BATCH = 512
"""The least batch of a model with a projector: some of them compute a whole image in one."""

_CACHE_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""Bytes of a number of the cache: a block has 32 numbers, with a scale of 16 bits."""


@dataclass
class LlamaCppParams(ModelParams):
    """Parameters of `LlamaCpp`."""

    n_ctx: int = param(
        2048,
        help="tokens of context of one request; each slot takes memory for them; auto: as many as fit into memory, "
        "at most those of the training",
        min=64,
        max=1_048_576,
        words={"auto": AUTO},
    )
    n_batch: int = param(
        64,
        help="tokens computed at once; larger values suit GPUs, and delay streams and cancels",
        min=16,
        max=16_384,
    )
    n_threads: int = param(0, help="threads that compute; 0: all cores but one", min=0, max=1024, tags=["shared"])
    n_gpu_layers: int = param(
        -1, help="layers on the GPU, if the machine has one; -1: as many as fit", min=-1, max=10_000
    )
    split_mode: str = param(
        "layer",
        help="how several GPUs share a model: whole layers, rows of each tensor, or none (main_gpu has it all)",
        choices=("layer", "row", "none"),
    )
    main_gpu: int = param(0, help="number of the GPU that has it all with split_mode = none", min=0, max=127)
    tensor_split: list[str] = param([], help="share of each GPU, as in 3,1; default: by their free memory")
    cache_type: str = param(
        "f16",
        help="numbers of the cache of keys and values; q8_0 takes half the memory of f16, q4_0 a quarter",
        choices=tuple(_CACHE_BYTES),
    )
    lora: list[str] = param(
        [], help="LoRA adapters: GGUF files within the models folders, each FILE or FILE=SCALE (scale 1 by default)"
    )
    mmproj: str | None = param(None, help="projector of images: a GGUF file within the models folders")
    default_max_new_tokens: int = param(1024, help="tokens of an answer without max_new_tokens", min=1, max=1_000_000)
    cache_ram_mib: int = param(
        0, help="MiB of memory to keep prompts of earlier requests; 0: none", min=0, max=1_048_576
    )
    truncate: str = param(
        "end",
        help="what to do with a text to embed or rank that is longer than n_ctx: leave out its end, or refuse it",
        choices=TRUNCATE,
    )

    @property
    def slots(self) -> int:
        """Requests that the library computes at once: a few of texts fill a batch."""
        slots = self.limit_model_concurrency
        return slots if self.worker_type == WorkerType.LLM else min(slots, 8)

    @property
    def threads(self) -> int:
        """Threads that compute."""
        return self.n_threads or max(1, (os.cpu_count() or 2) - 1)

    @property
    def adapters(self) -> list[Adapter]:
        """The adapters of ``lora``. Raises StartFailed for a scale that is not a number."""
        return [_adapter(entry) for entry in self.lora]

    @property
    def shares(self) -> list[float]:
        """The numbers of ``tensor_split``. Raises StartFailed."""
        return [_number("tensor_split", share, least=0.0) for share in self.tensor_split]


class Adapter(NamedTuple):
    """A file of ``lora``, as it is named there, and its scale."""

    name: str
    scale: float


def _adapter(entry: str) -> Adapter:
    name, equals, scale = entry.rpartition("=")
    return Adapter(name, _number("lora", scale)) if equals else Adapter(entry, 1.0)


def _number(field: str, text: str, least: float = -math.inf) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < least:
        raise StartFailed(f"{field}: {text!r} is not a number{'' if least == -math.inf else f' from {least:g}'}")
    return number


class GPU(NamedTuple):
    """A GPU that the library can use; memory in bytes."""

    name: str
    free: int


def gpus_of(xllamacpp: Any) -> list[GPU]:
    """Return the GPUs that this build of the library can use."""
    kinds = xllamacpp.ggml_backend_dev_type
    of_gpus = (kinds.GGML_BACKEND_DEVICE_TYPE_GPU, kinds.GGML_BACKEND_DEVICE_TYPE_IGPU)
    devices = xllamacpp.get_device_info()
    return [GPU(device["name"], device["memory_free"]) for device in devices if device["type"] in of_gpus]


def check_gpus(params: LlamaCppParams, gpus: Sequence[GPU]) -> str:
    """Return what to warn of: settings of GPUs that have no effect here; empty if nothing is.

    Raises StartFailed for a GPU that is not there, beside others that are.
    """
    shares = params.shares
    if not gpus:
        given = {
            "n_gpu_layers": params.n_gpu_layers > 0,
            "split_mode": params.split_mode != "layer",
            "main_gpu": params.main_gpu > 0,
            "tensor_split": bool(shares),
        }
        names = ", ".join(name for name, is_given in given.items() if is_given)
        reason = "this build of xllamacpp finds no GPU, and computes on the CPU"
        return f"{names}: without effect: {reason} (docs/configuration.md names the builds for GPUs)" if names else ""
    if params.main_gpu >= len(gpus):
        raise StartFailed(f"main_gpu: there is no GPU {params.main_gpu}: {_listed(gpus)}")
    if len(shares) > len(gpus) or (shares and not any(shares)):
        raise StartFailed(f"tensor_split: has {len(shares)} shares, one of them over 0, for {_listed(gpus)}")
    return ""


def _listed(gpus: Sequence[GPU]) -> str:
    return ", ".join(f"{number} is {gpu.name}" for number, gpu in enumerate(gpus))


def memory_for(weights: int, host: float, params: LlamaCppParams, gpus: Sequence[GPU]) -> tuple[float, bool]:
    """Return the free bytes where so many of weights lie, and whether that is on GPUs: there if they fit as a whole."""
    used = [gpus[params.main_gpu]] if gpus and params.split_mode == "none" else gpus
    on_gpus = sum(gpu.free for gpu in used)
    is_on_gpus = params.n_gpu_layers != 0 and on_gpus > weights
    return (on_gpus, True) if is_on_gpus else (host, False)


def with_cache_type(weights: Inspection, cache_type: str) -> Inspection:
    """Return what was found of weights, with the bytes that a token takes in a cache of this type."""
    if weights.kv_bytes_per_token is None:
        return weights
    each = math.ceil(weights.kv_bytes_per_token * _CACHE_BYTES[cache_type] / KV_BYTES)
    return replace(weights, kv_bytes_per_token=each)


def context_of(params: LlamaCppParams, weights: Inspection, free: float, *, is_on_gpus: bool) -> int:
    """Return the tokens of context of one request.

    With ``n_ctx = auto`` these are as many as fit into the share of ``free`` bytes beside the weights, and into the
    parameter ``memory``. Raises StartFailed if they are too few.
    """
    trained = weights.context_length
    if params.n_ctx != AUTO:
        return min(params.n_ctx, trained or params.n_ctx)
    share = AUTO_SHARE_OF_GPU if is_on_gpus else AUTO_SHARE
    room = max(0.0, free - weights.weights_bytes) * share
    memory = min(weights.weights_bytes + int(min(room, 2**62)), params.memory or 2**62)
    tokens = with_cache_type(weights, params.cache_type).tokens_within(memory, params.slots)
    if tokens is None or trained is None:
        raise StartFailed("n_ctx: auto: the file does not tell the context or the shape of its model: give a number")
    if params.worker_type != WorkerType.LLM:  # a text is one batch, whose computation takes memory too
        tokens = min(tokens, AUTO_MOST_OF_TEXTS)
    chosen = tokens if tokens == trained else tokens // AUTO_STEP * AUTO_STEP
    if chosen < (least := min(AUTO_LEAST, trained)):
        raise StartFailed(
            f"n_ctx: auto: {tokens} tokens for each of {params.slots} slots fit into memory, {least} are needed: set "
            "fewer slots (limit_model_concurrency), cache_type = q8_0 or q4_0, or a smaller model"
        )
    return chosen
