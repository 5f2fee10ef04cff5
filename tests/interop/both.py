"""Both sides as processes: services of ours, DB-GPT's servers, and its clients on the end of a pipe."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from running import Service, Services, surroundings_of, wait_until

from bench.peer.environment import Environment

THEIRS = Path(__file__).parent / "theirs"
CALL_LIMIT = 60.0
MANAGER_KEY = "WorkerManager@service"
HUMAN = [{"role": "human", "content": "hi there"}]

PEER = Environment("interop-peer", extra=("click", "colorama", "numpy", "prettytable", "psutil", "rich", "tomlkit"))
"""DB-GPT's package, with what its command line takes."""

FIRST = """
[[models]]
name = "echo"
limit_model_concurrency = 4

[[models]]
name = "rank"
engine = "echo"
worker_type = "reranker"

[[models]]
name = "slow"
engine = "echo"
delay = 0.05

[[models]]
name = "spare"
engine = "echo"
start = false
"""

SECOND = """
[[models]]
name = "echo"

[[models]]
name = "emb"
engine = "echo"
worker_type = "text2vec"
"""


class TheirError(Exception):
    """What a caller of DB-GPT's client sees."""


class TheirClient:
    """DB-GPT's registry client and remote manager in a process of their own: any call of `theirs/client.py`."""

    def __init__(self, controller: str, folder: Path) -> None:
        """``controller`` is the address as DB-GPT writes it: without a prefix."""
        self._log = (folder / "client.log").open("ab")
        self._process = subprocess.Popen(
            [PEER.python, "-W", "ignore", str(THEIRS / "client.py"), controller],
            cwd=folder,
            env=surroundings_of(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def __getattr__(self, name: str) -> Any:
        def call(**args: Any) -> Any:
            assert self._process.stdin is not None and self._process.stdout is not None
            limit = threading.Timer(CALL_LIMIT, self._process.kill)
            limit.start()
            try:
                self._process.stdin.write(json.dumps({"call": name, "args": args}) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            finally:
                limit.cancel()
            assert line, f"{name} came to no end within {CALL_LIMIT:g} s, or the client died"
            said = json.loads(line)
            if "error" in said:
                raise TheirError(said["error"])
            return said["value"]

        return call

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()


class Both:
    """Starts services of both sides; all end with the `Services` that they are made by."""

    def __init__(self, run: Services) -> None:
        self.run = run
        self._clients: list[TheirClient] = []

    # Ours

    def controller(self, **settings: Any) -> Service:
        return self.run.start("", "controller", **{"registry": "memory:", **settings})

    def worker(self, tables: str, registry: str, **settings: Any) -> Service:
        return self.run.start(tables, "worker", registry=registry, **settings)

    def gateway(self, registry: str, **settings: Any) -> Service:
        return self.run.start("", "gateway", registry=registry, registry_refresh=0.2, **settings)

    # Theirs

    def their_controller(self, timeout: int = 60, port: int | None = None) -> Service:
        return self._their("controller", str(timeout), port=port)

    def their_worker(self, controller: Service) -> Service:
        """Start DB-GPT's worker; it is registered when this returns."""
        worker = self._their("worker", address(controller))
        wait_until(lambda: keys_at(controller, worker) == THEIR_KEYS, "DB-GPT's worker is registered", 60)
        return worker

    def _their(self, role: str, *told: str, port: int | None = None) -> Service:
        command = [PEER.python, "-W", "ignore", str(THEIRS / "server.py"), role, "{port}", *told]
        server = self.run.start("", command=command, wait="nothing", port=port)
        server.may_show_tracebacks = True
        wait_until(lambda: _answers(server), f"DB-GPT's {role} answers", 60)
        return server

    def client(self, controller: Service) -> TheirClient:
        made = TheirClient(address(controller), self._folder())
        self._clients.append(made)
        return made

    def command_line(self, controller: Service, *arguments: str, typed: str = "") -> str:
        """Run ``dbgpt model ...``, and return what it prints."""
        folder = self._folder()
        command = [str(PEER.folder / "bin" / "dbgpt"), "model", "--address", address(controller), *arguments]
        surroundings = {**surroundings_of(folder), "HOME": str(folder), "TERM": "dumb", "COLUMNS": "200"}
        done = subprocess.run(
            command, cwd=folder, env=surroundings, input=typed, capture_output=True, text=True, timeout=CALL_LIMIT
        )
        return done.stdout + done.stderr

    def _folder(self) -> Path:
        folder = self.run.folder()
        (folder / "tmp").mkdir()
        return folder

    def close(self) -> None:
        for client in self._clients:
            client.close()


@contextmanager
def both(run: Services) -> Iterator[Both]:
    made = Both(run)
    try:
        yield made
    finally:
        made.close()


def _answers(server: Service) -> bool:
    assert server.is_running(), server.log()
    response = server.answers("/openapi.json")
    return response is not None and response.status_code == 200


THEIR_KEYS = {MANAGER_KEY, "theirs@llm", "theirs-emb@text2vec", "theirs-rank@reranker"}


def address(service: Service) -> str:
    """Return an address as DB-GPT writes it."""
    return f"http://127.0.0.1:{service.port}"


def url(service: Service) -> str:
    """Return an address as we write it."""
    return f"{address(service)}/api"


def rows(controller: Service) -> list[dict[str, Any]]:
    """Return what a controller of either side lists."""
    found: list[dict[str, Any]] = controller.get("/api/controller/models").json()
    return found


def keys_at(controller: Service, service: Service) -> set[str]:
    """Return the keys that are healthy at one place."""
    return {row["model_name"] for row in rows(controller) if row["healthy"] and row["port"] == service.port}


def register(controller: Service, key: str, service: Service, **fields: Any) -> None:
    """Register an instance by hand, as DB-GPT says it."""
    instance = {"model_name": key, "host": "127.0.0.1", "port": service.port, "check_healthy": False, **fields}
    assert controller.post("/api/controller/models", instance).json() is True
