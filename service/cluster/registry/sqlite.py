"""A registry in a SQLite file: the default. All processes of the machine that open the file share it.

Each call opens a connection and closes it. Writes are BEGIN IMMEDIATE transactions in WAL mode: readers never wait, and
writers wait for each other, for a bounded time. The host's clock, in UTC, is the store's.

Only SQLite may open the file. POSIX drops all locks that a process holds on a file when any descriptor of it is closed;
SQLite handles this for its own descriptors only.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from ...errors import RegistryUnavailable
from . import limits, rows, schema, sqlite_file
from .base import ANY_GENERATION, HEARTBEAT_TIMEOUT, Beaten, Instance, Receipt
from .forgetting import Forgetting

BUSY_TIMEOUT = 4.0
"""Seconds that a call waits for those of other threads and processes: clients give up after five."""
T = TypeVar("T")


class Lock(Protocol):
    """A lock of threads."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock. Return False if it was not free in time."""

    def release(self) -> None:
        """Release the lock."""


def _native_lock() -> Lock:
    """Return a lock of native threads, also where gevent has replaced them: its thread pool has native threads."""
    monkey = sys.modules.get("gevent.monkey")
    lock: Lock = monkey.get_original("_thread", "allocate_lock")() if monkey else threading.Lock()
    return lock


_READING, _WRITING = _TURNS = (_native_lock(), _native_lock())
"""The locks for the readers and the writers of this process. SQLite waits for a lock by sleeping again and again."""
_held_for_fork: dict[int, list[Lock]] = {}
"""The locks that each thread holds while it forks."""


def _before_fork() -> None:
    """Wait until no connection is open, so that none is inherited.

    SQLite counts a process's locks in memory. A child with the counts of its parent would wait for locks that no
    process holds, and believe that it holds others.
    """
    _held_for_fork[threading.get_ident()] = [turn for turn in _TURNS if turn.acquire(timeout=2 * BUSY_TIMEOUT)]


def _after_fork() -> None:
    for turn in _held_for_fork.pop(threading.get_ident(), ()):
        turn.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)

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
        self._busy_timeout = busy_timeout
        self._migrations = migrations
        self._has_seen_tables = False
        self._forgetting = Forgetting(self)

    def beat(self, instances: Sequence[Instance]) -> Beaten:
        """Register or refresh all instances."""
        limits.check_beat(instances)
        receipts = self._write(lambda connection: _beat(connection, instances))
        self._forgetting.after(instances)
        return Beaten(receipts, rows.interval(self.heartbeat_timeout))

    def deregister(self, instances: Sequence[Instance], *, forget: bool = False) -> list[Receipt]:
        """Mark instances unhealthy until they beat again; with ``forget`` remove their rows."""
        limits.check_identities(instances)
        return self._write(lambda connection: _deregister(connection, instances, forget))

    def instances(self, key: str | None = None, *, healthy_only: bool = False) -> list[Instance]:
        """Return all rows, or those of one key, ordered by key and address."""
        if key is not None:
            limits.check_lookup(key)
        statement, values = (READ, ()) if key is None else (READ_KEY, (key,))
        table = self._call(lambda connection: connection.execute(statement, values).fetchall(), _READING)
        now = time.time()
        instances = [rows.read(row, now, self.heartbeat_timeout) for row in table]
        return rows.ordered(instances, healthy_only=healthy_only)

    def close(self) -> None:
        """Do nothing: each call closes its connection."""

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return the result of ``work`` in a transaction of its own."""

        def write(connection: sqlite3.Connection) -> T:
            with _transaction(connection):
                return work(connection)

        return self._call(write, _WRITING)

    def _call(self, work: Callable[[sqlite3.Connection], T], turn: Lock) -> T:
        """Return the result of ``work``; under gevent in a native thread, as a wait must not block its hub."""
        monkey = sys.modules.get("gevent.monkey")
        if monkey is None or not monkey.is_module_patched("threading"):
            return self._connected(work, turn)
        result: T = sys.modules["gevent"].get_hub().threadpool.apply(self._connected, (work, turn))
        return result

    def _connected(self, work: Callable[[sqlite3.Connection], T], turn: Lock) -> T:
        deadline = time.monotonic() + self._busy_timeout
        try:
            if not turn.acquire(timeout=self._busy_timeout):
                raise sqlite3.OperationalError(f"other threads have used it for {self._busy_timeout:g} s")
            try:
                return self._in_sound_file(work, deadline)
            finally:
                turn.release()
        except (sqlite3.Error, OSError) as error:
            raise RegistryUnavailable(f"the registry in {self.path} can't be used: {error}") from error

    def _in_sound_file(self, work: Callable[[sqlite3.Connection], T], deadline: float) -> T:
        """Return the result of ``work`` in the file, or in a new one in place of one that is broken."""
        number = sqlite_file.make(self.path)
        try:
            return self._opened(work, deadline)
        except sqlite3.DatabaseError as error:
            if not (sqlite_file.is_broken(error) and sqlite_file.set_aside(self.path, number, error)):
                raise
        sqlite_file.make(self.path)
        return self._opened(work, deadline)

    def _opened(self, work: Callable[[sqlite3.Connection], T], deadline: float) -> T:
        connection = sqlite3.connect(self.path, timeout=_remaining(deadline), isolation_level=None)
        connection.row_factory = sqlite3.Row
        with contextlib.closing(connection):
            sqlite_file.prepare(connection)
            _bound(connection, deadline)
            self._prepare_tables(connection)
            _bound(connection, deadline)
            return work(connection)

    def _prepare_tables(self, connection: sqlite3.Connection) -> None:
        """Make or upgrade the tables. Tables that a newer process has upgraded since the first call stay in use."""
        if not self._has_seen_tables or (_version(connection) or 0) < len(self._migrations):
            _migrate(connection, self._migrations, str(self.path))
            self._has_seen_tables = True


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


def _remaining(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _bound(connection: sqlite3.Connection, deadline: float) -> None:
    """Let the next statement wait for other processes until ``deadline``: SQLite counts from zero for each."""
    connection.execute(f"PRAGMA busy_timeout = {int(_remaining(deadline) * 1000)}")


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Run the body as one transaction: other writers wait, and all of its changes count or none."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _migrate(connection: sqlite3.Connection, migrations: Sequence[schema.Migration], where: str) -> None:
    """Bring the tables to the newest version of ``migrations``. Raises ConfigError."""
    if not schema.outstanding(_version(connection), migrations, schema.PREFIX, where):
        return
    with _transaction(connection):
        # Read again: another process may just have done it.
        connection.execute("CREATE TABLE IF NOT EXISTS modelyard_schema (version INTEGER NOT NULL)")
        for version, statements in schema.outstanding(_version(connection), migrations, schema.PREFIX, where):
            for statement in statements:
                connection.execute(statement)
            connection.execute("DELETE FROM modelyard_schema")
            connection.execute("INSERT INTO modelyard_schema VALUES (?)", (version,))


def _version(connection: sqlite3.Connection) -> int | None:
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'modelyard_schema'").fetchone() is None:
        return None
    (version,) = connection.execute("SELECT max(version) FROM modelyard_schema").fetchone()
    return None if version is None else int(version)
