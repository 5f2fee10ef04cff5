"""A batch of rows that are computed together, step by step: a row joins between two steps, and leaves at its end.

The step is a call of the model, with the library's own cache of keys and values. A row that joins is computed alone
up to its first token; then its part of the cache is put beside the others', the shorter ones filled up on the left.

Import it when a model starts: it needs torch and transformers.
"""

from __future__ import annotations

import inspect
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ..streams import Cancel
from ..threads import BackgroundThread
from .transformers_rows import Row, Sampling
from .transformers_sampling import Sampler, choose


class Batch:
    """The rows under way, and those that wait to join. One thread computes them."""

    def __init__(self, model: Any, size: int, name: str) -> None:
        """Compute ``size`` rows at once at most; a model whose cache can't be divided computes one at a time."""
        self._model = model
        self._size = size
        self._lock = threading.Lock()
        self._waiting: deque[Row] = deque()
        self._rows: list[Row] = []
        self._samplers: list[Sampler] = []
        self._cache: Any = None
        self._accepted = frozenset(inspect.signature(model.forward).parameters)
        self._thread = BackgroundThread(f"batch-{name}", self._compute)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, whose rows must have been cancelled, and let the model go."""
        self._thread.stop()
        self._model = self._cache = None

    def submit(self, row: Row) -> None:
        """Compute a row as soon as there is room."""
        with self._lock:
            self._waiting.append(row)
        self._thread.wake()

    def compute_one(self, prompt: Sequence[int], timeout: float) -> None:
        """Compute one token, to find a model that can't. Raises its exception, TimeoutError."""
        row = Row(prompt, 1, Sampling(temperature=0), Cancel())
        self.submit(row)
        for item in row.take(timeout) or [TimeoutError(f"no token came within {timeout:g} s")]:
            if isinstance(item, Exception):
                raise item

    # The thread

    def _compute(self) -> float | None:
        """Take in the rows that wait, and compute one step; None if there is nothing to do."""
        joining: list[Row] = []
        try:
            with torch.inference_mode():
                while (row := self._next()) is not None:
                    joining.append(row)
                    self._join(row)
                if self._rows:
                    self._step()
        except Exception as error:  # noqa: BLE001 - it belongs to the requests
            for row in [*self._rows, *joining]:
                row.end(error)
            self._rows, self._samplers, self._cache = [], [], None
        return 0.0 if self._rows or self._waiting else None

    def _next(self) -> Row | None:
        """Return a row that may join now."""
        with self._lock:
            while self._waiting and len(self._rows) < (self._size if self._is_divisible else 1):
                if not (row := self._waiting.popleft()).is_over:
                    return row
        return None

    @property
    def _is_divisible(self) -> bool:
        """Whether each layer of the cache has the keys and values of all rows: not with a window, or states."""
        return self._cache is None or all(type(layer) is DynamicLayer for layer in self._cache.layers)

    def _join(self, row: Row) -> None:
        """Compute the prompt of a row, and its first token; put it into the batch unless that is its last one."""
        ids = torch.tensor([row.prompt], device=self._model.device)
        cache = DynamicCache(config=self._model.config)
        sampler = Sampler(row.sampling, self._model.device)
        row.add(*choose([row], [sampler], self._scores(ids, cache)))
        if row.is_over:
            return
        if not self._rows:
            self._cache = cache
        else:
            width = max(other.length for other in [*self._rows, row]) - 1
            self._cache = _changed(
                [self._cache, cache], lambda parts: torch.cat([_filled(part, width) for part in parts])
            )
        self._rows.append(row)
        self._samplers.append(sampler)

    def _step(self) -> None:
        """Compute one more token of each row, and let those go that have ended."""
        device = self._model.device
        ids = torch.tensor([[row.tokens[-1]] for row in self._rows], device=device)
        lengths = torch.tensor([[row.length] for row in self._rows], device=device)
        width = max(row.length for row in self._rows)
        mask = (torch.arange(width, device=device) >= width - lengths).long()
        scores = self._scores(ids, self._cache, attention_mask=mask, position_ids=lengths - 1)
        tokens = choose(self._rows, self._samplers, scores)
        for row, token in zip(self._rows, tokens, strict=True):
            row.add(token)
        self._let_go()

    def _scores(self, ids: Any, cache: Any, **given: Any) -> Any:
        """Return the scores after the last token of each row, and put the keys and values of ``ids`` into the cache."""
        # Before 5.24 the library calls the cache past_key_values.
        given["cache" if "cache" in self._accepted else "past_key_values"] = cache
        given |= {"use_cache": True, "logits_to_keep": 1}
        accepted = {name: value for name, value in given.items() if name in self._accepted}
        return self._model(input_ids=ids, **accepted).logits[:, -1].float()

    def _let_go(self) -> None:
        kept = [index for index, row in enumerate(self._rows) if not row.is_over]
        if len(kept) == len(self._rows):
            return
        for row in self._rows:
            if row.is_over:
                row.end("stop")
        self._rows = [self._rows[index] for index in kept]
        self._samplers = [self._samplers[index] for index in kept]
        if not kept:
            self._cache = None
            return
        # A row is as long as its cache is, less the token that was added last.
        longest = max(row.length for row in self._rows) - 1
        self._cache = _changed([self._cache], lambda parts: parts[0][kept, :, -longest:])


def _changed(caches: Sequence[Any], change: Callable[[list[Any]], Any]) -> Any:
    """Return a cache of what ``change`` makes of the keys, and of the values, of each layer of ``caches``."""
    changed = DynamicCache()
    for index, layers in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
        keys, values = change([layer.keys for layer in layers]), change([layer.values for layer in layers])
        changed.update(keys, values, index)
    return changed


def _filled(part: Any, width: int) -> Any:
    """Return keys or values, of shape (rows, heads, tokens, size), with zeros on the left."""
    return torch.nn.functional.pad(part, (0, 0, width - part.shape[2], 0))
