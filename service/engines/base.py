"""The protocol of an engine: what a person writes to add one.

Plain data goes in (`GenerateRequest`, lists of strings), bursts of plain data come out, and a cancel
event says when to stop, so that an engine could stand behind a process boundary unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias

from ..errors import Unsupported
from ..settings.params import param
from ..types import Burst, GenerateRequest, ModelMetadata, WorkerType

Vectors: TypeAlias = Any
"""Rows of floats: a list of lists, or a numpy array of shape (texts, dimensions), float32."""

Progress: TypeAlias = Callable[[str], None]
"""Called with a short sentence while a model loads."""


class CancelEvent(Protocol):
    """What an engine may ask of the event that it is given."""

    def is_set(self) -> bool:
        """Return whether nobody wants the answer any more."""

    def wait(self, timeout: float | None = None) -> bool:
        """Block for ``timeout`` seconds at most, or until cancelled; return whether it is."""


@dataclass
class ModelParams:
    """The parameters of every model; an engine's own ``Params`` extends them."""

    model_name: str = param(help="name of the model", tags=["fixed"])
    engine: str = param(help="engine that runs it", tags=["fixed"])
    model_path: str | None = param(None, help="weights: a file within the models folders", tags=["fixed"])
    model_alias: str | None = param(
        None, help="name that it is registered and called by, instead of its own", tags=["fixed"]
    )
    worker_type: str = param("llm", help="what it is for", choices=[t.value for t in WorkerType], tags=["fixed"])
    worker_class: str | None = param(
        None, help="engine class as a dotted path, module:Class; only from the configuration file", tags=["fixed"]
    )
    limit_model_concurrency: int = param(8, help="requests that run at once (slots)", min=1, max=4096)
    max_waiting: int = param(32, help="requests that may wait in line for a slot", min=0, max=10_000)
    queue_timeout: float = param(60.0, help="seconds a request waits in line", min=0, max=3600, tags=["shared"])
    start_timeout: float = param(300.0, help="seconds the start may take", min=0.1, max=86_400, tags=["shared"])
    weight: float = param(
        1.0, help="how much of the work it takes beside other instances of it", min=0.001, max=1000, tags=["shared"]
    )
    register: bool = param(True, help="whether the model is registered with the controller", tags=["shared"])
    send_heartbeat: bool = param(True, help="whether heartbeats are sent for it", tags=["shared"])
    heartbeat_interval: float = param(20.0, help="seconds between heartbeats", min=0.1, max=3600, tags=["shared"])

    @property
    def registered_name(self) -> str:
        """The name that clients use."""
        return self.model_alias or self.model_name


class Engine:
    """One model behind blocking calls. Subclass it, and override what the model can do.

    ``__init__`` is cheap; `start` loads. Calls come from many threads at once, at most
    ``limit_model_concurrency`` of each instance's generate, embed and rerank together.
    """

    name: ClassVar[str]
    Params: ClassVar[type[ModelParams]] = ModelParams
    default_worker_type: ClassVar[WorkerType] = WorkerType.LLM
    worker_types: ClassVar[frozenset[WorkerType]] = frozenset({WorkerType.LLM})
    needs_weights: ClassVar[bool] = True
    is_proxy: ClassVar[bool] = False
    """Whether another server computes the answers."""
    default_slots: ClassVar[dict[WorkerType, int]] = {WorkerType.TEXT2VEC: 64, WorkerType.RERANKER: 64}
    ticks: ClassVar[bool] = False
    """Whether `generate_stream` yields None at least once a second while nothing is ready. Where it does not,
    a thread of its own drives it, so that silences can be broken."""

    def __init__(self, params: Any, path: Path | None = None) -> None:
        """Keep ``params`` (an instance of `Params`) and ``path``, the resolved weights."""
        self.params = params
        self.path = path

    def start(self, progress: Progress) -> None:
        """Load the model; raises `StartFailed` (or anything, which is told apart by its type)."""

    def stop(self) -> None:
        """Free what `start` took. Called once, after every answer has ended or was cancelled."""

    def metadata(self) -> ModelMetadata:
        """Return what the model is."""
        return ModelMetadata(self.params.registered_name)

    def generate_stream(self, request: GenerateRequest, cancel: CancelEvent) -> Iterator[Burst | None]:
        """Yield bursts of new text until the answer ends or ``cancel`` is set."""
        raise self._unsupported("generate text")

    def embed(self, texts: Sequence[str], cancel: CancelEvent) -> Vectors:
        """Return one row of floats a text."""
        raise self._unsupported("embed texts")

    def rerank(self, query: str, texts: Sequence[str], cancel: CancelEvent) -> Sequence[float]:
        """Return a score for each text: the higher, the better it answers ``query``."""
        raise self._unsupported("rank texts")

    def count_token(self, prompt: str) -> int:
        """Return the number of tokens of ``prompt``."""
        raise self._unsupported("count tokens")

    def _unsupported(self, what: str) -> Unsupported:
        return Unsupported(f"model {self.params.registered_name!r} ({self.params.worker_type}) does not {what}")
