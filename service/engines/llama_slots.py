"""PromptSlots: which of the library's slots computes a request, so that each conversation finds its own prompt again.

A slot keeps the keys and values of its last prompt, and a prompt that begins in the same way goes on from there. Left
to itself, the library puts a prompt where the most of it is cached: conversations with one system prompt, as agents
have, all go to one slot then, and each loses what the others had there. Here a prompt goes to the slot whose last
prompt it continues, a new one to an unused slot, then to the one that was used longest ago.
"""

from __future__ import annotations

import hashlib
import json
import threading
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..types import GenerateRequest
from ..wire.images import KIND as IMAGE

ALIKE = 0.5
"""The share of a new prompt that a slot must have for its place in the order of use not to count alone."""
NEARLY = 0.9
"""Slots with this share of the longest beginning count as having it."""


@dataclass
class _Slot:
    number: int
    prompt: str = ""
    used: int = 0
    """When it was used last, by a count of requests; 0: never."""
    is_busy: bool = False


class PromptSlots:
    """The slots of one model, and the last prompt of each. Many threads may share it."""

    def __init__(self, count: int) -> None:
        """Begin with ``count`` slots that are not used."""
        self._slots = [_Slot(number) for number in range(count)]
        self._lock = threading.Lock()
        self._requests = 0

    @contextmanager
    def holding(self, prompt: str) -> Iterator[int | None]:
        """Hold a slot for a prompt, and give its number; None where all are busy: then the library chooses one."""
        with self._lock:
            slot = self._choose(prompt)
            if slot is not None:
                self._requests += 1
                slot.is_busy, slot.prompt, slot.used = True, prompt, self._requests
        try:
            yield None if slot is None else slot.number
        finally:
            if slot is not None:
                slot.is_busy = False

    def _choose(self, prompt: str) -> _Slot | None:
        free = [slot for slot in self._slots if not slot.is_busy]
        if not free:
            return None
        continued = [slot for slot in free if slot.used and prompt.startswith(slot.prompt)]
        if continued:
            return max(continued, key=lambda slot: len(slot.prompt))
        if any(not slot.used for slot in free):
            return next(slot for slot in free if not slot.used)
        lengths = {slot.number: _alike(prompt, slot.prompt) for slot in free}
        least = max(ALIKE * len(prompt), NEARLY * max(lengths.values()))
        alike = [slot for slot in free if lengths[slot.number] >= least]
        return min(alike or free, key=lambda slot: slot.used)


def _alike(left: str, right: str) -> int:
    """Return how many characters two texts have alike at their beginning."""
    lengths = range(1, min(len(left), len(right)) + 1)
    return bisect_left(lengths, True, key=lambda length: left[:length] != right[:length])


def prompt_of(request: GenerateRequest) -> str:
    """Return what a model reads of a request, as one text; in place of an image its digest."""
    if not request.uses_messages:
        ids = request.options.get("prompt")
        return "".join(f"{number} " for number in ids) if isinstance(ids, list) else str(request.prompt)
    messages = request.options.get("messages") or request.messages
    tools = json.dumps(request.options.get("tools"))
    return tools + "".join(f"\0{_line(message)}" for message in messages)


def _line(message: dict[str, object]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        content = [_shortened(part) for part in content]
    return json.dumps([message.get("role"), message.get("tool_calls"), content])


def _shortened(part: object) -> object:
    if isinstance(part, dict) and part.get("type") == IMAGE:
        return hashlib.blake2b(json.dumps(part).encode(), digest_size=16).hexdigest()
    return part
