"""Recovery: start the models again that ran before, after the previous process has released them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from ..errors import ModelyardError
from ..files import state_folder
from ..settings.settings import Settings
from ..types import JSONObject, WorkerType, split_worker_key
from ..worker.local_models import LocalModels
from ..worker.protocol import ModelEvent
from ..worker.states import State
from .state import OwnerLock, StateFile

log = logging.getLogger(__name__)


class Recovery:
    """The lock and the state file of a service. Objects only, until `take_over`.

    If the state folder can't be written, the models are started all the same, and nothing is remembered.
    """

    def __init__(self, models: LocalModels, settings: Settings) -> None:
        """Add models to ``models``, from the state folder of ``settings``."""
        self._models = models
        self._settings = settings
        self.waiting_for = ""
        """Why this process waits for another process that holds the models; empty if it does not wait."""
        self.problems: dict[str, str] = {}
        """Models that could not even be declared, with the reason."""
        self._configured: set[str] = set()
        self._state: StateFile | None = None
        self._lock: OwnerLock | None = None
        self._unusable = ""

    @property
    def trouble(self) -> str:
        """Why changes of the models are not remembered; empty if they are."""
        if self._state is None:
            return self._unusable
        if self._lock is not None and self._lock.is_lost():
            return f"the state folder {self._lock.path.parent} was removed, or its lock: another process may start too"
        return self._state.trouble

    def take_over(self, halt: threading.Event) -> None:
        """Wait until the models are free, or ``halt`` is set. Then read which models ran, and record each change."""
        settings = self._settings
        try:
            folder = state_folder(settings.state_path, settings.instance_name)
            lock = OwnerLock(folder / "lock")
            is_free = lock.acquire()
        except OSError as error:
            self._unusable = f"the state folder {settings.state_path} can't be used: {error.strerror or error}"
            log.warning("%s: nothing is remembered", self._unusable)
            return
        self._lock = lock
        if not is_free:
            self.waiting_for = f"pid {lock.holder().get('pid')} still holds the models of this service"
            log.info("waiting: %s", self.waiting_for)
            lock.wait(halt, self._report_waiting)
            self.waiting_for = ""
        if halt.is_set():
            return
        self._state = StateFile(folder / "models.json")
        if settings.fresh:
            self._state.forget_all()
        self._models.subscribe(self._remember)

    def _report_waiting(self, reason: str) -> None:
        self.waiting_for = reason
        log.error("%s", reason)

    def declare(self, names: Sequence[str]) -> set[str]:
        """Add the configured models ``names``, and those started over HTTP; return the keys of models not to start.

        These were stopped over HTTP, or are quarantined; the quarantined ones are marked as failed.
        """
        quarantined = set(self._state.count_deaths()) if self._state else set()
        kept = self._state.models() if self._state else {}
        for name in names:
            entries = [entry for entry in kept.values() if entry.get("model") == name and not entry.get("added")]
            self._add(name, None, entries[-1] if entries else {})
        self._configured = set(self._models.keys())
        for key, entry in kept.items():
            if entry.get("added") and entry.get("model") and key not in self._configured:
                self._add(entry["model"], split_worker_key(key)[1], entry)
        for worker in self._models.workers():
            if worker.key in quarantined:
                worker.quarantine()
        return {key for key, entry in kept.items() if entry.get("stopped")} | quarantined

    def _add(self, name: str, worker_type: WorkerType | None, entry: JSONObject) -> None:
        """Add a model, with the parameters that were set over HTTP. If it can't be added, keep the reason."""
        try:
            self._models.add(name, worker_type, entry.get("params", {}))
        except ModelyardError as error:
            log.warning("model %s can't be declared: %s", name, error)
            self.problems[name] = str(error)

    def _remember(self, event: ModelEvent) -> None:
        """Record the change of a model for the next process."""
        if event.kind in ("health", "starting"):
            return
        state, key = self._state, event.worker.key
        assert state is not None
        if event.kind == "loading":  # not while it waits for memory: then another model may end the process
            state.begin_start(key)
        elif event.kind == "failed":
            state.end_start(key)
        elif event.kind in ("started", "loaded", "unloaded"):
            state.end_start(key)
            added = key not in self._configured
            name = event.worker.params.model_name
            state.update(key, model=name, params=event.over_http, added=added, stopped=False, quarantined=False)
        elif event.kind == "forgotten" and key not in self._configured:
            state.forget(key)
        else:
            # A model that failed to start counts as not stopped: the next process tries again.
            stopped = event.kind != "changed" or event.worker.state is State.STOPPED
            state.update(key, model=event.worker.params.model_name, params=event.over_http, stopped=stopped)

    def end(self) -> None:
        """Record that this process ends on request, and release the lock. A second call does nothing."""
        try:
            if self._state is not None:
                self._state.end_all_starts()
        finally:
            if self._lock is not None:
                self._lock.release()
