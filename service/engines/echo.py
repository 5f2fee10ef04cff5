"""echo: a deterministic engine without weights, for tests, benchmarks and first steps.

It answers with exactly ``max_new_tokens`` pieces: `` token`` each time, or the words of the prompt in turn. It embeds a
text as 384 floats that depend on its words alone.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..settings.params import param
from ..types import Burst, GenerateRequest, JSONObject, ModelMetadata, WorkerType
from ..wire.messages import messages_for_model, text_of_content
from .base import CancelEvent, Engine, ModelParams, Progress, Vectors, room_in_context

DIMENSIONS = 384
PIECES_A_BURST = 64
"""Pieces in one burst when there is no delay: what one write should carry."""


@dataclass
class EchoParams(ModelParams):
    """Parameters of `Echo`."""

    reply: str = param(
        "token", help="what to answer: ' token', or the words of the prompt", choices=["token", "prompt"]
    )
    delay: float = param(0.0, help="seconds before each piece", min=0, max=3600)
    default_max_new_tokens: int = param(16, help="pieces of an answer without max_new_tokens", min=1, max=1_000_000)
    context_length: int = param(4096, help="context length in the metadata", min=1, max=10_000_000)


class Echo(Engine):
    """Answers with fixed words, or with those of the prompt."""

    name = "echo"
    Params = EchoParams
    worker_types: ClassVar[frozenset[WorkerType]] = frozenset(WorkerType)
    needs_weights = False
    ticks = True

    params: EchoParams

    def start(self, progress: Progress) -> None:
        """Load nothing."""
        progress("ready")

    def metadata(self) -> ModelMetadata:
        """Return the configured context length."""
        return ModelMetadata(self.params.registered_name, self.params.context_length)

    def generate_stream(self, request: GenerateRequest, cancel: CancelEvent) -> Iterator[Burst | None]:
        """Yield the pieces: one every ``delay`` seconds, or without a delay all in a few bursts."""
        prompt = _text_of(request)
        count = self.params.default_max_new_tokens if request.max_new_tokens is None else request.max_new_tokens
        prompt_tokens = self.count_token(prompt)
        if request.context_len is not None:
            count = min(count, room_in_context(request.context_len, prompt_tokens))
        words = prompt.split() if self.params.reply == "prompt" else []
        pieces = itertools.cycle(f" {word}" for word in words or ["token"])
        usage: JSONObject = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": count,
            "total_tokens": prompt_tokens + count,
        }
        step = 1 if self.params.delay else PIECES_A_BURST
        started = time.monotonic()
        for sent in range(0, count, step):
            if self.params.delay:
                yield from self._pace(cancel, started + (sent + 1) * self.params.delay)
            if cancel.is_set():
                return
            size = min(step, count - sent)
            burst = list(itertools.islice(pieces, size))
            ended = sent + size == count
            yield Burst(burst, "length" if ended else None, usage if ended else None)
        if count == 0:
            yield Burst([], "length", usage)

    def _pace(self, cancel: CancelEvent, due: float) -> Iterator[None]:
        while (left := due - time.monotonic()) > 0:
            if cancel.wait(min(left, 1.0)):
                return
            if left > 1.0:
                yield None

    def embed(self, texts: Sequence[str], cancel: CancelEvent) -> Vectors:
        """Return unit vectors; texts that share words are near each other. Takes ``delay`` seconds."""
        if self.params.delay:
            cancel.wait(self.params.delay)
        return [_vector(text) for text in texts]

    def rerank(self, query: str, texts: Sequence[str], cancel: CancelEvent) -> Sequence[float]:
        """Return for each text the share of the query's words that it contains."""
        wanted = set(query.lower().split())
        return [len(wanted & set(text.lower().split())) / max(1, len(wanted)) for text in texts]

    def count_token(self, prompt: str) -> int:
        """Return the number of words."""
        return len(prompt.split())


def _text_of(request: GenerateRequest) -> str:
    if request.uses_messages:
        return " ".join(text_of_content(message["content"]) for message in messages_for_model(request.messages))
    return request.prompt or ""


def _vector(text: str) -> list[float]:
    vector = [0.0] * DIMENSIONS
    for word in text.lower().split() or [""]:
        digest = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "big")
        vector[digest % DIMENSIONS] += 1.0 if digest >> 63 else -1.0
        vector[(digest >> 16) % DIMENSIONS] += 0.5
    norm = math.sqrt(sum(x * x for x in vector)) or 1.0
    return [x / norm for x in vector]
