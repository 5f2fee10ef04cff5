"""The last requests of each model that this process has answered: their access lines, and their bodies if asked for."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from typing import Any, NamedTuple

from ..types import JSONObject

REQUESTS = 20
"""Requests that are kept of a model."""
MODELS = 64
"""Models whose requests are kept: those that were called last."""
LONGEST_NAME = 512
LONGEST_BODY = 4000
"""Characters that are kept of a prompt, and of an answer."""


class Recent(NamedTuple):
    """A request that has ended."""

    ended: float
    """Seconds since 1970."""
    line: JSONObject
    """The access line, without prompt and answer."""
    prompt: str | None = None
    """The body of the request, cut; None where bodies are not kept."""
    answer: str | None = None


class RecentRequests:
    """The last requests of one process, by the model that has answered. Safe to use from many threads."""

    def __init__(self, *, bodies: bool = False) -> None:
        """Keep ``bodies`` too; without it, no prompt and no answer is ever held."""
        self.bodies = bodies
        self._lock = threading.Lock()
        self._by_model: OrderedDict[str, deque[Recent]] = OrderedDict()

    def note(self, line: JSONObject, prompt: str | None = None, answer: str | None = None) -> None:
        """Keep a request that has ended, unless its access line names no model."""
        model: Any = line.get("answered_by") or line.get("model")
        if model is None or len(model) > LONGEST_NAME:
            return
        recent = Recent(time.time(), line, prompt, answer)
        with self._lock:
            if model not in self._by_model:
                self._by_model[model] = deque(maxlen=REQUESTS)
                if len(self._by_model) > MODELS:
                    self._by_model.popitem(last=False)
            self._by_model.move_to_end(model)
            self._by_model[model].append(recent)

    def of(self, model: str) -> list[Recent]:
        """Return the last requests of a model, the youngest first."""
        with self._lock:
            return list(reversed(self._by_model.get(model, ())))
