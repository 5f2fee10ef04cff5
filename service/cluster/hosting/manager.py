"""The manager of the models of a model host: it sends each call to the host, over its socket.

The host holds the models, their limits and lines, and checks each request. The manager only waits while a host is being
started.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ...engines.base import Vectors
from ...errors import Draining, ModelyardError, NotConnected, NotReady, UnknownModel, not_callable
from ...sessions.session import Session
from ...streams import Cancel, OutputStream, Relay
from ...telemetry.tracing import Tracing
from ...types import (
    DEFAULT_TERMS,
    ApplyOutcome,
    GenerateRequest,
    HostModels,
    JSONObject,
    ModelInstance,
    ModelMetadata,
    Terms,
    WorkerType,
    worker_key,
)
from ...wire.errors import error_of_response
from ...worker.protocol import ServiceState
from ...worker.shared_calls import SharedCalls, all_of, shortest
from ...worker.spans import spanned
from ...worker.states import AVAILABLE, State
from ..remote_machine import RemoteMachine
from ..remote_model import RemoteModelWorker

T = TypeVar("T")

PAUSE = 0.1
"""Seconds between two checks whether a host that is being started answers."""
STATUS_TIMEOUT = (0.5, 2.0)


@dataclass
class HostEndpoint:
    """The address of the model host and its trouble: `ModelHost` writes them, `HostedWorkerManager` reads them."""

    url: str = ""
    """The address of its API; empty until its folder is made."""
    trouble: str = ""
    """Why the host does not answer; empty if it answers, or is just being started."""


class HostedWorkerManager(SharedCalls):
    """The models of the host. It makes no connection before its first call."""

    def __init__(
        self,
        endpoint: HostEndpoint,
        session: Session,
        timeout: float,
        place: Callable[[], tuple[str, int]],
        *,
        tracing: Tracing | None = None,
    ) -> None:
        """Call the host at ``endpoint``, and wait ``timeout`` seconds for one that is being started.

        ``place`` returns the host and port of instances.
        """
        super().__init__(tracing)
        self.endpoint = endpoint
        self._session = session
        self._timeout = timeout
        self._place = place
        self._workers: dict[str, RemoteModelWorker] = {}
        self._keys: set[str] = set()
        """The worker keys of the host's models, by its last status."""
        self._context_lengths: Mapping[str, int] = {}
        self._with_images: set[str] = set()
        self._states: Mapping[str, State] = {}

    def _worker(self, model: str, *types: WorkerType) -> RemoteModelWorker:
        """Return the model to call as one of ``types``. If the host has no such model, the call itself fails."""
        keys = [worker_key(model, worker_type) for worker_type in types]
        if self._keys.isdisjoint(keys):
            with contextlib.suppress(ModelyardError):
                self.status()
        key = next((key for key in keys if key in self._keys), keys[0])
        worker = self._workers.get(key)
        if worker is None or worker.url != self.endpoint.url:
            worker = self._workers[key] = RemoteModelWorker(key, self.endpoint.url, self._session)
        return worker

    def _machine(self) -> RemoteMachine:
        return RemoteMachine(self.endpoint.url, self._session)

    # Waiting for the host

    def _patience(self, model: str | None, cancel: Cancel | None = None, *, wait: bool = True) -> _Patience:
        return _Patience(self, model, cancel, time.monotonic() + (self._timeout if wait else 0))

    def _called(
        self, call: Callable[[], T], model: str | None, cancel: Cancel | None = None, *, wait: bool = True
    ) -> T:
        """Return the result of ``call`` as soon as a host can answer it; without ``wait`` it is called once."""
        patience = self._patience(model, cancel, wait=wait)
        while True:
            try:
                return call()
            except ModelyardError as error:
                patience.wait(error)

    def is_coming(self, model: str | None) -> bool:
        """Return whether the host, or a model of it, is being started."""
        try:
            status = self.status()
        except NotConnected:
            return True
        except ModelyardError:
            return False
        states = [m.get("state") for m in status["models"] if str(m.get("model")).rpartition("@")[0] == model]
        # A model that is ready now has become ready after it refused the request.
        is_near = State.STARTING in states or State.READY in states or (not states and not status["ready"])
        return is_near or status["state"] == ServiceState.STARTING

    def forget(self) -> None:
        """Forget the host's models: one of them was shut down."""
        self._keys = set()

    def status(self) -> JSONObject:
        """Return the host's ``/readyz``. Raises WorkerUnreachable, and the error that it answers with."""
        url = self.endpoint.url.removesuffix("/api") + "/readyz"
        with self._session.request("GET", url, timeout=STATUS_TIMEOUT) as response:
            if response.status_code not in (200, 503):
                raise error_of_response(response.status_code, response.headers, response.content, self.endpoint.url)
            status = response.json()
        self._keys = {str(model["model"]) for model in status["models"]}
        lengths = ((str(m["model"]).rpartition("@")[0], m.get("context_length")) for m in status["models"])
        self._context_lengths = shortest((name, length) for name, length in lengths if isinstance(length, int))
        images = ((str(m["model"]).rpartition("@")[0], bool(m.get("takes_images"))) for m in status["models"])
        self._with_images = all_of(images)
        self._states = {str(model["model"]): State(model["state"]) for model in status["models"]}
        names = ["ready", "state", "reason", "models", "unsaved", *({"cluster"} & status.keys())]
        return {name: status.get(name) for name in names}

    def _check_known(self, model: str, kind: WorkerType) -> None:
        """Raise the error of a model that the host does not have, or that has failed, so that a stream fails early."""
        key = worker_key(model, kind)
        if key in self._keys:
            return
        try:
            status = self.status()
        except ModelyardError:
            return  # the host is being started, or the call itself fails with the same error
        states = {str(m["model"]): m for m in status["models"]}
        if key not in states and not status["ready"]:
            return  # it may not be declared yet: the host decides
        if key in states:
            may_answer = states[key]["state"] in (*AVAILABLE, State.STARTING)
            if not may_answer and status["state"] != ServiceState.STARTING:
                self._worker(model, kind).metadata()
            return
        raise not_callable(states, model, [kind])

    def check_available(self, model: str, *types: WorkerType) -> None:
        """Raise the error of a model that the host has as one of ``types``, and that has failed or is stopped.

        Nothing is raised where the host has no such model, or does not answer.
        """
        try:
            self.status()
        except ModelyardError:
            return
        for kind in types:
            if self._states.get(worker_key(model, kind), State.READY) not in AVAILABLE:
                self._worker(model, kind).metadata()

    # Calls

    @spanned
    def generate_stream(self, request: GenerateRequest, cancel: Cancel | None = None) -> OutputStream:
        """Return the stream of an answer; close it. The host checks the request when its first burst is read.

        Raises UnknownModel, Unsupported, NotReady at once, if the host answers.
        """
        cancel = cancel or Cancel()
        self._check_known(request.model, WorkerType.LLM)
        streams = _HostStreams(
            lambda cancel: self._worker(request.model, WorkerType.LLM).generate_stream(request, cancel),
            self._patience(request.model, cancel, wait=request.terms.wait),
        )
        return Relay(streams, cancel)

    @spanned
    def embeddings(
        self,
        model: str,
        texts: Sequence[str],
        cancel: Cancel | None = None,
        terms: Terms = DEFAULT_TERMS,
        *,
        extra: JSONObject | None = None,
    ) -> Vectors:
        """Return one row of floats for each text."""
        cancel = cancel or Cancel()

        def ask() -> Vectors:
            return self._worker(model, WorkerType.TEXT2VEC).embeddings(texts, cancel, terms, extra=extra)

        return self._called(ask, model, cancel, wait=terms.wait)

    @spanned
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
        """Return a score for each text."""
        cancel = cancel or Cancel()

        def ask() -> Sequence[float]:
            # Looked up at each try: the type of the model is in the status of a host that answers.
            worker = self._worker(model, WorkerType.RERANKER, WorkerType.TEXT2VEC)
            return worker.rerank(query, texts, cancel, terms, extra=extra)

        return self._called(ask, model, cancel, wait=terms.wait)

    @spanned
    def count_token(
        self, model: str | None, prompt: str, cancel: Cancel | None = None, terms: Terms = DEFAULT_TERMS
    ) -> int:
        """Return the number of tokens of ``prompt``; the model None means the first LLM that is ready."""
        name = model or self._called(lambda: self._first_llm(self._listed()), None, cancel, wait=terms.wait)

        def count() -> int:
            return self._worker(name, *WorkerType).count_token(prompt, cancel, terms)

        return self._called(count, name, cancel, wait=terms.wait)

    @spanned
    def model_metadata(self, model: str) -> ModelMetadata:
        """Return the metadata of a model."""
        return self._called(lambda: self._worker(model, *WorkerType).metadata(), model)

    # What is there

    def _instances(self, key: str | None = None) -> list[ModelInstance]:
        return [instance for instance in self._called(self._listed, None) if key in (None, instance.model_name)]

    def _listed(self) -> list[ModelInstance]:
        """Return all instances in the host's status, without a wait for a host."""
        host, port = self._place()
        return [
            ModelInstance(model["model"], host, port, healthy=model["state"] in AVAILABLE - {State.UNHEALTHY})
            for model in self.status()["models"]
            if "@" in model["model"]
        ]

    def context_lengths(self) -> Mapping[str, int]:
        """Return the context length of each model, by its name, as it is in the host's last status."""
        return self._context_lengths

    def models_with_images(self) -> set[str]:
        """Return the names of the models that take images, as in the host's last status."""
        return self._with_images

    def model_states(self) -> Mapping[str, State]:
        """Return the state of each model, by its worker key, as it is in the host's last status."""
        return self._states

    def load_of(self, model: str, worker_type: WorkerType) -> str | None:
        """Return the load of a model in the host's last answer to this process."""
        worker = self._workers.get(worker_key(model, worker_type))
        return None if worker is None else worker.load

    def parameter_descriptions(self, model: str, worker_type: WorkerType | None) -> list[JSONObject]:
        """Return a model's parameters with their values. Raises UnknownModel."""
        return self._called(lambda: self._machine().parameter_descriptions(model, worker_type), model)

    def supported_models(self) -> list[HostModels]:
        """Return the models that may run on the host."""
        hosts = self._called(lambda: self._machine().supported_models(), None)
        return [HostModels(*self._place(), host.models) for host in hosts]

    # What changes

    @spanned
    def model_startup(
        self,
        model: str,
        worker_type: WorkerType | None,
        params: Mapping[str, Any],
        *,
        host: str | None = None,
        port: int | None = None,
    ) -> str:
        """Start one model on the model host, for all processes; ``host`` and ``port`` are ignored."""
        return self._called(lambda: self._machine().model_startup(model, worker_type, params), None)

    @spanned
    def model_shutdown(
        self, model: str, worker_type: WorkerType | None, *, host: str | None = None, port: int | None = None
    ) -> str:
        """Stop one model and forget it. Raises UnknownModel."""
        return self._called(lambda: self._machine().model_shutdown(model, worker_type), None)

    @spanned
    def worker_apply(
        self, model: str, apply_type: str, worker_type: WorkerType | None, params: Mapping[str, Any]
    ) -> ApplyOutcome:
        """Apply ``apply_type`` to a model, or to all. Raises UnknownModel, InvalidRequest."""
        return self._called(lambda: self._machine().worker_apply(model, apply_type, worker_type, params), None)


