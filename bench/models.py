"""The models that both sides host for the figures."""

from __future__ import annotations

from dataclasses import dataclass

DIMENSIONS = 384


@dataclass(frozen=True)
class EchoModel:
    """A model that answers " token" ``max_new_tokens`` times, ``delay`` seconds each, to ``slots`` requests at once.

    ``waiting`` requests more may wait in line; the peer's line has no limit.
    """

    name: str
    delay: float = 0.0
    slots: int = 64
    waiting: int = 64
    embeds: bool = False


FAST = EchoModel("echo")
SLOW = EchoModel("echo-slow", delay=0.05, slots=208)
EMBEDDER = EchoModel("echo-embed", embeds=True)


def prompt(model: str, pieces: int) -> dict[str, object]:
    """Return the body of a request for ``pieces`` pieces."""
    return {
        "model": model,
        "messages": [{"role": "human", "content": "Name the planets of the solar system, nearest first."}],
        "max_new_tokens": pieces,
        "temperature": 0.7,
    }
