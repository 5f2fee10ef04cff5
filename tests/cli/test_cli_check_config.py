"""modelyard check-config: every value with where it comes from, and every fault at once."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import Ran, modelyard
from running import Services
from tiny_gguf import make

PRIVATE_ENGINE = """
from dataclasses import dataclass
from modelyard.engines.echo import Echo, EchoParams
from modelyard.settings.params import param


@dataclass
class Params(EchoParams):
    api_key: str = param("", help="key of the backend", tags=["privacy"])


class Private(Echo):
    name = "private"
    Params = Params
"""


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own, with a models folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "models").mkdir()
    return tmp_path


def check(*words: object, toml: str = "", **environ: str) -> Ran:
    Path("c.toml").write_text(toml)
    folders = ("--models-dirs", "models", "--state-dir", "state", "--config", "c.toml")
    return modelyard("check-config", *folders, *words, **environ)


def checked(*words: object, toml: str = "", **environ: str) -> Any:
    return check("--json", *words, toml=toml, **environ).json


def test_every_setting_has_a_value_and_the_layer_that_said_it(at: Path):
    toml = "[service]\nthreads = 100\nreserve = 9\nwrite_timeout = 5.0\n"
    found = checked("-m", "echo", "--threads", "120", toml=toml, MODELYARD_RESERVE="7", MODELYARD_THREADS="110")[
        "settings"
    ]
    assert found["threads"] == {"value": 120, "from": "command line", "where": None}
    assert found["reserve"] == {"value": 7, "from": "environment", "where": "MODELYARD_RESERVE"}
    assert found["write_timeout"] == {"value": 5.0, "from": "file", "where": "c.toml"}
    assert found["port"] == {"value": 8000, "from": "default", "where": None}


def test_settings_that_nobody_said_are_shown_as_what_they_come_to(at: Path):
    ran = modelyard("check-config", "-m", "echo", "--json", XDG_DATA_HOME=str(at / "d"), XDG_STATE_HOME=str(at / "s"))
    found = {name: said["value"] for name, said in ran.json["settings"].items()}
    assert found["models_dirs"] == str(at / "d" / "modelyard" / "models")
    assert found["state_dir"] == str(at / "s" / "modelyard")
    assert found["instance"] == "standalone-8000"


def test_the_models_that_would_be_started_are_named_with_what_says_so(at: Path):
    said = checked(toml='[[models]]\nname = "echo"\n')["settings"]["models"]
    assert said == {"value": "echo", "from": "file", "where": "c.toml"}
    said = checked()["settings"]["models"]
    assert said == {"value": "smollm2-135m,minilm-l6", "from": "catalogue", "where": None}
    assert checked("-m", "echo")["settings"]["models"]["from"] == "command line"


def test_every_parameter_has_a_value_and_the_layer_that_said_it(at: Path):
    toml = '[[models]]\nname = "smollm2-135m"\nmax_waiting = 4\nqueue_timeout = 3\nn_batch = 32\n'
    found = checked(
        "--set", "smollm2-135m.max_waiting=6", toml=toml, SMOLLM2_135M_N_BATCH="64", MODELYARD_START_TIMEOUT="9"
    )["models"][0]["params"]
    assert found["max_waiting"] == {"value": 6, "from": "command line", "where": None}
    assert found["n_batch"] == {"value": 64, "from": "environment", "where": "SMOLLM2_135M_N_BATCH"}
    assert found["start_timeout"] == {"value": 9.0, "from": "environment", "where": "MODELYARD_START_TIMEOUT"}
    assert found["queue_timeout"] == {"value": 3.0, "from": "file", "where": "c.toml"}
    assert found["n_ctx"] == {"value": 2048, "from": "catalogue", "where": None}
    assert found["n_threads"] == {"value": 0, "from": "default", "where": None}


def test_the_effective_values_are_those_that_a_service_has(run: Services):
    folder = run.folder()
    toml = '[[models]]\nname = "echo"\nmax_waiting = 4\nqueue_timeout = 3.0\n'
    environ = {"ECHO_DELAY": "0.001", "MODELYARD_START_TIMEOUT": "9"}
    service = run.start(toml, "--set", "echo.max_waiting=6", folder=folder, environ=environ)
    service.post("apply", {"model": "echo", "apply_type": "update_params", "params": {"context_length": 99}})
    told = {d["param_name"]: d["default_value"] for d in service.get("parameter/descriptions?model=echo").json()}
    words = ("--config", folder / "config.toml", "--state-dir", folder / "state", "--port", service.port)
    ran = modelyard("check-config", *words, "--set", "echo.max_waiting=6", "--json", **environ)
    found = {name: said["value"] for name, said in ran.json["models"][0]["params"].items()}
    assert found == {name: told[name] for name in found}
    assert ran.json["models"][0]["params"]["context_length"]["from"] == "over HTTP"
    assert found["context_length"] == 99


def test_what_was_stopped_or_added_over_http_is_noted_and_fresh_forgets_it(run: Services):
    folder = run.folder()
    service = run.start('[[models]]\nname = "echo"\n', folder=folder)
    service.post("models/startup", {"model": "echo-embed", "params": {"delay": 0.001}})
    service.post("apply", {"model": "echo", "apply_type": "stop"})
    words = ("--config", folder / "config.toml", "--state-dir", folder / "state", "--port", service.port, "--json")
    models = {model["name"]: model for model in modelyard("check-config", *words).json["models"]}
    assert "stopped over HTTP" in models["echo"]["note"]
    assert "added over HTTP" in models["echo-embed"]["note"]
    assert models["echo-embed"]["params"]["delay"] == {"value": 0.001, "from": "over HTTP", "where": None}
    fresh = modelyard("check-config", *words, "--fresh").json["models"]
    assert [(model["name"], model["note"]) for model in fresh] == [("echo", None)]


def test_private_values_are_masked_in_both_forms(at: Path):
    (at / "private_engine.py").write_text(PRIVATE_ENGINE)
    toml = '[[models]]\nname = "mine"\nworker_class = "private_engine:Private"\napi_key = "hunter2"\n'
    assert checked(toml=toml)["models"][0]["params"]["api_key"]["value"] == "******"
    ran = check(toml=toml)
    assert "hunter2" not in ran.out + ran.err
    assert "******" in ran.out


def test_private_values_that_are_not_set_are_shown_as_empty(at: Path):
    (at / "private_engine.py").write_text(PRIVATE_ENGINE)
    found = checked(toml='[[models]]\nname = "mine"\nworker_class = "private_engine:Private"\n')
    assert found["models"][0]["params"]["api_key"]["value"] == ""
    assert [found["settings"][name]["value"] for name in ("tokens", "remote_headers")] == ["", ""]
    found = checked("--remote-headers", "X-Yard=1", "-m", "echo")
    assert found["settings"]["remote_headers"] == {"value": "******", "from": "command line", "where": None}


def test_it_says_where_the_weights_are(at: Path):
    make(at / "models" / "mine.gguf")
    (model,) = checked(toml='[[models]]\nname = "mine"\nmodel_path = "mine.gguf"\n')["models"]
    assert (model["weights"], model["weights_exist"]) == (str(at / "models" / "mine.gguf"), True)


def test_an_adapter_that_is_missing_is_a_fault(at: Path):
    make(at / "models" / "mine.gguf")
    ran = check(toml='[[models]]\nname = "mine"\nmodel_path = "mine.gguf"\nlora = ["gone.gguf=0.5"]\n')
    assert ran.status == 1
    assert "model 'mine': there is no model file gone.gguf" in ran.complaint


def test_every_file_that_is_missing_is_named(at: Path):
    make(at / "models" / "mine.gguf")
    more = 'lora = ["one.gguf", "two.gguf"]\nmmproj = "eye.gguf"\n'
    models = [f'[[models]]\nname = "{name}"\nmodel_path = "{name}.gguf"\n{more}' for name in ("mine", "absent")]
    ran = check(toml="\n".join(models))
    assert ran.status == 1
    for name in "one.gguf", "two.gguf", "eye.gguf":
        assert ran.err.count(f"there is no model file {name}") == 2
    assert "there is no model file absent.gguf" in ran.err


def test_weights_that_are_missing_are_a_fault_with_the_command_that_fetches_them(at: Path):
    ran = check("-m", "smollm2-135m")
    assert ran.status == 1
    assert "modelyard pull smollm2-135m" in ran.complaint
    assert "(not there)" in ran.out


def test_every_fault_is_found_at_once(at: Path):
    toml = """
