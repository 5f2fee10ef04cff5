"""What a GGUF file says about itself, without any library and without the weights.

`gguf_reader` reads the bytes; here is what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..types import WorkerType
from .gguf_reader import Omitted, Value, read_raw

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
"""Architectures that only ever embed, whatever their file says about pooling."""


@dataclass(frozen=True, slots=True)
class Header:
    """The metadata of one GGUF file, and what follows from it."""

    path: Path
    file_size: int
    version: int
    tensor_count: int
    metadata: Mapping[str, Value]

    @property
    def architecture(self) -> str:
        """The kind of network, ``llama`` or ``bert`` for example; empty where the file does not say."""
        return self.text("general.architecture") or ""

    @property
    def name(self) -> str | None:
        """The model's own name, for people."""
        return self.text("general.name")

    @property
    def context_length(self) -> int | None:
        """Tokens that the model was trained to see at once."""
        return self.number(f"{self.architecture}.context_length")

    @property
    def embedding_length(self) -> int | None:
        """Floats of one embedding."""
        return self.number(f"{self.architecture}.embedding_length")

    @property
    def pooling_type(self) -> str | None:
        """One of ``POOLINGS``: how token vectors become one vector, or one score (``rank``)."""
        number = self.number(f"{self.architecture}.pooling_type")
        return None if number is None else POOLINGS.get(number, str(number))

    @property
    def chat_template(self) -> str | None:
        """The template (Jinja) that makes a prompt of messages."""
        return self.text("tokenizer.chat_template")

    @property
    def vocabulary_size(self) -> int | None:
        """Tokens that the tokenizer knows."""
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        return tokens.count if isinstance(tokens, Omitted) else None

    @property
    def unusable_because(self) -> str | None:
        """Why this file is no model by itself; None where it is one."""
        kind = self.text("general.type") or "model"
        if self.architecture == "clip" or kind == "mmproj":
            return "it only projects images or sound for another model"
        if kind == "adapter":
            return "it is an adapter for another model (LoRA)"
        if self.tensor_count == 0:
            return "it holds a vocabulary and no weights"
        return None

    def guess_worker_type(self) -> WorkerType:
        """Return what the model is for, as far as its header tells."""
        if self.pooling_type == "rank":
            return WorkerType.RERANKER
        if self.architecture in EMBEDDERS or self.pooling_type in ("mean", "cls", "last"):
            return WorkerType.TEXT2VEC
        return WorkerType.LLM

    def text(self, key: str) -> str | None:
        """Return the text under ``key``; None where there is none, or something else."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        """Return the whole number under ``key``; None where there is none, or something else."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def read(path: Path) -> Header:
    """Return the header of the GGUF file at ``path``, a regular file.

    Raises BadModelFile, which says what is wrong: no GGUF, another version, cut short, damaged. All
    weights that the header lists are there when this returns; whether they are the right ones it can't tell.
    """
    return Header(path, *read_raw(path))
