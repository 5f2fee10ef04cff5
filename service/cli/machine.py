"""What this machine gives a service: memory, open files, threads, environment."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..models.memory import free_memory
from ..threads import startable


@dataclass(frozen=True)
class Machine:
    """The limits that the checks compare a configuration with."""

    environ: Mapping[str, str]
    files: int
    """Files that a process may have open at most (the hard limit)."""
    memory: float
    """Bytes that are free, in this container; infinity where the system does not tell."""
    startable: Callable[[int], int]
    """Returns how many of so many threads can be started."""

    @classmethod
    def current(cls) -> Machine:
        """Return this machine."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        return cls(os.environ, files, free_memory(), startable)
