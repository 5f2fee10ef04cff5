"""What ``/proc`` says of processes: children, state, open files, threads and memory."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path


def children(pid: int) -> list[int]:
    """Return the child processes of ``pid``, without zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def processes_of(folder: Path, name: str = "") -> list[int]:
    """Return the processes whose TMPDIR lies in ``folder``, and whose command line has ``name`` in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            surroundings = (process / "environ").read_bytes().split(b"\0")
            line = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if (
            f"TMPDIR={folder / 'tmp'}".encode() in surroundings
            and name.encode() in line
            and is_alive(int(process.name))
        ):
            found.append(int(process.name))
    return sorted(found)


def kill_processes_of(folder: Path) -> None:
    """Kill the processes whose TMPDIR lies in ``folder``."""
    for pid in processes_of(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def state_of(pid: int) -> str:
    """Return the letter of a process's state. Raises OSError where there is no such process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def is_alive(pid: int) -> bool:
    """Return whether a process is there and not a zombie."""
    try:
        return state_of(pid) != "Z"
    except OSError:
        return False


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def threads_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def resident_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
