"""Restarts: start the models again whose engine was lost, with growing pauses while one loss follows another."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import Overloaded
from ..threads import start_thread
from .life import ModelLife
from .states import State

log = logging.getLogger(__name__)

IN_A_ROW = 60.0
"""Seconds after a start when a loss does not count as one more in a row."""
LONGEST_PAUSE = 30.0


@dataclass
class _Starts:
    """The starts in a row of one model, and when the last one ended well."""

    count: int = 0
    ended: float = 0.0


class Restarts:
    """The restarts of all models of a process. Each model that waits has a thread; others have none."""

    def __init__(
        self,
        start: Callable[[ModelLife], bool],
        wait: Callable[[float], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start models by ``start``, which returns False where it is to be tried again.

        ``wait`` blocks for the seconds of a pause, and returns True to give up; default: until `stop`.
        """
        self._start = start
        self._stopping = threading.Event()
        self._wait = wait or self._stopping.wait
        self._clock = clock
        self._starts: dict[str, _Starts] = {}

    def begin(self, worker: ModelLife) -> None:
        """Start a model again: at once, after a loss soon after a start 1 s later, then 2, 4, at most 30 s."""
        thread = threading.Thread(target=self.run, args=(worker,), name=f"restart-{worker.key}", daemon=True)
        try:
            start_thread(thread)
        except Overloaded as error:
            log.warning("model %s is not started again: %s", worker.key, error)

    def run(self, worker: ModelLife) -> None:
        """Start a model again in this thread; return when that is settled, or after `stop`."""
        starts = self._starts.setdefault(worker.key, _Starts())
        if self._clock() - starts.ended >= IN_A_ROW:
            starts.count = 0
        while True:
            pause = min(LONGEST_PAUSE, 2.0 ** (starts.count - 1)) if starts.count else 0.0
            starts.count += 1
            if pause and worker.state is State.FAILED:
                worker.reason = f"{worker.reason}; it is started again after {pause:g} s"
            if self._wait(pause):
                return
            if self._start(worker):
                starts.ended = self._clock()
                return

    def stop(self) -> None:
        """Start nothing any more; a start that is under way goes on."""
        self._stopping.set()
