"""The peer's side: DB-GPT's worker, in an environment of its own."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..models import EchoModel
from ..places import run_folder
from ..processes import Server, ServerFailed, free_port
from .environment import Environment, PeerMissing

__all__ = ["NAME", "TUNING", "Peer", "PeerMissing"]

NAME = "DB-GPT"
TUNING = ("uvloop", "httptools")
"""What makes uvicorn faster; DB-GPT's own requirements don't bring it."""

_HERE = Path(__file__).resolve().parent
_PACKAGES = ("dbgpt", "fastapi", "starlette", "pydantic", "uvicorn", *TUNING)


@dataclass(frozen=True)
class Peer:
    """The peer as DB-GPT installs it, or ``tuned``."""

    tuned: bool = False

    @property
    def _environment(self) -> Environment:
        return Environment("bench-peer-tuned", extra=TUNING) if self.tuned else Environment("bench-peer")

    def install(self) -> None:
        """Make the environment unless that was done before. Raises PeerMissing."""
        self._environment.install()

    def versions(self) -> dict[str, str]:
        """Return the versions of the peer's parts."""
        return self._environment.versions(_PACKAGES)

    @contextlib.contextmanager
    def serving(self, models: Sequence[EchoModel]) -> Iterator[Server]:
        """Run the peer's worker with ``models`` until left; ready when entered."""
        with self._running("worker", json.dumps([asdict(model) for model in models])) as server:
            yield server

    @contextlib.contextmanager
    def cluster(self, models: Sequence[EchoModel]) -> Iterator[tuple[Server, Server]]:
        """Run its controller, a worker with ``models``, and its remote manager; give the last two."""
        with contextlib.ExitStack() as stack:
            controller = stack.enter_context(self._running("controller"))
            worker = stack.enter_context(self.serving(models))
            for model in models:
                key = f"{model.name}@{'text2vec' if model.embeds else 'llm'}"
                instance = {"model_name": key, "host": "127.0.0.1", "port": worker.port, "check_healthy": False}
                status, _ = controller.ask("/api/controller/models", instance)
                if status != 200:
                    raise ServerFailed(f"{NAME}: its controller answers a registration with {status}")
            address = f"http://127.0.0.1:{controller.port}"
            yield worker, stack.enter_context(self._running("gateway", address))

    @contextlib.contextmanager
    def _running(self, role: str, *arguments: str) -> Iterator[Server]:
        port = free_port()
        command = [self._environment.python, str(_HERE / "server.py"), role, str(port), *arguments]
        with Server(NAME, command, port, {}, run_folder("peer") / f"log-{port}.txt") as server:
            server.wait_ready("/openapi.json")
            yield server
