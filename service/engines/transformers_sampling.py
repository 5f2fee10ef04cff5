"""The choice of the next token of each row: transformers' own warpers, then noise from the row's own generator.

Import it when a model starts: it needs torch and transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from .transformers_rows import Row, Sampling, Token


def choose(rows: Sequence[Row], samplers: Sequence[Sampler], scores: Any) -> list[Token]:
    """Return the next token of each row; ``scores`` has the shape (rows, vocabulary), and is changed."""
    noted = [index for index, row in enumerate(rows) if row.sampling.logprobs is not None]
    logprobs = {index: torch.log_softmax(scores[index].float(), dim=-1) for index in noted}
    for index, sampler in enumerate(samplers):
        if sampler.changes_scores:
            scores[index : index + 1] = sampler(rows[index], scores[index : index + 1])
    ids: list[int] = torch.argmax(scores, dim=-1).tolist()
    return [
        _noted(token, logprobs[index], rows[index].sampling.logprobs or 0) if index in logprobs else Token(token)
        for index, token in enumerate(ids)
    ]


def _noted(token: int, logprobs: Any, count: int) -> Token:
    values, ids = torch.topk(logprobs, max(1, count))
    others = tuple(zip(ids.tolist()[:count], values.tolist(), strict=False))
    return Token(token, float(logprobs[token]), others)


class Sampler:
    """The choice of one row. To add Gumbel noise to scores and take the largest is to sample from their softmax."""

    def __init__(self, sampling: Sampling, device: Any) -> None:
        """Choose on ``device``, where the scores are."""
        self._penalty = None
        if sampling.repetition_penalty != 1.0:
            self._penalty = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)
        self._sampling = sampling
        self._has_noise = sampling.temperature > 0
        self._warpers = _warpers(sampling) if self._has_noise else []
        self._generator = None
        if self._has_noise and sampling.seed is not None:
            self._generator = torch.Generator(device)
            self._generator.manual_seed(sampling.seed % 2**63)
        self._has_counts = bool(sampling.presence_penalty or sampling.frequency_penalty)
        self.changes_scores = bool(self._has_noise or self._penalty or self._has_counts or sampling.logit_bias)
        """Whether the likeliest token of the model may not be the choice."""

    def __call__(self, row: Row, scores: Any) -> Any:
        """Return the scores of a row, of which the largest is its choice."""
        if self._penalty is not None:
            scores = self._penalty(torch.tensor([row.prompt + row.tokens], device=scores.device), scores)
        if self._has_counts and row.tokens:
            tokens = torch.tensor(row.tokens, device=scores.device)
            counts = torch.bincount(tokens, minlength=scores.shape[-1])
            scores = scores - self._sampling.presence_penalty * (counts > 0) - self._sampling.frequency_penalty * counts
        for token, bias in self._sampling.logit_bias.items():
            if token < scores.shape[-1]:
                scores[0, token] += bias
        for warper in self._warpers:
            scores = warper(None, scores)
        if self._has_noise:
            uniform = torch.rand(scores.shape, generator=self._generator, device=scores.device).clamp_(1e-20)
            scores = scores - torch.log((-torch.log(uniform)).clamp_(1e-20))
        return scores


def _warpers(sampling: Sampling) -> list[Any]:
    warpers: list[Any] = []
    if sampling.temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k > 0:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        warpers.append(TopPLogitsWarper(max(sampling.top_p, 1e-6)))
    if sampling.min_p > 0:
        warpers.append(MinPLogitsWarper(min(sampling.min_p, 1.0)))
    return warpers
