"""Aliases, defaults and fallbacks in front of a manager: which models are called, and what the client gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from modelyard.engines.base import OfTexts, Vectors, cut_texts, other_model_of, tokens_of
from modelyard.errors import (
    Cancelled,
    EngineError,
    InputTooLong,
    InvalidRequest,
    ModelyardError,
    NotReady,
    Overloaded,
    PromptTooLong,
    UnknownModel,
    Unsupported,
    WorkerLost,
    WorkerSilent,
)
from modelyard.settings.names import Names
from modelyard.streams import Cancel, OutputStream
from modelyard.types import Burst, GenerateRequest, ModelInstance, ModelMetadata, Terms, WorkerType
from modelyard.worker.naming import NamingManager
from modelyard.worker.shared_calls import SharedCalls


class Models(SharedCalls):  # type: ignore[misc] - changes of models are never called
    """The models ``large``, ``small`` and ``tiny``, which fail as a test prescribes, and the calls that came."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: dict[str, ModelyardError] = {}
        self.late_errors: dict[str, ModelyardError] = {}
        """Those after a piece."""
        self.called: list[str] = []
        self.waits: list[bool] = []
        self.closed = 0

    def _call(self, model: str | None) -> str:
        assert model is not None
        self.called.append(model)
        if model in self.errors:
            raise self.errors[model]
        return model

    def generate_stream(self, request: GenerateRequest, cancel: Cancel | None = None) -> OutputStream:
        self.waits.append(request.terms.wait)

        def bursts() -> Any:
            yield None
            yield Burst([self._call(request.model)])
            if request.model in self.late_errors:
                raise self.late_errors[request.model]
            yield Burst([f" {request.prompt}"], "stop")

        def close() -> None:
            self.closed += 1

        return OutputStream(bursts(), cancel or Cancel(), close, "slots=1;free=0;waiting=0")

    def embeddings(
        self, model: str, texts: Sequence[str], cancel: Cancel | None = None, *terms: Any, **fields: Any
    ) -> Vectors:
        self._call(model)
        return OfTexts([[1.0]] * len(texts), cut=1, tokens=3)

    def rerank(
        self, model: str, query: str, texts: Sequence[str], cancel: Cancel | None = None, *terms: Any, **fields: Any
    ) -> Sequence[float]:
        self._call(model)
        return [1.0] * len(texts)

    def count_token(self, model: str | None, prompt: str, cancel: Cancel | None = None, *terms: Any) -> int:
        return len(self._call(model))

    def model_metadata(self, model: str) -> ModelMetadata:
        return ModelMetadata(self._call(model))

    def load_of(self, model: str, worker_type: WorkerType) -> str:
        return f"load of {model}"

    def _instances(self, key: str | None = None) -> list[ModelInstance]:
        names = ("large@llm", "small@llm")
        return [ModelInstance(name, "host", 1, healthy=True) for name in names if key in (None, name)]


@pytest.fixture
def models() -> Models:
    return Models()


ALIASES = {"gpt": "large", "ada": "embedder"}
FALLBACKS = {"large": ["small", "tiny"], "embedder": ["small"], "ranker": ["small"]}


def naming(models: Models, **options: Any) -> NamingManager:
    tables = {"aliases": ALIASES, "defaults": {"llm": "small"}, "fallbacks": FALLBACKS}
    return NamingManager(models, Names(**{**tables, **options}))


def ask(manager: NamingManager, model: str) -> str:
    return manager.generate(GenerateRequest(model, prompt="hi")).text


# What a name stands for


def test_an_alias_stands_for_its_model(models):
    manager = naming(models)
    with manager.generate_stream(GenerateRequest("gpt", prompt="hi")) as stream:
        assert [burst for burst in stream if burst] == [Burst(["large"]), Burst([" hi"], "stop")]
    assert (stream.model, models.called) == ("large", ["large"])
    assert manager.load_of("gpt", WorkerType.LLM) == "load of large"
    assert [each.model_name for each in manager.get_model_instances("gpt@llm")] == ["large@llm"]
    assert manager.select_one_instance("gpt@llm").model_name == "large@llm"
    assert manager.model_metadata("gpt").model == "large"


