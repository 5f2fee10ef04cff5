"""Runtime: one process of a role, with its manager, its limits, and its life from start to stop."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

from ..cluster.hosting.folder import metrics_folder
from ..cluster.hosting.host import ModelHost, Shortcut
from ..cluster.hosting.isolation import isolated
from ..cluster.keys import NO_STORE, key_ring
from ..cluster.membership import Cluster
from ..cluster.registry.base import place_of
from ..errors import ConfigError, Draining, NotReady
from ..models.catalog import Catalog
from ..settings.settings import Settings
from ..sockets import is_patched
from ..streams import Cancel
from ..telemetry.metrics import Metrics
from ..telemetry.recent import RecentRequests
from ..telemetry.shared_metrics import Sample, SharedMetrics
from ..telemetry.tracing import Tracing
from ..threads import start_thread
from ..types import JSONObject
from ..worker.admission import Budget
from ..worker.declarations import Declarations, names_to_start
from ..worker.manager import LocalWorkerManager
from ..worker.naming import NamingManager
from ..worker.protocol import EVERY_MODEL, ServiceState, StartCallback, WorkerManager
from ..worker.states import State
from ..worker.worker import ModelWorker
from . import logs
from .disconnect import DisconnectWatcher
from .gauges import common_gauges, gauges, instance_entries
from .recovery import Recovery

log = logging.getLogger(__name__)

LOADER_TIMEOUT = 5.0
"""Seconds that a stop waits for models that are being loaded, if ``drain_timeout`` is not shorter."""

HOST_INTERVAL = 0.2
"""Seconds between two checks whether a model host has started its models."""

RESTART_PAUSE = 1.0
"""Seconds until a gateway looks for a backend again that it has not reached."""
LONGEST_RESTART_PAUSE = 30.0

CUT_TIMEOUT = 1.0
"""Seconds that answers get to send their last chunk, after the drain cut them off."""


class Runtime:
    """One process. Objects only, until `start`: no thread, lock, socket or model before it."""

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str] | None = None,
        after_start: StartCallback | None = None,
        address: Callable[[], str] | None = None,
    ) -> None:
        """Build the role that ``settings`` name. Raises ConfigError.

        ``after_start`` is called with the manager, in the loader's thread, once its models were started or have failed.
        ``address`` returns the address to register, empty while it is unknown; default: that of ``settings``.
        """
        self.settings = settings
        self.after_start = after_start
        self.catalog = Catalog.load(settings.model_tables, settings.models_paths)
        self.names = names_to_start(settings, self.catalog, settings.models)
        """The names of the models that this process, or its model host, starts."""
        self.budget = Budget(settings.threads, settings.reserve)
        self.tracing = Tracing(settings)
        self.metrics = Metrics()
        self.recent = RecentRequests(bodies=settings.pages_bodies) if settings.pages else None
        """The last requests of this process, for its pages."""
        self.keys = key_ring(settings)
        """The API keys that are accepted; None without a store of keys."""
        self.local = LocalWorkerManager(
            Declarations(settings, self.catalog, environ),
            self.budget,
            tracing=self.tracing,
            metrics=self.metrics,
            incomplete=self._why_incomplete,
            place=self._place,
            unsaved=lambda: self._recovery.trouble,
            isolate=partial(isolated, settings=settings),
        )
        self._recovery = Recovery(self.local.models, settings)
        self.problems = self._recovery.problems
        """Models that could not even be declared, with the reason."""
        self.host = ModelHost(settings, tracing=self.tracing) if settings.is_hosted else None
        """The process that holds the models, if they are hosted."""
        self.own: WorkerManager = self.local if self.host is None else self.host.manager
        """The manager of the models of this service alone."""
        self.cluster: Cluster | None = None
        """The other processes. A worker without a registry has none; a model host has a cluster of its own."""
        if settings.role != "worker" or (settings.registry and self.host is None):
            self.cluster = Cluster(
                settings,
                self.local,
                None if self.host is None else Shortcut(self.host, settings),
                tracing=self.tracing,
                metrics=self.metrics,
                address=address,
                check_hosted=None if self.host is None else self.host.manager.check_available,
            )
        self.manager: WorkerManager = (self.cluster and self.cluster.manager) or self.own
        if names := settings.names:
            self.manager = NamingManager(self.manager, names, tracing=self.tracing)
        self.manager.after_start(after_start)
        self._shared: SharedMetrics | None = None
        """The metrics of the other processes; None where this process is the only one of the service."""
        if (settings.metrics != "off" or settings.pages) and settings.shares_service:
            self._shared = SharedMetrics(lambda: metrics_folder(settings), self._sample)
        self.watcher = DisconnectWatcher()
        self.requests: set[Cancel] = set()
        """The cancel of each data-plane request that is under way."""
        self._when_stopped: list[Callable[[], object]] = []
        self._starting = threading.Lock()
        self._loader: threading.Thread | None = None
        self._stopped = False
        self._halt = threading.Event()
        self._declared = threading.Event()
        self._loaded = threading.Event()
        self._draining = threading.Event()

    # Start

    def listen_on(self, host: str, port: int) -> None:
        """Note the address that the server listens on. A process that has started without one is registered now."""
        # The folder, whose registry may be open, keeps its name.
        self.settings.instance = self.settings.instance_name
        self.settings.host, self.settings.port = host, port
        if self._loader is not None:
            self.locate()

    def locate(self) -> None:
        """Find the address at which others reach this process, and register what could not be registered without it."""
        if self.cluster is not None:
            self.cluster.locate()
        if self.host is not None:
            self.host.locate()

    def start(self, on_fatal: Callable[[str], None] = lambda reason: None) -> None:
        """Start the watcher and the loader; return at once. A second call does nothing. Raises Overloaded.

        ``on_fatal`` is called with the reason if a model fails to start and ``on_load_failure`` is ``exit``.
        """
        if self._loader is not None:
            return
        with self._starting:
            if self._loader is not None or self._halt.is_set():
                return
            logs.configure_missing(self.settings)
            self.tracing.start()
            if self._shared is not None:
                self._shared.start()
            if self.keys is not None:
                self.keys.start()
            elif self.settings.routes and self.settings.key_store is None:
                log.info("%s", NO_STORE)
            if self.cluster is not None:
                self.cluster.start()
            if self.host is not None:
                self.host.start()
            self.watcher.start()
            loader = threading.Thread(target=self._load, args=(on_fatal,), name="modelyard-loader", daemon=True)
            start_thread(loader)
            self._loader = loader

    def _load(self, on_fatal: Callable[[str], None]) -> None:
        try:
            if self.settings.owns_models:
                if is_patched():
                    raise ConfigError("placement inline: under gevent an engine would block the loop: leave it out")
                self._recovery.take_over(self._halt)
            if self.host is not None:
                self._wait_for(self.host)
            if not self._halt.is_set():
                self._start_models()
        except ConfigError as error:
            log.warning("the models are not loaded: %s", error)
            self.problems[EVERY_MODEL] = str(error)
        except Exception as error:
            log.exception("the models could not be loaded")
            self.problems[EVERY_MODEL] = str(error)
        if not self._halt.is_set():
            self._declared.set()
        self._loaded.set()
        if not self._halt.is_set():
            self.own.notify_started()
            self.manager.notify_started()
        failed = {w.key: w.reason for w in self.local.models.workers() if w.state is State.FAILED}
        failed = self.problems | failed
        if failed and self.settings.on_load_failure == "exit" and self.settings.owns_models:
            on_fatal("; ".join(f"{name}: {reason}" for name, reason in failed.items()))
        if self.settings.has_backends:
            self._start_failed_again()

    def _start_failed_again(self) -> None:
        """Start the backends that were not reached, with growing pauses: a gateway has no call that starts models."""
        pause = RESTART_PAUSE
        while any(worker.state is State.FAILED for worker in self.local.models.workers()):
            if self._halt.wait(pause):
                return
            pause = min(2 * pause, LONGEST_RESTART_PAUSE)
            self.local.models.start(halted=self._halt.is_set)

    def _wait_for(self, host: ModelHost) -> None:
        while host.status()["state"] == ServiceState.STARTING and not self._halt.wait(HOST_INTERVAL):
            pass

    def _start_models(self) -> None:
        if self.cluster is not None:
            self.cluster.join()
        with self.tracing.service_start():
            skipped = self._recovery.declare(self.names if self.host is None else ())
            self._declared.set()
            self.local.models.start(skip=skipped, halted=self._halt.is_set)
        if self.cluster is not None:
            # A rolling restart goes on when this service is ready: by then it must be registered.
            self.cluster.wait_heard()

    def wait_loaded(self, timeout: float) -> bool:
        """Block until every model was started or failed, ``timeout`` seconds at most; return whether they were."""
        return self._loaded.wait(timeout)

    def _place(self) -> tuple[str, int]:
        """Return the host and port of the instances of this process."""
        url = self.cluster.url if self.cluster is not None else ""
        return place_of(url) if url else (self.settings.host, self.settings.port)

    def _why_incomplete(self) -> str:
        if self._declared.is_set():
            return self.problems.get(EVERY_MODEL, "")
        ending = "this process is about to end" if self._halt.is_set() else ""
        return ending or self._recovery.waiting_for or "models are starting"

    def when_stopped(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` at the end of `stop`. Its exceptions are logged."""
        self._when_stopped.append(callback)

    # Status

    def check_open(self) -> None:
        """Raise Draining, or NotReady while another process holds the models. The first call starts the runtime."""
        if self._loader is None:
            self.start()
        if self._draining.is_set():
            raise Draining("this process is about to end: try another instance, or again in a moment", retry_after=1)
        if self._recovery.waiting_for:
            raise NotReady(self._recovery.waiting_for, retry_after=2)

    def status(self) -> JSONObject:
        """Return ``ready``, ``state`` (`ServiceState`), the reason, and each model with its own state and reason.

        ``unsaved`` is why changes of the models are not remembered, None if they are. ``keys`` has the number of valid
        API keys and why they can't be read; None without a store of keys.
        """
        status = self._status_of_models() if self.host is None else self.host.status()
        obstacle = self._obstacle()
        if obstacle is not None:
            state, reason = obstacle
            status |= {"ready": False, "state": state.value, "reason": reason}
        if self.cluster is not None:
            # Where a host has the models, it registers them, and its status has a cluster too.
            cluster, hosts = self.cluster.status(), status.get("cluster", {})
            status["cluster"] = {**cluster, **hosts, "error": hosts.get("error") or cluster["error"]}
        return {**status, "keys": None if self.keys is None else self.keys.status()}

    def instances(self) -> list[JSONObject]:
        """Return the instances in the registry as this process sees them, each with its state and the reason."""
        return [] if self.cluster is None else instance_entries(self.cluster)

    def sample(self) -> Sample:
        """Return the metrics of all processes of this service, now. Their models are neither called nor loaded."""
        sample = self._sample() if self._shared is None else self._shared.total()
        return Sample(sample.counts, sample.gauges | common_gauges(self.settings, self.cluster))

    def _sample(self) -> Sample:
        return Sample(self.metrics.counts(), gauges(self.local.models, self.budget, self.cluster))

    def _status_of_models(self) -> JSONObject:
        workers = self.local.models.workers()
        models = [_entry(worker) for worker in workers]
        models += [{"model": n, "state": State.FAILED.value, "reason": r} for n, r in self.problems.items()]
        state, reason = ServiceState.READY, None
        # A gateway does its work without the backends that it does not reach.
        owned = workers if self.settings.owns_models else []
        is_healthy = any(worker.is_healthy for worker in owned)
        # One whose engine was lost is started again beside the others, which answer.
        causes = [worker.cause for worker in owned if worker.state is State.STARTING]
        if not self._loaded.is_set() or any(cause != "restart" or not is_healthy for cause in causes):
            state, reason = ServiceState.STARTING, "models are starting"
        elif models and self.settings.owns_models and not is_healthy:
            state, reason = ServiceState.FAILED, "no model is ready"
        if self.cluster is not None and not self.settings.owns_models:
            models += self.cluster.models()
        status = {"ready": state is ServiceState.READY, "state": state.value, "reason": reason, "models": models}
        return {**status, "unsaved": self._recovery.trouble or None}

    def _obstacle(self) -> tuple[ServiceState, str] | None:
        """Return the state and the reason that keep this process from its work; None if only its models matter."""
        if self._draining.is_set():
            return ServiceState.DRAINING, "draining"
        if self._recovery.waiting_for:
            return ServiceState.WAITING, self._recovery.waiting_for
        if self.cluster is not None and (reason := self.cluster.why_not_ready()):
            return ServiceState.DISCONNECTED, reason
        return None

    # End

    def drain(self, timeout: float | None = None, is_hurried: Callable[[], bool] = lambda: False) -> None:
        """Deregister, refuse new work, let answers end within ``timeout`` seconds, and cut off the rest.

        An answer that is cut off gets a last chunk with an error. The default of ``timeout`` is ``drain_timeout``.
        The wait ends early when ``is_hurried`` returns True.
        """
        self._draining.set()
        limit = self.settings.drain_timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        if self.cluster is not None:
            self.cluster.leave()
        if self._wait_idle(deadline, is_hurried):
            return
        reason = "it was told to end at once" if is_hurried() else f"drain_timeout {limit:g} s"
        log.warning("drain: %d requests are cut off: %s", len(self.requests), reason)
        for cancel in list(self.requests):
            cancel.set(Draining(f"this process ended before the answer did ({reason})"))
        self._wait_idle(time.monotonic() + CUT_TIMEOUT)

    def wait_draining(self, timeout: float) -> bool:
        """Block until this process drains, ``timeout`` seconds at most; return whether it does."""
        return self._draining.wait(timeout)

    def _wait_idle(self, deadline: float, is_hurried: Callable[[], bool] = lambda: False) -> bool:
        while self.requests and time.monotonic() < deadline and not is_hurried():
            time.sleep(0.02)
        return not self.requests

    def stop(self) -> None:
        """Stop what `start` started, each step guarded. A second call does nothing."""
        with self._starting:
            if self._stopped:
                return
            self._stopped = True
        self._draining.set()
        self._halt.set()
        deadline = time.monotonic() + min(LOADER_TIMEOUT, self.settings.drain_timeout)

        def remaining() -> float:
            return max(0.0, deadline - time.monotonic())

        steps: list[tuple[str, Callable[[], object]]] = []
        if (loader := self._loader) is not None:
            steps.append(("loader", lambda: loader.join(remaining())))
        if self.cluster is not None:
            steps.append(("cluster", self.cluster.stop))
        if self.host is not None:
            steps.append(("host", self.host.stop))
        steps += [("models", lambda: self.local.models.stop(timeout=remaining())), ("watcher", self.watcher.stop)]
        steps += [("state", self._recovery.end), *(("a callback", callback) for callback in self._when_stopped)]
        steps.append(("tracing", self.tracing.stop))
        if self._shared is not None:
            steps.append(("metrics", self._shared.stop))
        if self.keys is not None:
            steps.append(("keys", self.keys.stop))
        for name, step in steps:
            try:
                step()
            except Exception:
                log.exception("stop: %s", name)


def _entry(worker: ModelWorker) -> JSONObject:
    """Return a model in the status: with its context length while that is known, and its load while it is available."""
    state, reason = worker.shown_state
    entry: JSONObject = {"model": worker.key, "state": state.value, "reason": reason or None}
    if (length := worker.context_length) is not None:
        entry["context_length"] = length
    if worker.takes_images:
        entry["takes_images"] = True
    if worker.memory:
        entry["memory_bytes"] = worker.memory
    return entry | worker.gate.status() if worker.is_available else entry
