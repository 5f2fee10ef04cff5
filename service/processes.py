"""Processes: which one a pid means, and a value of each that is made when it is first used, and again after a fork."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


def pid_namespace() -> int:
    """Return the number of this process's pid namespace, within which pids mean something; 0 if there are none."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def began(pid: int) -> int | None:
    """Return when a process began, in ticks since the boot: a pid alone may be another's by now. None of a dead one."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if state == b"Z" else int(rest[18])
    except (OSError, ValueError, IndexError):
        return None


class PerProcess(Generic[T]):
    """Keeps one value for each process. A child neither uses nor closes nor frees the value that it inherited.

    ``make`` does no I/O: two threads at once may both call it, and one of the values is dropped.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: dict[int, T] = {}

    def get(self) -> T:
        """Return this process's value."""
        pid = os.getpid()
        value = self._values.get(pid)
        # No lock: one that another thread holds during a fork would stay locked in the child.
        return self._values.setdefault(pid, self._make()) if value is None else value

    def pop(self) -> T | None:
        """Remove this process's value, and return it; None if there is none."""
        return self._values.pop(os.getpid(), None)
