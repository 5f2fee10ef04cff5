"""The life of a model: one engine from start to stop, and what is in front of it: the gate, and joint texts."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..engines.base import CancelEvent, Engine, Vectors
from ..errors import EngineError, ModelyardError, NotReady, Overloaded, StartTimeout
from ..streams import Cancel
from ..telemetry.metrics import ENGINE, Metrics
from ..types import ModelMetadata
from .admission import Gate
from .condition import ModelCondition
from .counting import CallCounts
from .health import HealthWatch
from .joint import JointTexts
from .keeper import Keeper, LoadCause, UnloadCause
from .room import Lease, Room
from .start import start_error, start_in_time
from .states import State

log = logging.getLogger(__name__)

STOP_TIMEOUT = 35.0
"""Seconds that cancelled answers get to release an engine before it is freed."""
RETRY_PAUSE = 5.0
"""Seconds after a failed load in which requests are refused with its error; the next one tries again."""


class ModelLife(ModelCondition):
    """The life of a model of this process. All calls block. It is a `room.Guest`."""

    def __init__(
        self,
        engine: Engine,
        locate: Callable[[], Path | None] = lambda: None,
        keeper: Keeper | None = None,
        metrics: Metrics | None = None,
        room: Room | None = None,
        *,
        locate_files: Callable[[], Mapping[str, Path]] = dict,
    ) -> None:
        """Hold ``engine``, which is not started yet; ``locate`` finds its weights at the start.

        ``locate_files`` finds the files of `Engine.file_names`. ``room`` has the memory of all models, by default one
        without a limit. Calls are counted in ``metrics``.
        """
        super().__init__(engine)
        self._locate = locate
        self._locate_files = locate_files
        self._keeper = keeper or Keeper()
        self._room = room or Room()
        self._counts = CallCounts(metrics or Metrics(), ENGINE, self.name, self.worker_type.value)
        self.cause: LoadCause = "start"
        """Why it was started last, or is being started."""
        self.started_in = 0.0
        self.last_used = self._room.clock()
        self._lease: Lease | None = None
        self._starting = Cancel()
        self._stands_in = False
        """Whether requests stand in line for its start, which has not begun."""
        self._last_metadata = ModelMetadata(self.name)
        self._lock = threading.Lock()
        self._active: set[Cancel] = set()
        self.gate = self._new_gate()
        params = self.params
        self._joint = JointTexts(self._embed, engine.joint_texts, params.joint_letters, params.joint_delay / 1000)

    def _new_gate(self) -> Gate:
        params = self.params
        return Gate(self.name, params.limit_model_concurrency, params.max_waiting, params.queue_timeout)

    def _embed(self, texts: Sequence[str], cancel: CancelEvent, **more: Any) -> Vectors:
        self._counts.batch(len(texts))
        return self.engine.embed(texts, cancel, **more)  # of the engine now: a failed stop renews it

    # Start

    def start(self, cause: LoadCause = "call") -> None:
        """Load the model within ``start_timeout``, once it has room. It may be unloaded after it: there was no room.

        Raises StartFailed, or NotReady if it is stopped meanwhile. Then it is failed, stopped, or as before unloaded.
        """
        with self._lock:
            previous = self.state
            stands_in, self._stands_in = self._stands_in, False
            if previous not in (State.STOPPED, State.FAILED, State.UNLOADED) and not stands_in:
                raise NotReady(f"model {self.name!r} is {previous.value}: it can't be started now")
            self.state = State.LOADING if stands_in or previous is State.UNLOADED else State.STARTING
            self.reason, self.cause = "waiting to load", cause
            if not stands_in:
                self._starting = Cancel()
        began = time.monotonic()
        try:
            lease = self._enter(cause)
            if lease is None:
                self._rest()
                return
            began = time.monotonic()
            self._start_engine(lease)
        except BaseException as error:
            failure = start_error(error, self.name)
            self._note_failure(previous, failure, is_clear=failure is error or failure.code != "start_failed")
            raise failure from error
        self._lease = lease
        self.started_in = time.monotonic() - began
        self.last_used = self._room.clock()
        self._counts.started(self.started_in, cause)
        if self.state is State.STARTING:
            self.gate = self._new_gate()
        with self._lock:
            self.state, self.reason = State.READY, ""
            self.gate.open()
        lease.loaded()
        self._watch_health()
        log.info("model %s is ready after %.1f s", self.key, self.started_in)
        self.engine.when_lost(self._lose_engine)

    def stand_in(self, previous: ModelLife) -> None:
        """Let requests stand in line from now on, for the start that follows: it takes the place of ``previous``."""
        previous._note_metadata()
        with self._lock:
            self.gate = self._new_gate()
            self.gate.hold()
            self._last_metadata, self._starting, self._stands_in = previous._last_metadata, Cancel(), True
            self.state, self.reason = State.LOADING, "waiting until the one before it has stopped"

    def _lose_engine(self, reason: str) -> None:
        """Fail, and refuse what waits in line. Answers that have begun end with the error of the engine."""
        with self._lock:
            if self.state is not State.READY:
                return
            self.state, self.reason = State.FAILED, reason
        log.warning("model %s has failed: %s", self.key, reason)
        self._stop_watch()
        self.gate.close(lambda: NotReady(f"model {self.name!r} has failed: {reason}", retry_after=5))
        self._release()
        self._keeper.lost(self)

    def _enter(self, cause: LoadCause) -> Lease | None:
        """Return the lease of its memory; None where it stays unloaded. Raises StartFailed, NotReady."""
        engine = self.engine
        engine.path, engine.files = self._locate(), self._locate_files()
        size = 0 if self._room.budget is None else engine.memory
        is_wanted = (lambda: True) if cause == "call" else (lambda: self.gate.waiting > 0)
        self.reason = "waiting for memory"
        return self._room.enter(self, size, self._starting, is_wanted, self.params.start_timeout)

    def _rest(self) -> None:
        """Stay unloaded, until a request wants it."""
        if self.state is State.STARTING:
            self.gate = self._new_gate()
        self.gate.hold()
        with self._lock:
            self.state, self.reason = State.UNLOADED, ""
        log.info("model %s stays unloaded until a request wants it", self.key)
        self._load_for_line()

    def _load_for_line(self) -> None:
        """Have the model, which is unloaded, loaded for the requests that stand in its line."""
        if self.gate.waiting:
            try:
                self._keeper.wanted(self)
            except Overloaded as error:  # of its requests, not of the model that it makes room for
                reason = str(error)
                self.gate.refuse(lambda: Overloaded(reason, retry_after=1))

    def _start_engine(self, lease: Lease) -> None:
        limit, cancel = self.params.start_timeout, self._starting
        if self.state is State.LOADING:
            self.gate.loading()
        try:
            self._keeper.loading(self)
            is_late = not start_in_time(
                self.engine, self._progress, self.name, timeout=limit, cancel=cancel, when_gone=lease.release
            )
        except BaseException:
            lease.release()
            raise
        if is_late:
            # The late engine may still start at any time, so the next start uses a new one.
            self._renew_engine()
            if cancel.is_set():
                raise cancel.error
            raise StartTimeout(f"model {self.name!r} did not start within {limit:g} s (start_timeout)")

    def _note_failure(self, previous: State, failure: ModelyardError, *, is_clear: bool) -> None:
        """Note why a start has failed, and refuse the requests that wait for it."""
        if self._starting.is_set():
            self.gate.close(self._stopped)
            self.state, self.reason = State.STOPPED, ""
            log.info("model %s was stopped while it was loaded", self.key)
            return
        log.warning("model %s did not start: %s", self.key, failure, exc_info=not is_clear)
        self._counts.start_failed(failure)
        self._retry_at = time.monotonic() + RETRY_PAUSE
        self.state, self.reason = (State.UNLOADED if previous is State.UNLOADED else State.FAILED), str(failure)
        self.gate.refuse(self._not_loaded)

    def cancel_start(self) -> None:
        """End a start that is under way: it is stopped then, and its engine is freed as soon as that can be."""
        with self._lock:
            if self.state not in (State.STARTING, State.LOADING):
                return
            starting = self._starting
        starting.set(self._stopped())

    def _renew_engine(self) -> None:
        self.engine = self.engine.renewed()

    def _progress(self, sentence: str) -> None:
        self.reason = sentence
        log.info("model %s: %s", self.key, sentence)

    # Memory

    @property
    def pinned(self) -> bool:
        """Whether it is never unloaded."""
        return self.params.pinned

    @property
    def memory(self) -> int:
        """The bytes that it takes of the memory budget now."""
        lease = self._lease
        return 0 if lease is None else lease.size

    @property
    def is_in_use(self) -> bool:
        """Whether requests of it run."""
        return not self.gate.is_idle

    def hold(self) -> None:
        """Let new requests stand in line, while it is ready."""
        with self._lock:
            if self.state is State.READY:
                self.gate.hold()

    def let_go(self) -> None:
        """Let requests run again, while it is ready."""
        with self._lock:
            if self.state is State.READY:
                self.gate.open()

    def make_room(self) -> bool:
        """Unload it by its keeper, for another model; return False if that is not possible now."""
        return self._keeper.make_room(self)

    def unload(self, cause: UnloadCause) -> bool:
        """Free the engine of a model that is ready and idle, until a request wants it. Return False if it is not.

        An engine that fails to stop is replaced, and its memory counts as free.
        """
        with self._lock:
            if self.state is not State.READY or not self.gate.hold(only_idle=True):
                return False
            self.state, self.reason = State.UNLOADING, ""
        self._stop_watch()
        self._note_metadata()
        try:
            self._stop_engine()
        except EngineError as error:
            self.reason = str(error)
        self._counts.unloaded(cause)
        log.info("model %s is unloaded (%s)", self.key, cause)
        self.state = State.UNLOADED
        self._load_for_line()
        return True

    def _note_metadata(self) -> None:
        """Keep the metadata of a loaded engine for the time when it is not."""
        if self._lease is None:
            return
        try:
            self._last_metadata = self.engine.metadata()
        except Exception as error:  # noqa: BLE001 - the engine's: what was known last stays
            log.warning("model %s: its metadata can't be read: %s", self.key, error)

    # Stop

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Refuse new work, cancel running answers, and free the engine. A model that does not run is only marked.

        Raises NotReady while it starts or stops, and EngineError if the engine does not end its answers (the model is
        ready again) or its stop raises (the model is failed, with the reason; the next start uses a new engine).
        """
        with self._lock:
            if self.state in (State.STOPPED, State.FAILED, State.UNLOADED):
                self.state, self.reason = State.STOPPED, ""
                self.gate.close(self._stopped)
                return
            if self.state is not State.READY:
                raise NotReady(f"model {self.name!r} is {self.state.value}: it can't be stopped now, try again")
            self.state, self.reason = State.STOPPING, "stopping"
            active = list(self._active)
        self._stop_watch()
        self.gate.close(self._stopped)
        for cancel in active:
            cancel.set(self._stopped())
        if not self.gate.wait_idle(timeout):
            self.state, self.reason = State.READY, ""
            self.gate = self._new_gate()
            self._watch_health()
            raise EngineError(f"model {self.name!r} did not stop: its engine does not end {len(active)} answers")
        try:
            self._stop_engine()
        except EngineError as error:
            self.state, self.reason = State.FAILED, str(error)
            raise
        self.state, self.reason = State.STOPPED, ""
        log.info("model %s is stopped", self.key)

    def _stop_engine(self) -> None:
        """Free the engine and its memory. Raises EngineError if its stop raises; then the next start uses a new one."""
        try:
            self.engine.stop()
        except BaseException as error:
            failure = EngineError(f"model {self.name!r} did not stop in order: {type(error).__name__}: {error}")
            log.warning("%s", failure, exc_info=error)
            self._renew_engine()
            raise failure from error
        finally:
            self._release()

    def _release(self) -> None:
        """Release its memory."""
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    # Health

    def _watch_health(self) -> None:
        if self.engine.health_interval is not None:
            self._watch = HealthWatch(self.engine, self.key, lambda: self._keeper.health_changed(self))
            self._watch.start()

    def _stop_watch(self) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
