"""Cluster: what connects this process to the others: registry, heartbeat, view, and the manager over all of them."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence

from ..access.token_store import OutgoingToken
from ..errors import ConfigError, ModelyardError
from ..files import state_folder
from ..sessions.session import Session
from ..settings.settings import CONTROLLERS, Settings
from ..telemetry.metrics import Metrics
from ..telemetry.tracing import Tracing, outgoing_headers
from ..types import JSONObject
from ..worker.manager import LocalWorkerManager
from ..worker.protocol import ModelEvent
from ..worker.states import State, best_states
from ..worker.worker import ModelWorker
from .addresses import NO_ADDRESS, advertised_url, checked
from .directory import HostedCheck
from .heartbeat import Heartbeat
from .manager import RemoteWorkerManager
from .registry import open_registry
from .registry.address import sqlite_path
from .registry.base import CONTEXT_LENGTH, IMAGES, MANAGER_KEY, Instance, Registry
from .routing import state_of
from .view import RegistryView

log = logging.getLogger(__name__)

CAPABILITIES = ["delta"]
HEARD_TIMEOUT = 10.0
STARTED_TIMEOUT = 2.0
"""Seconds that the start of a model waits for its registration."""
HEARTBEAT_INTERVAL = 20.0
"""Seconds between heartbeats of a worker manager, where its models want no shorter ones."""


class Cluster:
    """The part of this process in a cluster. Objects only, until `start`. A worker without a registry has none."""

    def __init__(
        self,
        settings: Settings,
        local: LocalWorkerManager,
        session: Session | None = None,
        *,
        tracing: Tracing | None = None,
        metrics: Metrics | None = None,
        address: Callable[[], str] | None = None,
        check_hosted: HostedCheck | None = None,
    ) -> None:
        """Build what the role of ``settings`` needs; ``session`` sends requests to others. Raises ConfigError.

        ``address`` returns the address to register, empty while it is unknown; default: that of ``settings``.
        ``check_hosted`` raises the error of a model of the model host; None without one.
        """
        self._settings = settings
        self._local = local
        self.session = session or Session(**session_options(settings))
        self.registry: Registry = open_registry(
            registry_url(settings), heartbeat_timeout=settings.heartbeat_timeout, session=self.session
        )
        _refuse_itself(settings)
        self._address = address or (lambda: advertised_url(settings))
        self.url = ""
        """The address at which others reach this process; empty before `start`, and while its port is unknown."""
        self._joined = False
        self._announcing = threading.Lock()
        self.heartbeat = Heartbeat(self.registry, metrics) if settings.owns_models else None
        self.view: RegistryView | None = None
        self.manager: RemoteWorkerManager | None = None
        if settings.routes:
            self.view = RegistryView(self.registry, settings.registry_refresh, self._seen)
            # With a model host, the instances at this address are the host's, and called like all others.
            own_url = (lambda: "") if settings.is_hosted else (lambda: self.url)
            self.manager = RemoteWorkerManager(
                self.view,
                self.session,
                local if settings.owns_models else None,
                own_url,
                models=local.models if settings.has_backends else None,
                tracing=tracing,
                metrics=metrics,
                check_complete=local.models.check_complete,
                check_hosted=check_hosted,
            )

    def _seen(self, rows: Sequence[Instance]) -> None:
        if self.manager is not None:
            self.manager.routes.seen(rows)

    # Life

    def start(self) -> None:
        """Find the address of this process, and start the threads that read the registry. Nothing is registered yet."""
        if not self._settings.registry:
            with contextlib.suppress(OSError):  # the registry raises the same error with a better text
                state_folder(self._settings.state_path, self._settings.instance_name)
        self.locate()
        if self.view is not None:
            self.view.start()
        if self.manager is not None:
            self.manager.start()

    def join(self) -> None:
        """Register the worker manager now, and each model when it becomes ready.

        Where a host has the models, what it has registered is read now: from now on this process knows them.
        """
        if self.view is not None and self._settings.is_hosted:
            self.view.refresh()
        if self.heartbeat is None:
            return
        self._local.models.subscribe(self._follow)
        self.heartbeat.add(MANAGER_KEY, self._manager_instance, HEARTBEAT_INTERVAL)
        self._joined = True
        if self.url:
            self.heartbeat.start()
        else:
            log.warning("%s", NO_ADDRESS)

    def locate(self) -> None:
        """Find the address of this process. If it was unknown when the process joined, register now."""
        self.url = self._address()
        if self.url and self._joined and self.heartbeat is not None:
            self.heartbeat.start()

    def wait_heard(self) -> None:
        """Block until all ready models are registered, or a call fails: a few seconds at most."""
        if self.heartbeat is not None and self.url:
            self.heartbeat.wait_settled(HEARD_TIMEOUT)

    def leave(self) -> None:
        """Deregister everything, as the last call to the registry. A second call does nothing."""
        if self.heartbeat is not None:
            self.heartbeat.stop()

    def stop(self) -> None:
        """End all threads, and close the connections. A second call does nothing."""
        steps: list[tuple[str, Callable[[], object]]] = [("heartbeat", self.leave)]
        if self.manager is not None:
            steps.append(("prober", self.manager.stop))
        if self.view is not None:
            steps.append(("view", self.view.stop))
        steps += [("registry", self.registry.close), ("session", self.session.close)]
        for name, step in steps:
            try:
                step()
            except Exception:
                log.exception("stop: %s", name)

    # What is registered

    def _manager_instance(self) -> Instance:
        return Instance(MANAGER_KEY, self.url, capabilities=CAPABILITIES)

    def _follow(self, event: ModelEvent) -> None:
        """Register a model when it is available, deregister it when it is not.

        The start of a model ends after that, so that its caller can reach the model through any gateway.
        """
        assert self.heartbeat is not None
        worker = event.worker
        if event.kind in ("started", "health"):
            self._announce(worker, self.heartbeat)
            if event.kind == "started" and self.url:
                self.heartbeat.wait_settled(STARTED_TIMEOUT)
        elif event.kind in ("loaded", "unloaded"):
            if not self.heartbeat.refresh(worker.key):
                self._announce(worker, self.heartbeat)
        elif event.kind in ("starting", "failed", "stopped"):
            self.heartbeat.remove(worker.key)
        elif event.kind == "forgotten":
            self.heartbeat.remove(worker.key, forget=True)

    def _announce(self, worker: ModelWorker, heartbeat: Heartbeat) -> None:
        """Register a model while it is healthy, deregister it while it is not."""
        params = worker.params

        def describe() -> Instance:
            # While a change of parameters takes its time, another worker has its place.
            return self._instance(self._local.models.find(worker.key) or worker)

        with self._announcing:  # the start and the watch of its health may come together
            if worker.is_healthy and params.register:
                heartbeat.add(worker.key, describe, params.heartbeat_interval, beats=params.send_heartbeat)
            else:
                heartbeat.remove(worker.key)

    def _instance(self, worker: ModelWorker) -> Instance:
        return Instance(
            worker.key,
            self.url,
            weight=worker.params.weight,
            check_healthy=worker.params.send_heartbeat,
            capabilities=_capabilities(worker),
            load=worker.load,
        )

    # What it answers

    def why_not_ready(self) -> str | None:
        """Return why a controller or gateway can't do its work; None if it can, and for a process with models."""
        if self._settings.owns_models:
            return None
        if self.view is not None:
            # The last view stays in use while the registry can't be read.
            return None if self.view.complete else self.view.error or "the registry was not read yet"
        try:
            self.registry.instances(MANAGER_KEY)
        except ModelyardError as error:
            return str(error)
        return None

    def models(self) -> list[JSONObject]:
        """Return every model of the cluster with a state, as a gateway without models of its own reports them."""
        by_key: dict[str, list[Instance]] = {}
        for row in self.view.all() if self.view is not None else []:
            by_key.setdefault(row.key, []).append(row)
        by_key.pop(MANAGER_KEY, None)
        models: list[JSONObject] = []
        for key, instances in sorted(by_key.items()):
            healthy = sum(instance.healthy for instance in instances)
            state = best_states((key, state_of(row)) for row in instances)[key] if healthy else State.FAILED
            reason = f"{healthy} of {len(instances)} instances healthy"
            models.append({"model": key, "state": state.value, "reason": reason})
        return models

    def status(self) -> JSONObject:
        """Return how other processes see this one: its address, what it has registered, and the last error."""
        error = (self.heartbeat and self.heartbeat.error) or (self.view and self.view.error) or None
        if self._joined and not self.url:
            error = NO_ADDRESS
        registered = [] if self.heartbeat is None else self.heartbeat.registered()
        return {"url": self.url, "registered": registered, "error": error}


