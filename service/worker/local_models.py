"""The models of this process, by worker key: declare, start, change and stop them, and call the listeners."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from ..engines.base import Engine
from ..errors import Conflict, ModelyardError, NotReady, UnknownModel, not_callable
from ..telemetry.metrics import Metrics
from ..telemetry.tracing import Tracing
from ..types import JSONObject, WorkerType, worker_key
from .admission import Budget
from .declarations import Declarations
from .housekeeper import Housekeeper
from .keeper import LoadCause
from .local_model import LocalModel
from .protocol import EventKind, ModelEvent
from .room import Room
from .spans import start_span
from .states import State
from .worker import ModelWorker

log = logging.getLogger(__name__)

LIFECYCLE_TIMEOUT = 5.0
"""Seconds that the stop of all models waits, over all of them, for those that are just starting."""


class LocalModels:
    """The models of this process, in the order they were added."""

    def __init__(
        self,
        declarations: Declarations,
        budget: Budget,
        tracing: Tracing,
        incomplete: Callable[[], str] = lambda: "",
        metrics: Metrics | None = None,
        *,
        room: Room | None = None,
        isolate: Callable[[Engine], Engine] = lambda engine: engine,
    ) -> None:
        """Hold no model yet. ``incomplete`` returns why models may still be missing; empty if none is.

        ``room`` is the memory of the models, by default as the settings say. ``isolate`` returns the engine to call in
        place of a declared one, where that is to run in another process.
        """
        self.declarations = declarations
        self.budget = budget
        self._tracing = tracing
        self._incomplete = incomplete
        self._metrics = metrics or Metrics()
        settings = declarations.settings
        self.room = room or Room(settings.memory_budget, settings.memory_turn)
        self._isolate = isolate
        self._housekeeper = Housekeeper(self)
        self._lock = threading.RLock()
        self._models: dict[str, LocalModel] = {}
        self._listeners: list[Callable[[ModelEvent], None]] = []

    # Which models

    def all(self) -> list[LocalModel]:
        """Return all models."""
        with self._lock:
            return list(self._models.values())

    def workers(self) -> list[ModelWorker]:
        """Return the workers of all models."""
        return [model.worker for model in self.all()]

    def keys(self) -> list[str]:
        """Return the worker keys of all models."""
        return [worker.key for worker in self.workers()]

    def named(self, name: str, worker_type: WorkerType | None) -> list[LocalModel]:
        """Return the models of a name (and type). Raises UnknownModel, or NotReady while models may be missing."""
        models = [model for model in self.all() if _is_named(model.worker, name, worker_type)]
        if not models:
            self.check_complete()
            raise UnknownModel.among(self.keys(), name, worker_type)
        return models

    def has(self, name: str, worker_type: WorkerType | None) -> bool:
        """Return whether there is a model of a name (and type), in whatever state."""
        return any(_is_named(worker, name, worker_type) for worker in self.workers())

    def find(self, key: str) -> ModelWorker | None:
        """Return the worker of a worker key; None if there is none."""
        model = self._models.get(key)
        return model.worker if model else None

    def worker(self, name: str, *types: WorkerType) -> ModelWorker:
        """Return the worker of a model as the first of ``types`` that it has.

        Raises UnknownModel, Unsupported if it has another type, NotReady while models may still be missing.
        """
        for worker_type in types:
            model = self._models.get(worker_key(name, worker_type))
            if model is not None:
                return model.worker
        self.check_complete()
        raise not_callable(self.keys(), name, types)

    def check_complete(self) -> None:
        """Raise NotReady while models may still be missing."""
        reason = self._incomplete()
        if reason:
            raise NotReady(f"the models are not there yet: {reason}", retry_after=2)

    # Adding

    def add(
        self, name: str, worker_type: WorkerType | None = None, over_http: Mapping[str, Any] | None = None
    ) -> ModelWorker:
        """Declare a model, without starting it.

        Raises Conflict if its key is taken, or its slots exceed the rest of the budget, and the errors of
        `Declarations.engine`.
        """
        values = dict(over_http or {})
        worker = self.new_worker(name, worker_type, values)
        with self._lock:
            if worker.key in self._models:
                raise Conflict(f"model {worker.key} exists already: start, restart or update it with apply")
            self._check_room(worker)
            self._models[worker.key] = LocalModel(worker, values)
        return worker

    def new_worker(self, name: str, worker_type: WorkerType | None, over_http: JSONObject) -> ModelWorker:
        """Return a worker of the declared model, not started. Raises the errors of `Declarations.engine`."""
        engine = self._isolate(self.declarations.engine(name, worker_type, over_http))
        return ModelWorker(
            engine,
            partial(self.declarations.locate, engine),
            self._housekeeper,
            self._metrics,
            self.room,
            locate_files=partial(self.declarations.locate_files, engine),
        )

    def _check_room(self, worker: ModelWorker) -> None:
        """Raise Conflict if its slots, with those of the other models, exceed the budget."""
        taken = sum(model.slots for model in self.all() if model.worker.key != worker.key)
        self.budget.check_room(worker.name, worker.gate.slots, taken)

    def claim(self, model: LocalModel, worker: ModelWorker) -> None:
        """Hold slots for the worker that is about to replace the model's current one, and for that. Raises Conflict."""
        with self._lock:
            self._check_room(worker)
            model.claimed = max(worker.gate.slots, model.worker.gate.slots)

    # Starting and stopping

    def start(
        self,
        *,
        ignore_errors: bool = True,
        skip: Collection[str] = (),
        halted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start every model but those whose key is in ``skip``, one after the other: pinned ones first.

        A model for which there is no room stays unloaded. Once ``halted`` returns true, no other is started. A failed
        start is logged, and listeners are called; without ``ignore_errors`` the first error is raised at the end.
        """
        failures: list[ModelyardError] = []
        for model in sorted(self.all(), key=lambda model: not model.worker.pinned):
            if halted():
                return
            if model.worker.key in skip or model.worker.is_available:
                continue
            try:
                with self.held(model):
                    self.start_held(model, "start")
            except ModelyardError as error:
                failures.append(error)
        if failures and not ignore_errors:
            raise failures[0]

    def stop(self, *, ignore_errors: bool = True, timeout: float = LIFECYCLE_TIMEOUT) -> None:
        """Stop every model, the last added first; without ``ignore_errors`` raise the first error at the end.

        A model whose lock is not free within ``timeout`` seconds, which all models share, is left as it is.
        """
        deadline = time.monotonic() + timeout
        failures: list[Exception] = []
        self._housekeeper.stop()
        for model in reversed(self.all()):
            try:
                with model.alone(max(0.0, deadline - time.monotonic())):
                    model.worker.stop()
            except ModelyardError as error:
                log.warning("model %s did not stop: %s", model.worker.key, error)
                failures.append(error)
            except Exception as error:
                log.exception("model %s did not stop", model.worker.key)
                failures.append(error)
        if failures and not ignore_errors:
            raise failures[0]

    def startup(self, name: str, worker_type: WorkerType | None, over_http: JSONObject) -> None:
        """Start one model. It replaces a stopped model of its key, whose values set over HTTP it keeps.

        Raises Conflict if it runs or there is no room, StartFailed, and the errors of `Declarations.engine`. After an
        error the models are as before.
        """
        model = LocalModel(self.new_worker(name, worker_type, over_http), over_http)
        key = model.worker.key
        with model.alone():
            with self._lock:
                previous = self._models.get(key)
                if previous is not None:
                    previous.refuse_while_busy()
                    model.over_http = {**previous.over_http, **over_http}
                    model.worker = self.new_worker(name, worker_type, model.over_http)
                self._check_room(model.worker)
                self._models[key] = model
            try:
                self.start_held(model)
            except BaseException:
                with self._lock:
                    if previous is not None:
                        self._models[key] = previous
                    else:
                        self._models.pop(key, None)
                self.tell("changed" if previous is not None else "forgotten", previous or model)
                raise

    def shutdown(self, name: str, worker_type: WorkerType | None) -> None:
        """Stop the models of a name, and a type if given, and forget them. Raises UnknownModel."""
        for model in self.named(name, worker_type):
            model.worker.cancel_start()
            with self.held(model):
                self.stop_held(model)
                with self._lock:
                    self._models.pop(model.worker.key, None)
                self.tell("forgotten", model)

    @contextmanager
    def held(self, model: LocalModel) -> Iterator[None]:
        """Hold a model's lifecycle lock. Raises NotReady after too long, UnknownModel if it was shut down."""
        with model.alone():
            if self._models.get(model.worker.key) is not model:
                raise UnknownModel(f"model {model.worker.key} was shut down meanwhile")
            yield

    def start_held(self, model: LocalModel, cause: LoadCause = "call") -> None:
        """Start a model whose lifecycle lock this thread holds. Raises StartFailed, NotReady."""
        worker = model.worker
        if worker.state is State.READY:
            return
        ends: dict[State, EventKind] = {
            State.READY: "loaded" if worker.state is State.UNLOADED else "started",
            State.UNLOADED: "unloaded",
        }
        if not worker.is_available:
            self.tell("starting", model)
        try:
            with start_span(self._tracing, worker.params):
                worker.start(cause)
        finally:
            self.tell(ends.get(worker.state, "failed"), model)
        self._housekeeper.loaded(worker)

    def stop_held(self, model: LocalModel) -> None:
        """Stop a model whose lifecycle lock this thread holds; what that means is for the caller to tell.

        Raises what `ModelWorker.stop` does; of an engine that fails to stop, listeners hear as of one that failed.
        """
        try:
            model.worker.stop()
        except ModelyardError:
            if model.worker.state is State.FAILED:
                self.tell("failed", model)
            raise

    # Listening

    def subscribe(self, listener: Callable[[ModelEvent], None]) -> None:
        """Call ``listener`` at every change of a model, in the thread that made it."""
        self._listeners.append(listener)

    def tell(self, kind: EventKind, model: LocalModel) -> None:
        """Call every listener. An exception of a listener is logged."""
        for listener in self._listeners:
            try:
                listener(ModelEvent(kind, model.worker, dict(model.over_http)))
            except Exception:
                log.exception("a listener failed at %s of %s", kind, model.worker.key)


def _is_named(worker: ModelWorker, name: str, worker_type: WorkerType | None) -> bool:
    return worker.name == name and worker_type in (None, worker.worker_type)
