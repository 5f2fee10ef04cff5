"""Add the metrics of all processes of a service, so that each of them answers a scrape with the sum.

Each process has a slot in a folder that they share: the file of its counts, and a lock that it holds while it lives.
The next process that takes a free slot counts on from its file, so there are never more files than processes at once,
and a sum never falls when a process ends. Where no process holds a slot, the service begins, and its counts at 0.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import ConfigError
from ..files import try_lock, write_atomically
from ..threads import BackgroundThread
from .metrics import Counts, added

log = logging.getLogger(__name__)

WRITE_INTERVAL = 1.0
"""Seconds after which other processes see a count."""


class Sample(NamedTuple):
    """The metrics of a process: its counts since the start, and its gauges now."""

    counts: Counts
    gauges: Counts


class SharedMetrics:
    """The slot of one process. Objects only, until `start`. Without a folder, a process answers for itself."""

    def __init__(
        self, folder: Callable[[], Path], sample: Callable[[], Sample], interval: float = WRITE_INTERVAL
    ) -> None:
        """Write ``sample`` into ``folder()`` every ``interval`` seconds, where it has changed."""
        self._folder_of = folder
        self._sample = sample
        self._interval = interval
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._fd: int | None = None
        self._number = 0
        self._earlier: Counts = {}
        """The counts that earlier processes have left in the slot."""
        self._written = b""
        self._thread = BackgroundThread("modelyard-metrics", self._work, last=self._write)

    def start(self) -> None:
        """Take a slot, and start the thread that writes. Without a folder, the log says so. Raises Overloaded."""
        try:
            folder = self._folder_of()
            folder.mkdir(mode=0o700, exist_ok=True)
            with _locked(folder):
                self._number, self._fd = _taken_slot(folder)
                self._earlier = _read(folder, self._number).counts
            self._folder = folder
        except (OSError, ConfigError) as error:
            log.warning("metrics: %s: a process of this service shows its own alone", error)
            return
        self._thread.start()

    def stop(self) -> None:
        """Write for the last time, and give the slot back. A second call does nothing."""
        self._thread.stop()
        with self._lock:
            fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def total(self) -> Sample:
        """Return the sum over all processes, as it was written last, and now for this one. Counts never fall."""
        own, folder = self._sample(), self._folder
        if folder is None or self._fd is None:
            return own
        # What another process reads next must not be less.
        self._write()
        try:
            with _locked(folder):
                others = [number for number in _slots(folder) if number != self._number]
                samples = [(_read(folder, number), _is_held(folder, number)) for number in others]
        except OSError:
            samples = []
        counts = added([self._earlier, own.counts, *(sample.counts for sample, _ in samples)])
        return Sample(counts, added([own.gauges, *(sample.gauges for sample, is_held in samples if is_held)]))

    def _work(self) -> float:
        self._write()
        return self._interval

    def _write(self) -> None:
        with self._lock:
            if self._folder is None or self._fd is None:
                return
            sample = self._sample()
            data = _encoded(Sample(added([self._earlier, sample.counts]), sample.gauges))
            if data == self._written:
                return
            try:
                write_atomically(_file(self._folder, self._number), data, durable=False)
            except OSError as error:
                log.warning("metrics: %s: other processes of this service do not see those of this one", error)
            # After a failure too: the log has it once for each change.
            self._written = data


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of the folder, under which slots are taken and looked at. Raises OSError."""
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _slots(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob("*.lock") if path.stem.isdecimal())


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number}.json"


def _lock_of(folder: Path, number: int) -> Path:
    return folder / f"{number}.lock"


def _taken_slot(folder: Path) -> tuple[int, int]:
    """Return the first free slot and its open lock; remove all files if every slot is free. Raises OSError."""
    numbers = _slots(folder)
    fds = {number: fd for number in numbers if (fd := try_lock(_lock_of(folder, number))) is not None}
    if len(fds) == len(numbers):
        for number in numbers:
            _file(folder, number).unlink(missing_ok=True)
    number = min(fds, default=max(numbers, default=-1) + 1)
    for other, fd in fds.items():
        if other != number:
            os.close(fd)
    fd = fds[number] if number in fds else try_lock(_lock_of(folder, number))
    if fd is None:
        raise BlockingIOError(f"{_lock_of(folder, number)} is locked")
    return number, fd


def _is_held(folder: Path, number: int) -> bool:
    fd = try_lock(_lock_of(folder, number))
    if fd is not None:
        os.close(fd)
    return fd is None


def _encoded(sample: Sample) -> bytes:
    return json.dumps([[[name, list(cells.items())] for name, cells in part.items()] for part in sample]).encode()


def _read(folder: Path, number: int) -> Sample:
    """Return what the process of a slot has written; nothing if it has not, or the file can't be read."""
    try:
        parts = json.loads(_file(folder, number).read_bytes())
        counts, gauges = (
            {name: {tuple(labels): cell for labels, cell in cells} for name, cells in part} for part in parts
        )
    except FileNotFoundError:
        return Sample({}, {})
    except (OSError, ValueError, TypeError) as error:
        log.warning("metrics: %s can't be read: %s", _file(folder, number), error)
        return Sample({}, {})
    return Sample(counts, gauges)
