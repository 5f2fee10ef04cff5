"""What another process does with a key that has limits: `key_process.py URL ACTION`; `acting` runs one.

Each takes the only key of the store, says ``ready``, waits for a line, acts, and says what came of it as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from modelyard.access.keys import Key
from modelyard.cluster.keys import open_key_store
from modelyard.cluster.keys.base import NOTHING, Amounts
from modelyard.cluster.keys.ring import KeyRing
from modelyard.errors import RateLimited

THREADS = 4
TURNS = 300
TOKENS = 10
LEASE = 2.0
"""Seconds: less than any other of these processes needs its places."""


def spend(ring: KeyRing, key: Key) -> Any:
    """Send requests from several threads, more than the limit, and return how many were admitted."""
    admitted = []

    def ask() -> None:
        for _ in range(TURNS):
            try:
                permit = ring.admit(key, TOKENS)
            except RateLimited:
                continue
            permit.close(TOKENS)
            admitted.append(1)

    threads = [threading.Thread(target=ask) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(admitted)


def hold(ring: KeyRing, key: Key) -> Any:
    """Begin a request, say so, and have not ended it when this process is killed."""
    ring.admit(key, 0)
    sys.stdout.write("held\n")
    sys.stdout.flush()
    sys.stdin.readline()


def fork(ring: KeyRing, key: Key) -> Any:
    """Fork while a connection is kept open; parent and child take. Return what the children ended with."""
    statuses = []
    for number in range(10):
        ring.store.take(key, "parent", 0, Amounts(requests=1), NOTHING)
        if (child := os.fork()) == 0:
            ring.store.take(key, f"child-{number}", 0, Amounts(requests=1), NOTHING)
            os._exit(0)
        ring.store.take(key, "parent", 0, Amounts(requests=1), NOTHING)
        statuses.append(os.waitpid(child, 0)[1])
    return statuses


ACTIONS = {"spend": spend, "hold": hold, "fork": fork}


class Acting:
    """A process that is about to act."""

    def __init__(self, url: str, action: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, url, action], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()


@contextmanager
def acting(url: str, action: str, count: int = 1) -> Iterator[list[Acting]]:
    """Give ``count`` processes that are ready to act at the same time."""
    processes = [Acting(url, action) for _ in range(count)]
    try:
        for process in processes:
            assert process.read() == "ready\n"
        yield processes
    finally:
        for process in processes:
            process.process.kill()
            process.process.communicate()


def main() -> None:
    ring = KeyRing(open_key_store(sys.argv[1], LEASE))
    (key,) = ring.store.all()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    ring.start()
    result = ACTIONS[sys.argv[2]](ring, key)
    ring.stop()
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