def test_a_model_by_its_own_name_answers_without_a_remark(models):
    with naming(models).generate_stream(GenerateRequest("large", prompt="hi", terms=Terms(wait=False))) as stream:
        assert next(burst for burst in stream if burst) == Burst(["large"])
        assert (stream.model, stream.load) == (None, "slots=1;free=0;waiting=0")
    assert (models.waits, models.closed) == ([False], 1)


def test_aliases_are_not_among_the_instances(models):
    names = [each.model_name for each in naming(models).get_all_model_instances(WorkerType.LLM)]
    assert names == ["large@llm", "small@llm"]


def test_the_default_is_that_of_the_type(models):
    manager = naming(models, defaults={"llm": "small", "reranker": "ranker"})
    assert manager.default_models(WorkerType.LLM) == ["small"]
    assert manager.default_models(WorkerType.RERANKER, WorkerType.TEXT2VEC) == ["ranker"]
    assert manager.default_models(WorkerType.TEXT2VEC) == []
    assert manager.count_token(None, "x") == len("small")
    assert naming(models, defaults={}).default_models(WorkerType.LLM) == ["large", "small"]


# Fallbacks

ABSENT = [
    UnknownModel("there is no model 'large'"),
    NotReady("it is starting"),
    WorkerSilent("it is silent"),
    PromptTooLong("3000 tokens", [{"field": "messages", "message": "3000 tokens"}]),
    InputTooLong("3000 tokens"),
]


@pytest.mark.parametrize("error", ABSENT, ids=lambda error: error.code)
@pytest.mark.parametrize("model", ["large", "gpt"])
def test_a_fallback_answers_where_a_model_can_not(models, model, error):
    models.errors["large"] = error
    with naming(models).generate_stream(GenerateRequest(model, prompt="hi")) as stream:
        assert [burst for burst in stream if burst] == [Burst(["small"]), Burst([" hi"], "stop")]
    assert (stream.model, models.called, models.closed) == ("small", ["large", "small"], 2)


def test_they_are_called_in_their_order_and_theirs_are_not(models):
    models.errors |= {"large": NotReady("a"), "small": NotReady("b")}
    manager = naming(models, fallbacks={"large": ["small", "tiny"], "small": ["other"]})
    assert ask(manager, "large") == "tiny hi"
    assert models.called == ["large", "small", "tiny"]


@pytest.mark.parametrize(
    "call",
    [
        lambda manager: ask(manager, "gpt"),
        lambda manager: manager.count_token("gpt", "x"),
        lambda manager: manager.model_metadata("gpt"),
        lambda manager: manager.rerank("gpt", "q", ["a"]),
    ],
)
def test_if_all_refuse_the_client_sees_the_error_of_the_first_with_the_others(models, call):
    faults = [{"field": "messages", "message": "has 3000 tokens"}]
    models.errors["large"] = PromptTooLong("3000 tokens", faults)
    models.errors |= {"small": Overloaded("small is full"), "tiny": Unsupported("tiny takes no tools")}
    with pytest.raises(PromptTooLong) as caught:
        call(naming(models))
    text = "3000 tokens; fallbacks tried: small (small is full), tiny (tiny takes no tools)"
    assert (str(caught.value), caught.value.errors) == (text, faults)
    assert models.called == ["large", "small", "tiny"]


def test_the_pause_of_the_first_error_stays(models):
    models.errors |= {name: NotReady(f"no {name}", retry_after=7) for name in ("large", "small", "tiny")}
    with pytest.raises(NotReady, match=r"no large; fallbacks tried: small \(no small\), tiny \(no tiny\)") as caught:
        ask(naming(models), "large")
    assert caught.value.retry_after == 7


NOT_ABSENT = [EngineError("it broke"), Unsupported("no tools"), InvalidRequest("bad"), Cancelled("gone")]


@pytest.mark.parametrize("error", [*NOT_ABSENT, WorkerLost("lost"), Overloaded("full")], ids=lambda error: error.code)
def test_other_errors_are_answers(models, error):
    models.errors["large"] = error
    with pytest.raises(type(error), match=str(error)) as caught:
        ask(naming(models), "large")
    assert (caught.value, models.called) == (error, ["large"])


