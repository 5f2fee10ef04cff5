"""The manager of the models in this process.

A blueprint, a monolith's view or a test calls it; `app.extensions["modelyard"].manager` holds it.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..engines.base import Vectors
from ..errors import Conflict, InvalidRequest, ModelyardError, NotReady, UnknownModel
from ..settings import params as parameters
from ..streams import Cancel, OutputStream
from ..telemetry.tracing import Tracing, spanned
from ..types import (
    ApplyOutcome,
    GenerateRequest,
    HostModels,
    JSONObject,
    ModelInstance,
    ModelMetadata,
    ModelOutput,
    WorkerType,
    worker_key,
)
from . import model_names
from .admission import Budget
from .apply import Entry, operation
from .declarations import Declarations
from .outcomes import in_parallel, merged
from .protocol import APPLY_TYPES, EVERY_MODEL, EventKind, ModelEvent
from .spans import facts_of
from .supported import supported_models
from .worker import ModelWorker, State

log = logging.getLogger(__name__)

LIFECYCLE_TIMEOUT = 5.0
"""Seconds that the stop of all models waits for one that is just starting."""


class LocalWorkerManager:
    """The models of this process: added, started, called, changed and stopped."""

    def __init__(
        self,
        declarations: Declarations,
        budget: Budget,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        tracing: Tracing | None = None,
    ) -> None:
        """Hold no model yet. ``host`` and ``port`` are what `supported_models` and instances say."""
        self.declarations = declarations
        self.budget = budget
        self.host = host
        self.port = port
        self.tracing = tracing or Tracing()
        self.incomplete: Callable[[], str] = lambda: ""
        """Says why models may still be missing here; whoever asks for one then is told to come again."""
        self._lock = threading.RLock()
        self._entries: dict[str, Entry] = {}
        self._listeners: list[Callable[[ModelEvent], None]] = []
        self._after_start: list[Callable[[], None]] = []

    # Life

    def add(
        self, name: str, worker_type: WorkerType | None = None, over_http: Mapping[str, Any] | None = None
    ) -> ModelWorker:
        """Declare a model of this process, without starting it.

        Raises Conflict where its key is taken, or its slots exceed what is left of the budget, and what
        `Declarations.engine` raises.
        """
        return self._add(name, worker_type, dict(over_http or {})).worker

    def _add(self, name: str, worker_type: WorkerType | None, over_http: JSONObject) -> Entry:
        worker = self.new_worker(name, worker_type, over_http)
        with self._lock:
            if worker.key in self._entries:
                raise Conflict(f"model {worker.key} is here already: start, restart or update it with apply")
            self.check_room(worker)
            entry = self._entries[worker.key] = Entry(worker, over_http)
        return entry

    def new_worker(self, name: str, worker_type: WorkerType | None, over_http: JSONObject) -> ModelWorker:
        """Return a worker of the declared model, not started. Raises what `Declarations.engine` raises."""
        engine = self.declarations.engine(name, worker_type, over_http)
        return ModelWorker(engine, lambda: self.declarations.locate(engine))

    def check_room(self, worker: ModelWorker) -> None:
        """Raise Conflict when its slots, with those of the other models, exceed the budget."""
        taken = sum(e.slots for e in self._all() if e.worker.key != worker.key)
        self.budget.check_room(worker.name, worker.gate.slots, taken)

    def claim(self, entry: Entry, worker: ModelWorker) -> None:
        """Hold room for the worker that is about to replace the entry's own. Raises Conflict."""
        with self._lock:
            self.check_room(worker)
            entry.claimed = worker.gate.slots

    def start(
        self,
        *,
        ignore_errors: bool = True,
        skip: Collection[str] = (),
        halted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start every model but those whose key is in ``skip``, one after the other, then call `after_start` callbacks.

        Once ``halted`` returns true, nothing more is started or called.
        A failed one is logged and told to listeners; without ``ignore_errors`` its StartFailed is raised, after
        the others.
        """
        failures: list[ModelyardError] = []
        for entry in self._all():
            if halted():
                return
            if entry.worker.key in skip:
                continue
            try:
                self._start(entry)
            except ModelyardError as error:
                failures.append(error)
        for callback in self._after_start:
            callback()
        if failures and not ignore_errors:
            raise failures[0]

    def stop(self, *, ignore_errors: bool = True) -> None:
        """Stop every model, the last added first; without ``ignore_errors`` raise the first error at the end."""
        failures: list[Exception] = []
        for entry in reversed(self._all()):
            try:
                with entry.alone(LIFECYCLE_TIMEOUT):
                    entry.worker.stop()
            except ModelyardError as error:
                log.warning("model %s did not stop: %s", entry.worker.key, error)
                failures.append(error)
            except Exception as error:
                log.exception("model %s did not stop", entry.worker.key)
                failures.append(error)
        if failures and not ignore_errors:
            raise failures[0]

    def after_start(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once all models were started (or failed)."""
        self._after_start.append(callback)

    def subscribe(self, listener: Callable[[ModelEvent], None]) -> None:
        """Tell ``listener`` of every change of a model, in the thread that made it."""
        self._listeners.append(listener)

    def tell(self, kind: EventKind, entry: Entry) -> None:
        """Tell every listener; what one raises is logged."""
        for listener in self._listeners:
            try:
                listener(ModelEvent(kind, entry.worker, dict(entry.over_http)))
            except Exception:
                log.exception("a listener failed at %s of %s", kind, entry.worker.key)

    def _start(self, entry: Entry) -> None:
        with self.held(entry):
            self.start_locked(entry)

    @contextmanager
    def held(self, entry: Entry) -> Iterator[None]:
        """Hold an entry's lifecycle lock. Raises NotReady after too long, UnknownModel where the entry has gone."""
        with entry.alone():
            if self._entries.get(entry.worker.key) is not entry:
                raise UnknownModel(f"model {entry.worker.key} was shut down meanwhile")
            yield

    def start_locked(self, entry: Entry) -> None:
        """Start an entry whose lifecycle lock this thread holds. Raises StartFailed."""
        if entry.worker.state is State.READY:
            return
        self.tell("starting", entry)
        span = self.tracing.span("model.start")
        if span.recording:
            span.set(facts_of(entry.worker.params))
        try:
            with span:
                try:
                    entry.worker.start()
                except ModelyardError as error:
                    span.set({"modelyard.reason": str(error)})
                    raise
        except BaseException:
            self.tell("failed", entry)
            raise
        self.tell("started", entry)

    # Models that come and go

    @spanned
    def model_startup(
        self,
        model: str,
        worker_type: WorkerType | None,
        params: Mapping[str, Any],
        *,
        host: str | None = None,
        port: int | None = None,
    ) -> None:
        """Start one model now, with ``params`` over what is known of it; whatever ``host`` and ``port`` say, here.

        Raises UnknownModel, Conflict (it runs, or there is no room), InvalidRequest, StartFailed; then nothing is left
        behind, and what ran still runs.
        """
        self._check_complete()
        self._check_enabled(model)
        over_http = {k: v for k, v in params.items() if v is not None}
        entry = Entry(self.new_worker(model, worker_type, over_http), over_http)
        key = entry.worker.key
        with entry.alone():
            with self._lock:
                old = self._entries.get(key)
                if old is not None:
                    old.refuse_while_busy()
                    entry.over_http = {**old.over_http, **over_http}
                    entry.worker = self.new_worker(model, worker_type, entry.over_http)
                self.check_room(entry.worker)
                self._entries[key] = entry
            try:
                self.start_locked(entry)
            except BaseException:
                with self._lock:
                    if old is not None:
                        self._entries[key] = old
                    else:
                        self._entries.pop(key, None)
                self.tell("changed" if old is not None else "forgotten", old or entry)
                raise

    def _check_enabled(self, model: str) -> None:
        entry = self.declarations.entry(model)
        if entry is not None and not entry.enabled:
            raise Conflict(f"model {model!r} is disabled ({entry.origin}): {entry.description}")

    @spanned
    def model_shutdown(
        self, model: str, worker_type: WorkerType | None, *, host: str | None = None, port: int | None = None
    ) -> None:
        """Stop one model and forget it. Raises UnknownModel."""
        for entry in self._named(model, worker_type):
            with self.held(entry):
                entry.worker.stop()
                with self._lock:
                    self._entries.pop(entry.worker.key, None)
                self.tell("forgotten", entry)

    @spanned
    def worker_apply(
        self, model: str, apply_type: str, worker_type: WorkerType | None, params: Mapping[str, Any]
    ) -> ApplyOutcome:
        """Start, stop, restart or change all instances of a name (``*``: of all names), in parallel.

        Failures are in the outcome. Raises UnknownModel without an instance, InvalidRequest for parameters that
        do not fit.
        """
        if apply_type not in APPLY_TYPES:
            fault = f"{apply_type!r} is not one of {', '.join(APPLY_TYPES)}"
            raise InvalidRequest.of_fields([{"field": "apply_type", "message": fault}])
        self._check_complete()
        entries = self._all() if model == EVERY_MODEL else self._named(model, worker_type)
        for entry in entries:
            parameters.from_json(type(entry.worker.params), params)
        return merged(in_parallel(entries, operation(self, apply_type, params), lambda entry: entry.worker.key))

    # What is there

    def parameter_descriptions(self, model: str, worker_type: WorkerType | None) -> list[JSONObject]:
        """Return the parameters of a model with their values, private ones masked. Raises UnknownModel."""
        try:
            worker = self._named(model, worker_type)[0].worker
        except UnknownModel:
            engine = self.declarations.engine(model, worker_type)
            return parameters.describe(type(engine.params), engine.params)
        return parameters.describe(type(worker.params), worker.params)

    def supported_models(self) -> list[HostModels]:
        """Return the models that may run here."""
        return [HostModels(self.host, self.port, supported_models(self.declarations))]

    def workers(self) -> list[ModelWorker]:
        """Return all models of this process, in the order they were added."""
        return [entry.worker for entry in self._all()]

    def get_model_instances(self, key: str, *, healthy_only: bool = True) -> list[ModelInstance]:
        """Return the instances of a worker key: at most one here."""
        return [i for i in self.get_all_model_instances(healthy_only=healthy_only) if i.model_name == key]

    def get_all_model_instances(
        self, worker_type: WorkerType | None = None, *, healthy_only: bool = True
    ) -> list[ModelInstance]:
        """Return all instances, of one type if given; those that are not ready too, unless ``healthy_only``."""
        return [
            ModelInstance(worker.key, self.host, self.port, healthy=worker.state is State.READY)
            for worker in self.workers()
            if worker_type in (None, worker.worker_type) and (worker.state is State.READY or not healthy_only)
        ]

    def select_one_instance(self, key: str) -> ModelInstance:
        """Return a healthy instance of a worker key. Raises UnknownModel, or NotReady where none is healthy."""
        known = self.get_model_instances(key, healthy_only=False)
        healthy = [instance for instance in known if instance.healthy]
        if not known:
            raise UnknownModel(f"there is no instance of {key}")
        if not healthy:
            raise NotReady(f"no instance of {key} is ready")
        return random.choice(healthy)  # noqa: S311 - no secret

    def load_of(self, model: str, worker_type: WorkerType) -> str | None:
        """Return the value of ``Modelyard-Load`` for a model; None where it is not here."""
        entry = self._entries.get(worker_key(model, worker_type))
        return entry.worker.gate.load() if entry else None

    def _all(self) -> list[Entry]:
        with self._lock:
            return list(self._entries.values())

    def _named(self, model: str, worker_type: WorkerType | None) -> list[Entry]:
        found = [e for e in self._all() if e.worker.name == model and worker_type in (None, e.worker.worker_type)]
        if not found:
            self._check_complete()
            raise model_names.unknown(model, self._keys(), worker_type)
        return found

    def _check_complete(self) -> None:
        reason = self.incomplete()
        if reason:
            raise NotReady(f"no model is here yet: {reason}", retry_after=2)

    def _keys(self) -> list[str]:
        return [entry.worker.key for entry in self._all()]

    def has(self, model: str, worker_type: WorkerType | None) -> bool:
        """Return whether a model of that name (and type) is here, in whatever state."""
        return any(e.worker.name == model and worker_type in (None, e.worker.worker_type) for e in self._all())

    def find(self, key: str) -> ModelWorker | None:
        """Return the model of a worker key; None where it is not here."""
        entry = self._entries.get(key)
        return entry.worker if entry else None

    def worker(self, model: str, *kinds: WorkerType) -> ModelWorker:
        """Return the model of the first of ``kinds`` that is here. Raises UnknownModel, Unsupported, NotReady."""
        for kind in kinds:
            entry = self._entries.get(worker_key(model, kind))
            if entry is not None:
                return entry.worker
        self._check_complete()
        raise model_names.absent(model, kinds, self._keys())

    # Calls

    @spanned
    def generate_stream(
        self, request: GenerateRequest, cancel: Cancel | None = None, *, wait: bool = True
    ) -> OutputStream:
        """Return the stream of an answer; close it. Raises UnknownModel, Overloaded, NotReady, and more."""
        return self.worker(request.model, WorkerType.LLM).generate_stream(request, cancel or Cancel(), wait=wait)

    @spanned
    def generate(self, request: GenerateRequest, cancel: Cancel | None = None, *, wait: bool = True) -> ModelOutput:
        """Return a whole answer; raises like `generate_stream`."""
        return self.worker(request.model, WorkerType.LLM).generate(request, cancel or Cancel(), wait=wait)

    @spanned
    def embeddings(
        self, model: str, texts: Sequence[str], cancel: Cancel | None = None, *, wait: bool = True
    ) -> Vectors:
        """Return one row of floats a text."""
        return self.worker(model, WorkerType.TEXT2VEC).embeddings(texts, cancel or Cancel(), wait=wait)

    @spanned
    def rerank(
        self, model: str, query: str, texts: Sequence[str], cancel: Cancel | None = None, *, wait: bool = True
    ) -> Sequence[float]:
        """Return a score a text, by a reranker, or by the cosine of an embedder of that name."""
        worker = self.worker(model, WorkerType.RERANKER, WorkerType.TEXT2VEC)
        return worker.rerank(query, texts, cancel or Cancel(), wait=wait)

    @spanned
    def count_token(self, model: str | None, prompt: str) -> int:
        """Return the tokens of ``prompt``; without a model, by the only LLM that is here."""
        return self.worker(model or self._only_llm(), *WorkerType).count_token(prompt)

    def _only_llm(self) -> str:
        self._check_complete()
        return model_names.only([e.worker.name for e in self._all() if e.worker.can_chat])

    @spanned
    def model_metadata(self, model: str) -> ModelMetadata:
        """Return what a model is."""
        return self.worker(model, *WorkerType).metadata()
