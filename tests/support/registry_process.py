"""What another process does with a registry: `registry_process.py URL ACTION NAME`; `others` runs several at once.

Each says ``ready``, waits for a line, acts, and says what came of it as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from modelyard.cluster.registry import open_registry
from modelyard.cluster.registry.base import Instance, Registry

TURNS = 40
SHARED = Instance("shared@llm", "http://10.0.0.1:1/api")


def own(name: str) -> list[Instance]:
    return [Instance(f"{name}-{number}@llm", f"http://10.0.0.1:{9000 + number}/api") for number in range(5)]


def beat(registry: Registry, name: str) -> Any:
    """Register keys of its own, and one that others register too; beat them. Return all generations of the latter."""
    issued = []
    mine = own(name)
    for one, receipt in zip(mine, registry.beat(mine).receipts, strict=True):
        one.generation = receipt.generation
    for _ in range(TURNS):
        receipts = registry.beat([*mine, SHARED]).receipts
        assert [one.generation for one in receipts[:-1]] == [one.generation for one in mine]
        assert not any(one.superseded for one in receipts)
        issued.append(receipts[-1].generation)
    return issued


def fork(registry: Registry, name: str) -> Any:
    """Use it before and after a fork, on both sides; children end as programs do, with all they inherited."""
    registry.beat(own(name))
    for number in range(3):
        if os.fork() == 0:
            for _ in range(5):
                registry.beat(own(f"{name}-child-{number}"))
            assert len(registry.instances()) >= 10
            if number:
                registry.close()
            sys.exit(0)
        _, status = os.waitpid(-1, 0)
        assert status == 0, status
        registry.beat(own(name))
    return len(registry.instances())


def fork_amid_writes(registry: Registry, name: str) -> Any:
    """Fork again and again while a thread of the parent writes without a pause. Return what the children ended with."""
    # Python 3.12 warns of a fork beside threads, which is what this tries.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            registry.beat([SHARED])

    writer = threading.Thread(target=write)
    writer.start()
    statuses = []
    try:
        for number in range(20):
            if (child := os.fork()) == 0:
                registry.beat(own(f"{name}-child-{number}"))
                os._exit(0)
            statuses.append(os.waitpid(child, 0)[1])
    finally:
        ended.set()
        writer.join()
    return statuses


ACTIONS = {"beat": beat, "fork": fork, "fork_amid_writes": fork_amid_writes}


@contextmanager
def others(url: str, action: str, names: Sequence[str]) -> Iterator[list[Any]]:
    """Run the action in one process a name, all at the same time; give what each printed."""
    command = [sys.executable, __file__, url, action]
    processes = [
        subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for name in names
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        answers = [process.communicate(timeout=60) for process in processes]
        errors = "\n".join(error.decode() for _, error in answers)
        assert not errors.strip(), errors
        assert [process.returncode for process in processes] == [0] * len(processes)
        yield [json.loads(said) for said, _ in answers]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def main() -> None:
    registry = open_registry(sys.argv[1])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    sys.stdout.write(json.dumps(ACTIONS[sys.argv[2]](registry, sys.argv[3])))
    registry.close()


if __name__ == "__main__":
    main()