def _capabilities(worker: ModelWorker) -> list[str]:
    length = worker.context_length
    lengths = [] if length is None else [f"{CONTEXT_LENGTH}{length}"]
    return [*CAPABILITIES, *lengths, *([IMAGES] if worker.takes_images else [])]


def _refuse_itself(settings: Settings) -> None:
    """Raise ConfigError if the registry of a controller is the controller itself: it would call itself without end."""
    advertised = [checked(settings.advertise, settings.prefix)] if settings.advertise else []
    own_urls = [f"http://{settings.address}{settings.prefix}", *advertised]
    named = [
        url.strip().rstrip("/").replace("//localhost:", "//127.0.0.1:") for url in (settings.registry or "").split(",")
    ]
    if settings.role in CONTROLLERS and set(named) & {url.replace("//localhost:", "//127.0.0.1:") for url in own_urls}:
        raise ConfigError(
            f"registry {settings.registry}: that is this {settings.role} itself; name a store, or another controller"
        )


def session_options(settings: Settings) -> JSONObject:
    """Return the options of the `Session` that sends requests to other processes. Raises ConfigError."""
    headers = {}
    for item in settings.remote_headers:
        name, equals, value = item.partition("=")
        if not equals or not name.strip():
            raise ConfigError("remote_headers: expected NAME=VALUE, comma-separated")
        headers[name.strip()] = value.strip()
    has_token = bool(settings.token or settings.token_file)
    if has_token and any(name.lower() == "authorization" for name in headers):
        raise ConfigError(
            "remote_headers: Authorization is the header of this process's own token: leave out one of them"
        )
    return {
        "connect_timeout": settings.connect_timeout,
        "read_timeout": settings.read_timeout,
        "headers": headers,
        "ca": settings.remote_ca,
        "token": OutgoingToken(settings.token, settings.token_file) if has_token else None,
        "current_headers": outgoing_headers,
    }


def check_registry(settings: Settings) -> None:
    """Raise ConfigError or MissingLibrary if the registry of ``settings`` can't be opened; nothing is connected."""
    _refuse_itself(settings)
    with contextlib.closing(Session(**session_options(settings))) as session:
        open_registry(registry_url(settings), session=session).close()
    url = settings.registry or ""
    if url.startswith("sqlite:") and not (folder := sqlite_path(url).parent).is_dir():
        raise ConfigError(f"registry {url}: there is no folder {folder}: make it")


def registry_url(settings: Settings) -> str:
    """Return the address of the registry: the setting, or a file in the folder of this service.

    A gateway without a registry reads an empty one: it has the models of its own configuration.
    """
    if settings.has_backends and not settings.registry:
        return "memory:"
    return settings.registry or f"sqlite:///{settings.state_path / settings.instance_name / 'registry.db'}"
