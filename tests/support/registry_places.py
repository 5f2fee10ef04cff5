"""Every kind of registry there is, over a store of its own: what the contract runs over. To join, add to `PLACES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from flask import Flask
from in_process import serving
from modelyard.access.tokens import WORKER, Token, digest_of
from modelyard.blueprints.controller import controller_blueprint
from modelyard.cluster.registry import open_registry
from modelyard.cluster.registry.base import HEARTBEAT_TIMEOUT, Registry
from modelyard.cluster.registry.memory import MemoryRegistry, Table
from modelyard.sessions.session import Session
from modelyard.settings.settings import Settings
from running import free_port
from stores import StoreServers

SECRET = "modelyard_of-the-controllers-clients"
"""The token that lets a client register any host."""


class Place:
    """A store, and as many registries over it as are opened. `close` ends them."""

    url: str | None = None
    """What `open_registry` takes; None where other processes can't open it."""

    def __init__(self) -> None:
        self._opened = ExitStack()

    def open(self, heartbeat_timeout: float = HEARTBEAT_TIMEOUT) -> Registry:
        """Return one more registry over the same rows."""
        registry = self.make(heartbeat_timeout)
        self._opened.callback(registry.close)
        return registry

    def make(self, heartbeat_timeout: float) -> Registry:
        assert self.url is not None
        return open_registry(self.url, heartbeat_timeout)

    def empty(self) -> None:
        """Lose everything, tables and all, while registries are open."""
        raise NotImplementedError

    def close(self) -> None:
        self._opened.close()


class MemoryPlace(Place):
    def __init__(self, folder: Path, servers: StoreServers) -> None:
        super().__init__()
        self.table = Table()

    def make(self, heartbeat_timeout: float) -> Registry:
        return MemoryRegistry(heartbeat_timeout, self.table)

    def empty(self) -> None:
        self.table.rows.clear()


class SqlitePlace(Place):
    def __init__(self, folder: Path, servers: StoreServers) -> None:
        super().__init__()
        self.path = folder / "registry.db"
        self.url = f"sqlite:///{self.path}"

    def empty(self) -> None:
        self.path.unlink()


class ControllerPlace(Place):
    """Controllers over rows in memory, on ports of this machine, and a client of each."""

    def __init__(self, folder: Path, servers: StoreServers) -> None:
        super().__init__()
        self.table = Table()
        self.token = Token("worker", frozenset({WORKER}), digest_of(SECRET))

    def make(self, heartbeat_timeout: float) -> Registry:
        registry = MemoryRegistry(heartbeat_timeout, self.table)
        settings = Settings(role="controller", tokens=[self.token.line], access_log=False)
        app = Flask("controller")
        app.register_blueprint(controller_blueprint(lambda: registry, settings, "/api"))
        port = free_port()
        self._opened.enter_context(serving(app, port))
        session = Session(token=SECRET)
        self._opened.callback(session.close)
        return open_registry(f"http://127.0.0.1:{port}/api", session=session)

    def empty(self) -> None:
        self.table.rows.clear()


def server_place(name: str) -> Callable[[Path, StoreServers], Place]:
    class ServerPlace(Place):
        def __init__(self, folder: Path, servers: StoreServers) -> None:
            super().__init__()
            self.server = servers(name)
            self.url = self.server.url()

        def empty(self) -> None:
            self.server.clear()

    return ServerPlace


PLACES: Mapping[str, Callable[[Path, StoreServers], Place]] = {
    "memory": MemoryPlace,
    "sqlite": SqlitePlace,
    "controller": ControllerPlace,
    "postgresql": server_place("postgresql"),
    "mariadb": server_place("mariadb"),
    "redis": server_place("redis"),
}
