"""The models commands, against a real service that hosts several models."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Ran, modelyard
from modelyard.client.client import Client
from running import Service, Services, services
from tiny_gguf import make

TABLES = """
[[models]]
name = "echo"
limit_model_concurrency = 4

[[models]]
name = "echo-embed"

[[models]]
name = "talker"
engine = "echo"
model_alias = "parrot"

[[models]]
name = "broken"
model_path = "absent.gguf"

[[models]]
name = "later"
engine = "echo"
start = false
"""


class Here:
    """A running service, and the command line that talks to it."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def __call__(self, *words: object, **environ: str) -> Ran:
        return modelyard("models", *words, MODELYARD_URL=self.service.url("/api"), **environ)

    def state(self, key: str) -> str | None:
        return self.service.model(key).get("state")

    def value(self, model: str, param: str) -> object:
        told = self.service.get("parameter/descriptions", params={"model": model}).json()
        return next(d["default_value"] for d in told if d["param_name"] == param)


@pytest.fixture(scope="module")
def started() -> Iterator[Service]:
    with services() as run:
        folder = run.folder()
        (folder / "models").mkdir()
        make(folder / "models" / "mine.gguf", "llama")
        yield run.start(TABLES, folder=folder)


@pytest.fixture
def here(started: Service) -> Here:
    """The service, as every test finds it: what is to run runs with the values of the configuration."""
    for model in started.status()["models"]:
        name, _, kind = model["model"].partition("@")
        if kind and name in ("later", "mine", "own"):
            started.post("models/shutdown", {"model": name, "worker_type": kind})
    for name in ("echo", "echo-embed", "parrot"):
        body = {"model": name, "apply_type": "restart", "params": {"delay": 0.0, "max_waiting": 32}}
        assert started.post("apply", body).json()["success"]
    return Here(started)


# list


def test_list_shows_each_hosted_model_with_its_state_and_why(here: Here):
    rows = {row["NAME"]: row for row in here("list").table}
    assert set(rows) == {"echo", "echo-embed", "parrot", "broken"}
    assert (rows["echo"]["TYPE"], rows["echo"]["STATE"], rows["echo"]["WEIGHTS"]) == ("llm", "ready", "-")
    assert rows["echo-embed"]["TYPE"] == "text2vec"
    assert (rows["broken"]["STATE"], rows["broken"]["WEIGHTS"]) == ("failed", "missing")
    assert "there is no model file absent.gguf" in rows["broken"]["REASON"]


def test_list_supported_adds_what_could_be_started_there(here: Here):
    table = here("list", "--supported").table
    rows = {row["NAME"]: row for row in table}
    assert len(rows) == len(table)
    assert {"echo", "later", "mine", "smollm2-135m", "minilm-l6"} <= set(rows)
    assert rows["later"]["STATE"] == "-"
    assert rows["mine"]["PATH"].endswith("mine.gguf")
    assert (rows["mine"]["WEIGHTS"], rows["smollm2-135m"]["WEIGHTS"]) == ("there", "missing")
    assert "talker" not in rows  # It is hosted, as parrot.


def test_list_as_json_is_json_alone(here: Here):
    ran = here("list", "--json")
    found = {model["name"]: model for model in ran.json["models"]}
    assert (ran.json["ready"], ran.json["state"]) == (True, "ready")
    assert found["echo"]["state"] == "ready"
    assert found["broken"]["path_exist"] is False
    assert ran.err == ""


def test_list_shows_what_runs_and_waits(here: Here, monkeypatch: pytest.MonkeyPatch):
    assert {row["LOAD"] for row in here("list").table} == {"-"}
    models = {
        "models": [{"model": "echo@llm", "state": "ready", "running": 2, "waiting": {"interactive": 0, "batch": 5}}]
    }
    monkeypatch.setattr(Client, "status", lambda client: {"ready": True, "state": "ready", "reason": None, **models})
    (row,) = here("list", "--json").json["models"]
    assert row["load"] == "2 running, 5 waiting as batch"


def test_list_says_that_a_service_is_not_ready_and_why(run: Services):
    service = run.start('[[models]]\nname = "x"\nmodel_path = "absent.gguf"\n', wait="up")
    ran = modelyard("models", "list", "--url", service.url("/api"))
    assert ran.status == 0
    assert re.search(r"not ready \((starting|failed)\): ", ran.out)


def test_list_of_a_service_without_models_says_what_to_do(run: Services):
    service = run.start("", models="")
    assert "models list --supported" in modelyard("models", "list", "--url", service.url("/api")).out


# start, stop


def test_stop_stops_and_start_starts_again(here: Here):
    ran = here("stop", "echo")
    assert (ran.status, ran.out) == (0, "model echo@llm stopped\n")
    assert here.state("echo@llm") == "stopped"
    assert here("start", "echo").said == "model echo@llm started\n"
    assert here.state("echo@llm") == "ready"


