"""``flask modelyard``: the commands within an application, beside a real ``flask run``."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import Services, console_script, services

APPLICATION = """
from flask import Flask
from modelyard import Modelyard

app = Flask(__name__)
app.config["MODELYARD_MODELS"] = ["echo"]
app.config["MODELYARD_STATE_DIR"] = {state!r}
app.config["MODELYARD_TOKEN"] = "hunter2"
Modelyard(app, url_prefix="/ml", drain_timeout=7.0)
plain = Flask("plain")
"""
Flask = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with services() as run:
        folder = run.folder()
        (folder / "shop.py").write_text(APPLICATION.format(state=str(folder / "state")))
        yield folder


@pytest.fixture(scope="module")
def flask(folder: Path) -> Flask:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MODELYARD_", "FLASK_"))}

    def ran(*words: object, app: str = "shop:app") -> subprocess.CompletedProcess[str]:
        command = [console_script("flask"), "--app", app, "modelyard", *map(str, words)]
        return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60)

    return ran


def test_the_commands_are_those_that_have_a_meaning_there(flask: Flask):
    listed = flask("--help").stdout
    assert "  models " in listed and "  doctor " in listed
    assert "  serve " not in listed and "  completion " not in listed


def test_its_configuration_is_that_of_the_application(flask: Flask):
    report = json.loads(flask("check-config", "--reserve", "9", "--json").stdout)
    assert report["ok"], report["faults"]
    settings = report["settings"]
    assert settings["drain_timeout"] == {"value": 7.0, "from": "application", "where": None}
    assert settings["prefix"]["value"] == "/ml"
    assert settings["reserve"]["from"] == "command line"
    assert settings["token"]["value"] == "******"
    assert [model["key"] for model in report["models"]] == ["echo@llm"]


def test_what_only_the_application_sets_is_refused(flask: Flask):
    ran = flask("print-config", "--config", "x.toml")
    assert (ran.returncode, ran.stderr) == (2, "modelyard: config can't be given here: the application sets it\n")


def test_an_application_without_modelyard_is_named(flask: Flask):
    ran = flask("models", "list", app="shop:plain")
    assert (ran.returncode, ran.stderr) == (1, "modelyard: plain has no Modelyard: Modelyard(app) first\n")


def test_it_calls_the_models_of_the_running_application(run: Services, folder: Path, flask: Flask):
    command = [console_script("flask"), "--app", "shop:app", "run", "--port", "{port}"]
    run.start("", folder=folder, command=command, cwd=folder, probes="/ml")
    listed = flask("models", "list")
    assert listed.returncode == 0, listed.stderr
    assert "echo  llm   ready" in listed.stdout
    assert flask("complete", "hello", "-m", "echo", "--max-tokens", "2").stdout == " token token\n"
    key = flask("key", "new", "--name", "ci")
    assert "ci (key_" in key.stderr
