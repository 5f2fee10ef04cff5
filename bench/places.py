"""Folders: the checkout, and the folder for the files of a run (logs, state, the peer's environment)."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
RUN = CACHE / "bench"


def run_folder(name: str) -> Path:
    """Return (and make) the folder of ``name`` for this run's logs and state."""
    folder = RUN / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