class _Patience:
    """The wait of one request for a host that is being started."""

    def __init__(self, manager: HostedWorkerManager, model: str | None, cancel: Cancel | None, until: float) -> None:
        self._manager = manager
        self._model = model
        self._cancel = cancel or Cancel()
        self._until = until

    def wait(self, error: ModelyardError) -> None:
        """Wait a moment if a host may soon accept the request that failed with ``error``; else raise.

        Raises ``error``, NotReady if the time is over without a host, or the error of the cancel.
        """
        # Without an address, there was no host to call.
        is_absent = isinstance(error, NotConnected | Draining) or not self._manager.endpoint.url
        if isinstance(error, UnknownModel):
            self._manager.forget()
        if not is_absent and not (isinstance(error, NotReady) and self._manager.is_coming(self._model)):
            raise error
        if time.monotonic() >= self._until:
            reason = self._manager.endpoint.trouble or f"the model host is being started: {error}"
            raise NotReady(reason, retry_after=2) if is_absent else error
        if self._cancel.wait(PAUSE):
            raise self._cancel.error


class _HostStreams:
    """The streams of one request, each from the host that runs at that time: the `Source` of its relay."""

    def __init__(self, ask: Callable[[Cancel], OutputStream], patience: _Patience) -> None:
        self._ask = ask
        self._patience = patience
        self._has_begun = False

    def open(self, cancel: Cancel) -> OutputStream:
        return self._ask(cancel)

    def begun(self, stream: OutputStream) -> None:
        self._has_begun = True

    def ended(self, error: BaseException | None) -> bool:
        if self._has_begun or not isinstance(error, ModelyardError):
            return False
        self._patience.wait(error)
        return True
