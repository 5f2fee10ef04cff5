"""The manager of the models of a cluster: finds the instances of a model, and calls one of them.

Models of this process are called directly, all others over HTTP.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, TypeVar

from ..engines.base import Vectors
from ..errors import ModelyardError
from ..sessions.session import Session
from ..streams import Cancel, OutputStream, Relay
from ..telemetry.metrics import ROUTED, Metrics
from ..telemetry.tracing import Tracing
from ..threads import BackgroundThread
from ..types import (
    DEFAULT_TERMS,
    ApplyOutcome,
    GenerateRequest,
    HostModels,
    JSONObject,
    ModelInstance,
    ModelMetadata,
    Terms,
    WorkerType,
    split_worker_key,
    worker_key,
)
from ..worker.counting import CallCounts
from ..worker.local_models import LocalModels
from ..worker.manager import LocalWorkerManager
from ..worker.shared_calls import SharedCalls
from ..worker.spans import spanned
from ..worker.states import State
from .attempts import Attempts, RoutedStreams
from .directory import Directory, HostedCheck, Worker
from .machines import Machines
from .registry.base import Instance, place_of
from .routing import Routes
from .view import RegistryView

log = logging.getLogger(__name__)
T = TypeVar("T")

PROBE_TIMEOUT = (1.0, 2.0)
"""Seconds to connect, and of silence."""
_KEYS = 1024
"""Worker keys whose counts are kept at hand."""


class RemoteWorkerManager(SharedCalls):
    """The models of all processes. `start` and `stop` it; it makes no connection before its first call."""

    def __init__(
        self,
        view: RegistryView,
        session: Session,
        local: LocalWorkerManager | None = None,
        own_url: Callable[[], str] = lambda: "",
        *,
        models: LocalModels | None = None,
        tracing: Tracing | None = None,
        metrics: Metrics | None = None,
        check_complete: Callable[[], None] = lambda: None,
        check_hosted: HostedCheck | None = None,
    ) -> None:
        """Route over the instances in ``view``; those at ``own_url`` are the models of ``local``.

        Without ``local`` they are ``models``, which are called, but not started, stopped or changed by this manager.
        ``check_complete`` raises NotReady while this service may hold models that are not declared yet,
        ``check_hosted`` the error of a model of its model host; None without one.
        """
        super().__init__(tracing)
        self.view = view
        self.routes = Routes()
        self._metrics = metrics or Metrics()
        self._counts = lru_cache(_KEYS)(self._new_counts)
        models = models if local is None else local.models
        self._directory = Directory(
            view,
            self.routes,
            session,
            models,
            own_url,
            check_complete=check_complete,
            check_hosted=check_hosted,
        )
        self._machines = Machines(
            view, session, local, own_url, check_complete=check_complete, unchanged=models if local is None else None
        )
        self._prober = Prober(self.routes, session)

    # Life

    def start(self) -> None:
        """Start the thread that probes the addresses that failed."""
        self._prober.start()

    def stop(self) -> None:
        """End that thread. A second call does nothing."""
        self._prober.stop()

    # Instances

    def _attempts(self, key: str, terms: Terms = DEFAULT_TERMS) -> Attempts:
        directory = self._directory
        look, look_again = lambda: directory.all_of(key), lambda: directory.refreshed(key)
        return Attempts(key, look, look_again, self.routes, terms, self._failed)

    def _new_counts(self, key: str) -> CallCounts:
        name, worker_type = split_worker_key(key)
        return CallCounts(self._metrics, ROUTED, name, worker_type.value)

    def _failed(self) -> None:
        self._prober.wake()
        self.view.refresh_soon()

    # Calls

    @spanned
    def generate_stream(self, request: GenerateRequest, cancel: Cancel | None = None) -> OutputStream:
        """Return the stream of an answer; close it. An instance is called, and may refuse, at its first burst.

        Raises UnknownModel, Unsupported, NotReady. The stream raises Overloaded, NotReady or WorkerUnreachable if no
        instance accepts the request, WorkerLost if the answer breaks off, and the errors of the engine.
        """
        cancel = cancel or Cancel()
        key = self._directory.key_of(request.model, WorkerType.LLM)
        counts = self._counts(key)
        try:
            stream = self._stream(key, request, cancel)
        except BaseException as error:
            counts.failed(error)
            raise
        stream.when_closed(partial(counts.answered, stream))
        return stream

    def _stream(self, key: str, request: GenerateRequest, cancel: Cancel) -> OutputStream:
        if (alone := self._directory.alone(key)) is not None:
            return alone.generate_stream(request, cancel)

        def ask(instance: Instance, cancel: Cancel, terms: Terms) -> OutputStream:
            cancel.instance = instance.url
            changed = request if terms is request.terms else replace(request, terms=terms)
            return self._directory.worker_at(instance).generate_stream(changed, cancel)

        return Relay(RoutedStreams(self._attempts(key, request.terms), ask), cancel)

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
        key = self._directory.key_of(model, WorkerType.TEXT2VEC)

        def embed(worker: Worker, terms: Terms) -> Vectors:
            return worker.embeddings(texts, cancel, terms, extra=extra)

        return self._counts(key).computed(texts, cancel, lambda: self._called(key, embed, terms, cancel))

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
        """Return a score for each text, by a reranker, or by the cosine of an embedder of that name."""
        cancel = cancel or Cancel()
        key = self._directory.key_of(model, WorkerType.RERANKER, WorkerType.TEXT2VEC)

        def rank(worker: Worker, terms: Terms) -> Sequence[float]:
            return worker.rerank(query, texts, cancel, terms, extra=extra)

        every = [query, *texts]
        return self._counts(key).computed(every, cancel, lambda: self._called(key, rank, terms, cancel))

    @spanned
    def count_token(
        self, model: str | None, prompt: str, cancel: Cancel | None = None, terms: Terms = DEFAULT_TERMS
    ) -> int:
        """Return the number of tokens of ``prompt``; without a model, by the first LLM that is ready."""
        if not model:
            self._directory.check_complete()
            model = self._first_llm(self._instances())
        key = self._directory.key_of(model, *WorkerType)
        return self._called(key, lambda worker, terms: worker.count_token(prompt, cancel, terms), terms, cancel)

    @spanned
    def model_metadata(self, model: str) -> ModelMetadata:
        """Return the metadata of a model."""
        key = self._directory.key_of(model, *WorkerType)
        return self._called(key, lambda worker, _: worker.metadata())

    def _called(
        self, key: str, call: Callable[[Worker, Terms], T], terms: Terms = DEFAULT_TERMS, cancel: Cancel | None = None
    ) -> T:
        """Return the result of ``call(worker, terms)`` at the first instance that does not refuse.

        The ``cancel`` gets the address of that instance.
        """
        if (alone := self._directory.alone(key)) is not None:
            return call(alone, terms)
        attempts = self._attempts(key, terms)
        while True:
            instance, terms = attempts.next()
            if cancel is not None:
                cancel.instance = instance.url
            try:
                worker = self._directory.worker_at(instance)
                result = call(worker, terms)
            except BaseException as error:
                if not attempts.over(error):
                    raise
            else:
                attempts.over(load=worker.load)
                return result

    # What is there

    def _instances(self, key: str | None = None) -> list[ModelInstance]:
        keys = self._directory.keys() if key is None else [key]
        return [_model_instance(instance) for each in keys for instance in self._directory.all_of(each)]

    def context_lengths(self) -> Mapping[str, int]:
        """Return the context length of each model whose instances have registered one, by its name."""
        return self._directory.context_lengths()

    def models_with_images(self) -> set[str]:
        """Return the names of the models whose instances have all registered that they take images."""
        return self._directory.models_with_images()

    def model_states(self) -> Mapping[str, State]:
        """Return the state of each model, that of its most usable instance, by its worker key."""
        return self._directory.states()

    def select_one_instance(self, key: str) -> ModelInstance:
        """Return an instance that the next request would go to. Raises UnknownModel, NotReady."""
        attempts = self._attempts(key)
        instance, _ = attempts.next()
        self.routes.ended(instance)
        return _model_instance(instance)

    def load_of(self, model: str, worker_type: WorkerType) -> str | None:
        """Return the sum of the last reported loads of a model's instances; None if there is none."""
        load = self.routes.load_of(self._directory.usable(worker_key(model, worker_type)))
        return None if load is None else str(load)

    def parameter_descriptions(self, model: str, worker_type: WorkerType | None) -> list[JSONObject]:
        """Return a model's parameters with their values, from a machine that has it. Raises UnknownModel."""
        return self._machines.parameter_descriptions(model, worker_type)

    def supported_models(self) -> list[HostModels]:
        """Return the models that may run on each host; a host that does not answer has none, and an error."""
        return self._machines.supported_models()

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
        """Start one model on a host; without ``host`` and ``port``, on this process or the only host."""
        unsaved = self._machines.model_startup(model, worker_type, params, host=host, port=port)
        # The host has registered it: the next request finds it.
        self.view.refresh_now()
        return unsaved

    @spanned
    def model_shutdown(
        self, model: str, worker_type: WorkerType | None, *, host: str | None = None, port: int | None = None
    ) -> str:
        """Stop one model on a host and forget it."""
        unsaved = self._machines.model_shutdown(model, worker_type, host=host, port=port)
        self.view.refresh_soon()
        return unsaved

    @spanned
    def worker_apply(
        self, model: str, apply_type: str, worker_type: WorkerType | None, params: Mapping[str, Any]
    ) -> ApplyOutcome:
        """Apply one of `APPLY_TYPES` to all instances of a name, on all machines, and merge the outcomes."""
        outcome = self._machines.worker_apply(model, apply_type, worker_type, params)
        self.view.refresh_soon()
        return outcome


