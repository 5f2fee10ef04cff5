"""One process of a role: its manager, the guards in front of it, and its life from start to stop."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from ..cluster.hosting.host import ModelHost, Shortcut
from ..cluster.hosting.manager import is_starting
from ..cluster.membership import Cluster
from ..errors import Draining, ModelyardError, NotReady
from ..files import state_folder
from ..models.catalog import Catalog
from ..settings.settings import Settings
from ..streams import Cancel
from ..telemetry.tracing import Tracing
from ..types import JSONObject, WorkerType, split_worker_key
from ..worker.admission import Budget
from ..worker.declarations import Declarations
from ..worker.manager import LocalWorkerManager
from ..worker.protocol import ModelEvent, WorkerManager
from ..worker.worker import ModelWorker, State
from .disconnect import DisconnectWatcher
from .state import OwnerLock, StateFile

log = logging.getLogger(__name__)

LOADER_TIMEOUT = 5.0
"""Seconds that a stop waits for a model that is just loading."""

HOST_INTERVAL = 0.2
"""Seconds between two looks whether a model host has started its models."""

CUT_TIMEOUT = 5.0
"""Seconds that answers get to send their last chunk, after the drain cut them off."""


class Runtime:
    """Objects only, until `start`: no thread, lock, socket or model before it."""

    def __init__(self, settings: Settings, environ: Mapping[str, str] | None = None) -> None:
        """Build the role that ``settings`` name. Raises ConfigError."""
        self.settings = settings
        self.catalog = Catalog.load(settings.model_tables, settings.models_paths)
        has_models = settings.owns_models or settings.is_hosted
        self.names = self.catalog.names_to_start(settings.models) if has_models else []
        """The models of this service that are started, by this process or its model host."""
        self.budget = Budget(settings.threads, settings.reserve)
        self.tracing = Tracing(settings)
        self.local = LocalWorkerManager(
            Declarations(settings, self.catalog, environ),
            self.budget,
            settings.host,
            settings.port,
            tracing=self.tracing,
        )
        self.local.incomplete = self._why_incomplete
        self.host = ModelHost(settings, tracing=self.tracing) if settings.is_hosted else None
        """The process that holds the models, where they are hosted."""
        self.own: WorkerManager = self.local
        """The manager of the models of this service alone."""
        if self.host is not None:
            self.own = self.host.manager
        self.cluster: Cluster | None = None
        """What ties this process to others. A worker without a registry works alone; a model host has its own."""
        if settings.role != "worker" or (settings.registry and self.host is None):
            shortcut = None if self.host is None else Shortcut(self.host, settings)
            self.cluster = Cluster(settings, self.local, shortcut, tracing=self.tracing)
        manager = None if self.cluster is None else self.cluster.manager
        self.manager: WorkerManager = manager or self.own
        self.watcher = DisconnectWatcher()
        self.requests: set[Cancel] = set()
        """What cancels each data-plane request that is under way."""
        self.on_fatal: Callable[[str], None] | None = None
        """Called with the reason when a start failed and ``on_load_failure`` is ``exit``."""
        self.problems: dict[str, str] = {}
        """Models that could not even be declared, with the reason."""
        self._configured: set[str] = set()
        self._state: StateFile | None = None
        self._lock: OwnerLock | None = None
        self._starting = threading.Lock()
        self._loader: threading.Thread | None = None
        self._stopped = False
        self._halt = threading.Event()
        self._declared = threading.Event()
        self._loaded = threading.Event()
        self._draining = threading.Event()
        self._waiting_for = ""

    # Start

    def start(self) -> None:
        """Start the watcher and the loader; return at once. A second call does nothing."""
        if self._loader is not None:
            return
        with self._starting:
            if self._loader is not None or self._halt.is_set():
                return
            self.local.host, self.local.port = self.settings.host, self.settings.port
            self.tracing.start()
            if self.cluster is not None:
                self.cluster.start()
            if self.host is not None:
                self.host.start()
            self.watcher.start()
            self._loader = threading.Thread(target=self._load, name="modelyard-loader", daemon=True)
            self._loader.start()

    def _load(self) -> None:
        try:
            if self.settings.owns_models:
                self._take_over()
            while self.host is not None and is_starting(self.host.status()) and not self._halt.wait(HOST_INTERVAL):
                pass
            if not self._halt.is_set():
                if self.cluster is not None:
                    self.cluster.join()
                with self.tracing.service_start():
                    skipped = self._declare()
                    self._declared.set()
                    self.local.start(skip=skipped, halted=self._halt.is_set)
                if self.cluster is not None:
                    # Who restarts services one after the other waits until this one is ready: then others know of it.
                    self.cluster.wait_heard()
        except Exception as error:
            log.exception("the models could not be loaded")
            self.problems["*"] = str(error)
        self._declared.set()
        self._loaded.set()
        failed = self.problems | {w.key: w.reason for w in self.local.workers() if w.state is State.FAILED}
        if failed and self.settings.on_load_failure == "exit" and self.on_fatal is not None:
            self.on_fatal("; ".join(f"{name}: {reason}" for name, reason in failed.items()))

    def _take_over(self) -> None:
        """Wait until a predecessor has let go of the models, then read what it left."""
        settings = self.settings
        try:
            folder = state_folder(settings.state_path, settings.instance_name)
            lock = OwnerLock(folder / "lock")
            is_free = lock.acquire()
        except OSError as error:
            log.warning("the state folder %s can't be used (%s): nothing is remembered", settings.state_path, error)
            return
        self._lock = lock
        if not is_free:
            self._waiting_for = f"the process before this one, pid {lock.holder().get('pid')}, still holds the models"
            log.info("waiting: %s", self._waiting_for)
            lock.wait(self._halt, self._say_waiting)
            self._waiting_for = ""
        if self._halt.is_set():
            return
        self._state = StateFile(folder / "models.json")
        if settings.fresh:
            self._state.forget_all()
        self.local.subscribe(self._remember)

    def _say_waiting(self, reason: str) -> None:
        self._waiting_for = reason
        log.error("%s", reason)

    def _declare(self) -> set[str]:
        """Add the models of the configuration and those started over HTTP; return the keys not to be started."""
        quarantined = set(self._state.count_deaths()) if self._state else set()
        kept = self._state.models() if self._state else {}
        for name in self.names if self.settings.owns_models else ():
            own = [entry for entry in kept.values() if entry.get("model") == name and not entry.get("added")]
            self._add(name, None, own[-1] if own else {})
        self._configured = {worker.key for worker in self.local.workers()}
        for key, entry in kept.items():
            if entry.get("added") and entry.get("model") and key not in self._configured:
                self._add(entry["model"], split_worker_key(key)[1], entry)
        skipped = {key for key, entry in kept.items() if entry.get("stopped")} | quarantined
        for worker in self.local.workers():
            if worker.key in quarantined:
                worker.quarantine()
        return skipped

    def _add(self, name: str, worker_type: WorkerType | None, kept: JSONObject) -> None:
        """Add one model, with what was set over HTTP when it last ran; one that can't be is told, the others live."""
        try:
            self.local.add(name, worker_type, kept.get("params", {}))
        except ModelyardError as error:
            log.warning("model %s can't be declared: %s", name, error)
            self.problems[name] = str(error)

    def _remember(self, event: ModelEvent) -> None:
        """Keep what the next process must know of a model."""
        state, key = self._state, event.worker.key
        assert state is not None
        if event.kind == "starting":
            state.begin_start(key)
        elif event.kind == "failed":
            state.end_start(key)
        elif event.kind == "started":
            state.end_start(key)
            added = key not in self._configured
            name = event.worker.params.model_name
            state.update(key, model=name, params=event.over_http, added=added, stopped=False, quarantined=False)
        elif event.kind == "forgotten" and key not in self._configured:
            state.forget(key)
        else:
            # One that failed to start is no stopped one: the next process tries again.
            stopped = event.kind != "changed" or event.worker.state is State.STOPPED
            state.update(key, model=event.worker.params.model_name, params=event.over_http, stopped=stopped)

    # What it answers

    def check_open(self) -> None:
        """Raise Draining, or NotReady while another process holds the models; start on the first call."""
        if self._loader is None:
            self.start()
        if self._draining.is_set():
            raise Draining("this process is about to end: ask another instance, or again in a moment", retry_after=1)
        if self._waiting_for:
            raise NotReady(self._waiting_for, retry_after=2)

    def status(self) -> JSONObject:
        """Return ``ready``, why not, and each model with its state and reason."""
        if self.host is not None:
            return self._status_of(self.host)
        workers = self.local.workers()
        models = [{"model": w.key, "state": w.state.value, "reason": w.reason or None} for w in workers]
        models += [{"model": n, "state": State.FAILED.value, "reason": r} for n, r in self.problems.items()]
        reason = self._why_not_ready(workers)
        if self.cluster is not None and not self.settings.owns_models:
            models += self.cluster.models()
        status: JSONObject = {"ready": reason is None, "reason": reason, "models": models}
        return status if self.cluster is None else {**status, "cluster": self.cluster.status()}

    def _status_of(self, host: ModelHost) -> JSONObject:
        """Return what the host says of the models, unless this process itself is what is not ready."""
        status = host.status()
        own = "draining" if self._draining.is_set() else self.cluster and self.cluster.why_not_ready()
        if own:
            status |= {"ready": False, "reason": own}
        return status if self.cluster is None else {**status, "cluster": self.cluster.status()}

    def _why_incomplete(self) -> str:
        if self._declared.is_set():
            return ""
        return self._waiting_for or "models are starting"

    def _why_not_ready(self, workers: list[ModelWorker]) -> str | None:
        if self._draining.is_set():
            return "draining"
        if self._waiting_for:
            return self._waiting_for
        if self.cluster is not None and (reason := self.cluster.why_not_ready()):
            return reason
        if not self._loaded.is_set() or any(w.state is State.STARTING for w in workers):
            return "models are starting"
        if any(w.state is State.READY for w in workers) or not (workers or self.problems):
            return None
        return "no model is ready"

    def wait_loaded(self, timeout: float) -> bool:
        """Block until every model was started or failed, ``timeout`` seconds at most; return whether they were."""
        return self._loaded.wait(timeout)

    # End

    def drain(self, timeout: float | None = None) -> None:
        """Deregister, refuse new work, let answers end within ``timeout`` seconds, and cut off the others.

        Those cut off get a last chunk with an error. The default of ``timeout`` is the setting.
        """
        self._draining.set()
        if self.cluster is not None:
            self.cluster.leave()
        limit = self.settings.drain_timeout if timeout is None else timeout
        if self._wait_idle(limit):
            return
        log.warning("drain: %d requests are cut off after %g s", len(self.requests), limit)
        for cancel in list(self.requests):
            cancel.set(Draining(f"this process ended before the answer did (drain_timeout {limit:g} s)"))
        self._wait_idle(CUT_TIMEOUT)

    def wait_draining(self, timeout: float) -> bool:
        """Block until this process is told to end, ``timeout`` seconds at most; return whether it is."""
        return self._draining.wait(timeout)

    def _wait_idle(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while self.requests and time.monotonic() < deadline:
            time.sleep(0.02)
        return not self.requests

    def stop(self) -> None:
        """Stop models, watcher and lock, in that order, each guarded. A second call does nothing."""
        with self._starting:
            if self._stopped:
                return
            self._stopped = True
        self._draining.set()
        self._halt.set()
        loader = self._loader
        steps: list[tuple[str, Callable[[], object]]] = [("models", self.local.stop), ("watcher", self.watcher.stop)]
        if self.host is not None:
            steps.insert(0, ("host", self.host.stop))
        if self.cluster is not None:
            steps.insert(0, ("cluster", self.cluster.stop))
        if loader is not None:
            steps.insert(0, ("loader", lambda: loader.join(LOADER_TIMEOUT)))
        if self._state is not None:
            steps.append(("state", self._state.end_all_starts))
        if self._lock is not None:
            steps.append(("lock", self._lock.release))
        steps.append(("tracing", self.tracing.stop))
        for name, step in steps:
            try:
                step()
            except Exception:
                log.exception("stop: %s", name)
