"""Fetches a wheel with pip, so that whatever was set up for pip counts: mirror, proxy, certificates, cache.

pip's cache stays in use, unless pip is told otherwise: a second checkout on the same machine, or a
second try, then takes the wheel from there.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import PullFailed
from .pull_progress import DOWNLOADING, Progress

INTERVAL = 0.1
"""Seconds between two looks at what has come."""
GRACE = 5.0
"""Seconds that pip gets to end when nobody wants its wheel any more."""
MAX_OUTPUT = 1 << 16


def download_wheel(package: str, version: str, folder: Path, progress: Progress, total: int | None = None) -> Path:
    """Return the wheel of ``package``, fetched into the empty ``folder``; ``total`` is its size in bytes.

    Needs room for it twice: pip fetches, then copies. Installs nothing, runs no code of the package, and
    fetches no dependencies. Raises PullFailed with pip's own reason, OSError (ENOSPC) when the disk is full;
    however it ends, pip has ended too.
    """
    _require_pip()
    temporary, destination = folder / "tmp", folder / "wheel"
    temporary.mkdir()
    destination.mkdir()
    command = [sys.executable, "-P", "-m", "pip", "download", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary", ":all:", "--progress-bar", "off", "--dest", str(destination)]
    process = subprocess.Popen(  # noqa: S603 - no shell; name and version were checked by the catalogue
        [*command, f"{package}=={version}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(temporary), "LC_ALL": "C.UTF-8"},
    )
    with process:
        try:
            output = _watch(process, lambda: progress(DOWNLOADING, _largest(folder), total))
        except BaseException:
            _end(process)
            raise
    wheels = list(destination.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        raise _failure(f"{package}=={version}", output, folder)
    progress(DOWNLOADING, wheels[0].stat().st_size, wheels[0].stat().st_size)
    return wheels[0]


def _require_pip() -> None:
    if not sys.executable or importlib.util.find_spec("pip") is None:
        raise PullFailed(
            f"there is no pip for {sys.executable or 'this Python'}, and weights are fetched with it: "
            "python -m ensurepip installs it (uv: uv pip install pip; Debian: apt install python3-pip)"
        )


def _watch(process: subprocess.Popen[bytes], look: Callable[[], None]) -> str:
    """Return the end of what pip says, once it is silent for good; call ``look`` all the while."""
    if process.stdout is None:
        return ""
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN | select.POLLHUP)
    output = b""
    while True:
        if poll.poll(INTERVAL * 1000):
            said = os.read(process.stdout.fileno(), MAX_OUTPUT)
            if not said:
                return output.decode("utf-8", "replace")
            output = (output + said)[-MAX_OUTPUT:]
        look()


def _largest(folder: Path) -> int:
    """Return the size of the largest file: what pip fetches, wherever it keeps it meanwhile."""
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, (Path(parent) / name).stat().st_size)
            except OSError:
                continue  # pip has just moved it.
    return largest


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()


def _failure(requirement: str, output: str, folder: Path) -> Exception:
    if "[Errno 28]" in output or "No space left on device" in output:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    reason = (errors or lines or ["nothing"])[-1]
    broken = next((line for line in reversed(lines) if "connection broken by" in line), None)
    if broken is not None:
        reason += f" ({re.sub('<[^>]*>: ', '', broken[broken.index('connection broken by') :])})"
    return PullFailed(
        f"{requirement} could not be fetched; pip says: {reason}; "
        "check the network and the index that pip is set up for (pip config list), then try again"
    )
