"""The life of a model: one engine with its state, from start to stop, and the gate in front of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ..engines.base import Engine, ModelParams
from ..errors import EngineError, NotReady, StartTimeout
from ..streams import Cancel
from ..telemetry.metrics import ENGINE, Metrics
from ..types import WorkerType, worker_key
from .admission import Gate
from .counting import CallCounts
from .health import HealthWatch
from .start import start_error, start_in_time
from .states import State

log = logging.getLogger(__name__)

STOP_TIMEOUT = 35.0
"""Seconds that cancelled answers get to release an engine before it is freed."""


class ModelLife:
    """The life of a model of this process. All calls block."""

    def __init__(
        self,
        engine: Engine,
        locate: Callable[[], Path | None] = lambda: None,
        health_changed: Callable[[ModelLife], None] = lambda worker: None,
        metrics: Metrics | None = None,
        locate_files: Callable[[], Mapping[str, Path]] = dict,
    ) -> None:
        """Hold ``engine``, which is not started yet; ``locate`` finds its weights at the start.

        ``locate_files`` finds the files of `Engine.file_names`.

        ``health_changed`` is called in a thread of its own when `is_healthy` changes while the model is ready. Calls
        are counted in ``metrics``.
        """
        self.engine = engine
        self._locate = locate
        self._locate_files = locate_files
        self._health_changed = health_changed
        self._watch: HealthWatch | None = None
        self.params: ModelParams = engine.params
        self.name = self.params.registered_name
        self.worker_type = WorkerType(self.params.worker_type)
        self.key = worker_key(self.name, self.worker_type)
        self._counts = CallCounts(metrics or Metrics(), ENGINE, self.name, self.worker_type.value)
        self.state = State.STOPPED
        self.reason = ""
        """Why it is in that state: the progress of a start, or the cause of a failure."""
        self.started_in = 0.0
        self._lock = threading.Lock()
        self._active: set[Cancel] = set()
        self.gate = self._new_gate()

    def _new_gate(self) -> Gate:
        params = self.params
        return Gate(self.name, params.limit_model_concurrency, params.max_waiting, params.queue_timeout)

    def start(self) -> None:
        """Load the model within ``start_timeout``. Raises StartFailed; then the state is failed, with the reason."""
        with self._lock:
            if self.state in (State.STARTING, State.READY, State.STOPPING):
                raise NotReady(f"model {self.name!r} is {self.state.value}: it can't be started now")
            self.state, self.reason = State.STARTING, "waiting to load"
        began = time.monotonic()
        try:
            self._start_engine()
        except BaseException as error:
            failure = start_error(error, self.name)
            self.state, self.reason = State.FAILED, str(failure)
            is_clear = failure is error or failure.code != "start_failed"  # else a traceback helps
            log.warning("model %s did not start: %s", self.key, failure, exc_info=not is_clear)
            self._counts.start_failed(failure)
            raise failure from error
        self.started_in = time.monotonic() - began
        self.gate = self._new_gate()
        self.state, self.reason = State.READY, ""
        self._watch_health()
        self._counts.started(self.started_in)
        log.info("model %s is ready after %.1f s", self.key, self.started_in)

    def _start_engine(self) -> None:
        engine, limit = self.engine, self.params.start_timeout
        engine.path, engine.files = self._locate(), self._locate_files()
        if not start_in_time(engine, self._progress, self.name, limit):
            # The late engine may still start at any time, so the next start uses a new one.
            self._renew_engine()
            raise StartTimeout(f"model {self.name!r} did not start within {limit:g} s (start_timeout)")

    def _watch_health(self) -> None:
        if self.engine.health_interval is not None:
            self._watch = HealthWatch(self.engine, self.key, lambda: self._health_changed(self))
            self._watch.start()

    @property
    def trouble(self) -> str:
        """Why a model that is ready can't answer now; empty if it can, or the model is not ready."""
        return self._watch.trouble if self._watch is not None and self.state is State.READY else ""

    @property
    def is_healthy(self) -> bool:
        """Whether it is ready, and can answer now."""
        return self.state is State.READY and not self.trouble

    @property
    def shown_state(self) -> tuple[State, str]:
        """The state and reason for people."""
        trouble = self.trouble
        return (State.UNHEALTHY, trouble) if trouble else (self.state, self.reason)

    def _renew_engine(self) -> None:
        self.engine = type(self.engine)(self.engine.params, self.engine.path)

    def _progress(self, sentence: str) -> None:
        self.reason = sentence
        log.info("model %s: %s", self.key, sentence)

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Refuse new work, cancel running answers, and free the engine. A model that does not run is only marked.

        Raises NotReady while it starts or stops, and EngineError if the engine does not end its answers (the model is
        ready again) or its stop raises (the model is failed, with the reason; the next start uses a new engine).
        """
        with self._lock:
            if self.state in (State.STOPPED, State.FAILED):
                self.state, self.reason = State.STOPPED, ""
                return
            if self.state is not State.READY:
                raise NotReady(f"model {self.name!r} is {self.state.value}: it can't be stopped now, try again")
            self.state, self.reason = State.STOPPING, "stopping"
            active = list(self._active)
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
        self.gate.close(lambda: NotReady(f"model {self.name!r} was stopped"))
        for cancel in active:
            cancel.set(NotReady(f"model {self.name!r} was stopped"))
        if not self.gate.wait_idle(timeout):
            self.state, self.reason = State.READY, ""
            self.gate = self._new_gate()
            self._watch_health()
            raise EngineError(f"model {self.name!r} did not stop: its engine does not end {len(active)} answers")
        try:
            self.engine.stop()
        except BaseException as error:
            failure = EngineError(f"model {self.name!r} did not stop in order: {type(error).__name__}: {error}")
            log.warning("%s", failure, exc_info=error)
            self._renew_engine()
            self.state, self.reason = State.FAILED, str(failure)
            raise failure from error
        self.state, self.reason = State.STOPPED, ""
        log.info("model %s is stopped", self.key)

    def quarantine(self) -> None:
        """Mark it as failed, because its process died too often during its load. A start by hand tries again."""
        self.state = State.FAILED
        self.reason = (
            "quarantined: the process died each of the last times that it loaded; "
            f"see the log, then start it by hand: modelyard models start {self.name}"
        )

    def check_ready(self) -> None:
        """Raise NotReady, with the reason, unless it is ready."""
        if self.state is State.READY:
            return
        why = f" ({self.reason})" if self.reason else ""
        raise NotReady(f"model {self.name!r} is {self.state.value}{why}", retry_after=5)
