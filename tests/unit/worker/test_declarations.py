"""From a name to an engine with its parameters: every layer, in its order, and every refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_gguf
from modelyard.engines.echo import Echo
from modelyard.errors import BadModelFile, ConfigError, InvalidRequest, ModelyardError, UnknownModel
from modelyard.models.catalog import Catalog
from modelyard.settings.settings import Settings
from modelyard.types import WorkerType
from modelyard.worker.declarations import Declarations
from modelyard.worker.worker import ModelWorker


def declarations(*tables, environ=None, overrides=(), folder: Path | None = None) -> Declarations:
    settings = Settings(models_dirs=[str(folder)] if folder else ["/nonexistent"], overrides=tuple(overrides))
    catalog = Catalog.load(tables, settings.models_paths)
    return Declarations(settings, catalog, environ or {})


TABLE = {"name": "e", "engine": "echo", "queue_timeout": 5.0}


def test_each_layer_gives_way_to_the_stronger_one():
    environ = {"MODELYARD_QUEUE_TIMEOUT": "4"}
    assert declarations({"name": "e", "engine": "echo"}).engine("e").params.queue_timeout == 60.0
    assert declarations(TABLE).engine("e").params.queue_timeout == 5.0
    assert declarations(TABLE, environ=environ).engine("e").params.queue_timeout == 4.0
    environ["E_QUEUE_TIMEOUT"] = "3"
    assert declarations(TABLE, environ=environ).engine("e").params.queue_timeout == 3.0
    said = declarations(TABLE, environ=environ, overrides=["e.queue_timeout=2"])
    assert said.engine("e").params.queue_timeout == 2.0
    assert said.engine("e", over_http={"queue_timeout": 1}).params.queue_timeout == 1.0


def test_the_example_of_the_documentation_works():
    by_environment = declarations(environ={"SMOLLM2_135M_N_CTX": "4096"})
    by_option = declarations(overrides=["smollm2-135m.n_ctx=4096"])
    assert by_environment.engine("smollm2-135m").params.n_ctx == 4096 == by_option.engine("smollm2-135m").params.n_ctx
    assert declarations().engine("smollm2-135m").params.n_ctx == 2048


def test_an_embedder_has_more_slots_unless_somebody_says_how_many():
    found = declarations({"name": "e", "engine": "echo", "worker_type": "text2vec"})
    assert found.engine("e").params.limit_model_concurrency == 64
    assert found.engine("e", WorkerType.LLM).params.limit_model_concurrency == 8
    said = declarations({"name": "e", "engine": "echo", "worker_type": "text2vec", "limit_model_concurrency": 2})
    assert said.engine("e").params.limit_model_concurrency == 2


def test_the_type_is_what_is_asked_for_else_the_entrys_else_the_engines_own():
    found = declarations({"name": "a", "engine": "echo", "worker_type": "reranker"}, {"name": "b", "engine": "echo"})
    assert found.engine("a", WorkerType.LLM).params.worker_type == "llm"
    assert found.engine("a").params.worker_type == "reranker"
    assert found.engine("b").params.worker_type == Echo.default_worker_type == "llm"


def test_a_type_that_the_engine_is_not_for_is_refused(monkeypatch):
    monkeypatch.setattr(Echo, "worker_types", frozenset({WorkerType.LLM}))
    with pytest.raises(InvalidRequest, match="worker_type: engine echo can be llm, not text2vec"):
        declarations(TABLE).engine("e", WorkerType.TEXT2VEC)


def test_what_a_name_is_can_not_be_changed_over_http():
    found = declarations(TABLE).engine("e", over_http={"model_name": "other", "worker_type": "reranker"})
    assert (found.params.model_name, found.params.worker_type) == ("e", "llm")


def test_code_can_not_be_named_over_http():
    with pytest.raises(InvalidRequest, match="only the configuration"):
        declarations(TABLE).engine("e", over_http={"worker_class": "os:system"})


@pytest.mark.parametrize("engine", ["os:system", "modelyard.engines.echo:Echo", "nothing"])
@pytest.mark.parametrize("model", ["e", "new"])
def test_over_http_an_engine_is_a_name_from_the_table(model, engine):
    with pytest.raises(InvalidRequest, match=r"is unknown: there are echo, llama\.cpp") as caught:
        declarations(TABLE).engine(model, over_http={"engine": engine, "model_path": "x.gguf"})
    assert caught.value.errors[0]["field"] == "params.engine"


def test_an_engine_of_the_table_may_be_named_over_http():
    assert type(declarations().engine("new", over_http={"engine": "echo", "model_path": "x"})) is Echo


def test_the_name_of_its_own_engine_may_be_sent_back():
    found = declarations({"name": "e", "worker_class": "modelyard.engines.echo:Echo"})
    assert type(found.engine("e", over_http={"engine": "echo"})) is Echo


def test_another_engine_than_the_entrys_takes_nothing_of_the_entry():
    found = declarations().engine("smollm2-135m", over_http={"engine": "echo"})
    assert type(found) is Echo
    assert found.params.model_path is None


def test_a_name_that_nobody_knows_is_refused_with_those_there_are():
    with pytest.raises(UnknownModel, match=r"'nope' is neither in the catalogue .* there are .*echo.*minilm-l6"):
        declarations().engine("nope")


@pytest.mark.parametrize(("path", "engine"), [("/nope", None), ("x.bin", 5), (7, None)])
def test_an_engine_that_can_not_be_told_from_the_path_must_be_named(path, engine):
    with pytest.raises(InvalidRequest, match="name the engine"):
        declarations().engine("x", over_http={"model_path": path, "engine": engine})


@pytest.mark.parametrize("name", [" x", "a\nb", "\x00", ""])
def test_a_request_can_not_make_up_a_name_that_nobody_can_type(name):
    with pytest.raises(InvalidRequest, match="not a valid name of a model"):
        declarations().engine(name, over_http={"model_path": "x.gguf"})


@pytest.mark.parametrize("name", ["ECHO", "smollm2.135m"])
def test_a_request_can_not_make_up_a_name_that_reads_the_variables_of_another(name):
    with pytest.raises(ModelyardError, match="share the environment prefix"):
        declarations().engine(name, over_http={"model_path": "x.gguf"})


def test_parameters_over_http_that_do_not_fit_are_named():
    with pytest.raises(InvalidRequest) as caught:
        declarations(TABLE).engine("e", over_http={"limit_model_concurrency": 0, "delay": "x"})
    assert {e["field"] for e in caught.value.errors} == {"params.limit_model_concurrency", "params.delay"}


@pytest.mark.parametrize(
    ("environ", "overrides", "why"),
    [
        ({"E_DELAY": "slow"}, [], r"environment, E_DELAY: delay"),
        ({}, ["e.delay=-1"], r"--set e\.delay=-1: delay: -1.0 is less than 0"),
        ({}, ["e.dealy=1"], r"--set e\.dealy=1: dealy: no such parameter \(did you mean delay\?\)"),
    ],
)
def test_what_the_operator_says_wrong_is_named_with_its_place(environ, overrides, why):
    with pytest.raises(ConfigError, match=why):
        declarations(TABLE, environ=environ, overrides=overrides).engine("e")


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("MODELYARD_PROT", " (did you mean MODELYARD_PORT?)"),
        ("MODELYARD_QUEUE_TIMEOUTS", " (did you mean MODELYARD_QUEUE_TIMEOUT?)"),
        ("MODELYARD_LIMIT_MODEL_CONCURRENCY", ""),
        ("MODELYARD_XYZZY", ""),
    ],
)
def test_a_variable_of_ours_that_nothing_reads_is_refused(variable, hint):
    with pytest.raises(ConfigError) as caught:
        declarations(TABLE, environ={variable: "9"})
    assert str(caught.value).startswith(f"environment, {variable}: nothing reads it{hint}")


def test_variables_of_settings_commands_and_shared_parameters_are_read():
    names = ["PORT", "TOKEN", "SET", "HANDED_OVER", "URL", "QUEUE_TIMEOUT", "N_THREADS"]
    declarations(TABLE, environ={f"MODELYARD_{name}": "1" for name in names})
    shared = {"name": "mine", "worker_class": "shared_engine:Shared"}
    declarations(shared, environ={"MODELYARD_LANGUAGE": "de"})


def test_for_variables_of_settings_no_engine_is_imported(monkeypatch):
    monkeypatch.setattr("modelyard.worker.declarations.engine_class", None)
    declarations(TABLE, environ={"MODELYARD_PORT": "1", "E_DELAY": "1"})


def test_a_variable_that_is_nearly_one_of_a_model_is_refused():
    found = declarations(TABLE, {"name": "e-n", "engine": "echo"}, environ={"E_DELAYY": "3", "E_N_DELAY": "1"})
    with pytest.raises(ConfigError, match=r"^environment, E_DELAYY: nothing reads it \(did you mean E_DELAY\?\)$"):
        found.engine("e")
    assert found.engine("e-n").params.delay == 1.0


@pytest.mark.parametrize("variable", ["E_API_KEY", "E_HOME", "E", "E_", "OTHER_DELAYY", "E_N_DELAYS"])
def test_a_variable_that_may_belong_to_another_program_is_left_alone(variable):
    found = declarations(TABLE, {"name": "e-n", "engine": "echo"}, environ={variable: "3"})
    assert found.engine("e").params.delay == 0.0


@pytest.mark.parametrize(("kind", "worker_type"), [("llama", "llm"), ("embed", "text2vec"), ("rank", "reranker")])
def test_a_configured_model_without_a_type_has_that_of_its_weights(tmp_path, kind, worker_type):
    tiny_gguf.make(tmp_path / "tiny.gguf", kind)
    found = declarations({"name": "mine", "model_path": "tiny.gguf"}, folder=tmp_path)
    assert found.engine("mine").params.worker_type == worker_type
    assert found.engine("mine", WorkerType.LLM).params.worker_type == "llm"
    assert found.engine("new", over_http={"model_path": "tiny.gguf"}).params.worker_type == worker_type
    given = declarations({"name": "mine", "model_path": "tiny.gguf", "worker_type": "llm"}, folder=tmp_path)
    assert given.engine("mine").params.worker_type == "llm"


def test_a_model_whose_weights_are_absent_has_the_type_of_its_engine(tmp_path):
    found = declarations({"name": "mine", "model_path": "absent.gguf"}, folder=tmp_path)
    assert found.engine("mine").params.worker_type == "llm"


@pytest.mark.parametrize(
    ("params", "field", "reason"),
    [
        ({"worker_class": "os:system"}, "params.worker_class", "only the configuration"),
        ({"model_path": "absent.gguf"}, "params.model_path", "there is no model file absent.gguf"),
        ({"model_path": "/etc/passwd"}, "params.model_path", "outside of the models folders"),
        ({"model_path": "../x.gguf"}, "params.model_path", "outside of the models folders"),
        ({"model_path": ""}, "params.model_path", "not a valid path"),
    ],
)
def test_a_request_that_names_code_or_weights_out_of_reach_is_refused(tmp_path, params, field, reason):
    with pytest.raises(InvalidRequest, match=reason) as caught:
        declarations(TABLE, folder=tmp_path).checked("e", params)
    assert [error["field"] for error in caught.value.errors] == [field]


def test_a_request_may_send_back_what_is_configured(tmp_path):
    path = tiny_gguf.make(tmp_path / "tiny.gguf")
    found = declarations({"name": "mine", "worker_class": "modelyard.engines.echo:Echo"}, folder=tmp_path)
    sent = {"worker_class": "modelyard.engines.echo:Echo", "model_path": path.name}
    assert found.checked("mine", sent) == {"model_path": path.name}
    assert found.checked("mine", {"worker_class": None, "model_path": None}) == {}


def test_an_option_for_a_model_that_is_not_there_is_refused_at_once():
    with pytest.raises(ConfigError, match=r"--set f\.delay=1: there is no model 'f'; known are e, echo"):
        declarations(TABLE, overrides=["f.delay=1"])


def test_a_weights_file_in_a_models_folder_is_a_model_by_its_name(tmp_path):
    path = tiny_gguf.make(tmp_path / "tiny-rank.gguf", "rank")
    found = declarations(folder=tmp_path)
    engine = found.engine("tiny-rank")
    assert (engine.name, engine.params.worker_type) == ("llama.cpp", "reranker")
    assert found.locate(engine) == path


def test_absent_weights_are_named_with_the_command_that_fetches_them(tmp_path):
    found = declarations(folder=tmp_path)
    with pytest.raises(BadModelFile, match="fetch it with: modelyard pull smollm2-135m"):
        found.locate(found.engine("smollm2-135m"))


def test_an_engine_without_weights_is_nowhere(tmp_path):
    found = declarations(TABLE, folder=tmp_path)
    assert found.locate(found.engine("e")) is None


@pytest.mark.parametrize("kind", ["text2vec", "reranker"])
def test_all_small_requests_of_a_server_of_dbgpt_find_a_place_in_line(kind):
    """It sends 600 texts to embed as 150 requests at once."""
    table = {"name": "e", "engine": "echo", "worker_type": kind}
    gate = ModelWorker(declarations(table).engine("e")).gate
    assert [gate.request().granted for _ in range(150)].count(False) == 150 - gate.slots
    assert gate.queue_timeout == 60
    assert declarations({**table, "max_waiting": 3}).engine("e").params.max_waiting == 3


# The environment of an isolated model

VARIABLES = {"CUDA_VISIBLE_DEVICES": "1", "_x2": "a b"}


def with_environment(environment: object, isolation: str = "process") -> Declarations:
    return declarations({"name": "e", "engine": "echo", "environment": environment, "isolation": isolation})


def test_a_model_in_a_process_of_its_own_has_an_environment():
    assert with_environment(VARIABLES).engine("e").params.environment == VARIABLES


def test_without_a_process_of_its_own_an_environment_is_refused_by_the_field_to_change():
    with pytest.raises(ConfigError, match="model 'e': isolation must be process: the model has an environment"):
        with_environment(VARIABLES, "none").engine("e")
    with pytest.raises(InvalidRequest) as refused:
        with_environment(VARIABLES).engine("e", over_http={"isolation": "none"})
    assert refused.value.errors[0]["field"] == "params.isolation"


@pytest.mark.parametrize(
    ("environment", "fault"),
    [
        ({"A-B": "1"}, "'A-B' is not a name of letters"),
        ({"MODELYARD_PORT": "1"}, "begins with MODELYARD_"),
        ({"A": "1\0"}, "the value of A has a zero character"),
        ({"A": 1}, "'A': must be a string"),
        (["A=1"], "must be a table"),
    ],
)
def test_what_is_not_an_environment_is_refused(environment, fault):
    with pytest.raises(ConfigError, match=fault):
        with_environment(environment).engine("e")


def test_an_environment_is_not_set_over_http():
    with pytest.raises(InvalidRequest, match="only the configuration"):
        with_environment(VARIABLES).engine("e", over_http={"environment": {"LD_PRELOAD": "x.so"}})
