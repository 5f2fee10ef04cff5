"""The states of a model."""

from __future__ import annotations

from enum import Enum


class State(str, Enum):
    """The state of a model."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    """It runs and is called, although what computes its answers does not answer: `ModelLife.shown_state` alone."""
    FAILED = "failed"
    STOPPING = "stopping"
