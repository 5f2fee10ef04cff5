# mypy: ignore-errors
# ruff: noqa: D102
# What it imports lies in the peer's environment only; what its methods do is said by the class they override.
"""The peer: DB-GPT's own routes on uvicorn, in one of three roles.

``python server.py worker PORT MODELS`` (JSON: a list of `EchoModel`) hosts an engine that does what our `echo` does.
``controller PORT`` is its registry in memory, and ``gateway PORT CONTROLLER`` its worker routes over its remote
manager, as its web server runs them without models of its own. Run by the interpreter of the peer's environment, it
needs nothing of this project. The engine is synchronous, as are those that DB-GPT runs models in process with.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import uvicorn
from dbgpt.core import ModelMetadata, ModelOutput
from dbgpt.core.interface.parameter import (
    BaseDeployModelParameters,
    EmbeddingDeployModelParameters,
    LLMDeployModelParameters,
)
from dbgpt.model.cluster.controller import controller
from dbgpt.model.cluster.worker import manager
from dbgpt.model.cluster.worker.remote_manager import RemoteWorkerManager
from dbgpt.model.cluster.worker_base import ModelWorker
from dbgpt.model.parameter import ModelWorkerParameters, WorkerType
from fastapi import FastAPI

DIMENSIONS = 384


class EchoWorker(ModelWorker):
    """Exactly ``max_new_tokens`` pieces of " token"; each answer of a stream holds all the text so far."""

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay

    def load_worker(self, model_name: str, deploy_model_params: BaseDeployModelParameters, **kwargs: Any) -> None:
        self.model_name = model_name

    def start(self, command_args: list[str] | None = None) -> None:
        return None

    def stop(self) -> None:
        return None

    def generate_stream(self, params: dict[str, Any]) -> Iterator[ModelOutput]:
        text = ""
        started = time.monotonic()
        for number in range(1, (params.get("max_new_tokens") or 16) + 1):
            if self.delay:
                time.sleep(max(0.0, started + number * self.delay - time.monotonic()))
            text += " token"
            yield ModelOutput(text=text, error_code=0)

    def generate(self, params: dict[str, Any]) -> ModelOutput:
        count = params.get("max_new_tokens") or 16
        if self.delay:
            time.sleep(count * self.delay)
        return ModelOutput(text=" token" * count, error_code=0)

    def count_token(self, prompt: str) -> int:
        return len(prompt.split())

    def get_model_metadata(self, params: dict[str, Any]) -> ModelMetadata:
        return ModelMetadata(model=self.model_name, context_length=4096)

    def embeddings(self, params: dict[str, Any]) -> list[list[float]]:
        raise NotImplementedError("this worker generates")


class EchoEmbedder(EchoWorker):
    """Rows of 384 floats, made ready once: what is measured is the way out."""

    row: ClassVar[list[float]] = [(n % 19 - 9) / 31.7 for n in range(DIMENSIONS)]

    def worker_type(self) -> WorkerType:
        return WorkerType.TEXT2VEC

    def embeddings(self, params: dict[str, Any]) -> list[list[float]]:
        return [self.row for _ in params["input"]]


def build_worker(port: int, models: list[dict[str, Any]]) -> FastAPI:
    """Return an application with DB-GPT's worker routes and ``models``."""
    local = manager.LocalWorkerManager(host="127.0.0.1", port=port)
    manager.worker_manager.worker_manager = local
    for model in models:
        embeds = model["embeds"]
        parameters = EmbeddingDeployModelParameters if embeds else LLMDeployModelParameters
        local.add_worker(
            EchoEmbedder() if embeds else EchoWorker(model["delay"]),
            ModelWorkerParameters(worker_type="text2vec" if embeds else "llm", register=False),
            parameters(name=model["name"], provider="echo", concurrency=model["slots"]),
        )
    app = FastAPI()
    app.include_router(manager.router, prefix="/api")
    return app


def build_controller() -> FastAPI:
    """Return an application with DB-GPT's controller routes over its registry in memory."""
    app = FastAPI()
    controller.initialize_controller(app=app)
    return app


def build_gateway(address: str) -> FastAPI:
    """Return an application with DB-GPT's worker routes over its remote manager, which asks the controller."""
    manager.worker_manager.worker_manager = RemoteWorkerManager(controller.ModelRegistryClient(address))
    app = FastAPI()
    app.include_router(manager.router, prefix="/api")
    return app


def main() -> None:
    """Serve until the process is stopped."""
    role, port, *arguments = sys.argv[1:]
    logging.disable(logging.WARNING)
    if role == "worker":
        app = build_worker(int(port), json.loads(arguments[0]))
    else:
        app = build_controller() if role == "controller" else build_gateway(arguments[0])
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
