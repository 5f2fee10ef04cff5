"""What llama.cpp's server is given: everything about one model, as its library wants it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..types import WorkerType
from .llama_settings import PROJECTOR_BATCH, LlamaCppParams


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The files of a model, checked, and what was chosen for it."""

    params: LlamaCppParams
    weights: Path
    adapters: list[tuple[Path, float]]
    projector: Path | None
    n_ctx: int
    """Tokens of context of one request."""


def server_params(xllamacpp: Any, setup: Setup, socket: Path, *, own_template: bool) -> Any:
    """Return the library's parameters: a server at ``socket``, with the chat template of the weights, or none."""
    params = setup.params
    given = xllamacpp.CommonParams()
    given.model.path = str(setup.weights)
    given.model_alias = {params.registered_name}
    given.n_parallel = params.slots
    given.n_batch = given.n_ubatch = _batch(setup)
    given.n_ctx = setup.n_ctx * given.n_parallel
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = params.threads
    given.cache_ram_mib = params.cache_ram_mib
    if not params.cache_ram_mib:
        # The library puts a prompt into the slot whose last one begins in the same way, and that one is lost then:
        # worth it where at least half of the new prompt need not be computed.
        given.slot_prompt_similarity = 0.5
    given.kv_unified = False
    given.cache_type_k = given.cache_type_v = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{params.cache_type.upper()}")
    given.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), scale) for path, scale in setup.adapters]
    if setup.projector is not None:
        given.mmproj.path = str(setup.projector)
        # What is not an image the library gives to ffprobe, which may open addresses: here it finds none.
        given.video_ffmpeg_bin_dir = str(socket.parent)
    _use_gpus(xllamacpp, given, params)
    given.verbosity = 1
    given.ui = given.endpoint_slots = False
    given.n_threads_http = 1
    given.hostnames = [str(socket)]
    if not own_template:
        given.use_jinja = False
        given.chat_template = "chatml"
    if params.worker_type != WorkerType.LLM:
        given.embedding = True
    if params.worker_type == WorkerType.RERANKER:
        given.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    return given


def _batch(setup: Setup) -> int:
    if setup.params.worker_type != WorkerType.LLM:  # the library computes a text in one batch
        return max(setup.n_ctx, setup.params.n_batch)
    return max(setup.params.n_batch, PROJECTOR_BATCH) if setup.projector is not None else setup.params.n_batch


def _use_gpus(xllamacpp: Any, given: Any, params: LlamaCppParams) -> None:
    given.n_gpu_layers = params.n_gpu_layers
    given.split_mode = getattr(xllamacpp.llama_split_mode, f"LLAMA_SPLIT_MODE_{params.split_mode.upper()}")
    given.main_gpu = params.main_gpu
    given.mmproj_use_gpu = params.n_gpu_layers != 0
    if shares := params.shares:
        given.tensor_split = shares + [0.0] * (len(given.tensor_split) - len(shares))
