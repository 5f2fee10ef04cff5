"""The manager of the models in this process.

A blueprint, a monolith's view or a test calls it; `app.extensions["modelyard"].manager` holds it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..engines.base import Engine, Vectors
from ..errors import Conflict, InvalidRequest, UnknownModel
from ..settings import params as parameters
from ..streams import Cancel, OutputStream
from ..telemetry.metrics import Metrics
from ..telemetry.tracing import Tracing
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
)
from ..types import worker_key as key_of
from ..wire.unsaved import with_note
from .admission import Budget
from .apply import operation
from .declarations import Declarations
from .local_models import LocalModels
from .outcomes import in_parallel, merged, outcome_of, timed
from .protocol import APPLY_TYPES, EVERY_MODEL
from .shared_calls import SharedCalls, all_of, shortest
from .spans import spanned
from .states import State

log = logging.getLogger(__name__)

NO_PATH = ("model_path", "")
"""The parameter as DB-GPT's command line sends it for a model without weights: it counts as left out."""


class LocalWorkerManager(SharedCalls):
    """Calls, starts, stops and changes the models of this process."""

    def __init__(
        self,
        declarations: Declarations,
        budget: Budget,
        *,
        tracing: Tracing | None = None,
        metrics: Metrics | None = None,
        incomplete: Callable[[], str] = lambda: "",
        place: Callable[[], tuple[str, int]] = lambda: ("127.0.0.1", 0),
        unsaved: Callable[[], str] = lambda: "",
        isolate: Callable[[Engine], Engine] = lambda engine: engine,
    ) -> None:
        """Hold no model yet; ``isolate`` is that of `LocalModels`.

        ``place`` returns the host and port of instances; ``incomplete`` why models may still be missing, ``unsaved``
        why changes are not remembered; or an empty text.
        """
        super().__init__(tracing)
        self.models = LocalModels(declarations, budget, self.tracing, incomplete, metrics, isolate=isolate)
        self._place = place
        self._unsaved = unsaved

    # Calls

    @spanned
    def generate_stream(self, request: GenerateRequest, cancel: Cancel | None = None) -> OutputStream:
        """Return the stream of an answer; close it. Raises UnknownModel, Unsupported, Overloaded, NotReady."""
        worker = self.models.worker(request.model, WorkerType.LLM)
        return worker.generate_stream(request, cancel or Cancel())

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
        worker = self.models.worker(model, WorkerType.TEXT2VEC)
        return worker.embeddings(texts, cancel or Cancel(), terms, extra=extra)

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
        worker = self.models.worker(model, WorkerType.RERANKER, WorkerType.TEXT2VEC)
        return worker.rerank(query, texts, cancel or Cancel(), terms, extra=extra)

    @spanned
    def count_token(
        self, model: str | None, prompt: str, cancel: Cancel | None = None, terms: Terms = DEFAULT_TERMS
    ) -> int:
        """Return the number of tokens of ``prompt``; without a model, by its first LLM that is ready."""
        if not model:
            self.models.check_complete()
            model = self._first_llm(self._instances())
        return self.models.worker(model, *WorkerType).count_token(prompt, cancel, terms)

    @spanned
    def model_metadata(self, model: str) -> ModelMetadata:
        """Return the metadata of a model."""
        return self.models.worker(model, *WorkerType).metadata()

    # Which models there are

    def parameter_descriptions(self, model: str, worker_type: WorkerType | None) -> list[JSONObject]:
        """Return the parameters of a model with their values, private ones masked. Raises UnknownModel."""
        try:
            params = self.models.named(model, worker_type)[0].worker.params
        except UnknownModel:
            params = self.models.declarations.engine(model, worker_type).params
        return parameters.describe(type(params), params)

    def supported_models(self) -> list[HostModels]:
        """Return the models that may run in this process."""
        return [HostModels(*self._place(), self.models.declarations.supported_models())]

    def _instances(self, key: str | None = None) -> list[ModelInstance]:
        host, port = self._place()
        return [
            ModelInstance(worker.key, host, port, healthy=worker.is_healthy)
            for worker in self.models.workers()
            if key in (None, worker.key)
        ]

    def context_lengths(self) -> Mapping[str, int]:
        """Return the context length of each model that is available, by its name."""
        return shortest((worker.name, worker.context_length) for worker in self.models.workers())

    def models_with_images(self) -> set[str]:
        """Return the names of the models that are ready and take images."""
        return all_of((worker.name, worker.takes_images) for worker in self.models.workers())

    def model_states(self) -> Mapping[str, State]:
        """Return the state of each model, by its worker key."""
        return {worker.key: worker.shown_state[0] for worker in self.models.workers()}

    def load_of(self, model: str, worker_type: WorkerType) -> str | None:
        """Return the value of ``Modelyard-Load`` for a model; None if it is not in this process."""
        worker = self.models.find(key_of(model, worker_type))
        return worker.load if worker else None

    # Changes

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
        """Start one model now, with ``params`` over its declared values; ``host`` and ``port`` are ignored.

        Return why this is not remembered, or an empty text. Raises UnknownModel, Conflict (it runs, or there is no
        room), InvalidRequest, StartFailed. After an error the models are as before.
        """
        self.models.check_complete()
        entry = self.models.declarations.entry(model)
        if entry is not None and not entry.enabled:
            raise Conflict(f"model {model!r} is disabled ({entry.origin}): {entry.description}")
        given = {k: v for k, v in params.items() if v is not None and (k, v) != NO_PATH}
        self.models.startup(model, worker_type, self.models.declarations.checked(model, given))
        return self._why_unsaved(model)

    @spanned
    def model_shutdown(
        self, model: str, worker_type: WorkerType | None, *, host: str | None = None, port: int | None = None
    ) -> str:
        """Stop one model and forget it; return why this is not remembered, or an empty text. Raises UnknownModel."""
        self.models.shutdown(model, worker_type)
        return self._why_unsaved(model)

    @spanned
    def worker_apply(
        self, model: str, apply_type: str, worker_type: WorkerType | None, params: Mapping[str, Any]
    ) -> ApplyOutcome:
        """Start, stop, restart or change all instances of a name (``*``: of all names), in parallel.

        Failures are in the outcome. Raises UnknownModel without an instance, InvalidRequest for parameters that are
        not valid.
        """
        if apply_type not in APPLY_TYPES:
            fault = f"{apply_type!r} is not one of {', '.join(APPLY_TYPES)}"
            raise InvalidRequest.of_field("apply_type", fault)
        self.models.check_complete()
        models = self.models.all() if model == EVERY_MODEL else self.models.named(model, worker_type)
        for target in models:
            parameters.from_json(type(target.worker.params), params, vars(target.worker.params))
        change = operation(self.models, apply_type, params)
        results = in_parallel(models, lambda model: timed(lambda: change(model)), lambda model: model.worker.key)
        outcome = merged([outcome_of(result) for result in results])
        if outcome.success:
            outcome.message = with_note(outcome.message, self._why_unsaved(model))
        return outcome

    def _why_unsaved(self, model: str) -> str:
        """Return why a change of a model is not remembered, and log it; an empty text if it is."""
        reason = self._unsaved()
        if reason:
            log.warning("the change of model %s will not be remembered: %s", model, reason)
        return reason
