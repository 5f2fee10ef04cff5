"""The requests of a batch, as plain values: what to compute, and the tokens that have come."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from dataclasses import dataclass, field

from .base import CancelEvent

LENGTH, STOP = "length", "stop"


@dataclass(frozen=True)
class Sampling:
    """How the next token of a row is chosen, and which of them end it. A temperature of 0 takes the likeliest."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    """How many of the likeliest tokens are noted with each, and its own probability; None: nothing is."""


@dataclass(frozen=True)
class Token:
    """One token of an answer; ``logprob`` and ``others`` (the likeliest tokens) where they were asked for."""

    id: int
    logprob: float | None = None
    others: tuple[tuple[int, float], ...] = ()


class Row:
    """One request of a batch. The thread of the batch adds tokens, the thread of the request takes them."""

    def __init__(self, prompt: Sequence[int], limit: int, sampling: Sampling, cancel: CancelEvent) -> None:
        """Compute ``limit`` tokens after the prompt at most; ``cancel`` ends it."""
        self.prompt = list(prompt)
        self.limit = limit
        self.sampling = sampling
        self._cancel = cancel
        self.tokens: list[int] = []
        """The tokens that were computed."""
        self._taken: queue.SimpleQueue[Token | str | Exception] = queue.SimpleQueue()
        self.has_ended = False

    @property
    def length(self) -> int:
        """The tokens of the prompt and of the answer until now."""
        return len(self.prompt) + len(self.tokens)

    @property
    def is_over(self) -> bool:
        """Whether nobody wants another token."""
        return self.has_ended or self._cancel.is_set()

    def add(self, token: Token) -> None:
        """Take one more token; it may be the last one."""
        self.tokens.append(token.id)
        if token.id in self.sampling.stop_ids:
            self.end(STOP)
            return
        self._taken.put(token)
        if len(self.tokens) >= self.limit:
            self.end(LENGTH)

    def end(self, how: str | Exception) -> None:
        """Take no more tokens; ``how`` is the finish reason, or the failure. A second call does nothing."""
        if not self.has_ended:
            self.has_ended = True
            self._taken.put(how)

    def take(self, timeout: float) -> list[Token | str | Exception]:
        """Return what has come, in order, after waiting ``timeout`` seconds at most for the first."""
        try:
            taken = [self._taken.get(timeout=timeout)]
        except queue.Empty:
            return []
        while not self._taken.empty():
            taken.append(self._taken.get_nowait())
        return taken
