"""The two ways to run the command line: the installed command, and ``python -m modelyard``."""

from __future__ import annotations

import subprocess
import sys

import pytest
from modelyard.version import __version__
from running import console_script

WAYS = ([console_script("modelyard")], [sys.executable, "-m", "modelyard"])


@pytest.mark.parametrize("way", WAYS, ids=["command", "python -m"])
def test_it_runs_under_one_name_and_ends_with_the_status(way, tmp_path):
    def ran(*words: str) -> tuple[int, str, str]:
        done = subprocess.run([*way, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr

    assert ran("--version") == (0, f"modelyard, version {__version__}\n", "")
    assert ran("models", "--help")[1].startswith("Usage: modelyard models ")
    status, out, err = ran("models", "stop")
    assert (status, out) == (2, "")
    assert err == "modelyard: name a model, or say --all\n"
