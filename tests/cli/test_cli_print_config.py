"""modelyard print-config: the configuration of a service as one file."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from commands import Ran, modelyard

TOML = """
[service]
port = 9001
models_dirs = ["models"]
state_dir = "state"
aliases = {"gpt-4o" = "echo"}
fallbacks = {echo = ["spare"]}
key_store = "redis://:hunter2@host/0"

[[models]]
name = "echo"
max_waiting = 4

[[models]]
name = "spare"
engine = "echo"
start = false
delay = 0.1

[[models]]
name = "remote"
engine = "openai"
base_url = "http://127.0.0.1:9/v1"
api_key = "hunter2"

[[passthrough]]
path = "/audio"
base_url = "http://hunter2@127.0.0.1:9/v1"
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_text(TOML)


def printed(*words: object, **environ: str) -> Ran:
    ran = modelyard("print-config", *words, **environ)
    assert ran.status == 0, ran.err
    assert "hunter2" not in ran.out
    return ran


def values(config: str, *words: object) -> Any:
    report = modelyard("check-config", "--config", config, *words, "--json").json
    settings = {name: it["value"] for name, it in report["settings"].items() if name not in ("config", "key_store")}
    return settings, {m["key"]: {n: it["value"] for n, it in m["params"].items()} for m in report["models"]}


def test_the_file_gives_a_service_the_same_values():
    given = ("--set", "echo.delay=0.5", "--threads", "99")
    Path("out.toml").write_text(
        printed("--config", "c.toml", *given, "--toml").out.replace(
            "# base_url is private: file c.toml", 'base_url = "http://127.0.0.1:9/v1"'
        )
    )
    settings, models = values("out.toml")
    expected, of_models = values("c.toml", *given)
    of_models["remote@llm"]["api_key"] = None
    assert (settings, models) == (expected, of_models)
    tables = {table["name"]: table for table in tomllib.loads(Path("out.toml").read_text())["models"]}
    assert tables["spare"] == {"name": "spare", "engine": "echo", "start": False, "delay": 0.1}


def test_a_word_in_place_of_a_number_is_shown_and_written():
    given = ("-m", "smollm2-135m", "--set", "smollm2-135m.n_ctx=auto")
    assert tomllib.loads(printed(*given, "--toml").out)["models"][0]["n_ctx"] == "auto"
    (n_ctx,) = (row for row in printed(*given).out.splitlines() if row.startswith("n_ctx "))
    assert n_ctx.split()[1] == "auto"
    assert printed(*given, "--json").json["models"][0]["params"]["n_ctx"]["value"] == "auto"


def test_each_value_says_where_it_comes_from_and_private_ones_are_named_alone():
    lines = printed("--config", "c.toml", "--toml", MODELYARD_RESERVE="9").out.splitlines()
    assert "port = 9001  # file c.toml" in lines
    assert "reserve = 9  # environment MODELYARD_RESERVE" in lines
    assert "threads = 256  # default" in lines
    assert "# key_store is private: file c.toml" in lines
    assert "# # base_url is private: file" in lines, "of the passthrough"


def test_the_models_that_the_command_line_names_are_in_the_file():
    written = tomllib.loads(printed("-m", "echo", "--toml").out)
    assert written["service"]["models"] == ["echo"]
    assert [table["name"] for table in written["models"]] == ["echo"]
    assert "config" not in written["service"] and "fresh" not in written["service"]


@pytest.mark.parametrize("text", ['a"b\\c', "\x7f\t\n", "é€😀"])
def test_any_text_is_read_back(text: str):
    written = tomllib.loads(printed("-m", "echo", "--log-file", f"x{text}", "--toml").out)
    assert written["service"]["log_file"] == f"x{text}"


def test_as_a_table_and_as_json_it_is_what_check_config_prints():
    assert printed("--config", "c.toml").out == modelyard("check-config", "--config", "c.toml").out
    assert printed("--config", "c.toml", "--json").json == {
        name: value
        for name, value in modelyard("check-config", "--config", "c.toml", "--json").json.items()
        if name in ("settings", "models")
    }
    assert json.dumps(printed("--config", "c.toml", "--json").json)


def test_a_fault_ends_it():
    ran = modelyard("print-config", "--set", "echo.dealy=1", "-m", "echo")
    assert (ran.status, ran.out) == (1, "")
    assert "did you mean delay?" in ran.complaint
