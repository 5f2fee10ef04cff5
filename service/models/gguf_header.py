"""The meaning of a GGUF file's header, without a library and without reading the weights; `gguf_reader` reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Literal, TypeAlias

from ..errors import BadModelFile
from ..types import WorkerType
from . import gguf_parts
from .gguf_reader import RawHeader, Value, read_raw

FileKind: TypeAlias = Literal["model", "adapter", "projector"]

POOLINGS = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
"""llama.cpp's ``enum llama_pooling_type``."""

EMBEDDERS = frozenset(
    {
        "bert",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "llama-embed",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "t5encoder",
    }
)
"""Architectures that only compute embeddings, whatever pooling their file has."""

LORA_A, LORA_B = ".lora_a", ".lora_b"
"""The ends of the names of an adapter's two factors of a tensor."""

_PART, _PARTS, _TENSORS = "split.no", "split.count", "split.tensors.count"
"""llama.cpp's keys of a part: its number, from 0, how many there are, and the tensors of all."""


@dataclass(frozen=True, slots=True)
class Header:
    """The metadata of a GGUF file, and values derived from it.

    A model in several files has one header, with the metadata of the first file and the tensors of all.
    """

    path: Path
    """The file, of several the first."""
    files: int
    size: int
    """Bytes of all files."""
    tensor_count: int
    metadata: Mapping[str, Value]
    shapes: Mapping[str, tuple[int, ...]]
    """The lengths of each tensor, by its name; the fastest running one first."""

    @property
    def architecture(self) -> str:
        """The kind of network, such as ``llama`` or ``bert``; empty if the file has none."""
        return self.text("general.architecture") or ""

    @property
    def name(self) -> str | None:
        """The name of the model, for people."""
        return self.text("general.name")

    @property
    def context_length(self) -> int | None:
        """Tokens of context that the model was trained with."""
        return self.number(f"{self.architecture}.context_length")

    @property
    def embedding_length(self) -> int | None:
        """Numbers of one embedding."""
        return self.number(f"{self.architecture}.embedding_length")

    @property
    def pooling_type(self) -> str | None:
        """One of ``POOLINGS``: how the vectors of tokens become one vector, or one score (``rank``)."""
        number = self.number(f"{self.architecture}.pooling_type")
        return None if number is None else POOLINGS.get(number, str(number))

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that makes a prompt from messages."""
        return self.text("tokenizer.chat_template")

    @property
    def has_chat_template(self) -> bool:
        """Whether there is a chat template; one that is very long is not kept."""
        return "tokenizer.chat_template" in self.metadata

    @property
    def kind(self) -> FileKind:
        """What the file is for."""
        kind = self.text("general.type") or "model"
        if self.architecture == "clip" or kind == "mmproj":
            return "projector"
        return "adapter" if kind == "adapter" else "model"

    @property
    def adapter_rank(self) -> int | None:
        """The rank of a LoRA adapter: the length that its two factors of a tensor share; the largest of all."""
        return max((shape[-1] for name, shape in self.shapes.items() if name.endswith(LORA_A) and shape), default=None)

    @property
    def projects(self) -> tuple[str, ...]:
        """What a projector makes a model take: ``images``, ``sound``."""
        flags = {"clip.has_vision_encoder": "images", "clip.has_audio_encoder": "sound"}
        return tuple(what for key, what in flags.items() if self.metadata.get(key) is True)

    @property
    def parameters(self) -> int:
        """The numbers of all tensors."""
        return sum(map(prod, self.shapes.values()))

    @property
    def unusable_because(self) -> str | None:
        """The reason why this file is not a model by itself, or None."""
        if self.kind == "projector":
            return "it only projects images or sound for another model: name it as mmproj of that model"
        if self.kind == "adapter":
            return "it is an adapter for another model (LoRA): name it in lora of that model"
        if self.tensor_count == 0:
            return "it holds a vocabulary and no weights"
        return None

    @property
    def useless_because(self) -> str | None:
        """The reason why no model can be given this adapter or projector, or None."""
        if self.kind == "adapter" and (kind := self.text("adapter.type")) != "lora":
            return f"it is an adapter of type {kind or 'unknown'}, not lora"
        if self.kind == "adapter" and self.adapter_rank is None:
            return "it is an adapter without weights"
        if self.kind == "projector" and not self.projects:
            return "it projects neither images nor sound"
        return None

    def guess_worker_type(self) -> WorkerType:
        """Return the type of the model, derived from its header."""
        if self.pooling_type == "rank":
            return WorkerType.RERANKER
        if self.architecture in EMBEDDERS or self.pooling_type in ("mean", "cls", "last"):
            return WorkerType.TEXT2VEC
        return WorkerType.LLM

    def text(self, key: str) -> str | None:
        """Return the text of ``key``; None if it is missing or of another type."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        """Return the integer of ``key``; None if it is missing or of another type."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def worker_type_of(path: Path) -> WorkerType:
    """Return the type of the model in a file; the last files are kept. Raises BadModelFile."""
    return _worker_type_of(path, gguf_parts.versions_of(path))


@lru_cache(maxsize=256)
def _worker_type_of(path: Path, versions: object) -> WorkerType:
    del versions  # They are the cache's key of a version.
    return read(path).guess_worker_type()


def read(path: Path) -> Header:
    """Return the header of the model in the GGUF file at ``path``, a regular file, and in the later parts beside it.

    Raises BadModelFile with the reason: not GGUF, another version, truncated, damaged, a part is missing or of another
    model. The files are long enough for all weights in the headers; their values are not checked.
    """
    raw = read_raw(path)
    count = raw.metadata.get(_PARTS, 1)
    if not isinstance(count, int) or count <= 1:
        return Header(path, 1, raw.file_size, raw.tensor_count, raw.metadata, raw.shapes)
    paths = gguf_parts.paths_of(path)
    if len(paths) != count:
        first = f"{gguf_parts.stem_of(path.name)}-00001-of-{count:05}.gguf"
        raise BadModelFile(f"{path} is a part of {count}: name the first, {first}, with the others beside it")
    return _joined(raw, paths)


def _joined(first: RawHeader, paths: Sequence[Path]) -> Header:
    """Return the header of a model in several files, each of which is looked at. Raises BadModelFile."""
    count, raws = len(paths), [first]
    for number, path in enumerate(paths[1:], 2):
        if not path.is_file():  # a pipe would never open
            raise BadModelFile(f"part {number} of {count} is missing: {path}: fetch it, and put it beside the first")
        raws.append(read_raw(path))
    for number, (path, raw) in enumerate(zip(paths, raws, strict=True)):
        if (raw.metadata.get(_PART), raw.metadata.get(_PARTS)) != (number, count):
            raise BadModelFile(f"{path} is not part {number + 1} of {count}: fetch it again")
    shapes = {name: shape for raw in raws for name, shape in raw.shapes.items()}
    expected, tensors = first.metadata.get(_TENSORS), sum(raw.tensor_count for raw in raws)
    if tensors != expected:
        raise BadModelFile(
            f"the {count} parts of {paths[0]} have {tensors} tensors, not {expected}: they are not of one model, fetch "
            "all of them again"
        )
    return Header(paths[0], count, sum(raw.file_size for raw in raws), tensors, first.metadata, shapes)
