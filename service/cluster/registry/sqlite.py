"""A registry in a SQLite file: the default. Every process of the machine that opens the file shares it.

Writes are BEGIN IMMEDIATE transactions in WAL mode: readers never wait, and writers wait for each other, for a bounded
time. The host's clock, in UTC, is the store's.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ...errors import RegistryUnavailable
from ...processes import PerProcess
from . import rows, schema
from .base import ANY_GENERATION, HEARTBEAT_TIMEOUT, Beaten, Instance, Receipt
from .forgetting import Forgetting
from .sqlite_file import SqliteFile

BUSY_TIMEOUT = 5.0
"""Seconds that a write waits for those of other processes."""
T = TypeVar("T")

GENERATION = "SELECT generation FROM modelyard_instances WHERE worker_key = ? AND url = ?"
TOUCH = "UPDATE modelyard_instances SET last_heartbeat = ?, deregistered = 0 WHERE worker_key = ? AND url = ?"
PUT = """
    INSERT OR REPLACE INTO modelyard_instances (
        worker_key, url, weight, enabled, check_healthy, capabilities, last_load, prompt_template, generation,
        last_heartbeat, deregistered
    ) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)
"""
DEREGISTER = "UPDATE modelyard_instances SET deregistered = 1 WHERE worker_key = ? AND url = ?"
FORGET = "DELETE FROM modelyard_instances WHERE worker_key = ? AND url = ?"
READ = """
    SELECT worker_key, url, weight, enabled, check_healthy, capabilities, last_load, prompt_template, generation,
        last_heartbeat, deregistered
    FROM modelyard_instances
"""
READ_KEY = READ + " WHERE worker_key = ?"


class SqliteRegistry:
    """A registry that several processes share through a file."""

    def __init__(
        self,
        path: Path,
        heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
        *,
        busy_timeout: float = BUSY_TIMEOUT,
        migrations: Sequence[schema.Migration] = schema.SQLITE,
    ) -> None:
        """Use the file ``path``, in a folder that exists; nothing is opened yet."""
        self.path = path
        self.heartbeat_timeout = heartbeat_timeout
        self._busy_timeout = busy_timeout
        self._migrations = migrations
        self._forgetting = Forgetting(self)
        self._files = PerProcess(lambda: SqliteFile(path, busy_timeout, migrations))

    def beat(self, instances: Sequence[Instance]) -> Beaten:
        """Register or refresh all of them."""
        rows.check_beat(instances)
        receipts = self._call(lambda connection: _beat(connection, instances), write=True)
        self._forgetting.after(instances)
        return Beaten(receipts, rows.interval(self.heartbeat_timeout))

    def deregister(self, instances: Sequence[Instance], *, forget: bool = False) -> list[Receipt]:
        """Mark them unhealthy until they beat again; with ``forget`` remove their rows."""
        rows.check_identities(instances)
        return self._call(lambda connection: _deregister(connection, instances, forget), write=True)

    def instances(self, key: str | None = None, *, healthy_only: bool = False) -> list[Instance]:
        """Return all rows, or those of one key, ordered by key and address."""
        if key is not None:
            rows.check_key(key)
        statement, values = (READ, ()) if key is None else (READ_KEY, (key,))
        found = self._call(lambda connection: connection.execute(statement, values).fetchall(), write=False)
        now = time.time()
        read = [_instance(row, now, self.heartbeat_timeout) for row in found]
        return rows.ordered(read, healthy_only=healthy_only)

    def close(self) -> None:
        """Close this process's connections; a later call opens them again."""
        if file := self._files.pop():
            file.close()

    def _call(self, work: Callable[[sqlite3.Connection], T], *, write: bool) -> T:
        """Do ``work`` with a connection, in a native thread where gevent runs: a wait must not stall its hub."""
        if not _is_green():
            return self._attempt(work, write)
        done: T = sys.modules["gevent"].get_hub().threadpool.apply(self._attempt, (work, write))
        return done

    def _attempt(self, work: Callable[[sqlite3.Connection], T], write: bool) -> T:
        file = self._files.get()
        try:
            try:
                return file.do(work, write)
            except sqlite3.OperationalError as error:
                if "no such table" not in str(error):
                    raise
                # Somebody has emptied the file for good.
                file.close()
                return file.do(work, write)
        except (sqlite3.Error, OSError) as error:
            raise RegistryUnavailable(f"the registry in {self.path} can't be used: {error}") from error


def _beat(connection: sqlite3.Connection, instances: Sequence[Instance]) -> list[Receipt]:
    now = time.time_ns() // 1000
    receipts = []
    for instance in instances:
        name = (instance.key, instance.url)
        held = _held(connection, instance)
        generation = rows.settle(instance.generation, held, now)
        if generation is None:
            receipts.append(Receipt(*name, held or 0, superseded=True))
            continue
        if held is not None and instance.generation == ANY_GENERATION:
            connection.execute(TOUCH, (now, *name))
        else:
            connection.execute(PUT, (*_values(instance), generation, now))
        receipts.append(Receipt(*name, generation))
    return receipts


def _deregister(connection: sqlite3.Connection, instances: Sequence[Instance], forget: bool) -> list[Receipt]:
    receipts = []
    for instance in instances:
        name = (instance.key, instance.url)
        held = _held(connection, instance)
        superseded = held is not None and rows.outlives(held, instance.generation)
        if not superseded:
            connection.execute(FORGET if forget else DEREGISTER, name)
        receipts.append(Receipt(*name, (instance.generation or 0) if held is None else held, superseded))
    return receipts


def _held(connection: sqlite3.Connection, instance: Instance) -> int | None:
    row = connection.execute(GENERATION, (instance.key, instance.url)).fetchone()
    return None if row is None else int(row[0])


def _values(instance: Instance) -> tuple[Any, ...]:
    return (
        *(instance.key, instance.url, instance.weight, instance.enabled, instance.check_healthy),
        *(json.dumps(instance.capabilities), instance.load, instance.prompt_template),
    )


def _instance(row: Sequence[Any], now: float, heartbeat_timeout: float) -> Instance:
    key, url, weight, enabled, check_healthy, capabilities, load, template, generation, beaten, deregistered = row
    instance = Instance(
        key=key,
        url=url,
        weight=weight,
        enabled=bool(enabled),
        check_healthy=bool(check_healthy),
        capabilities=json.loads(capabilities),
        load=load,
        prompt_template=template,
        generation=generation,
        last_heartbeat=beaten / rows.MICROSECONDS,
    )
    instance.healthy = rows.is_healthy(instance, bool(deregistered), now, heartbeat_timeout)
    return instance


def _is_green() -> bool:
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))
