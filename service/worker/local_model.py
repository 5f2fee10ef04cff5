"""LocalModel: one model of this process, and the lock of its lifecycle."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..errors import Conflict, NotReady
from ..types import JSONObject
from .life import STOP_TIMEOUT
from .states import State
from .worker import ModelWorker


@dataclass
class LocalModel:
    """One model of this process, with what was set over HTTP for it. A change of parameters replaces its worker."""

    worker: ModelWorker
    over_http: JSONObject
    claimed: int = 0
    """Slots that a change under way holds."""
    _lifecycle: threading.Lock = field(default_factory=threading.Lock)

    @property
    def slots(self) -> int:
        """Slots that count against the budget."""
        return max(self.worker.gate.slots, self.claimed)

    def refuse_while_busy(self) -> None:
        """Raise Conflict when the model runs, or is about to be started, stopped or changed."""
        state = self.worker.state
        if state in (State.STOPPED, State.FAILED):
            if not self._lifecycle.locked():
                return
            state = State.STARTING
        raise Conflict(f"model {self.worker.key} is {state.value} already: shut it down first, or restart it")

    @contextmanager
    def alone(self, timeout: float | None = None) -> Iterator[None]:
        """Hold the lifecycle lock: one start, stop or change at a time.

        Raises NotReady when another takes longer than ``timeout`` seconds (default: a stop, the wait for memory, and a
        start).
        """
        limit = STOP_TIMEOUT + 2 * self.worker.params.start_timeout if timeout is None else timeout
        if not self._lifecycle.acquire(timeout=limit):
            raise NotReady(f"model {self.worker.key} is {self.worker.state.value}: it was not free within {limit:g} s")
        try:
            yield
        finally:
            self._lifecycle.release()
