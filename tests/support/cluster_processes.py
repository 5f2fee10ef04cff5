"""Clusters of real processes on one machine: a controller, workers that tell what reached them, gateways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import requests
from running import START_LIMIT, Service, Services, wait_until

from scripts import journal, script

MANAGER = "WorkerManager@service"
SCRIPT = "script@llm"
TABLES = """
[[models]]
name = "script"
worker_class = "scripted:Scripted"
limit_model_concurrency = 16
journal = "{folder}/journal"

[[models]]
name = "echo"
limit_model_concurrency = 16
"""
QUICK = {
    "threads": 64,
    "reserve": 8,
    "drain_timeout": 20,
    "heartbeat_timeout": 3,
    "registry_refresh": 0.1,
    "first_output_timeout": 0.2,
    "silence_timeout": 0.3,
    "session_affinity": False,
}
"""Short times, so that a test sees in a second what takes a minute elsewhere; requests with the same text go to all
instances."""


def echo(tokens: int = 1) -> dict[str, Any]:
    return {"model": "echo", "prompt": "x", "max_new_tokens": tokens}


def api(service: Service) -> str:
    return f"http://127.0.0.1:{service.port}/api"


class Cluster:
    """Makes the services of one cluster; those of `Services` end with the test."""

    def __init__(self, run: Services, **settings: Any) -> None:
        """Let every service have `QUICK` and ``settings``."""
        self.run = run
        self.settings = {**QUICK, **settings}
        self.controller: Service | None = None
        self.workers: list[Service] = []
        self._made: dict[int, tuple[str, str, dict[str, Any]]] = {}

    def start(self, role: str, tables: str = "", *, wait: str = "ready", **settings: Any) -> Service:
        """Start a service; without a ``registry`` among its settings a worker or gateway gets the controller's."""
        if self.controller is not None and role != "controller":
            settings.setdefault("registry", api(self.controller))
        folder = settings.pop("folder", None) or self.run.folder()
        given = {**self.settings, **settings}
        service = self.run.start(tables.format(folder=folder), role, folder=folder, wait=wait, **given)
        self._made[service.port] = (role, tables, settings)
        return service

    def start_controller(self, **settings: Any) -> Service:
        self.controller = self.start("controller", **settings)
        return self.controller

    def start_workers(self, count: int = 2, tables: str = TABLES, **settings: Any) -> list[Service]:
        """Start workers at once; return when all their models are registered."""
        made = [self.start("worker", tables, wait="nothing", **settings) for _ in range(count)]
        for worker in made:
            worker.wait_ready()
        self.workers += made
        return made

    def restart(self, service: Service, *, wait: str = "ready") -> Service:
        """Start again what has ended: the same port, folder and settings."""
        role, tables, settings = self._made[service.port]
        again = self.start(role, tables, wait=wait, folder=service.folder, port=service.port, **settings)
        self.workers = [again if one is service else one for one in self.workers]
        if service is self.controller:
            self.controller = again
        return again

    # What is registered

    def rows(self, key: str | None = None, at: Service | None = None) -> list[dict[str, Any]]:
        """Return the rows as the controller, or another service ``at`` which one is, gives them."""
        asked = at or self.controller
        assert asked is not None
        response = requests.get(f"{api(asked)}/controller/instances", params={"key": key} if key else {}, timeout=10)
        assert response.status_code == 200, response.text
        found: list[dict[str, Any]] = response.json()
        return found

    def healthy(self, at: Service | None = None) -> set[tuple[str, int]]:
        """Return key and port of all that is healthy."""
        return {(row["key"], port_of(row)) for row in self.rows(at=at) if row["healthy"]}

    def whole(self, workers: Sequence[Service] | None = None) -> set[tuple[str, int]]:
        """Return what `healthy` gives when these workers are all there."""
        keys = (MANAGER, SCRIPT, "echo@llm")
        return {(key, worker.port) for worker in workers or self.workers for key in keys}

    def wait_whole(self, timeout: float = 20.0, at: Service | None = None) -> None:
        wait_until(lambda: self.healthy(at) == self.whole(), "all models are registered", timeout, 0.05)


def port_of(row: dict[str, Any]) -> int:
    return int(row["url"].rpartition(":")[2].partition("/")[0])


def wait_sees(gateway: Service, count: int) -> None:
    """Wait until a gateway has ``count`` instances of the model in view."""
    seen = f"{count} of {count} instances healthy"
    wait_until(lambda: gateway.model(SCRIPT).get("reason") == seen, f"it sees {seen}", START_LIMIT)


def wait_takes_part(gateway: Service, worker: Service) -> None:
    """Ask through a gateway until an answer comes from ``worker``; every request must be answered."""
    before = len(journal(worker, "begin", "part"))

    def asked() -> bool:
        answer = gateway.post("generate", script(name="part"))
        assert answer.status_code == 200 and answer.json()["error_code"] == 0, answer.text
        return len(journal(worker, "begin", "part")) > before

    wait_until(asked, "it takes part again")
