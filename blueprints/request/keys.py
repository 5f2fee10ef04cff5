"""The API key of the current request: the models that it may use, and what the answer says of its limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flask import Response, g

from ...access.keys import Key
from ...cluster.registry.base import MANAGER_KEY
from ...errors import Forbidden
from ...types import GenerateRequest, JSONObject
from ...worker.protocol import Keys

CHARACTERS_OF_TOKEN = 4
"""The characters of a token, about: a prompt is not counted before it is admitted."""
ASSUMED_TOKENS = 256
"""The tokens that are reserved for an answer whose request has no limit of them."""


def key_of_request() -> Key | None:
    """Return the API key that the guard has found; None for a request without one."""
    line = g.get("modelyard_line")
    key: Key | None = None if line is None else line.api_key
    return key


def visible(models: Iterable[str]) -> list[str]:
    """Return those of ``models`` that the key of the request may use; without a key all."""
    key = key_of_request()
    return [model for model in models if key is None or key.allows(model)]


def may_see(key: str) -> bool:
    """Return whether the key of the request may use the model of a worker key; services themselves are no models."""
    return key == MANAGER_KEY or bool(visible([key.rpartition("@")[0]]))


def check_model(model: str, key: Key | None) -> None:
    """Raise Forbidden if ``key`` may not use ``model``, by the name that the client has written; None may use all."""
    if key is not None and not key.allows(model):
        raise Forbidden(f"the key {key.name} may not use the model {model!r}: it may use {', '.join(key.models)}")


def characters_of(prompt: GenerateRequest) -> int:
    """Return the characters of a prompt, or of messages; their images are no text."""
    return _length(prompt.prompt) + sum(_length(message.get("content")) for message in prompt.messages)


def _length(content: Any) -> int:
    """Return the characters of a content: a text, or parts of which some may be images; others may have any form."""
    if isinstance(content, list):
        return sum(_length(part.get("text") if isinstance(part, Mapping) else part) for part in content)
    return len(content if isinstance(content, str) else str(content or ""))


def total_tokens(usage: JSONObject | None) -> int | None:
    """Return all tokens of a ``usage``; None if it is not known."""
    if usage is None:
        return None
    return usage.get("total_tokens") or (usage.get("prompt_tokens") or 0) + (usage.get("completion_tokens") or 0)


def prompt_tokens(characters: int) -> int:
    """Return about how many tokens a text of so many characters has."""
    return -(-characters // CHARACTERS_OF_TOKEN)


def reserved_tokens(key: Key, prompt: int, answers: Sequence[int | None]) -> int:
    """Return the tokens to reserve for a prompt and its answers, each with its limit of tokens, or None.

    What is only assumed never makes a request larger than the limit of the key.
    """
    certain = prompt + sum(limit for limit in answers if limit is not None)
    assumed = ASSUMED_TOKENS * sum(limit is None for limit in answers)
    room = (key.limits.tokens or 0) - certain
    return certain + max(0, min(assumed, room))


def add_headers(response: Response, keys: Keys, key: Key) -> None:
    """Add what is left of the limits of a key, if it has any."""
    if key.limits:
        for name, value in keys.headers(key):
            response.headers.add(name, value)
