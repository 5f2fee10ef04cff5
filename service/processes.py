"""A value of this process: made when it is first asked for, and anew after a fork."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """Keeps one value a process. A child leaves alone what it inherited: it is neither used, nor closed, nor freed.

    ``make`` does no I/O: where two threads ask first at once it may be called twice, and one value is dropped.
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
        """Give up this process's value, and return it; None where there is none."""
        return self._values.pop(os.getpid(), None)
