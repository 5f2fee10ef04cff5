"""The manager in front of another one that knows the operator's names: aliases, defaults and fallbacks.

All requests of clients come through it. What another router sends goes to the manager behind it, and so do changes of
models: both name the models themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from ..engines.base import OfTexts, Vectors, cut_texts, tokens_of
from ..errors import (
    InputTooLong,
    InvalidRequest,
    ModelyardError,
    Overloaded,
    PromptTooLong,
    Unavailable,
    UnknownModel,
    Unsupported,
)
from ..settings.names import Names
from ..streams import Cancel, OutputStream, Relay
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
from .protocol import WorkerManager
from .shared_calls import SharedCalls
from .spans import spanned
from .states import State

T = TypeVar("T")

TOO_LONG = (PromptTooLong, InputTooLong)


class Candidates:
    """The models to call for one request. `next` returns one after the other, `over` notes how its call ended."""

    def __init__(self, names: Names, model: str, types: Sequence[WorkerType], *, wait: bool = True) -> None:
        """Begin with the model that ``model`` stands for; ``types`` are those whose default may answer instead.

        Without ``wait`` an overload is the answer: the caller does not want to wait in line, nor another model.
        """
        self._names = names
        self._spills = names.spills and wait
        self._types = types if names.serves_unknown else ()
        self._models = names.with_fallbacks(names.model_of(model))
        self._errors: list[ModelyardError] = []

    @property
    def is_alone(self) -> bool:
        """Whether the next model is the only one."""
        return len(self._models) == 1 and not self._types

    def next(self) -> str:
        """Return the model to call now."""
        return self._models[len(self._errors)]

    def over(self, error: BaseException | None) -> bool:
        """Note how the call of the current model ended; return whether another one may be called.

        Raises the error of the first model, with those of its fallbacks, if all of them have refused.
        """
        if not isinstance(error, ModelyardError) or not self._leads_on(error):
            return False
        if not self._errors and isinstance(error, UnknownModel):
            self._add_default()
        self._errors.append(error)
        if len(self._errors) < len(self._models):
            return True
        if len(self._errors) == 1:
            return False
        tried = zip(self._models[1:], self._errors[1:], strict=True)
        first = self._errors[0]
        raise first.with_words(f"fallbacks tried: {', '.join(f'{model} ({reason})' for model, reason in tried)}")

    def _leads_on(self, error: ModelyardError) -> bool:
        """Return whether another model may answer: nothing was computed, and it may have room for the request."""
        if self._errors:
            # The client sees the error of the first: what only a fallback refuses is not the client's fault.
            return isinstance(error, Unavailable | UnknownModel | Unsupported | InvalidRequest)
        if isinstance(error, Overloaded):
            return self._spills
        return isinstance(error, (Unavailable, UnknownModel, *TOO_LONG))

    def _add_default(self) -> None:
        default = self._names.default(self._types)
        if default is not None:
            others = self._names.with_fallbacks(default)
            self._models += [model for model in others if model not in self._models]


class CandidateStreams:
    """The streams of one request by one model after the other: the `Source` of its relay."""

    def __init__(self, candidates: Candidates, ask: Callable[[str, Cancel], OutputStream]) -> None:
        """Open a stream of a model by ``ask(model, cancel)``."""
        self._candidates = candidates
        self._ask = ask
        self._has_begun = False

    def open(self, cancel: Cancel) -> OutputStream:
        """Return a stream of the next model."""
        return self._ask(self._candidates.next(), cancel)

    def begun(self, stream: OutputStream) -> None:
        """Note that the model answers."""
        self._has_begun = True

    def ended(self, error: BaseException | None) -> bool:
        """Note how the stream ended; return whether another model may be called."""
        return not self._has_begun and self._candidates.over(error)


class NamingManager(SharedCalls):
    """The models of another manager, by the operator's names. A fallback is called when all instances have refused."""

    def __init__(self, manager: WorkerManager, names: Names, *, tracing: Tracing | None = None) -> None:
        """Send requests to ``manager``, with the names of its models."""
        super().__init__(tracing)
        self._manager = manager
        self._names = names

    # Calls

    @spanned
    def generate_stream(self, request: GenerateRequest, cancel: Cancel | None = None) -> OutputStream:
        """Return the stream of an answer, with the ``model`` that gives it; close it.

        A fallback answers if there is one and the model refuses before the first burst.
        """

        def ask(model: str, cancel: Cancel) -> OutputStream:
            if model == request.model:
                return self._manager.generate_stream(request, cancel)
            stream = self._manager.generate_stream(replace(request, model=model), cancel)
            stream.model = model
            return stream

        cancel = cancel or Cancel()
        candidates = Candidates(self._names, request.model, [WorkerType.LLM], wait=request.terms.wait)
        if candidates.is_alone:
            return ask(candidates.next(), cancel)
        return Relay(CandidateStreams(candidates, ask), cancel)

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
        """Return one row of floats for each text.

        No fallback answers: the vectors of two models can't be compared, so the configuration alone says which model
        computes them, and never what is running.
        """
        target = self._names.model_of(model)
        rows = self._manager.embeddings(target, texts, cancel, terms, extra=extra)
        return _named(rows, target, model)

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
        """Return a score for each text, all by one model, which may be a fallback."""

        def ask(target: str) -> Vectors:
            scores = self._manager.rerank(target, query, texts, cancel, terms, extra=extra)
            return _named(scores, target, model)

        scores: Sequence[float] = self._called(model, ask, WorkerType.RERANKER, wait=terms.wait)
        return scores

    @spanned
    def count_token(
        self, model: str | None, prompt: str, cancel: Cancel | None = None, terms: Terms = DEFAULT_TERMS
    ) -> int:
        """Return the number of tokens of ``prompt``, by the model that would answer it; without one by the default."""
        model = model or self._names.default([WorkerType.LLM])
        if model is None:
            return self._manager.count_token(None, prompt, cancel, terms)

        def count(target: str) -> int:
            return self._manager.count_token(target, prompt, cancel, terms)

        return self._called(model, count, WorkerType.LLM, wait=terms.wait)

    @spanned
    def model_metadata(self, model: str) -> ModelMetadata:
        """Return the metadata of the model that would answer."""
        return self._called(model, self._manager.model_metadata, WorkerType.LLM)

    def _called(self, model: str, call: Callable[[str], T], *types: WorkerType, wait: bool = True) -> T:
        """Return the result of ``call`` for the first model that does not refuse."""
        candidates = Candidates(self._names, model, types, wait=wait)
        while True:
            try:
                return call(candidates.next())
            except ModelyardError as error:
                if not candidates.over(error):
                    raise

    # Instances, by the names of models and by aliases

    def _key(self, key: str) -> str:
        name, at, kind = key.rpartition("@")
        return f"{self._names.model_of(name)}{at}{kind}"

    def _instances(self, key: str | None = None) -> list[ModelInstance]:
        if key is None:
            return self._manager.get_all_model_instances(healthy_only=False)
        return self._manager.get_model_instances(self._key(key), healthy_only=False)

    def select_one_instance(self, key: str) -> ModelInstance:
        """Return a healthy instance of a worker key. Raises UnknownModel, NotReady."""
        return self._manager.select_one_instance(self._key(key))

    def load_of(self, model: str, worker_type: WorkerType) -> str | None:
        """Return the load of a model; None if there is none."""
        return self._manager.load_of(self._names.model_of(model), worker_type)

    def model_states(self) -> Mapping[str, State]:
        """Return the state of each model, by its worker key."""
        return self._manager.model_states()

    def context_lengths(self) -> Mapping[str, int]:
        """Return the context length of each model that has one, by its own name."""
        return self._manager.context_lengths()

    def models_with_images(self) -> set[str]:
        """Return the names of the models that take images, their own."""
        return self._manager.models_with_images()

    def default_models(self, *types: WorkerType) -> list[str]:
        """Return the default of the first of ``types`` that has one; without it all models of the first type."""
        default = self._names.default(types)
        return [default] if default is not None else self._manager.default_models(*types)

    # Models by their own names

    def parameter_descriptions(self, model: str, worker_type: WorkerType | None) -> list[JSONObject]:
        """Return a model's parameters with their values. Raises UnknownModel."""
        return self._manager.parameter_descriptions(model, worker_type)

    def supported_models(self) -> list[HostModels]:
        """Return the models that may run on each host."""
        return self._manager.supported_models()

    def model_startup(
        self,
        model: str,
        worker_type: WorkerType | None,
        params: Mapping[str, Any],
        *,
        host: str | None = None,
        port: int | None = None,
    ) -> str:
        """Start one model; return why that is not remembered, or an empty text."""
        return self._manager.model_startup(model, worker_type, params, host=host, port=port)

    def model_shutdown(
        self, model: str, worker_type: WorkerType | None, *, host: str | None = None, port: int | None = None
    ) -> str:
        """Stop one model and forget it; return like `model_startup`."""
        return self._manager.model_shutdown(model, worker_type, host=host, port=port)

    def worker_apply(
        self, model: str, apply_type: str, worker_type: WorkerType | None, params: Mapping[str, Any]
    ) -> ApplyOutcome:
        """Apply a change to all instances of a model."""
        return self._manager.worker_apply(model, apply_type, worker_type, params)


def _named(values: Vectors, model: str, name: str) -> Vectors:
    """Return the rows, or scores, with the ``model`` that has computed them, if it is not called by its ``name``."""
    if model == name:
        return values
    return OfTexts(values, cut=cut_texts(values), tokens=tokens_of(values), model=model)
