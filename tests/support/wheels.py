"""The wheel and the source archive of the checkout, for tests of what is installed."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest
from running import ROOT

_SOURCES = ("service", "blueprints", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
BESIDE = ("bench", "deploy", "docs", "examples", "scripts", "tests")
"""The folders of the checkout that the source archive has beside the package."""


def build_wheel(folder: Path) -> Path:
    """Build the wheel below ``folder`` and return its path; skip the test where the package ``build`` is missing."""
    (wheel,) = _build(folder, _SOURCES, "--wheel")
    return wheel


def build_both(folder: Path) -> tuple[Path, Path]:
    """Build the source archive, and from it the wheel, below ``folder``; return the path of each.

    Skip the test where the package ``build`` is missing.
    """
    files = (path.name for path in ROOT.iterdir() if path.is_file() and not path.name.startswith("."))
    archive, wheel = sorted(_build(folder, [*_SOURCES[:2], *BESIDE, *files]), key=lambda path: path.suffix)
    return archive, wheel


def _build(folder: Path, sources: Iterable[str], *options: str) -> Iterable[Path]:
    """Build from a copy of ``sources``: what an earlier build left in the checkout would end up in the wheel."""
    spec = importlib.util.find_spec("build")
    if spec is None or spec.origin is None:  # without an origin it is a folder ``build`` of the checkout
        pytest.skip("the package build is not installed: pip install -e '.[test]'")
    for name in sources:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder / "source").mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    run_command([sys.executable, "-m", "build", *options, "--outdir", folder / "dist", folder / "source"])
    return (folder / "dist").iterdir()


def run_command(command: Sequence[object], *, cwd: Path | None = None, environ: Mapping[str, str] | None = None) -> str:
    """Run a command and return its standard output; AssertionError where it fails."""
    line = [str(part) for part in command]
    ran = subprocess.run(line, capture_output=True, text=True, timeout=300, cwd=cwd, env=environ)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout
