"""The condition of a model: its state, why it is in that state, and whether it accepts requests."""

from __future__ import annotations

import math
import time

from ..engines.base import Engine, ModelParams
from ..errors import NotReady
from ..types import WorkerType, worker_key
from .health import HealthWatch
from .states import AVAILABLE, State


class ModelCondition:
    """An engine with its state. `ModelLife` changes it."""

    def __init__(self, engine: Engine) -> None:
        """Hold ``engine``, which is not started yet."""
        self.engine = engine
        self.params: ModelParams = engine.params
        self.name = self.params.registered_name
        self.worker_type = WorkerType(self.params.worker_type)
        self.key = worker_key(self.name, self.worker_type)
        self.state = State.STOPPED
        self.reason = ""
        """Why it is in that state: the progress of a start, or the cause of a failure."""
        self._retry_at = 0.0
        self._watch: HealthWatch | None = None

    def quarantine(self) -> None:
        """Mark it as failed, because its process died too often during its load. A start by hand tries again."""
        self.state = State.FAILED
        self.reason = (
            "quarantined: the process died each of the last times that it loaded; "
            f"see the log, then start it by hand: modelyard models start {self.name}"
        )

    @property
    def trouble(self) -> str:
        """Why a model that is ready can't answer now; empty if it can, or the model is not ready."""
        watch = self._watch  # another thread may end it
        return watch.trouble if watch is not None and self.state is State.READY else ""

    @property
    def is_available(self) -> bool:
        """Whether it accepts requests: it is ready, or is loaded for them."""
        return self.state in AVAILABLE

    @property
    def is_healthy(self) -> bool:
        """Whether it is available, and as far as is known can answer."""
        return self.is_available and not self.trouble

    @property
    def shown_state(self) -> tuple[State, str]:
        """The state and reason for people."""
        trouble = self.trouble
        return (State.UNHEALTHY, trouble) if trouble else (self.state, self.reason)

    def check_available(self) -> None:
        """Raise NotReady, with the reason, unless it is available; also for a while after it could not be loaded."""
        if self.state is State.READY:
            return
        if not self.is_available:
            why = f" ({self.reason})" if self.reason else ""
            raise NotReady(f"model {self.name!r} is {self.state.value}{why}", retry_after=5)
        if self.state is State.UNLOADED and time.monotonic() < self._retry_at:
            raise self._not_loaded()

    def _not_loaded(self) -> NotReady:
        pause = max(1, math.ceil(self._retry_at - time.monotonic()))
        return NotReady(f"model {self.name!r} could not be loaded: {self.reason}", retry_after=pause)

    def _stopped(self) -> NotReady:
        return NotReady(f"model {self.name!r} was stopped")