def test_starting_what_runs_says_that_it_runs(here: Here):
    ran = here("start", "echo")
    assert (ran.status, ran.out) == (0, "model echo@llm runs already\n")


def test_starting_what_runs_with_other_values_is_refused_and_names_the_command_for_it(here: Here):
    ran = here("start", "echo", "delay=1")
    assert ran.status == 1
    assert ran.complaint.endswith("modelyard models restart echo delay=1")
    assert here.value("echo", "delay") == 0.0


def test_a_stopped_model_starts_with_the_values_that_are_given(here: Here):
    here("stop", "echo")
    assert here("start", "echo", "delay=0.001", "max_waiting=5").status == 0
    assert (here.value("echo", "delay"), here.value("echo", "max_waiting")) == (0.001, 5)


def test_a_model_of_the_catalogue_that_is_not_hosted_is_started(here: Here):
    assert here("start", "later", "delay=0.001").said == "model later started\n"
    assert here.state("later@llm") == "ready"
    assert here.value("later", "delay") == 0.001


def test_a_type_other_than_the_usual_one_can_be_asked_for(here: Here):
    assert here("start", "later", "--type", "reranker").status == 0
    assert here.state("later@reranker") == "ready"
    assert here("stop", "later@reranker", "--forget").status == 0
    assert here.state("later@reranker") is None


def test_weights_that_lie_in_the_models_folder_are_started_by_their_file_name(here: Here):
    pytest.importorskip("xllamacpp")
    assert here("start", "mine", "n_ctx=128").status == 0
    assert here.value("mine", "n_ctx") == 128
    assert here.state("mine@llm") == "ready"


def test_a_new_name_can_be_given_to_weights_and_its_values_are_typed_by_the_engine(here: Here):
    pytest.importorskip("xllamacpp")
    assert here("start", "own", "model_path=mine.gguf", "n_ctx=64").status == 0
    assert here.value("own", "n_ctx") == 64
    assert here("stop", "own").status == 0
    assert here("start", "own", "n_ctx=128").status == 0  # In no catalogue, but hosted.
    assert here.value("own", "n_ctx") == 128


def test_a_parameter_that_the_engine_of_new_weights_does_not_have_is_refused(here: Here):
    ran = here("start", "own", "model_path=mine.gguf", "n_ctxx=64")
    assert ran.status == 2
    assert "did you mean n_ctx?" in ran.complaint


def test_a_start_that_fails_says_why_in_one_line(here: Here):
    ran = here("start", "own", "model_path=absent.gguf")
    assert ran.status == 1
    assert "there is no model file absent.gguf" in ran.complaint
    assert here.state("own@llm") is None


def test_a_start_of_what_failed_before_says_why_it_fails_again(here: Here):
    ran = here("start", "broken")
    assert ran.status == 1
    assert "absent.gguf" in ran.complaint


def test_a_name_that_nobody_knows_is_answered_with_those_there_are(here: Here):
    ran = here("start", "ekho")
    assert ran.status == 1
    assert "'ekho'" in ran.complaint
    assert "echo-embed" in ran.complaint


def test_a_model_with_an_alias_is_found_by_both_names(here: Here):
    assert here("stop", "talker").said == "model parrot@llm stopped\n"
    assert here("start", "parrot").said == "model parrot@llm started\n"
    assert here("stop", "parrot").status == 0
    assert here("start", "talker", "delay=0.001").status == 0
    assert here.value("parrot", "delay") == 0.001
    assert here("stop", "parrot").status == 0
    assert here("start", "parrot", "delay=0.002").status == 0
    assert here.value("parrot", "delay") == 0.002


def test_forget_takes_a_model_off_the_list(here: Here):
    here("start", "later")
    assert here("stop", "later", "--forget").said == "model later stopped and forgotten\n"
    assert here.state("later@llm") is None


def test_all_stops_and_starts_every_model(here: Here):
    assert here("stop", "--all").status == 0
    assert {here.state(key) for key in ("echo@llm", "echo-embed@text2vec", "parrot@llm")} == {"stopped"}
    ran = here("start", "--all", "--json")
    assert ran.status == 1  # broken is one of them
    assert ran.json["success"] is False
    assert "model echo@llm started" in ran.json["message"]
    assert "absent.gguf" in ran.json["message"]
    assert here.state("echo@llm") == "ready"


# restart, update


def test_restart_takes_values_and_says_what_changed(here: Here):
    assert here("restart", "echo", "delay=0.001").out.startswith("model echo@llm: changed delay and restarted")
    assert here.value("echo", "delay") == 0.001
    assert here("restart", "echo").out.startswith("model echo@llm restarted")


def test_update_changes_only_what_differs(here: Here):
    assert here("update", "echo", "delay=0").said == "model echo@llm: nothing changed\n"
    assert "changed max_waiting and restarted" in here("update", "echo", "max-waiting=9", "delay=0").out
    assert here.value("echo", "max_waiting") == 9


def test_update_leaves_a_stopped_model_stopped(here: Here):
    here("stop", "echo")
    assert here("update", "echo", "delay=0.001").said == "model echo@llm: changed delay\n"
    assert here.state("echo@llm") == "stopped"


def test_update_says_which_parameters_are_fixed(here: Here):
    ran = here("update", "echo", "model_alias=other")
    assert (ran.status, ran.out) == (0, "model echo@llm: nothing changed; fixed, so unchanged: model_alias\n")


def test_an_outcome_as_json_is_json_alone(here: Here):
    ran = here("update", "echo", "delay=0.001", "--json")
    assert set(ran.json) == {"message", "success", "timecost"}
    assert ran.err == ""
    assert set(here("stop", "echo", "--forget", "--json").json) == {"message", "success", "timecost"}
    assert set(here("start", "echo", "--json").json) == {"message", "success", "timecost"}


# params


def test_params_shows_value_type_default_range_tags_and_help(here: Here):
    here("update", "echo", "delay=0.001")
    rows = {row["NAME"]: row for row in here("params", "echo").table}
    assert (rows["delay"]["VALUE"], rows["delay"]["TYPE"], rows["delay"]["DEFAULT"]) == ("0.001", "float", "0")
    assert rows["delay"]["ALLOWED"] == "0 .. 3600"
    assert (rows["limit_model_concurrency"]["VALUE"], rows["limit_model_concurrency"]["DEFAULT"]) == ("4", "8")
    assert rows["reply"]["ALLOWED"] == "token | prompt"
    assert rows["model_path"]["TAGS"] == "fixed"
    assert rows["delay"]["HELP"] == "seconds before each piece"


def test_params_of_a_model_that_is_not_hosted_are_those_it_would_have(here: Here):
    rows = {row["NAME"]: row for row in here("params", "smollm2-135m").table}
    assert rows["model_path"]["VALUE"] == "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_params_as_json_are_the_descriptions_of_the_service(here: Here):
    own = here.service.get("parameter/descriptions", params={"model": "echo"}).json()
    assert here("params", "echo", "--json").json == own


# called wrongly


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["start"], "name a model, or say --all"),
        (["stop"], "name a model, or say --all"),
        (["stop", "*"], "name a model, or say --all"),
        (["stop", "echo", "--all"], "--all stands alone"),
        (["restart", "--all", "--type", "llm"], "--all stands alone"),
        (["stop", "--all", "--forget"], "--forget takes a NAME"),
        (["start", "delay=1"], "NAME stands before PARAM=VALUE"),
        (["start", "echo", "delay"], "expected PARAM=VALUE"),
        (["start", "echo", "worker_type=llm"], "use --type"),
        (["start", "echo", "worker_class=a:B"], "only the configuration file"),
        (["update", "echo"], "PARAM=VALUE"),
        (["update", "echo", "dealy=1"], "did you mean delay?"),
        (["update", "echo", "delay=soon"], "'soon' is not a number"),
        (["stop", "echo@llm", "--type", "text2vec"], "contradict"),
        (["start", "echo", "--type", "chat"], "'chat' is not one of"),
        (["list", "--url", "ftp://x/api"], "not an address of a service"),
        (["list", "--url", "127.0.0.1:8000"], "not an address of a service"),
        (["list", "--timeout", "0"], "--timeout"),
        (["lits"], "lits"),
        (["list", "extra"], "extra"),
    ],
)
def test_a_command_that_is_called_wrongly_says_so_in_one_line_and_ends_with_2(
    here: Here, words: list[str], reason: str
):
    ran = here(*words)
    assert (ran.status, ran.out) == (2, "")
    assert reason in ran.complaint


def test_a_problem_of_the_service_is_one_line_and_ends_with_1(here: Here):
    ran = here("stop", "nobody")
    assert (ran.status, ran.out) == (1, "")
    assert ran.complaint.startswith("there is no model 'nobody' here; there are ")


# as a process


def test_the_installed_command_lists_and_ends_with_the_status(here: Here, tmp_path: Path):
    environ = {**os.environ, "MODELYARD_URL": here.service.url("/api"), "http_proxy": "http://127.0.0.1:9"}
    command = [str(Path(sys.executable).with_name("modelyard")), "models"]
    listed = subprocess.run([*command, "list"], env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "echo-embed" in listed.stdout
    wrong = subprocess.run(
        [*command, "params", "x"], env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("modelyard: ")
    assert wrong.stderr.count("\n") == 1
