"""What this machine gives a service: memory, open files, threads, environment."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..threads import startable

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
"""The files of a container's limit of memory and of its use: of cgroups 2 and 1."""


@dataclass(frozen=True)
class Machine:
    """The limits that the checks compare a configuration with."""

    environ: Mapping[str, str]
    files: int
    """Files that a process may have open at most (the hard limit)."""
    memory: int | None
    """Bytes of memory that can be had at once; None where the system does not tell."""
    memory_total: int | None
    """Bytes of memory altogether, or of the container's limit."""
    startable: Callable[[int], int]
    """Returns how many of so many threads can be started."""

    @classmethod
    def here(cls) -> Machine:
        """Return this machine."""
        available, total = _memory(_MEMINFO, _CGROUP)
        return cls(os.environ, resource.getrlimit(resource.RLIMIT_NOFILE)[1], available, total, startable)


def _memory(meminfo: Path, cgroup: Path) -> tuple[int | None, int | None]:
    """Return the bytes that are available, and all: those of the machine, or of the container if that has fewer."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
        available, total = (1024 * int(lines[name].split()[0]) for name in ("MemAvailable", "MemTotal"))
    except (OSError, ValueError, KeyError):
        return None, None
    for limit_file, use_file in _LIMITS:
        try:
            limit = int((cgroup / limit_file).read_text(encoding="ascii"))
            use = int((cgroup / use_file).read_text(encoding="ascii"))
        except (OSError, ValueError):  # no such group, or no limit: max
            continue
        available, total = min(available, max(0, limit - use)), min(total, limit)
    return available, total