class Prober(BackgroundThread):
    """Probes the addresses of `Routes` that are due, and notes the results there. Woken when an address has failed."""

    def __init__(self, routes: Routes, session: Session) -> None:
        """Probe by ``session``, which stays the caller's."""
        super().__init__("modelyard-probe", self._probe_due)
        self._routes = routes
        self._session = session

    def _probe_due(self) -> float | None:
        for url in self._routes.to_probe():
            self._routes.probed(url, self._probe(url))
        return self._routes.next_probe_in()

    def _probe(self, url: str) -> str:
        """Return why an address does not answer; empty if it does, with any status below 500."""
        try:
            with self._session.request("GET", f"{url}/health", timeout=PROBE_TIMEOUT) as response:
                response.read_whole()
        except ModelyardError as error:
            return str(error)
        except Exception as error:
            log.exception("probing %s failed", url)
            return type(error).__name__
        return f"it answers with {response.status_code}" if response.status_code >= 500 else ""


def _model_instance(instance: Instance) -> ModelInstance:
    host, port = place_of(instance.url)
    return ModelInstance(
        instance.key,
        host,
        port,
        weight=instance.weight,
        check_healthy=instance.check_healthy,
        healthy=instance.healthy,
        enabled=instance.enabled,
        prompt_template=instance.prompt_template,
    )
