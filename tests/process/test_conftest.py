"""What every run has from conftest.py: skips that count in CI, and children that signals reach."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from running import ROOT, WITHOUT_PLUGINS

SKIPS = """
import pytest

def test_it_passes():
    pass

@pytest.mark.skip(reason="the moon is not full")
def test_it_is_skipped():
    pass

@pytest.mark.xfail(reason="known")
def test_it_is_known_to_fail():
    assert False
"""
NEEDS_WEIGHTS = "def test_it_needs_weights(models_dir): pass"
SIGNALS = """
import subprocess, sys

def test_a_child_has_the_defaults():
    script = "import signal as s; print(*(s.getsignal(n) is s.SIG_IGN for n in (s.SIGHUP, s.SIGQUIT, s.SIGTERM)))"
    interrupt = "; print(s.getsignal(s.SIGINT) is s.default_int_handler)"
    shown = subprocess.run([sys.executable, "-c", script + interrupt], capture_output=True, text=True).stdout
    assert shown.split() == ["False", "False", "False", "True"]
"""
LEAVES = "import pytest\npytest.skip('no such library', allow_module_level=True)"


def run(folder: Path, code: str, ci: str, *, ignored: Sequence[signal.Signals] = ()) -> tuple[int, str]:
    def ignore() -> None:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)

    (folder / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (folder / "test_it.py").write_text(code)
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environ |= {"CI": ci, "PYTHONPATH": str(ROOT / "tests" / "support"), "MODELYARD_TEST_MODELS": str(folder / "none")}
    options = ["-q", "-p", "no:cacheprovider", *WITHOUT_PLUGINS, "--rootdir", str(folder)]
    command = [sys.executable, "-m", "pytest", *options, str(folder)]
    done = subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True, preexec_fn=ignore)
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("code", "reason"),
    [(SKIPS, "the moon is not full"), (NEEDS_WEIGHTS, "modelyard pull"), (LEAVES, "no such library")],
    ids=["a test", "absent weights", "a module"],
)
def test_a_skip_fails_the_run_in_ci_and_names_its_reason(tmp_path: Path, code: str, reason: str) -> None:
    status, said = run(tmp_path, code, ci="true")
    assert status != 0
    assert reason in said
    status, said = run(tmp_path, code, ci="")
    # 5 is pytest's word for a run without any test left.
    assert status in (0, 5), said


def test_a_run_without_skips_passes_in_ci(tmp_path: Path) -> None:
    status, said = run(tmp_path, "def test_it_passes(): pass", ci="true")
    assert status == 0, said


def test_a_run_that_ignores_signals_as_under_nohup_starts_children_that_do_not(tmp_path: Path) -> None:
    ignored = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
    status, said = run(tmp_path, SIGNALS, ci="", ignored=ignored)
    assert status == 0, said
