"""What weights hold, and what they need: of a GGUF file, or of a folder of Hugging Face, without loading them."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ..errors import BadModelFile
from ..types import WorkerType
from . import gguf_header, hf_folder

KV_BYTES = 2
"""Bytes of one number in the cache of keys and values: 16 bits."""
_LLM = WorkerType.LLM.value
LARGEST_HEADER = 256 * 1024 * 1024
LARGEST_TENSOR = 2**63 - 1
"""The most numbers of a tensor: what its file can address."""

_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 30: "IQ4_XS", 32: "BF16",
}  # fmt: skip
"""llama.cpp's ``enum llama_ftype``."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found; sizes in bytes, lengths in tokens. None where the weights do not tell."""

    path: Path
    format: str
    files: int
    """How many files hold the weights."""
    kind: gguf_header.FileKind
    """A model, or what another model is given: a LoRA adapter, a projector of images or sound."""
    name: str | None
    architecture: str | None
    worker_type: str | None
    """None for an adapter, which any type may have."""
    engine: str
    fault: str | None
    """Why no engine here runs it."""
    weights_bytes: int
    numbers: str | None
    """The kind of its numbers, such as ``Q4_K_M`` or ``BF16``."""
    parameters: int | None
    context_length: int | None
    embedding_length: int | None
    chat_template: str | None
    kv_bytes_per_token: int | None
    """What the cache of keys and values takes for each token of context of a model of text."""
    adapter_rank: int | None = None
    projects: tuple[str, ...] = ()
    """What a projector makes a model take: ``images``, ``sound``."""
    image_size: int | None = None
    """Pixels on a side of what a projector looks at, where it is fixed."""

    def memory(self, tokens: int, slots: int) -> int | None:
        """Return the bytes that weights and cache take, for ``slots`` requests of ``tokens`` each; None if unknown.

        This is what `modelyard inspect` shows and a memory budget counts. Only models of text keep a cache.
        """
        if self.worker_type != _LLM or self.kind != "model":
            return self.weights_bytes
        if self.kv_bytes_per_token is None:
            return None
        return self.weights_bytes + self.kv_bytes_per_token * tokens * slots

    def tokens_within(self, memory: int, slots: int) -> int | None:
        """Return the most tokens of each of ``slots`` requests for which `memory` is within ``memory`` bytes.

        That is 0 where not even the weights fit, and the model's own context length at most. None if unknown.
        """
        if self.context_length is None or self.memory(0, slots) is None:
            return None
        room = memory - self.weights_bytes
        if self.worker_type != _LLM:
            return self.context_length if room >= 0 else 0
        assert self.kv_bytes_per_token is not None
        return max(0, min(self.context_length, room // (self.kv_bytes_per_token * slots)))


def inspect(path: Path) -> Inspection:
    """Return what is at ``path``. Raises BadModelFile if it is neither a GGUF file nor a folder of Hugging Face."""
    if not path.exists():
        raise BadModelFile(f"there is no file or folder {path}")
    return _of_folder(path) if path.is_dir() else _of_gguf(path)


def _of_gguf(path: Path) -> Inspection:
    header = gguf_header.read(path)
    file_type = header.number("general.file_type")
    is_model = header.kind == "model"
    worker_type = "llm" if header.kind == "projector" else header.guess_worker_type().value
    return Inspection(
        path=path,
        format="GGUF",
        files=header.files,
        kind=header.kind,
        name=header.name,
        architecture=header.architecture or None,
        worker_type=None if header.kind == "adapter" else worker_type,
        engine="llama.cpp",
        fault=header.unusable_because if is_model else header.useless_because,
        weights_bytes=header.size,
        numbers=None if file_type is None else _FILE_TYPES.get(file_type, f"type {file_type}"),
        parameters=header.parameters or None,
        context_length=_positive(header.context_length),
        embedding_length=_positive(header.embedding_length),
        chat_template=header.chat_template,
        kv_bytes_per_token=kv_bytes_of_gguf(header) if is_model else None,
        adapter_rank=header.adapter_rank,
        projects=header.projects,
        image_size=_positive(header.number("clip.vision.image_size")),
    )


def kv_bytes_of_gguf(header: gguf_header.Header) -> int | None:
    """Return the bytes of keys and values of one token, in 16 bits; None where the file does not tell.

    What windows of attention, or states, save is not known: it is the most that a token takes.
    """

    def number(name: str) -> int | None:
        return _positive(header.number(f"{header.architecture}.{name}"))

    layers, heads, width = number("block_count"), number("attention.head_count"), _positive(header.embedding_length)
    if not layers or not heads or not width:
        return None
    size = number("attention.key_length") or width // heads
    values = number("attention.value_length") or size
    return layers * (number("attention.head_count_kv") or heads) * (size + values) * KV_BYTES


def _of_folder(path: Path) -> Inspection:
    folder = hf_folder.read(path)
    config = hf_folder.config(path)
    inner = config.get("text_config")
    text = inner if isinstance(inner, dict) else config
    files = [file for file in sorted(path.glob("*.safetensors")) if file.is_file()]  # a pipe would never open
    parameters, kinds = _tensors(files)
    others = [file for pattern in ("*.bin", "*.pt") for file in path.glob(pattern)]
    return Inspection(
        path=path,
        format="Hugging Face",
        files=len(files or others),
        kind="model",
        name=path.resolve().name,
        architecture=folder.architecture or None,
        worker_type=None if folder.worker_type is None else folder.worker_type.value,
        engine=folder.engine,
        fault=folder.unusable_because,
        weights_bytes=sum(file.stat().st_size for file in files or others),
        numbers=kinds.most_common(1)[0][0] if kinds else None,
        parameters=parameters or None,
        context_length=_integer(text, "max_position_embeddings") or _integer(text, "n_positions"),
        embedding_length=_integer(text, "hidden_size") or _integer(text, "n_embd"),
        chat_template=hf_folder.chat_template(path),
        kv_bytes_per_token=_kv_of_config(text),
    )


def _kv_of_config(config: dict[str, Any]) -> int | None:
    layers = _integer(config, "num_hidden_layers") or _integer(config, "n_layer")
    heads = _integer(config, "num_attention_heads") or _integer(config, "n_head")
    width = _integer(config, "hidden_size") or _integer(config, "n_embd")
    if not layers or not heads or not width:
        return None
    size = _integer(config, "head_dim") or width // heads
    return layers * (_integer(config, "num_key_value_heads") or heads) * 2 * size * KV_BYTES


def _tensors(files: list[Path]) -> tuple[int, Counter[str]]:
    """Return the number of parameters in safetensors files, and how many have each kind of number.

    A file begins with the length of its header, 8 bytes, and the header as JSON:
    https://github.com/huggingface/safetensors#format. Raises BadModelFile.
    """
    total, kinds = 0, Counter[str]()
    for file in files:
        try:
            with file.open("rb") as opened:
                (length,) = struct.unpack("<Q", opened.read(8))
                if length > min(LARGEST_HEADER, file.stat().st_size):
                    raise ValueError("its header is longer than the file")
                header = orjson.loads(opened.read(length))
            for name, tensor in header.items():
                if name != "__metadata__":
                    count = _count(tensor["shape"])
                    total += count
                    kinds[str(tensor["dtype"])] += count
        except (OSError, ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
            raise BadModelFile(f"{file} is not a safetensors file: {error}") from error
    return total, kinds


def _count(shape: Any) -> int:
    """Return the numbers of a tensor. Raises ValueError for a shape that no tensor has."""
    count = 1
    for size in shape:
        if type(size) is not int or size < 0:
            raise ValueError(f"a shape has {size!r}, and not a size")
        count *= size
        if count > LARGEST_TENSOR:
            raise ValueError(f"a tensor has over {LARGEST_TENSOR} numbers")
    return count


def _integer(config: dict[str, Any], name: str) -> int | None:
    value = config.get(name)
    return _positive(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _positive(value: int | None) -> int | None:
    """Return a length; None for one that can't be."""
    return value if value is not None and value > 0 else None
