"""A registry in a SQLite file: the default. All processes of the machine that open the file share it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from . import limits, rows, schema
from .base import ANY_GENERATION, HEARTBEAT_TIMEOUT, Beaten, Instance, Receipt
from .forgetting import Forgetting
from .sqlite_store import BUSY_TIMEOUT, SqliteStore

GENERATION = "SELECT generation FROM modelyard_instances WHERE worker_key = ? AND url = ?"
TOUCH = "UPDATE modelyard_instances SET last_heartbeat = ?, deregistered = 0 WHERE worker_key = ? AND url = ?"
PUT = """
    INSERT OR REPLACE INTO modelyard_instances (
        worker_key, url, weight, enabled, check_healthy, capabilities, last_load, prompt_template, generation,
        last_heartbeat, deregistered
    ) VALUES (
        :worker_key, :url, :weight, :enabled, :check_healthy, :capabilities, :last_load, :prompt_template, :generation,
        :last_heartbeat, :deregistered
    )
"""
DEREGISTER = "UPDATE modelyard_instances SET deregistered = 1 WHERE worker_key = ? AND url = ?"
FORGET = "DELETE FROM modelyard_instances WHERE worker_key = ? AND url = ?"
READ = "SELECT * FROM modelyard_instances"
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
        self._store = SqliteStore(path, migrations, busy_timeout=busy_timeout, replaces_broken=True)
        self._forgetting = Forgetting(self)

    def beat(self, instances: Sequence[Instance]) -> Beaten:
        """Register or refresh all instances."""
        limits.check_beat(instances)
        receipts = self._store.write(lambda connection: _beat(connection, instances))
        self._forgetting.after(instances)
        return Beaten(receipts, rows.interval(self.heartbeat_timeout))

    def deregister(self, instances: Sequence[Instance], *, forget: bool = False) -> list[Receipt]:
        """Mark instances unhealthy until they beat again; with ``forget`` remove their rows."""
        limits.check_identities(instances)
        return self._store.write(lambda connection: _deregister(connection, instances, forget))

    def instances(self, key: str | None = None, *, healthy_only: bool = False) -> list[Instance]:
        """Return all rows, or those of one key, ordered by key and address."""
        if key is not None:
            limits.check_lookup(key)
        statement, values = (READ, ()) if key is None else (READ_KEY, (key,))
        table = self._store.read(lambda connection: connection.execute(statement, values).fetchall())
        now = time.time()
        instances = [rows.read(row, now, self.heartbeat_timeout) for row in table]
        return rows.ordered(instances, healthy_only=healthy_only)

    def close(self) -> None:
        """Do nothing: each call closes its connection."""


def _beat(connection: sqlite3.Connection, instances: Sequence[Instance]) -> list[Receipt]:
    now = time.time_ns() // 1000
    receipts = []
    for instance in instances:
        held = _held(connection, instance)
        generation = rows.settle(instance.generation, held, now)
        if generation is None:
            receipts.append(rows.receipt(instance, held))
            continue
        if held is not None and instance.generation == ANY_GENERATION:
            connection.execute(TOUCH, (now, instance.key, instance.url))
        else:
            connection.execute(PUT, rows.columns(instance, generation, now))
        receipts.append(rows.receipt(instance, generation))
    return receipts


def _deregister(connection: sqlite3.Connection, instances: Sequence[Instance], forget: bool) -> list[Receipt]:
    receipts = []
    for instance in instances:
        receipt = rows.receipt(instance, _held(connection, instance))
        if not receipt.superseded:
            connection.execute(FORGET if forget else DEREGISTER, (instance.key, instance.url))
        receipts.append(receipt)
    return receipts


def _held(connection: sqlite3.Connection, instance: Instance) -> int | None:
    row = connection.execute(GENERATION, (instance.key, instance.url)).fetchone()
    return None if row is None else int(row[0])