@pytest.mark.parametrize("error", [EngineError("small broke"), WorkerLost("lost")])
def test_what_a_fallback_has_begun_is_not_begun_by_another(models, error):
    models.errors |= {"large": NotReady("a"), "small": error}
    with pytest.raises(type(error)):
        ask(naming(models), "large")
    assert models.called == ["large", "small"]


@pytest.mark.parametrize("error", [NotReady("it was stopped"), WorkerLost("lost")])
def test_after_a_piece_no_fallback_is_called(models, error):
    models.late_errors["large"] = error
    stream = naming(models).generate_stream(GenerateRequest("large", prompt="hi"))
    with stream, pytest.raises(type(error), match=str(error)):
        list(stream)
    assert models.called == ["large"]


def test_an_overload_leads_on_where_the_operator_says_so(models):
    models.errors["large"] = Overloaded("full")
    manager = naming(models, spills=True)
    assert ask(manager, "large") == "small hi"
    with pytest.raises(Overloaded):
        manager.generate(GenerateRequest("large", prompt="hi", terms=Terms(wait=False)))


def test_a_cancel_ends_the_search(models):
    cancel = Cancel()

    def go(model: str | None) -> str:
        cancel.set()
        raise NotReady("a")

    models._call = go  # type: ignore[method-assign]
    stream = naming(models).generate_stream(GenerateRequest("large", prompt="hi"), cancel)
    with stream, pytest.raises(NotReady):
        list(stream)
    assert len(models.waits) == 1


def test_all_scores_of_one_answer_are_of_one_model(models):
    models.errors["ranker"] = NotReady("a")
    scores = naming(models).rerank("ranker", "q", ["a", "b"])
    assert (list(scores), other_model_of(scores), models.called) == ([1.0, 1.0], "small", ["ranker", "small"])


def test_vectors_are_never_those_of_a_fallback(models):
    rows = naming(models).embeddings("ada", ["a"])
    assert (list(rows), cut_texts(rows), tokens_of(rows), other_model_of(rows)) == ([[1.0]], 1, 3, "embedder")
    assert other_model_of(naming(models).embeddings("embedder", ["a"])) is None
    models.errors["embedder"] = NotReady("a")
    with pytest.raises(NotReady):
        naming(models, serves_unknown=True, defaults={"text2vec": "small"}).embeddings("ada", ["a"])
    assert set(models.called) == {"embedder"}


# Names that no model has

CALLS: list[Callable[[NamingManager], object]] = [
    lambda manager: ask(manager, "gpt-9"),
    lambda manager: manager.count_token("gpt-9", "x"),
    lambda manager: manager.model_metadata("gpt-9"),
]


@pytest.mark.parametrize("call", CALLS)
def test_the_default_answers_for_them_if_the_operator_says_so(models, call):
    models.errors["gpt-9"] = UnknownModel("there is no model 'gpt-9'")
    with pytest.raises(UnknownModel, match=r"^there is no model 'gpt-9'$"):
        call(naming(models))
    call(naming(models, serves_unknown=True))
    assert models.called == ["gpt-9", "gpt-9", "small"]


def test_the_fallbacks_of_the_default_answer_too(models):
    models.errors |= {"gpt-9": UnknownModel("no"), "large": NotReady("no")}
    manager = naming(models, serves_unknown=True, defaults={"llm": "large"})
    assert ask(manager, "gpt-9") == "small hi"
    assert models.called == ["gpt-9", "large", "small"]


def test_a_model_that_exists_is_not_replaced_by_the_default(models):
    models.errors["other"] = NotReady("it is starting")
    with pytest.raises(NotReady):
        ask(naming(models, serves_unknown=True), "other")
    assert models.called == ["other"]


def test_a_default_of_another_type_does_not_answer(models):
    models.errors["rank-9"] = UnknownModel("no")
    with pytest.raises(UnknownModel):
        naming(models, serves_unknown=True).rerank("rank-9", "q", ["a"])
    assert models.called == ["rank-9"]
