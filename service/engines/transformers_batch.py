"""Batches of requests, each computed by one call of the transformers library's ``generate``.

Import it when a model starts: it needs torch and transformers.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..streams import Cancel
from ..threads import BackgroundThread
from .transformers_rows import LENGTH, Row, Sampling, Token


class Batches:
    """Computes rows by a few threads. The rows that wait when a thread is free become one batch.

    A row never waits for the end of a batch while a thread is free; under load the batches grow by themselves.
    """

    def __init__(self, model: Any, pad: int, size: int, threads: int, name: str) -> None:
        """Compute ``threads`` batches of ``size`` rows at once at most; ``pad`` fills short prompts."""
        self._model = model
        self._pad = pad
        self._size = size
        self._lock = threading.Lock()
        self._waiting: deque[Row] = deque()
        self._threads = [BackgroundThread(f"batch-{name}-{number}", self._compute_next) for number in range(threads)]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads, after the batches under way, whose rows must have been cancelled."""
        for thread in self._threads:
            thread.stop()

    def submit(self, row: Row) -> None:
        """Compute a row as soon as a thread is free."""
        with self._lock:
            self._waiting.append(row)
        for thread in self._threads:
            thread.wake()

    def _compute_next(self) -> float | None:
        with self._lock:
            rows = [self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))]
        rows = [row for row in rows if not row.is_over]
        if not rows:
            return None
        try:
            self._generate(rows)
        except Exception as error:  # noqa: BLE001 - it belongs to the requests
            for row in rows:
                row.end(error)
        return 0.0

    def _generate(self, rows: Sequence[Row]) -> None:
        longest = max(len(row.prompt) for row in rows)
        padding = [longest - len(row.prompt) for row in rows]
        device = self._model.device
        ids = torch.tensor([[self._pad] * pad + row.prompt for pad, row in zip(padding, rows, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])
        choice = _Choice(rows, padding, longest, device)
        # The rows end by `_Ends`, and sample by `_Choice`: so each may do it in its own way.
        config = GenerationConfig(
            max_new_tokens=max(row.limit for row in rows),
            do_sample=False,
            repetition_penalty=1.0,
            pad_token_id=self._pad,
            use_cache=True,
        )
        with torch.inference_mode():
            self._model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=config,
                logits_processor=LogitsProcessorList([choice]),
                stopping_criteria=StoppingCriteriaList([_Ends(rows, choice)]),
            )
        for row in rows:
            row.end(LENGTH)


class _Choice(LogitsProcessor):
    """Samples for each row in its own way: the likeliest of the returned scores is the token of the row.

    To add Gumbel noise to scores and take the largest is to sample from their softmax.
    """

    def __init__(self, rows: Sequence[Row], padding: Sequence[int], longest: int, device: Any) -> None:
        self._rows = rows
        self._padding = padding
        self._samplers = [_Sampler(row.sampling, longest - pad, device) for row, pad in zip(rows, padding, strict=True)]
        self.logprobs: dict[int, Any] = {}
        """The probabilities of all tokens, of the rows that asked for them."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        for index, (row, sampler) in enumerate(zip(self._rows, self._samplers, strict=True)):
            if row.is_over:
                continue
            if row.sampling.logprobs is not None:
                self.logprobs[index] = torch.log_softmax(scores[index].float(), dim=-1)
            if sampler.changes_scores:
                ids = input_ids[index : index + 1, self._padding[index] :]
                scores[index : index + 1] = sampler(ids, scores[index : index + 1])
        return scores


class _Sampler:
    """The choice of one row: transformers' own warpers, then noise from the row's own generator."""

    def __init__(self, sampling: Sampling, prompt_length: int, device: Any) -> None:
        self._warpers: list[Any] = []
        if sampling.repetition_penalty != 1.0:
            self._warpers.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if sampling.presence_penalty or sampling.frequency_penalty:
            self._warpers.append(_Penalties(sampling, prompt_length))
        if sampling.logit_bias:
            self._warpers.append(_Bias(sampling.logit_bias))
        self._noise = sampling.temperature > 0
        if self._noise:
            self._warpers += _warpers(sampling)
        self._generator = None
        if self._noise and sampling.seed is not None:
            self._generator = torch.Generator(device)
            self._generator.manual_seed(sampling.seed % 2**63)
        self.changes_scores = bool(self._warpers) or self._noise

    def __call__(self, ids: Any, scores: Any) -> Any:
        for warper in self._warpers:
            scores = warper(ids, scores)
        if self._noise:
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


class _Penalties:
    """OpenAI's penalties: for tokens that the answer has, once, and each time."""

    def __init__(self, sampling: Sampling, prompt_length: int) -> None:
        self._presence, self._frequency = sampling.presence_penalty, sampling.frequency_penalty
        self._prompt_length = prompt_length

    def __call__(self, ids: Any, scores: Any) -> Any:
        counts = torch.bincount(ids[0, self._prompt_length :], minlength=scores.shape[-1])[: scores.shape[-1]]
        return scores - self._presence * (counts > 0) - self._frequency * counts


class _Bias:
    """OpenAI's ``logit_bias``. Ids that the model does not have count for nothing."""

    def __init__(self, biases: dict[int, float]) -> None:
        self._biases = biases

    def __call__(self, ids: Any, scores: Any) -> Any:
        for token, bias in self._biases.items():
            if token < scores.shape[-1]:
                scores[0, token] += bias
        return scores


class _Ends(StoppingCriteria):
    """Hands each row its new token, and ends those that have all, or whose request is cancelled."""

    def __init__(self, rows: Sequence[Row], choice: _Choice) -> None:
        self._rows = rows
        self._choice = choice

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        for index, (row, token) in enumerate(zip(self._rows, input_ids[:, -1].tolist(), strict=True)):
            if not row.is_over:
                row.add(self._token(index, row, token))
        return torch.tensor([row.is_over for row in self._rows], device=input_ids.device)

    def _token(self, index: int, row: Row, token: int) -> Token:
        if row.sampling.logprobs is None:
            return Token(token)
        logprobs = self._choice.logprobs[index]
        values, ids = torch.topk(logprobs, max(1, row.sampling.logprobs))
        others = zip(ids.tolist()[: row.sampling.logprobs], values.tolist(), strict=False)
        return Token(token, float(logprobs[token]), tuple(others))


def compute_one(batches: Batches, prompt: Sequence[int], timeout: float) -> None:
    """Compute one token, to find a model that can't. Raises its exception, TimeoutError."""
    row = Row(prompt, 1, Sampling(temperature=0), Cancel())
    batches.submit(row)
    taken = row.take(timeout) or [TimeoutError(f"no token came within {timeout:g} s")]
    for item in taken:
        if isinstance(item, Exception):
            raise item
