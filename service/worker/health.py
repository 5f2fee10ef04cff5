"""Watch the health of a model that runs: a thread that looks again and again whether its engine can answer."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..engines.base import Engine
from ..errors import ModelyardError, Overloaded
from ..streams import Cancel
from ..threads import BackgroundThread

log = logging.getLogger(__name__)


class HealthWatch:
    """The health of one engine, by its `Engine.health`. `start` and `stop` it once."""

    def __init__(self, engine: Engine, key: str, changed: Callable[[], None]) -> None:
        """Look every `Engine.health_interval` seconds, for the model with the worker key ``key``.

        ``changed`` is called in the thread of the watch when the model becomes unhealthy, or healthy again.
        """
        self._engine = engine
        self._key = key
        self._changed = changed
        self._cancel = Cancel()
        self._thread = BackgroundThread(f"health-{key}", self._look)
        self._has_started = False
        self.trouble = ""
        """Why the engine can't answer now; empty if it can."""

    def start(self) -> None:
        """Start the thread; the first look comes after one interval. Without room for a thread, nothing is watched."""
        try:
            self._thread.start()
        except Overloaded as error:
            log.warning("the health of model %s is not watched: %s", self._key, error)

    def stop(self) -> None:
        """End a look that is under way, and the thread. After that, ``changed`` is not called any more."""
        self._cancel.set()
        if not self._thread.stop():
            log.warning("the look at the health of model %s does not end", self._key)

    def _look(self) -> float | None:
        if self._has_started:
            self._note(self._trouble_now())
        self._has_started = True
        return self._engine.health_interval

    def _trouble_now(self) -> str:
        try:
            return self._engine.health(self._cancel)
        except ModelyardError as error:
            return str(error)
        except Exception as error:
            log.exception("the health of model %s can't be told", self._key)
            return type(error).__name__

    def _note(self, trouble: str) -> None:
        if self._cancel.is_set():
            return
        was_healthy, self.trouble = not self.trouble, trouble
        if was_healthy is not bool(trouble):
            return
        if trouble:
            log.warning("model %s is unhealthy: %s", self._key, trouble)
        else:
            log.info("model %s is healthy again", self._key)
        self._changed()
