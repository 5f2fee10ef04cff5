"""The protocols of managers of models, of their listeners, and of the process that blueprints are in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, Protocol, TypeAlias

from ..access.keys import Key, Limits
from ..engines.base import Vectors
from ..settings.settings import Settings
from ..streams import Cancel, OutputStream
from ..telemetry.metrics import Metrics
from ..telemetry.recent import RecentRequests
from ..telemetry.shared_metrics import Sample
from ..telemetry.tracing import Tracing
from ..types import (
    DEFAULT_TERMS,
    ApplyOutcome,
    GenerateRequest,
    HostModels,
    JSONObject,
    ModelInstance,
    ModelMetadata,
    ModelOutput,
    Terms,
    WorkerType,
)
from .admission import Budget
from .states import State
from .worker import ModelWorker

APPLY_TYPES = ("start", "stop", "restart", "update_params")
EVERY_MODEL = "*"

EventKind = Literal[
    "starting", "started", "failed", "stopped", "forgotten", "changed", "health", "loading", "loaded", "unloaded"
]
"""``health``: a model that is ready has become unhealthy, or healthy again. ``loading``: it has its
memory, and its engine starts now. The last two are of a model that accepts requests before and after; ``unloaded``
also of one that was not loaded with its process, and of a load that failed."""


@dataclass(frozen=True)
class ModelEvent:
    """The change of a model; ``over_http`` has the parameters that were set over HTTP."""

    kind: EventKind
    worker: ModelWorker
    over_http: JSONObject = field(default_factory=dict)


StartCallback: TypeAlias = Callable[["WorkerManager"], object]
"""Called with a manager after its start."""


class ServiceState(str, Enum):
    """Whether a service can do its work, or why not: the ``state`` of its `Service.status`."""

    READY = "ready"
    STARTING = "starting"
    """Models are being started, or their host is."""
    WAITING = "waiting"
    """Another process still holds the models."""
    DRAINING = "draining"
    """It takes no new work, as it is about to end."""
    DISCONNECTED = "disconnected"
    """The registry was not read yet, or a controller can't read it."""
    FAILED = "failed"
    """No model is ready, or the model host can't be started."""


ClientOfServer: TypeAlias = int | Callable[[], bool]
"""A client as its web server shows it: the number of its socket, or a function that returns whether it has gone."""


class Watcher(Protocol):
    """Watches clients for a hang-up."""

    def watch(self, client: ClientOfServer, callback: Callable[[], None]) -> None:
        """Call ``callback`` once when the client hangs up. Raises Overloaded."""

    def unwatch(self, client: ClientOfServer) -> None:
        """Forget a client."""


class Permit(Protocol):
    """What one request has taken of the limits of its key."""

    def close(self, used: int) -> None:
        """Give back its place, and the tokens beyond those ``used``; a second call does nothing."""


class Keys(Protocol):
    """The API keys, and the part of this process in their limits."""

    def is_required(self) -> bool:
        """Return whether requests need a key: whether there is, or was, any. Raises NotReady if that is not known."""

    def find(self, secret: str) -> Key | None:
        """Return the key of a secret, None for an unknown one. Raises Unauthorized for an expired or revoked one."""

    def with_id(self, number: str) -> Key | None:
        """Return the key of an id; the rest is as with `find`."""

    def admit(self, key: Key, tokens: int) -> Permit:
        """Take one request, of ``tokens`` at most, from the limits of a key. Raises RateLimited."""

    def headers(self, key: Key) -> Sequence[tuple[str, str]]:
        """Return the headers that tell a client what is left of the limits of its key."""

    def left(self, key: Key) -> Limits:
        """Return what all processes have left of the limits of a valid key now; None: no limit.

        Like the three below it calls the store, and raises RegistryUnavailable.
        """

    def all(self) -> list[Key]:
        """Return all keys of the store, revoked ones too, in the order of their making."""

    def add(self, key: Key) -> None:
        """Keep a new key, which this process accepts at once. Raises ConfigError for a name that is taken."""

    def revoke(self, name: str, *, forget: bool = False) -> Key:
        """Revoke the key of an id or name, for this process at once; ``forget`` keeps nothing of it.

        Raises ConfigError if there is none.
        """


