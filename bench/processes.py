"""A server as a child process: started in a group of its own, measured through /proc, always stopped."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from .places import ROOT

_TICKS = os.sysconf("SC_CLK_TCK")


class ServerFailed(Exception):
    """A server did not come up, or ended by itself."""


def free_port() -> int:
    """Return a port of the loopback that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Server:
    """A running server: the process that was started and all its descendants."""

    def __init__(self, name: str, command: Sequence[str], port: int, environ: Mapping[str, str], log: Path) -> None:
        """Start ``command`` in the checkout; what it prints goes to ``log``."""
        self.name = name
        self.port = port
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process that was started."""
        return self._process.pid

    def wait_ready(self, path: str, timeout: float = 60.0) -> None:
        """Wait until ``path`` answers 200. Raises ServerFailed with the log's end."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            if self.ask(path)[0] == 200:
                return
            time.sleep(0.05)
        end = "\n".join(self._log.read_text(errors="replace").splitlines()[-8:])
        raise ServerFailed(f"{self.name} does not answer {path}; its log ends:\n{end}")

    def ask(self, path: str, body: Any = None, timeout: float = 2.0) -> tuple[int, bytes]:
        """Return the status and body of a request, a GET without ``body``; status 0 without an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            sent = None if body is None else json.dumps(body)
            connection.request("GET" if sent is None else "POST", path, sent, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def pids(self) -> list[int]:
        """Return the process and its descendants, parents first."""
        return descendants(self._process.pid)

    def cpu(self) -> float:
        """Return the seconds of CPU that the processes alive have used so far."""
        return sum(_cpu(pid) for pid in self.pids())

    def pss(self) -> float:
        """Return their proportional share of memory, in bytes: pages shared among them count once."""
        return sum(pss_of(pid) for pid in self.pids())

    def logged(self, text: str) -> int:
        """Return how many lines of its log have ``text`` in them."""
        return sum(text in line for line in self._log.read_text(errors="replace").splitlines())

    def kill(self) -> None:
        """End the whole group at once, as a crash of the machine would; return when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10.0)

    def stop(self) -> None:
        """End the whole group by SIGTERM, and after ten seconds by SIGKILL. Safe to call twice."""
        for number, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                break
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
        self._process.poll()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def descendants(pid: int) -> list[int]:
    """Return a process and all below it, parents first."""
    pids = [pid]
    for parent in pids:
        pids += children(parent)
    return pids


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and not waited for."""
    pids: list[int] = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            pids += [int(child) for child in tasks.read_text().split()]
        except OSError:
            continue
    return pids


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def pss_of(pid: int) -> float:
    """Return the proportional share of memory of one process, in bytes; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
