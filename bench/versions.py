"""What was measured, and on what."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from .peer import Peer

PACKAGES = ("modelyard", "gunicorn", "flask", "werkzeug", "orjson", "xllamacpp", "gunicorn_h1c")


def versions(peer: Peer | None) -> dict[str, str]:
    """Return names and versions; a package that is not there is left out."""
    result = {"python": platform.python_version(), "cores": f"{len(os.sched_getaffinity(0))} ({_processor()})"}
    for name in PACKAGES:
        try:
            result[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if peer is not None:
        result |= peer.versions()
    return result


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
