"""The memory that is free for a model: of the machine, and of the control groups of this process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED = 2**60
"""Version 1 of control groups has a number near 2**63 for no limit."""


def free_memory(proc: Path = _PROC, cgroup: Path = _CGROUP) -> float:
    """Return the bytes that this process may take at most; infinity where the system does not tell.

    Both arguments are where Linux mounts its tables.
    """
    return min((_of_machine(proc), *_of_groups(proc, cgroup)))


def _of_machine(proc: Path) -> float:
    for line in _lines(proc / "meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return math.inf


def _of_groups(proc: Path, cgroup: Path) -> Iterator[float]:
    """Yield what is free in each group that this process is in, up to the root."""
    for line in _lines(proc / "self" / "cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, names = cgroup, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = cgroup / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = root / path.strip("/")
        for group in (folder, *folder.parents):
            if group.is_relative_to(root):
                yield _of_group(group, *names)


def _of_group(group: Path, limit_name: str, usage_name: str, reclaimable_name: str) -> float:
    limit, usage = _number(group / limit_name), _number(group / usage_name)
    if limit is None or usage is None or limit > _UNLIMITED:
        return math.inf
    pages = (line.split() for line in _lines(group / "memory.stat"))
    reclaimable = sum(int(words[1]) for words in pages if words[:1] == [reclaimable_name])
    return max(0, limit - usage + reclaimable)


def _number(path: Path) -> int | None:
    """Return the number in a file; None without the file, or with a word for no limit."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
