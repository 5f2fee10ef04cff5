# mypy: ignore-errors
# What it imports lies in the peer's environment only.
"""DB-GPT's own worker and controller, run by the interpreter of the peer's environment.

``python server.py worker PORT CONTROLLER`` is its worker manager with three models that need no weights (`theirs`,
`theirs-emb`, `theirs-rank`), registered at CONTROLLER as its configuration says it; one more, ``python server.py
controller PORT TIMEOUT``, its controller with its registry in memory. All but the models is theirs.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dbgpt.core import ModelMetadata, ModelOutput
from dbgpt.core.interface.parameter import (
    EmbeddingDeployModelParameters,
    LLMDeployModelParameters,
    RerankerDeployModelParameters,
)
from dbgpt.model.cluster.controller.controller import initialize_controller
from dbgpt.model.cluster.registry import EmbeddedModelRegistry
from dbgpt.model.cluster.worker import manager
from dbgpt.model.cluster.worker_base import ModelWorker
from dbgpt.model.parameter import ModelControllerParameters, ModelWorkerParameters, WorkerType
from dbgpt.util.tracer.tracer_impl import TracerParameters


@dataclass
class EchoDeployParameters(LLMDeployModelParameters):
    """What its llm is told; startup finds it by its provider."""

    __type__ = "echo"
    provider: str = "echo"
    pause: float = field(default=0.0, metadata={"help": "seconds before each piece"})


@dataclass
class EchoEmbeddingParameters(EmbeddingDeployModelParameters):
    """What its embedder is told."""

    __type__ = "echo"
    provider: str = "echo"


@dataclass
class EchoRerankerParameters(RerankerDeployModelParameters):
    """What its reranker is told."""

    __type__ = "echo"
    provider: str = "echo"


class EchoWorker(ModelWorker):
    """Answers as the first word of the last message says; ``max_new_tokens`` times " token" by default."""

    running = 0
    _lock = threading.Lock()

    def load_worker(self, model_name: str, deploy_model_params: Any, **kwargs: Any) -> None:
        self.name = model_name
        self.params = deploy_model_params

    def model_param_class(self) -> type:
        return EchoDeployParameters

    def start(self, command_args: list[str] | None = None) -> None:
        if self.name == "refuses":
            raise RuntimeError("this model never starts")

    def stop(self) -> None:
        return None

    def generate_stream(self, params: dict[str, Any]) -> Iterator[ModelOutput]:
        self._count(1)
        try:
            for output in self._outputs(params):
                time.sleep(getattr(self.params, "pause", 0.0) or 0.0)
                yield output
        finally:
            self._count(-1)

    def generate(self, params: dict[str, Any]) -> ModelOutput:
        return list(self.generate_stream(params))[-1]

    def _count(self, change: int) -> None:
        with self._lock:
            EchoWorker.running += change

    def _outputs(self, params: dict[str, Any]) -> Iterator[ModelOutput]:
        text = _said(params)
        word, _, rest = text.partition(" ")
        if word == "repeat":
            yield from (ModelOutput(text=so_far, error_code=0) for so_far in itertools.accumulate(rest))
        elif word == "show":
            yield ModelOutput(text=json.dumps(params, ensure_ascii=False, sort_keys=True), error_code=0)
        elif word == "think":
            yield ModelOutput.build(thinking="well")
            yield ModelOutput.build(thinking="well ...", text="It")
            yield ModelOutput.build(thinking="well ...", text="It is so.", finish_reason="stop")
        elif word == "trim":
            yield from (ModelOutput(text=one, error_code=0) for one in ("Hello ", "Hello", "Hello wo", "Hello world"))
        elif word == "half":
            yield from (ModelOutput(text=one, error_code=0) for one in ("gr\ufffd", "gr\u00fc", "gr\u00fcn \U0001f600"))
        elif word == "fail":
            yield ModelOutput(text=" token", error_code=0)
            yield ModelOutput(text="**LLMServer Generate Error**: the engine broke", error_code=1)
        elif word == "break":
            yield ModelOutput(text=" token", error_code=0)
            raise RuntimeError("broken in the middle")
        elif word == "raise":
            raise RuntimeError("broken at once")
        elif word != "nothing":
            yield from _tokens(params, text)

    def count_token(self, prompt: str) -> int:
        return len(prompt.split())

    def get_model_metadata(self, params: dict[str, Any]) -> ModelMetadata:
        return ModelMetadata(model=self.name, context_length=2048, metadata={"running": EchoWorker.running})

    def embeddings(self, params: dict[str, Any]) -> list[list[float]]:
        raise NotImplementedError("this model generates")


class EchoEmbedder(EchoWorker):
    """A row a text: its letters and its words."""

    def worker_type(self) -> WorkerType:
        return WorkerType.TEXT2VEC

    def embeddings(self, params: dict[str, Any]) -> list[list[float]]:
        return [[float(len(text)), float(len(text.split()))] for text in params["input"]]


class EchoReranker(EchoWorker):
    """One row: the share of the query's words that each text has."""

    def worker_type(self) -> WorkerType:
        return WorkerType.RERANKER

    def embeddings(self, params: dict[str, Any]) -> list[list[float]]:
        wanted = set(params["query"].split())
        return [[len(wanted & set(text.split())) / len(wanted) for text in params["input"]]]


def _said(params: dict[str, Any]) -> str:
    messages = params.get("messages") or []
    return messages[-1]["content"] if messages else params.get("prompt") or ""


def _tokens(params: dict[str, Any], text: str) -> Iterator[ModelOutput]:
    count = params.get("max_new_tokens") or 16
    usage = {"prompt_tokens": len(text.split()), "completion_tokens": count}
    usage["total_tokens"] = sum(usage.values())
    for number in range(1, count + 1):
        last = {"finish_reason": "stop", "usage": usage} if number == count else {}
        yield ModelOutput(text=" token" * number, error_code=0, **last)


CLASSES = {WorkerType.LLM: EchoWorker, WorkerType.TEXT2VEC: EchoEmbedder, WorkerType.RERANKER: EchoReranker}


def _build_worker(worker_type: str | None = None, *args: Any, **kwargs: Any) -> ModelWorker:
    return CLASSES[WorkerType(worker_type or "llm")]()


def run_worker(port: int, controller: str) -> None:
    """Serve the worker, as `run_worker_manager` does after it has read its configuration."""
    import uvicorn

    # Its own models need weights, or a service elsewhere.
    manager._build_worker = _build_worker
    models = (
        EchoDeployParameters(name="theirs"),
        EchoEmbeddingParameters(name="theirs-emb"),
        EchoRerankerParameters(name="theirs-rank"),
    )
    app = None
    for model in models:
        told = ModelWorkerParameters(
            host="127.0.0.1",
            port=port,
            controller_addr=controller,
            heartbeat_interval=1,
            worker_type=model.worker_type().value,
        )
        app = app or manager._setup_fastapi(told)
        manager._start_local_worker(manager.worker_manager, told, model)
    app.include_router(manager.router, prefix="/api")
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def run_controller(port: int, timeout: int) -> None:
    """Serve the controller; ``timeout`` seconds without a heartbeat make an instance unhealthy."""
    initialize_controller(
        registry=EmbeddedModelRegistry(heartbeat_interval_secs=1, heartbeat_timeout_secs=timeout),
        controller_params=ModelControllerParameters(host="127.0.0.1", port=port),
        trace_config=TracerParameters(file="tracer.jsonl"),
    )


if __name__ == "__main__":
    role, on, *told_more = sys.argv[1:]
    if role == "worker":
        run_worker(int(on), told_more[0])
    else:
        run_controller(int(on), int(told_more[0]))
