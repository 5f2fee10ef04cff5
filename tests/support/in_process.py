"""Services of a cluster within the test's own process, over real HTTP: so that an engine in them can be steered."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from flask import Flask
from modelyard.cluster.hosting.manager import HostedWorkerManager, HostEndpoint
from modelyard.engines.scripted import Scripted
from modelyard.server.extension import KEY, create_app
from modelyard.server.runtime import Runtime
from modelyard.sessions.session import Session
from modelyard.settings.settings import Settings
from modelyard.types import JSONObject
from modelyard.worker.protocol import WorkerManager
from running import free_port, wait_until
from steered import Steered
from werkzeug.serving import WSGIRequestHandler, make_server

SCRIPTED = f"{Scripted.__module__}:{Scripted.__qualname__}"
"""The ``worker_class`` of a model whose answers a test scripts."""


class _QuietHandler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@contextmanager
def serving(app: Flask, port: int) -> Iterator[None]:
    """Serve an application on a port of the loopback, from threads."""
    server = make_server("127.0.0.1", port, app, threaded=True, request_handler=_QuietHandler)
    server.daemon_threads = True  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="test-server", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


@contextmanager
def service(folder: Path, tables: Sequence[JSONObject] = (), **settings: Any) -> Iterator[Runtime]:
    """Run a service of some role, and give its runtime when its models are loaded."""
    folder.mkdir(parents=True, exist_ok=True)
    port = settings.pop("port", None) or free_port()
    given = {"state_dir": str(folder / "state"), "models_dirs": [str(folder / "models")], "threads": 64, "reserve": 8}
    given |= {"port": port, "access_log": False, "registry_refresh": 0.05, **settings}
    chosen = Settings(**given, model_tables=tuple(tables))
    app = create_app(chosen)
    runtime: Runtime = app.extensions[KEY]
    with serving(app, port):
        runtime.start()
        try:
            assert runtime.wait_loaded(30)
            yield runtime
        finally:
            Steered.go.set()
            runtime.stop()


def url_of(runtime: Runtime) -> str:
    return f"http://127.0.0.1:{runtime.settings.port}/api"


class SettledLoad:
    """A manager over a worker in this process, which tells the load as it is there."""

    def __init__(self, manager: Any, worker: Runtime) -> None:
        self._manager, self._worker = manager, worker

    def __getattr__(self, name: str) -> Any:
        self._settle()
        return getattr(self._manager, name)

    def _settle(self) -> None:
        pass

    def load_of(self, model: str, worker_type: Any) -> str | None:
        """Return the load as it is now: what a remote manager knows is what was last said."""
        wait_until(self._is_level, "requests that are over are over there too")
        self._settle()
        if self._worker.local.load_of(model, worker_type) is not None:
            self._manager.model_metadata(model)
        found: str | None = self._manager.load_of(model, worker_type)
        return found

    def _is_level(self) -> bool:
        gates = [worker.gate for worker in self._worker.local.models.workers()]
        held = sum(gate.slots - gate.free + gate.waiting for gate in gates)
        return len(self._worker.requests) == held


class Settled(SettledLoad):
    """The same; before each call, what was changed at the worker has reached the registry."""

    def __init__(self, manager: Any, worker: Runtime, view: Any) -> None:
        super().__init__(manager, worker)
        self._view = view

    def _settle(self) -> None:
        cluster = self._worker.cluster
        assert cluster is not None and cluster.heartbeat is not None
        cluster.heartbeat.wait_settled(10)
        wait_until(self._is_told, "the registry knows what runs", 10, 0.002)
        self._view.refresh()

    def _is_told(self) -> bool:
        cluster = self._worker.cluster
        assert cluster is not None
        available = {w.key for w in self._worker.local.models.workers() if w.is_available}
        healthy = {one.key for one in cluster.registry.instances(healthy_only=True)}
        return healthy == available | {"WorkerManager@service"}


@contextmanager
def hosted_manager(folder: Path, tables: Sequence[JSONObject]) -> Iterator[WorkerManager]:
    """Give the manager of a web process over a model host, which has the models of ``tables``."""
    with service(folder, tables, role="worker") as host:
        endpoint = HostEndpoint(url_of(host))
        manager = HostedWorkerManager(endpoint, Session(), 10.0, lambda: ("127.0.0.1", 7000))
        manager.notify_started()
        yield SettledLoad(manager, host)  # type: ignore[misc]
        wait_until(lambda: not host.requests, "all requests are over", 5)


@contextmanager
def remote_manager(folder: Path, tables: Sequence[JSONObject]) -> Iterator[WorkerManager]:
    """Give the manager of a gateway over one worker, which has the models of ``tables``."""
    with ExitStack() as stack:
        controller = stack.enter_context(service(folder / "controller", role="controller", registry="memory:"))
        registry = url_of(controller)
        worker = stack.enter_context(service(folder / "worker", tables, role="worker", registry=registry))
        gateway = stack.enter_context(service(folder / "gateway", role="gateway", registry=registry))
        assert gateway.cluster is not None
        yield Settled(gateway.manager, worker, gateway.cluster.view)  # type: ignore[misc]
        deadline = time.monotonic() + 5
        while worker.requests and time.monotonic() < deadline:
            time.sleep(0.01)
