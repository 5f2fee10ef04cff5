"""The command line of an installed wheel, outside of the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from running import Services
from wheels import build_wheel, run_command


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment in which the wheel is installed, its dependencies borrowed from ours."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = build_wheel(folder)
    fresh = folder / "venv"
    venv.create(fresh, symlinks=True)
    python = fresh / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    run_command([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel])
    (packages,) = fresh.glob("lib/python*/site-packages")
    # A path in a .pth file is searched, but its own .pth files are not read: not those of an editable install.
    (packages / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return fresh / "bin"


def test_the_package_comes_from_the_wheel(installed: Path):
    where = run_command([installed / "python", "-P", "-c", "import modelyard; print(modelyard.__file__)"])
    assert where.startswith(str(installed.parent))


def test_it_serves_and_its_commands_answer(installed: Path, run: Services):
    folder = run.folder()
    command = [str(installed / "modelyard"), "serve", "-m", "echo", "--port", "{port}"]
    service = run.start("", folder=folder, command=command)
    answer = service.post("generate", {"model": "echo", "prompt": "x", "max_new_tokens": 2})
    assert answer.json()["text"] == " token token"
    listed = subprocess.run(
        [installed / "modelyard", "models", "list"],
        cwd=folder,
        env={**os.environ, "MODELYARD_URL": service.url("/api")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "echo" in listed.stdout


def test_the_catalogue_is_in_the_wheel(installed: Path, tmp_path: Path):
    listed = subprocess.run(
        [installed / "modelyard", "pull", "--list", "--models-dirs", tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "smollm2-135m" in listed.stdout


def test_the_commands_without_a_service_work_in_an_empty_folder(installed: Path, tmp_path: Path):
    environ = {**os.environ, "HOME": str(tmp_path), "PATH": f"{installed}:{os.environ['PATH']}"}
    for words, shown in (
        (["modelyard", "completion", "bash"], "_MODELYARD_COMPLETE=bash_complete"),
        (["modelyard", "print-config", "-m", "echo", "--toml"], 'name = "echo"'),
        (["modelyard", "doctor", "-m", "echo", "--port", "1"], "only the configuration was checked"),
        ([installed / "python", "-P", "-m", "flask", "--help"], "See and change the models of this application."),
    ):
        ran = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False)
        assert shown in ran.stdout, ran
    assert list(tmp_path.iterdir()) == []
