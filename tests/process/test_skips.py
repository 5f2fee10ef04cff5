"""A skipped test is a pity on a laptop, and a failure where changes are judged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT

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
LEAVES = "import pytest\npytest.skip('no such library', allow_module_level=True)"


def run(folder: Path, code: str, ci: str) -> tuple[int, str]:
    (folder / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (folder / "test_it.py").write_text(code)
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environ |= {"CI": ci, "PYTHONPATH": str(ROOT / "tests" / "support"), "MODELYARD_TEST_MODELS": str(folder / "none")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    done = subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True)
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
