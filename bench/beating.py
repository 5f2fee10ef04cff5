"""Time the calls of one process to a registry: ``python -m bench.beating`` reads a task and prints the result.

Several run at once to compete. They call the library as a worker's heartbeat does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from modelyard.cluster.registry import open_registry
from modelyard.cluster.registry.base import Instance, Registry
from modelyard.sessions.session import Session

from .client import LoadFailed
from .jobs import Spread
from .places import ROOT

A_BEAT = 50
"""Instances in one call while the table is filled."""
TIMEOUT = 120.0


@dataclass(kw_only=True)
class Task:
    """A task: fill the table first, then repeat one call."""

    url: str
    rows: tuple[int, int] = (0, 0)
    """The number of the process's first instance, and that after its last."""
    total: int = 0
    """Instances in the table; each lookup is for one of them."""
    do: str
    """``fill``, ``beat``, ``lookup`` or ``list``."""
    together: int = 1
    """Instances of one beat."""
    seconds: float = 1.0
    least: int = 20
    """The least number of calls, also after ``seconds``."""


@dataclass
class Done:
    """The result of a task."""

    calls: int = 0
    seconds: float = 0.0
    times: Spread = field(default_factory=Spread)


def instance(number: int) -> Instance:
    """Return an instance whose key and address belong to its number; addresses of this machine need no token."""
    return Instance(
        f"model-{number}@llm",
        f"http://127.{number // 65536}.{number // 256 % 256}.{number % 256}:8000/api",
        capabilities=["delta"],
        load="slots=8;free=3;waiting=0",
    )


def run(*tasks: Task) -> list[Done]:
    """Run each task in a process of its own, all at once. Raises LoadFailed."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.beating"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in tasks
    ]
    try:
        for process in processes:
            # When all are loaded, they begin together.
            assert process.stdout is not None
            process.stdout.readline()
        for process, task in zip(processes, tasks, strict=True):
            assert process.stdin is not None
            process.stdin.write(json.dumps(asdict(task)) + "\n")
            process.stdin.flush()
        return [_done(process) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


def _done(process: subprocess.Popen[str]) -> Done:
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise LoadFailed("the registry did not answer in time") from error
    if process.returncode:
        raise LoadFailed(err.strip().splitlines()[-1] if err.strip() else "the process died")
    values: dict[str, Any] = json.loads(out)
    return Done(values["calls"], values["seconds"], Spread(**values["times"]))


def main() -> None:
    """Read a task from standard input, do it, print the result."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    task = Task(**json.loads(sys.stdin.readline()))
    session = Session()
    registry = open_registry(task.url, session=session)
    try:
        sys.stdout.write(json.dumps(asdict(_do(registry, task))))
    finally:
        registry.close()
        session.close()


def _do(registry: Registry, task: Task) -> Done:
    instances = [instance(number) for number in range(*task.rows)]
    for first in range(0, len(instances), A_BEAT):
        beaten = registry.beat(instances[first : first + A_BEAT])
        for row, receipt in zip(instances[first:], beaten.receipts, strict=False):
            row.generation = receipt.generation
    if task.do == "fill":
        return Done(calls=len(instances))
    times: list[float] = []
    began = now = time.perf_counter()
    number = 0
    while now - began < task.seconds or number < task.least:
        _call(registry, task, instances, number)
        before, now = now, time.perf_counter()
        times.append(now - before)
        number += 1
    return Done(number, now - began, Spread.of(times))


def _call(registry: Registry, task: Task, instances: Sequence[Instance], number: int) -> None:
    if task.do == "beat":
        first = number * task.together % len(instances)
        registry.beat(instances[first : first + task.together])
    elif task.do == "lookup":
        # In an order that a cache does not help.
        rows = registry.instances(f"model-{number * 7919 % task.total}@llm")
        if len(rows) != 1:
            raise SystemExit(f"{len(rows)} rows of one key")
    elif (count := len(registry.instances())) != task.total:
        raise SystemExit(f"{count} rows instead of {task.total}")


if __name__ == "__main__":
    main()
