"""The wheel of the checkout, for tests of what is installed."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from running import ROOT

_SOURCES = ("service", "blueprints", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def build_wheel(folder: Path) -> Path:
    """Build the wheel below ``folder`` and return its path; skip the test where the package ``build`` is missing.

    It is built from a copy: what an earlier build left in the checkout would end up in the wheel.
    """
    spec = importlib.util.find_spec("build")
    if spec is None or spec.origin is None:  # without an origin it is a folder ``build`` of the checkout
        pytest.skip("the package build is not installed: pip install -e '.[check]'")
    for name in _SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder / "source").mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    run_command([sys.executable, "-m", "build", "--wheel", "--outdir", folder / "dist", folder / "source"])
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def run_command(command: Sequence[object], *, cwd: Path | None = None, environ: Mapping[str, str] | None = None) -> str:
    """Run a command and return its standard output; AssertionError where it fails."""
    line = [str(part) for part in command]
    ran = subprocess.run(line, capture_output=True, text=True, timeout=300, cwd=cwd, env=environ)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout
