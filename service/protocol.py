"""What every manager of models does, and what it tells those who listen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from .cancel import Cancel
from .engines.base import Vectors
from .streams import OutputStream
from .types import (
    ApplyOutcome,
    GenerateRequest,
    JSONObject,
    ModelInstance,
    ModelMetadata,
    ModelOutput,
    SupportedModel,
    WorkerType,
)
from .worker import ModelWorker

APPLY_TYPES = ("start", "stop", "restart", "update_params")
EVERY_MODEL = "*"

EventKind = Literal["starting", "started", "failed", "stopped", "forgotten", "changed"]


@dataclass(frozen=True)
class ModelEvent:
    """What happened to a model; ``over_http`` are the parameters that were set over HTTP."""

    kind: EventKind
    worker: ModelWorker
    over_http: JSONObject = field(default_factory=dict)


class WorkerManager(Protocol):
    """What every manager does, over the models of one process or of a whole cluster."""

    def generate_stream(self, request: GenerateRequest, cancel: Cancel, *, wait: bool = True) -> OutputStream: ...
    def generate(self, request: GenerateRequest, cancel: Cancel, *, wait: bool = True) -> ModelOutput: ...
    def embeddings(self, model: str, texts: Sequence[str], cancel: Cancel, *, wait: bool = True) -> Vectors: ...
    def rerank(
        self, model: str, query: str, texts: Sequence[str], cancel: Cancel, *, wait: bool = True
    ) -> Sequence[float]: ...
    def count_token(self, model: str | None, prompt: str) -> int: ...
    def model_metadata(self, model: str) -> ModelMetadata: ...
    def model_startup(self, model: str, worker_type: WorkerType | None, params: Mapping[str, Any]) -> None: ...
    def model_shutdown(self, model: str, worker_type: WorkerType | None) -> None: ...
    def worker_apply(
        self, model: str, apply_type: str, worker_type: WorkerType | None, params: Mapping[str, Any]
    ) -> ApplyOutcome: ...
    def parameter_descriptions(self, model: str, worker_type: WorkerType | None) -> list[JSONObject]: ...
    def supported_models(self) -> list[tuple[str, int, list[SupportedModel]]]: ...
    def get_model_instances(self, key: str, *, healthy_only: bool = True) -> list[ModelInstance]: ...
    def get_all_model_instances(
        self, worker_type: WorkerType | None = None, *, healthy_only: bool = True
    ) -> list[ModelInstance]: ...
    def select_one_instance(self, key: str) -> ModelInstance: ...
    def load_of(self, model: str, worker_type: WorkerType) -> str | None: ...