class Service(Protocol):
    """The process, as the blueprints see it."""

    settings: Settings
    tracing: Tracing
    metrics: Metrics
    """The counts of this process."""
    recent: RecentRequests | None
    """The last requests of this process; None where nothing shows them."""
    manager: WorkerManager
    own: WorkerManager
    """The manager of the models of this service alone."""
    budget: Budget
    requests: set[Cancel]
    """The cancel of each data-plane request that is under way."""

    @property
    def keys(self) -> Keys | None:
        """The API keys that are accepted; None without a store of keys."""

    @property
    def watcher(self) -> Watcher:
        """The watcher of clients' sockets."""

    def check_open(self) -> None:
        """Raise Draining or NotReady if no request is accepted now."""

    def when_stopped(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` at the end of this process."""

    def wait_draining(self, timeout: float) -> bool:
        """Block until this process drains, ``timeout`` seconds at most; return whether it does."""

    def instances(self) -> list[JSONObject]:
        """Return the instances in the registry as this process sees them, each with its state and the reason."""

    def sample(self) -> Sample:
        """Return the metrics of all processes of this service, now."""

    def status(self) -> JSONObject:
        """Return ``ready``, ``state`` (`ServiceState`), the reason, and each model with its own state and reason."""


class WorkerManager(Protocol):
    """A manager of models: of one process, of a model host, or of a whole cluster."""

    def generate_stream(self, request: GenerateRequest, cancel: Cancel | None = None) -> OutputStream:
        """Return the stream of an answer, which the caller closes.

        Raises UnknownModel, Unsupported, Overloaded, NotReady; the stream also raises the errors of the engine.
        """

    def generate(self, request: GenerateRequest, cancel: Cancel | None = None) -> ModelOutput:
        """Return a whole answer; raises like the stream."""

    def embeddings(
        self,
        model: str,
        texts: Sequence[str],
        cancel: Cancel | None = None,
        terms: Terms = DEFAULT_TERMS,
        *,
        extra: JSONObject | None = None,
    ) -> Vectors:
        """Return one row of floats for each text; raises like `generate_stream`, and InputTooLong.

        ``extra`` has fields of the caller that only the server behind an engine knows.
        """

    def rerank(
        self,
        model: str,
        query: str,
        texts: Sequence[str],
        cancel: Cancel | None = None,
        terms: Terms = DEFAULT_TERMS,
        *,
        extra: JSONObject | None = None,
    ) -> Sequence[float]:
        """Return a score for each text; takes and raises like `embeddings`."""

    def count_token(
        self, model: str | None, prompt: str, cancel: Cancel | None = None, terms: Terms = DEFAULT_TERMS
    ) -> int:
        """Return the number of tokens of ``prompt``, by the first LLM if ``model`` is None.

        It waits for a model that is not loaded, and for nothing else. Where ``terms`` let it not wait, it raises
        Overloaded.
        """

    def model_metadata(self, model: str) -> ModelMetadata:
        """Return the metadata of a model. Never waits in line."""

    def model_startup(
        self,
        model: str,
        worker_type: WorkerType | None,
        params: Mapping[str, Any],
        *,
        host: str | None = None,
        port: int | None = None,
    ) -> str:
        """Start one model and return when it is ready; of several hosts, on the one at ``host`` and ``port``.

        Return why the start is not remembered for the next process, or an empty text.
        Raises UnknownModel, Conflict, InvalidRequest, StartFailed. After an error the models are as before.
        """

    def model_shutdown(
        self, model: str, worker_type: WorkerType | None, *, host: str | None = None, port: int | None = None
    ) -> str:
        """Stop one model and forget it; return like `model_startup`. Raises UnknownModel."""

    def worker_apply(
        self, model: str, apply_type: str, worker_type: WorkerType | None, params: Mapping[str, Any]
    ) -> ApplyOutcome:
        """Apply one of `APPLY_TYPES` to all instances of a name (`EVERY_MODEL`: of all names).

        Failures are in the outcome. Raises UnknownModel without an instance, InvalidRequest for parameters that are
        not valid.
        """

    def parameter_descriptions(self, model: str, worker_type: WorkerType | None) -> list[JSONObject]:
        """Return a model's parameters with their values, private ones masked. Raises UnknownModel."""

    def supported_models(self) -> list[HostModels]:
        """Return the models that may run on each host."""

    def get_model_instances(self, key: str, *, healthy_only: bool = True) -> list[ModelInstance]:
        """Return the instances of a worker key."""

    def get_all_model_instances(
        self, worker_type: WorkerType | None = None, *, healthy_only: bool = True
    ) -> list[ModelInstance]:
        """Return all instances, of one type if given."""

    def model_states(self) -> Mapping[str, State]:
        """Return the state of each model, that of its most usable instance, by its worker key. Nothing is called."""

    def context_lengths(self) -> Mapping[str, int]:
        """Return the context length of each model that has one, by its name: the shortest of several instances.

        It is read from what this process knows already: no other process is called.
        """

    def models_with_images(self) -> set[str]:
        """Return the names of the models that take images, in each of their instances; read like `context_lengths`."""

    def default_models(self, *types: WorkerType) -> list[str]:
        """Return the models that may be meant by a request that names none: those of the first type that has any."""

    def select_one_instance(self, key: str) -> ModelInstance:
        """Return a healthy instance of a worker key. Raises UnknownModel, NotReady."""

    def load_of(self, model: str, worker_type: WorkerType) -> str | None:
        """Return the last value of ``Modelyard-Load`` for a model; None if there is none."""

    def after_start(self, callback: StartCallback | None) -> None:
        """Call ``callback`` with this manager after its models were started or have failed; at once if they were.

        None is ignored. An exception of a callback is logged with its name, and changes nothing else.
        """

    def notify_started(self) -> None:
        """Call the callbacks of `after_start`. The process does so once, at the end of its start."""
