"""The meaning of a GGUF file's header, without a library and without reading the weights; `gguf_reader` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..types import WorkerType
from .gguf_reader import Value, read_raw

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


@dataclass(frozen=True, slots=True)
class Header:
    """The metadata of one GGUF file, and values derived from it."""

    path: Path
    file_size: int
    version: int
    tensor_count: int
    metadata: Mapping[str, Value]

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
    def unusable_because(self) -> str | None:
        """The reason why this file is not a model by itself, or None."""
        kind = self.text("general.type") or "model"
        if self.architecture == "clip" or kind == "mmproj":
            return "it only projects images or sound for another model"
        if kind == "adapter":
            return "it is an adapter for another model (LoRA)"
        if self.tensor_count == 0:
            return "it holds a vocabulary and no weights"
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
    status = path.stat()
    return _worker_type_of(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _worker_type_of(path: Path, size: int, mtime_ns: int) -> WorkerType:
    del size, mtime_ns  # They are the cache's key of a version.
    return read(path).guess_worker_type()


def read(path: Path) -> Header:
    """Return the header of the GGUF file at ``path``, a regular file.

    Raises BadModelFile with the reason: not GGUF, another version, truncated, damaged. The file is long enough for all
    weights in the header; their values are not checked.
    """
    return Header(path, *read_raw(path))
