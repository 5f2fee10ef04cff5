"""What every manager of models does, written over a list of managers: one that joins is held to all of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import steered
from in_process import hosted_manager, remote_manager
from modelyard.errors import (
    BadModelFile,
    Cancelled,
    Conflict,
    EngineError,
    InvalidRequest,
    MissingLibrary,
    NetworkFailure,
    NotReady,
    Overloaded,
    PromptTooLong,
    StartFailed,
    StartTimeout,
    UnknownModel,
    Unsupported,
)
from modelyard.server.runtime import Runtime
from modelyard.settings import params as parameters
from modelyard.settings.settings import Settings
from modelyard.streams import Cancel
from modelyard.types import ApplyOutcome, GenerateRequest, JSONObject, Terms, WorkerType
from modelyard.worker.protocol import APPLY_TYPES, EVERY_MODEL, WorkerManager
from modelyard.worker.states import State
from running import wait_until
from steered import Steered

LLM, TEXT2VEC, RERANKER = WorkerType
TABLES: list[JSONObject] = [
    {"name": "a", "worker_class": steered.PATH, "limit_model_concurrency": 2, "max_waiting": 1, "token": "hunter2"},
    {"name": "b", "worker_class": steered.PATH},
    {"name": "vec", "worker_class": steered.PATH, "worker_type": "text2vec", "limit_model_concurrency": 4},
    {"name": "rank", "worker_class": steered.PATH, "worker_type": "reranker", "limit_model_concurrency": 4},
    {"name": "spare", "worker_class": steered.PATH, "start": False},
    {"name": "off", "worker_class": steered.PATH, "enabled": False, "description": "its licence forbids it"},
]
STARTED = ["a@llm", "b@llm", "rank@reranker", "vec@text2vec"]


@contextmanager
def manager_of(folder: Path, role: str, **options: Any) -> Iterator[WorkerManager]:
    """Give the manager of a process, over the models of `TABLES`, with 56 slots to share."""
    folders = {"models_dirs": [str(folder / "models")], "state_dir": str(folder / "state")}
    settings = Settings(**folders, threads=64, port=7000, role=role, **options)
    settings.model_tables = tuple(TABLES)
    runtime = Runtime(settings, environ={})
    runtime.start()
    try:
        assert runtime.wait_loaded(30)
        yield runtime.manager
    finally:
        Steered.go.set()
        runtime.stop()


MANAGERS: dict[str, Callable[[Path], AbstractContextManager[WorkerManager]]] = {
    "local": lambda folder: manager_of(folder, "worker"),
    "standalone": lambda folder: manager_of(folder, "standalone"),
    "with names": lambda folder: manager_of(folder, "worker", aliases={"x": "a"}, fallbacks={"a": ["nowhere"]}),
    "hosted": lambda folder: hosted_manager(folder, TABLES),
    "remote": lambda folder: remote_manager(folder, TABLES),
}


@pytest.fixture(params=list(MANAGERS))
def manager(request, tmp_path) -> Iterator[WorkerManager]:
    Steered.reset()
    with MANAGERS[request.param](tmp_path) as made:
        yield made
    assert Steered.running() == [], "an engine was left running"


def prompt(text: str, model: str = "a", **fields: Any) -> GenerateRequest:
    return GenerateRequest(model, prompt=text, **fields)


def start_number(manager: WorkerManager, model: str) -> int:
    """Return what changes with every start of a model, and with nothing else."""
    return int(manager.model_metadata(model).metadata["start"])


def size(manager: WorkerManager, model: str) -> int:
    return int(manager.model_metadata(model).metadata["size"])


def value_of(manager: WorkerManager, model: str, name: str) -> Any:
    described = manager.parameter_descriptions(model, None)
    return next(d["default_value"] for d in described if d["param_name"] == name)


def keys(manager: WorkerManager, *, healthy_only: bool = True) -> list[str]:
    return sorted(i.model_name for i in manager.get_all_model_instances(healthy_only=healthy_only))


def apply(manager: WorkerManager, model: str, how: str, **params: Any) -> ApplyOutcome:
    return manager.worker_apply(model, how, None, params)


@pytest.fixture
def untouched(manager) -> Iterator[None]:
    """Hold that what ran before the test runs after it, never restarted."""
    before = {key: start_number(manager, key.partition("@")[0]) for key in keys(manager)}
    yield
    assert keys(manager) == list(before)
    assert {key: start_number(manager, key.partition("@")[0]) for key in before} == before


# The start


def test_a_callback_is_called_with_the_manager_after_the_start(manager):
    calls: list[WorkerManager] = []
    manager.after_start(calls.append)
    wait_until(lambda: calls, "it was called")
    assert calls[0].generate(prompt("x")).text == " x"
    manager.notify_started()
    assert len(calls) == 1


def test_no_callback_is_ignored_and_one_that_raises_is_logged_by_name_and_fails_nothing_else(manager, caplog):
    def odd(manager: WorkerManager) -> None:
        raise SystemExit(manager.generate(prompt("odd")).text)

    calls: list[WorkerManager] = []
    for callback in (None, odd, calls.append):
        manager.after_start(callback)
    wait_until(lambda: calls, "the last was called")
    assert "after_start: test_no_callback_is_ignored" in caplog.text
    assert "odd failed" in caplog.text
    assert manager.generate(prompt("x")).text == " x"


# Generation


def test_a_stream_gives_the_answer_piece_by_piece(manager):
    with manager.generate_stream(prompt("x y z"), Cancel()) as stream:
        bursts = [burst for burst in stream if burst]
    assert [piece for burst in bursts for piece in burst.pieces] == [" x", " y", " z"]
    assert bursts[-1].finish_reason == "stop"
    assert bursts[-1].usage == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}


def test_a_whole_answer_is_one_output(manager):
    output = manager.generate(prompt("x y", metrics=True))
    assert (output.text, output.error_code, output.finish_reason) == (" x y", 0, "stop")
    assert output.metrics == {"speed": 1.0}


def test_messages_are_an_answerable_prompt(manager):
    request = GenerateRequest("a", messages=[{"role": "human", "content": "你好"}])
    assert manager.generate(request).text == " 你好"


@pytest.mark.parametrize("call", ["generate", "generate_stream"])
def test_what_the_engine_refuses_reaches_the_caller(manager, call):
    with pytest.raises(PromptTooLong, match="the prompt is too long"):
        list(getattr(manager, call)(prompt("refuse")))


@pytest.mark.parametrize("call", ["generate", "generate_stream"])
def test_what_breaks_in_the_engine_is_an_engine_error_and_frees_the_slot(manager, call):
    for _ in range(5):
        with pytest.raises(EngineError, match="'a'"):
            list(getattr(manager, call)(prompt("break")))
    assert manager.load_of("a", LLM) == "slots=2;free=2;waiting=0"


def test_a_cancel_ends_an_answer_midway(manager):
    cancel = Cancel()
    stream = manager.generate_stream(prompt("hold"), cancel)
    next(burst for burst in stream if burst)
    cancel.set()
    with pytest.raises(Cancelled):
        list(stream)
    wait_until(lambda: manager.load_of("a", LLM) == "slots=2;free=2;waiting=0", "the slot is free")


def test_a_cancel_ends_a_whole_answer(manager):
    cancel = Cancel()
    threading.Timer(0.05, cancel.set).start()
    with pytest.raises(Cancelled):
        manager.generate(prompt("hold"), cancel)


def test_closing_a_stream_frees_its_slot(manager):
    streams = [manager.generate_stream(prompt("hold"), Cancel()) for _ in range(2)]
    for stream in streams:
        next(burst for burst in stream if burst)
    assert manager.load_of("a", LLM) == "slots=2;free=0;waiting=0"
    for stream in streams:
        stream.close()
        stream.close()
    wait_until(lambda: manager.load_of("a", LLM) == "slots=2;free=2;waiting=0", "both slots are free")


def test_over_slots_and_line_it_is_refused_and_who_does_not_wait_before_that(manager):
    held = [manager.generate_stream(prompt("hold"), Cancel()) for _ in range(2)]
    try:
        for stream in held:
            next(burst for burst in stream if burst)
        with pytest.raises(Overloaded, match="'a'"):
            manager.generate(prompt("x", terms=Terms(wait=False)), Cancel())
        in_line = Cancel()
        waiting = threading.Thread(target=lambda: list(manager.generate_stream(prompt("x"), in_line)))
        waiting.start()
        wait_until(lambda: manager.load_of("a", LLM) == "slots=2;free=0;waiting=1", "one stands in line")
        with pytest.raises(Overloaded, match="max_waiting"):
            manager.generate(prompt("x"), Cancel())
    finally:
        for stream in held:
            stream.close()
    waiting.join(30)
    wait_until(lambda: manager.load_of("a", LLM) == "slots=2;free=2;waiting=0", "all is over")
    assert manager.generate(prompt("x", terms=Terms(wait=False)), Cancel()).text == " x"


def test_an_interactive_request_takes_the_place_of_a_batch_one_in_a_full_line(manager):
    outcomes: list[tuple[str, object]] = []

    def ask(text: str, *, batch: bool) -> None:
        try:
            outcomes.append((text, manager.generate(prompt(text, terms=Terms(batch=batch))).text))
        except Overloaded as error:
            outcomes.append((text, error))

    held = [manager.generate_stream(prompt("hold"), Cancel()) for _ in range(2)]
    threads = [threading.Thread(target=ask, args=(text,), kwargs={"batch": text == "b"}) for text in ("b", "i")]
    try:
        for stream in held:
            next(burst for burst in stream if burst)
        threads[0].start()
        wait_until(lambda: manager.load_of("a", LLM) == "slots=2;free=0;waiting=1", "batch stands in line")
        threads[1].start()
        threads[0].join(30)
        (refused,) = outcomes
        assert refused[0] == "b"
        assert "took its place in line" in str(refused[1])
    finally:
        for stream in held:
            stream.close()
    threads[1].join(30)
    assert outcomes[1] == ("i", " i")


def test_cheap_calls_are_answered_while_all_slots_are_busy(manager):
    held = [manager.generate_stream(prompt("hold"), Cancel()) for _ in range(3)]
    try:
        assert manager.count_token("a", "x y z") == 3
        assert manager.model_metadata("a").context_length == 128
        assert manager.parameter_descriptions("a", None)
    finally:
        for stream in held:
            stream.close()


# Vectors


def test_embeddings_are_a_row_a_text(manager):
    assert [list(row) for row in manager.embeddings("vec", ["abc", "", "你好"])] == [[3.0, 1.0], [0.0, 1.0], [2.0, 1.0]]


def test_a_reranker_scores_each_text(manager):
    assert list(manager.rerank("rank", "a", ["aa", "b", "a"])) == [2.0, 0.0, 1.0]


def test_an_embedder_asked_to_rank_answers_by_cosine(manager):
    scores = list(manager.rerank("vec", "aa", ["bb", ""]))
    assert scores[0] == pytest.approx(1.0)
    assert 0 < scores[1] < 1


@pytest.mark.parametrize("model", ["vec", "rank"])
def test_vectors_that_break_are_an_engine_error_and_free_the_slot(manager, model):
    for _ in range(6):
        with pytest.raises(EngineError):
            manager.rerank(model, "a", ["break"])
    assert manager.load_of(model, TEXT2VEC if model == "vec" else RERANKER) == "slots=4;free=4;waiting=0"


def test_a_cancel_ends_an_embedding(manager):
    cancel = Cancel()
    threading.Timer(0.05, cancel.set).start()
    with pytest.raises(Cancelled):
        manager.embeddings("vec", ["hold"], cancel)


# Which model


CALLS: dict[str, Callable[[WorkerManager, str], object]] = {
    "generate_stream": lambda m, name: list(m.generate_stream(prompt("x", name))),
    "generate": lambda m, name: m.generate(prompt("x", name)),
    "embeddings": lambda m, name: m.embeddings(name, ["x"]),
    "rerank": lambda m, name: m.rerank(name, "x", ["x"]),
    "count_token": lambda m, name: m.count_token(name, "x"),
    "model_metadata": lambda m, name: m.model_metadata(name),
    "parameter_descriptions": lambda m, name: m.parameter_descriptions(name, None),
    "model_startup": lambda m, name: m.model_startup(name, None, {}),
    "model_shutdown": lambda m, name: m.model_shutdown(name, None),
    "worker_apply": lambda m, name: m.worker_apply(name, "start", None, {}),
    "select_one_instance": lambda m, name: m.select_one_instance(f"{name}@llm"),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_model_that_nobody_knows_is_refused_by_name(manager, untouched, call):
    with pytest.raises(UnknownModel, match="nope"):
        CALLS[call](manager, "nope")


@pytest.mark.parametrize("call", ["generate", "embeddings"])
def test_an_unknown_name_is_told_with_those_there_are(manager, call):
    with pytest.raises(UnknownModel, match="a@llm, b@llm, rank@reranker, vec@text2vec"):
        CALLS[call](manager, "nope")


@pytest.mark.parametrize(
    ("call", "model"), [("generate", "vec"), ("generate_stream", "rank"), ("embeddings", "a"), ("rerank", "b")]
)
def test_a_model_of_another_kind_is_refused_with_what_it_is(manager, call, model):
    with pytest.raises(Unsupported, match=f"'{model}' is of type"):
        CALLS[call](manager, model)


@pytest.mark.parametrize("call", ["generate", "generate_stream", "count_token", "model_metadata"])
def test_a_stopped_model_is_not_ready(manager, call):
    assert apply(manager, "a", "stop").success
    with pytest.raises(NotReady, match=r"'a'|a@llm"):
        CALLS[call](manager, "a")


def test_tokens_without_a_model_are_counted_by_the_first_llm_that_is_ready(manager):
    assert manager.count_token(None, "x y") == 2
    assert apply(manager, "a", "stop").success
    assert manager.count_token(None, "x y") == 2
    assert apply(manager, "a", "start").success
    for name in ("a", "b"):
        manager.model_shutdown(name, None)
    with pytest.raises(InvalidRequest, match="no LLM is") as caught:
        manager.count_token(None, "x y")
    assert caught.value.errors[0]["field"] == "model"


# Instances


def test_every_started_model_is_an_instance(manager):
    assert keys(manager) == STARTED
    assert all(i.healthy and i.enabled for i in manager.get_all_model_instances())


def test_instances_are_found_by_type_and_by_key(manager):
    assert [i.model_name for i in manager.get_all_model_instances(LLM)] == ["a@llm", "b@llm"]
    assert [i.model_name for i in manager.get_model_instances("vec@text2vec")] == ["vec@text2vec"]
    assert manager.get_model_instances("vec@llm") == []


def test_an_unhealthy_instance_is_shown_on_request_only(manager):
    assert apply(manager, "a", "stop").success
    assert keys(manager) == STARTED[1:]
    assert sorted(keys(manager, healthy_only=False)) == sorted(STARTED)
    assert manager.get_model_instances("a@llm") == []
    assert [i.healthy for i in manager.get_model_instances("a@llm", healthy_only=False)] == [False]


def test_one_instance_is_selected_if_one_is_healthy(manager):
    assert manager.select_one_instance("a@llm").model_name == "a@llm"
    assert apply(manager, "a", "stop").success
    with pytest.raises(NotReady, match="a@llm"):
        manager.select_one_instance("a@llm")


def test_the_load_of_a_model_that_is_not_here_is_unknown(manager):
    assert manager.load_of("nope", LLM) is None
    assert manager.load_of("vec", TEXT2VEC) == "slots=4;free=4;waiting=0"


def test_the_context_length_of_a_model_is_known_while_it_runs(manager):
    assert len(keys(manager)) == len(STARTED)
    assert manager.context_lengths() == dict.fromkeys(["a", "b", "rank", "vec"], 128)
    assert apply(manager, "a", "stop").success
    assert "a@llm" not in keys(manager)
    assert "a" not in manager.context_lengths()


def test_a_model_that_takes_images_is_known_while_it_runs(manager):
    assert manager.models_with_images() == set()
    assert apply(manager, "b", "update_params", images=True).success
    assert len(keys(manager)) == len(STARTED)
    wait_until(lambda: manager.models_with_images() == {"b"}, "it is registered with its images")
    assert apply(manager, "b", "stop").success
    assert "b@llm" not in keys(manager)
    assert manager.models_with_images() == set()


def test_a_model_that_nobody_uses_is_unloaded_and_listed_and_the_next_request_loads_it(manager):
    assert apply(manager, "b", "update_params", keep_alive=0.1).success
    number = start_number(manager, "b")

    def is_unloaded() -> bool:
        return "b@llm" in keys(manager) and manager.model_states()["b@llm"] is State.UNLOADED

    wait_until(is_unloaded, "it is unloaded")
    assert manager.context_lengths()["b"] == 128
    assert manager.load_of("b", LLM) == "slots=8;free=0;waiting=0;loaded=0"
    assert start_number(manager, "b") == number, "its metadata are those that were known last"
    assert manager.select_one_instance("b@llm").healthy
    assert manager.model_states()["b@llm"] is State.UNLOADED, "all this has not loaded it"
    assert manager.generate(prompt("x", "b")).text == " x"
    assert manager.model_states()["a@llm"] is State.READY
    wait_until(lambda: is_unloaded() and start_number(manager, "b") > number, "it was loaded, and unloaded again")


def test_a_request_without_a_model_may_mean_those_of_its_type(manager):
    assert manager.default_models(LLM) == ["a", "b"]
    assert manager.default_models(RERANKER, TEXT2VEC) == ["rank"]
    manager.model_shutdown("rank", None)
    assert manager.default_models(RERANKER, TEXT2VEC) == ["vec"]
    assert manager.default_models(RERANKER) == []


# Startup and shutdown


def test_a_change_that_is_not_remembered_says_why(manager, tmp_path):
    assert manager.model_startup("spare", None, {}) == manager.model_shutdown("spare", None) == ""
    for state in list(tmp_path.rglob("state")):
        state.rename(state.with_name("removed"))
    outcome = manager.worker_apply("a", "update_params", None, {"size": 2}).message
    for reason in (manager.model_startup("spare", None, {}), manager.model_shutdown("spare", None)):
        assert "was removed" in reason
        assert outcome.endswith(f"; this will not be remembered: {reason}")


def test_an_empty_path_of_a_model_file_counts_as_left_out(manager, untouched):
    manager.model_startup("spare", None, {"model_path": ""})
    manager.model_shutdown("spare", None)


def test_a_model_that_is_started_answers_and_one_that_is_shut_down_is_forgotten(manager, untouched):
    manager.model_startup("spare", None, {"size": 5})
    assert keys(manager) == sorted([*STARTED, "spare@llm"])
    assert size(manager, "spare") == 5
    assert manager.generate(prompt("x", "spare")).text == " x"
    manager.model_shutdown("spare", LLM)
    assert keys(manager, healthy_only=False) == STARTED
    with pytest.raises(UnknownModel):
        manager.generate(prompt("x", "spare"))


def test_a_model_may_be_started_as_another_type_beside_the_first(manager):
    manager.model_startup("a", TEXT2VEC, {})
    assert [list(row) for row in manager.embeddings("a", ["abc"])] == [[3.0, 1.0]]
    assert manager.generate(prompt("x")).text == " x"
    assert {"a@llm", "a@text2vec"} <= set(keys(manager))
    manager.model_shutdown("a", TEXT2VEC)
    assert manager.generate(prompt("x")).text == " x"


def test_a_shutdown_without_a_type_shuts_down_all_of_that_name(manager):
    manager.model_startup("a", TEXT2VEC, {})
    manager.model_shutdown("a", None)
    assert not {"a@llm", "a@text2vec"} & set(keys(manager, healthy_only=False))


def test_a_shutdown_of_another_type_is_an_unknown_model(manager, untouched):
    with pytest.raises(UnknownModel, match="of type reranker"):
        manager.model_shutdown("a", RERANKER)


def test_an_alias_becomes_the_registered_name(manager):
    manager.model_startup("spare", None, {"model_alias": "nick"})
    assert "nick@llm" in keys(manager)
    assert manager.generate(prompt("x", "nick")).text == " x"
    assert manager.model_metadata("nick").model == "nick"
    with pytest.raises(UnknownModel):
        manager.generate(prompt("x", "spare"))
    assert apply(manager, "nick", "restart").success
    assert apply(manager, "nick", "update_params", size=3).success
    assert size(manager, "nick") == 3
    manager.model_shutdown("nick", None)
    assert "nick@llm" not in keys(manager, healthy_only=False)


def test_null_parameters_mean_absent(manager):
    manager.model_startup("spare", None, {"size": None, "model_alias": None, "unknown": None})
    assert size(manager, "spare") == 1


def test_one_that_runs_already_is_a_conflict(manager, untouched):
    with pytest.raises(Conflict, match="a@llm is ready already"):
        manager.model_startup("a", None, {"size": 2})
    assert size(manager, "a") == 1


def test_a_stopped_one_is_started_again_with_what_was_set_before(manager):
    assert apply(manager, "a", "update_params", size=4).success
    assert apply(manager, "a", "stop").success
    manager.model_startup("a", None, {})
    assert size(manager, "a") == 4
    assert keys(manager).count("a@llm") == 1


@pytest.mark.parametrize(
    ("fail", "kind"),
    [
        ("timeout", StartTimeout),
        ("network", NetworkFailure),
        ("library", MissingLibrary),
        ("file", BadModelFile),
        ("other", StartFailed),
    ],
)
def test_a_startup_that_fails_is_told_apart_and_leaves_nothing_behind(manager, untouched, fail, kind):
    running = Steered.running()
    with pytest.raises(StartFailed, match="'spare' did not start") as caught:
        manager.model_startup("spare", None, {"fail": fail})
    assert type(caught.value) is kind
    assert keys(manager, healthy_only=False) == STARTED
    assert Steered.running() == running
    manager.model_startup("spare", None, {})
    manager.model_shutdown("spare", None)


def test_a_startup_that_fails_leaves_a_stopped_one_as_it_was(manager):
    assert apply(manager, "a", "update_params", size=4).success
    assert apply(manager, "a", "stop").success
    with pytest.raises(StartFailed):
        manager.model_startup("a", None, {"fail": "other", "size": 7})
    assert "a@llm" in keys(manager, healthy_only=False)
    assert apply(manager, "a", "start").success
    assert size(manager, "a") == 4


@pytest.mark.parametrize("params", [{"size": 0}, {"size": "x"}, {"fail": "how"}, {"engine": "os:system"}])
def test_parameters_that_do_not_fit_are_refused_by_name(manager, untouched, params):
    with pytest.raises(InvalidRequest) as caught:
        manager.model_startup("spare", None, params)
    assert [e["field"] for e in caught.value.errors] == [f"params.{next(iter(params))}"]
    assert keys(manager, healthy_only=False) == STARTED


def test_more_slots_than_the_budget_holds_are_refused_with_the_numbers(manager, untouched):
    # 56 in all; a 2, b 8, vec 4, rank 4.
    with pytest.raises(Conflict, match=r"asks for 39 slots.*have 18 of the 56.*ask for at most 38"):
        manager.model_startup("spare", None, {"limit_model_concurrency": 39})
    assert keys(manager, healthy_only=False) == STARTED
    manager.model_startup("spare", None, {"limit_model_concurrency": 38})
    manager.model_shutdown("spare", None)


def test_a_disabled_model_is_not_started_and_says_why(manager, untouched):
    with pytest.raises(Conflict, match="its licence forbids it"):
        manager.model_startup("off", None, {})
    assert keys(manager, healthy_only=False) == STARTED


def test_of_two_startups_of_one_model_at_the_same_time_one_wins(manager, untouched):
    outcomes: list[str] = []

    def start() -> None:
        try:
            manager.model_startup("spare", None, {"hold_start": True})
            outcomes.append("started")
        except Conflict:
            outcomes.append("conflict")

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(outcomes) == 5, "all but one were refused")
    Steered.go.set()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes) == ["conflict"] * 5 + ["started"]
    assert [engine.params.model_name for engine in Steered.running()].count("spare") == 1
    manager.model_shutdown("spare", None)


# Apply


def test_start_and_stop_keep_the_entry(manager):
    stopped = apply(manager, "a", "stop")
    assert (stopped.success, stopped.message) == (True, "model a@llm stopped")
    assert stopped.timecost >= 0
    assert apply(manager, "a", "stop").success
    started = apply(manager, "a", "start")
    assert (started.success, started.message) == (True, "model a@llm started")
    assert manager.generate(prompt("x")).text == " x"


def test_start_of_one_that_runs_is_a_success_and_leaves_it(manager, untouched):
    outcome = apply(manager, "a", "start")
    assert (outcome.success, outcome.message) == (True, "model a@llm runs already")


def test_restart_starts_it_anew(manager):
    before = start_number(manager, "a")
    outcome = apply(manager, "a", "restart")
    assert (outcome.success, outcome.message) == (True, "model a@llm restarted")
    assert start_number(manager, "a") > before


def test_restart_may_change_parameters_and_starts_a_stopped_one(manager):
    assert apply(manager, "a", "stop").success
    outcome = apply(manager, "a", "restart", size=3)
    assert outcome.success
    assert "changed size" in outcome.message
    assert size(manager, "a") == 3


def test_changed_parameters_take_effect_by_a_restart(manager):
    before = start_number(manager, "a")
    outcome = apply(manager, "a", "update_params", size=3, limit_model_concurrency=5)
    assert outcome.success
    assert "changed limit_model_concurrency, size and restarted" in outcome.message
    assert start_number(manager, "a") > before
    assert size(manager, "a") == 3
    assert manager.load_of("a", LLM) == "slots=5;free=5;waiting=0"
    assert value_of(manager, "a", "limit_model_concurrency") == 5


@pytest.mark.parametrize(
    "params",
    [{}, {"size": 1}, {"size": None}, {"unknown": 5}, {"token": parameters.MASK}, {"token": "hunter2"}],
    ids=str,
)
def test_what_changes_nothing_restarts_nothing(manager, untouched, params):
    outcome = manager.worker_apply("a", "update_params", None, params)
    assert outcome.success
    assert "nothing changed" in outcome.message


@pytest.mark.parametrize(
    "params", [{"serial": "s2"}, {"model_name": "z"}, {"model_alias": "z"}, {"worker_type": "text2vec"}], ids=str
)
def test_fixed_parameters_never_change_and_it_is_said(manager, untouched, params):
    outcome = manager.worker_apply("a", "update_params", None, params)
    assert outcome.success
    assert f"fixed, so unchanged: {next(iter(params))}" in outcome.message
    assert value_of(manager, "a", "serial") == "s1"


def test_a_fixed_parameter_beside_one_that_changes_is_left(manager):
    outcome = apply(manager, "a", "update_params", serial="s2", size=2)
    assert outcome.success
    assert "changed size and restarted; fixed, so unchanged: serial" in outcome.message
    assert value_of(manager, "a", "serial") == "s1"


def test_parameters_of_a_stopped_one_change_without_a_start(manager):
    assert apply(manager, "a", "stop").success
    outcome = apply(manager, "a", "update_params", size=3)
    assert (outcome.success, outcome.message) == (True, "model a@llm: changed size")
    assert "a@llm" not in keys(manager)
    assert apply(manager, "a", "start").success
    assert size(manager, "a") == 3


def test_changes_add_up(manager):
    assert apply(manager, "a", "update_params", size=3).success
    assert apply(manager, "a", "update_params", max_waiting=7).success
    assert (size(manager, "a"), value_of(manager, "a", "max_waiting")) == (3, 7)


@pytest.mark.parametrize("how", ["update_params", "restart"])
def test_what_does_not_start_with_new_parameters_runs_on_with_the_old(manager, how):
    outcome = apply(manager, "a", how, fail="other", size=5)
    assert not outcome.success
    assert "did not start" in outcome.message
    assert "it runs on with the parameters it had" in outcome.message
    assert manager.generate(prompt("x")).text == " x"
    assert size(manager, "a") == 1
    assert apply(manager, "a", "update_params", size=2).success
    assert size(manager, "a") == 2


def test_more_slots_than_fit_are_refused_with_the_numbers_and_it_runs_on(manager, untouched):
    # Without its own 2, the others hold 16 of 56.
    outcome = apply(manager, "a", "update_params", limit_model_concurrency=41)
    assert not outcome.success
    assert "asks for 41 slots" in outcome.message
    assert "16 of the 56" in outcome.message
    assert "at most 40" in outcome.message


@pytest.mark.parametrize("model", ["a", EVERY_MODEL])
def test_parameters_of_apply_that_do_not_fit_are_refused_before_anything_is_done(manager, untouched, model):
    with pytest.raises(InvalidRequest, match=r"params\.size: 99 is more than 9"):
        manager.worker_apply(model, "restart", None, {"size": 99})


def test_an_operation_that_there_is_not_is_refused(manager, untouched):
    with pytest.raises(InvalidRequest, match="start, stop, restart, update_params"):
        manager.worker_apply("a", "explode", None, {})
    assert APPLY_TYPES == ("start", "stop", "restart", "update_params")


def test_all_models_are_changed_at_once_and_the_outcomes_merged(manager):
    stopped = apply(manager, EVERY_MODEL, "stop")
    assert stopped.success
    assert sorted(stopped.message.split("; ")) == [f"model {key} stopped" for key in STARTED]
    assert keys(manager) == []
    done: list[ApplyOutcome] = []
    thread = threading.Thread(target=lambda: done.append(apply(manager, EVERY_MODEL, "restart", hold_start=True)))
    thread.start()
    wait_until(lambda: Steered.holding == len(STARTED), "all start at the same time")
    Steered.go.set()
    thread.join(30)
    assert done[0].success
    assert sorted(keys(manager)) == sorted(STARTED)


def test_one_failure_among_many_fails_the_outcome_and_leaves_the_others(manager):
    manager.model_startup("spare", None, {"limit_model_concurrency": 30})
    # 30 + 8 slots more than fit for each of the others, but not for spare itself.
    outcome = apply(manager, EVERY_MODEL, "update_params", limit_model_concurrency=30)
    assert not outcome.success
    assert "model spare@llm: nothing changed" in outcome.message
    assert "no room for model 'b'" in outcome.message
    assert sorted(keys(manager)) == sorted([*STARTED, "spare@llm"])
    assert manager.generate(prompt("x", "b")).text == " x"


def test_a_name_in_two_types_is_changed_in_both_or_in_the_one_that_is_named(manager):
    manager.model_startup("a", TEXT2VEC, {})
    assert manager.worker_apply("a", "stop", TEXT2VEC, {}).message == "model a@text2vec stopped"
    assert "a@llm" in keys(manager)
    both = manager.worker_apply("a", "restart", None, {})
    assert both.message == "model a@llm restarted; model a@text2vec restarted"
    with pytest.raises(UnknownModel):
        manager.worker_apply("a", "stop", RERANKER, {})


def test_a_model_that_failed_stays_failed_when_a_change_does_not_help(manager):
    assert apply(manager, "a", "stop").success
    assert apply(manager, "a", "update_params", fail="other").success
    assert not apply(manager, "a", "start").success
    outcome = apply(manager, "a", "restart", fail="network")
    assert not outcome.success
    with pytest.raises(NotReady, match=r"is failed .*odd|a@llm can be taken"):
        manager.generate(prompt("x"))


def test_a_stop_ends_what_runs_with_the_reason(manager):
    began, outcomes = threading.Event(), []

    def read() -> None:
        try:
            for burst in manager.generate_stream(prompt("hold"), Cancel()):
                if burst:
                    began.set()
        except NotReady as error:
            outcomes.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    assert began.wait(30)
    assert apply(manager, "a", "stop").success
    reader.join(30)
    assert outcomes == ["model 'a' was stopped"]


# What is there


def test_parameters_are_described_with_their_values_and_private_ones_masked(manager):
    described = {d["param_name"]: d for d in manager.parameter_descriptions("a", LLM)}
    assert described["limit_model_concurrency"]["default_value"] == 2
    assert described["token"]["default_value"] == parameters.MASK
    assert described["serial"]["ext_metadata"]["tags"] == "fixed"
    assert "hunter2" not in str(described)


def test_a_model_that_is_not_running_is_described_too(manager):
    assert {d["param_name"] for d in manager.parameter_descriptions("spare", None)} >= {"size", "model_path"}


def test_what_may_run_is_told_running_or_not(manager):
    ((host, port, models, error),) = manager.supported_models()
    found = {m.model: m for m in models}
    (instance,) = manager.get_model_instances("a@llm")
    assert (host, port, error) == (instance.host, instance.port, "")
    assert {"a", "b", "vec", "rank", "spare", "off", "smollm2-135m", "minilm-l6", "echo"} <= set(found)
    assert (found["vec"].worker_type, found["vec"].path_exist, found["vec"].enabled) == ("text2vec", True, True)
    assert (found["off"].enabled, found["smollm2-135m"].path_exist) == (False, False)
    assert {d["param_name"] for d in found["spare"].params} >= {"size", "limit_model_concurrency"}
    assert "hunter2" not in str(models)


def test_options_reach_the_engine_and_what_comes_with_a_piece_comes_back(manager):
    with manager.generate_stream(prompt("one two", options={"logprobs": True})) as stream:
        bursts = [burst for burst in stream if burst is not None and burst.pieces]
    pieces = [(piece, delta) for burst in bursts for piece, delta in zip(burst.pieces, burst.deltas or [], strict=True)]
    assert pieces == [(" one", {"logprobs": {"content": [0]}}), (" two", {"logprobs": {"content": [1]}})]
    assert manager.generate(prompt("one two", options={"logprobs": True})).text == " one two"


def test_an_option_that_the_engine_does_not_take_is_refused_by_its_name(manager):
    with (
        pytest.raises(InvalidRequest) as refused,
        manager.generate_stream(prompt("one", options={"logprobs": True, "tools": []})) as stream,
    ):
        list(stream)
    assert [error["field"] for error in refused.value.errors] == ["tools"]
    assert "'a'" in str(refused.value)