[service]
threads = "many"
prot = 9000

[[models]]
name = "echo"
dealy = 1
reply = "both"

[[models]]
name = "odd"
engine = "ekho"

[[models]]
engine = "echo"
name = "mine"
enabled = "no"
"""
    words = ("--set", "echo.max_waiting=x", "--set", "ekho.delay=1", "--set", "delay")
    ran = check(*words, toml=toml, MODELYARD_PORT="http", ECHO_DELAY="soon", MODELYARD_RESERVE="0")
    assert ran.status == 1
    faults = "\n".join(ran.err.splitlines())
    expected = [
        "threads: must be an integer",
        "prot: no such parameter",
        "dealy: no such parameter",
        "'both' is not one of",
        "engine 'ekho' is unknown",
        "enabled: must be true or false",
        "max_waiting: 'x' is not an integer",
        "there is no model 'ekho'",
        "expected MODEL.PARAM=VALUE",
        "MODELYARD_PORT: port: 'http'",
        "ECHO_DELAY: delay: 'soon'",
        "MODELYARD_RESERVE: reserve: 0 is less than 1",
    ]
    assert [text for text in expected if text not in faults] == []
    assert len(ran.err.splitlines()) == len(expected)
    assert all(line.startswith("modelyard: ") for line in ran.err.splitlines())


def test_what_a_service_would_not_reach_others_with_is_a_fault(at: Path):
    registry = at / "absent" / "registry.db"
    ran = check("--registry", f"sqlite:///{registry}")
    assert f"registry sqlite:///{registry}: there is no folder {registry.parent}: make it" in ran.err
    registry.parent.mkdir()
    assert "registry" not in check("--registry", f"sqlite:///{registry}").err
    assert list(registry.parent.iterdir()) == [], "only looked at"
    ran = check("--remote-headers", "X-Yard=1,Authorization=Basic eHk=", MODELYARD_TOKEN="own")
    assert "remote_headers: Authorization is the header of this process's own token" in ran.err
    assert "remote_headers" not in check("--remote-headers", "Authorization=Basic eHk=").err


def test_faults_as_json_are_json_alone_and_the_status_tells(at: Path):
    ran = check("--json", "--set", "echo.dealy=1", "-m", "nobody")
    assert (ran.status, ran.err) == (1, "")
    assert ran.json["ok"] is False
    assert len(ran.json["faults"]) == 2


def test_a_file_that_can_not_be_read_does_not_hide_other_faults(at: Path):
    ran = check("--set", "echo.dealy=1", toml="[service")
    assert ran.status == 1
    assert [part for part in ("not valid TOML", "did you mean delay?") if part not in ran.err] == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--reserve", "400"], "reserve (400) must be less than threads (256)"),
        (["--host", "0.0.0.0"], "set --insecure"),
        (["--threads", "50", "-m", "echo", "-m", "echo-embed"], "no room for model 'echo-embed'"),
        (["-m", "nobody"], "there is no model 'nobody'"),
    ],
)
def test_values_that_do_not_go_together_are_faults(at: Path, words: list[str], reason: str):
    ran = check(*([] if "-m" in words else ["-m", "echo"]), *words)
    assert ran.status == 1
    assert reason in ran.complaint


def test_two_models_with_one_registered_name_are_a_fault(at: Path):
    toml = '[[models]]\nname = "a"\nengine = "echo"\nmodel_alias = "b"\n[[models]]\nname = "b"\nengine = "echo"\n'
    assert "b@llm exists already" in check(toml=toml).complaint


def test_without_faults_it_prints_tables_and_ends_with_0(at: Path):
    ran = check("-m", "echo", "--set", "echo.delay=0.5")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("SETTING")
    assert "\necho@llm, engine echo\nPARAMETER" in ran.out
    (row,) = [line.split(maxsplit=2) for line in ran.out.splitlines() if line.startswith("delay ")]
    assert row == ["delay", "0.5", "command line"]


def test_a_variable_that_nothing_reads_is_a_fault_and_a_set_without_its_model_a_warning(at: Path):
    words = ("-m", "echo", "--set", "echo-embed.delay=1")
    found = checked(*words, MODELYARD_PROT="1", MODELYARD_URL="http://x", ECHO_DELAYY="3", ECHO_HOME="/")
    assert found["ok"] is False
    assert found["faults"] == [
        "environment, MODELYARD_PROT: nothing reads it (did you mean MODELYARD_PORT?)",
        "environment, ECHO_DELAYY: nothing reads it (did you mean ECHO_DELAY?)",
    ]
    (warning,) = found["warnings"]
    assert "echo-embed" in warning


def test_nothing_is_written(at: Path):
    before = sorted(path.name for path in at.iterdir())
    check("-m", "echo")
    assert sorted(path.name for path in at.iterdir()) == sorted([*before, "c.toml"])


def test_the_json_is_plain(at: Path):
    found = checked("-m", "echo")
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {"ok", "settings", "models", "faults", "warnings"}


def test_state_that_can_not_be_kept_is_a_warning(at: Path):
    assert checked("-m", "echo")["warnings"] == []
    folder = at / "state" / "standalone-8000"
    folder.mkdir(parents=True)
    (folder / "registry.db").write_bytes(b"nonsense " * 500)
    found = checked("-m", "echo")
    assert found["ok"]
    assert [("registry.db" in one, "not a database" in one) for one in found["warnings"]] == [(True, True)]
    assert (folder / "registry.db").read_bytes().startswith(b"nonsense"), "it only looks"
    shutil.rmtree(at / "state")
    (at / "state").touch()
    (warning,) = checked("-m", "echo")["warnings"]
    assert warning.startswith(f"the state folder {folder} can't be used")
