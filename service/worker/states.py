"""The states of a model."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum


class State(str, Enum):
    """The state of a model."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    """It runs and is called, although what computes its answers does not answer: `ModelLife.shown_state` alone."""
    UNLOADED = "unloaded"
    """It is not in memory, and the next request loads it."""
    LOADING = "loading"
    """It is loaded again, or waits for its memory; requests wait for it."""
    UNLOADING = "unloading"
    FAILED = "failed"
    STOPPING = "stopping"


_BEST_FIRST = (
    *(State.READY, State.UNHEALTHY, State.LOADING, State.UNLOADED, State.UNLOADING),
    *(State.STARTING, State.STOPPING, State.STOPPED, State.FAILED),
)
"""All states, the one that answers soonest first."""

AVAILABLE = frozenset({State.READY, State.UNHEALTHY, State.UNLOADED, State.LOADING, State.UNLOADING})
"""The states in which a model accepts requests."""


def best_states(states: Iterable[tuple[str, State]]) -> dict[str, State]:
    """Return for each name the best of its states: the one that answers soonest."""
    best: dict[str, State] = {}
    for name, state in states:
        best[name] = min(state, best.get(name, state), key=_BEST_FIRST.index)
    return best
