"""A registry in a SQLite file: the default. Every process of the machine that opens the file shares it.

Writes are BEGIN IMMEDIATE transactions in WAL mode: readers never wait, and writers wait for each other, for a bounded
time. The host's clock, in UTC, is the store's.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..errors import RegistryUnavailable
from . import rows, schema
from .base import ANY_GENERATION, HEARTBEAT_TIMEOUT, Beaten, Instance, Receipt
from .per_process import PerProcess

BUSY_TIMEOUT = 5.0
"""Seconds that a write waits for those of other processes."""
WAL_PAUSE = 0.01
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


class Lock(Protocol):
    """A lock of threads."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take it; False where it was not free in time."""

    def release(self) -> None:
        """Give it back."""


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
        self._files = PerProcess(lambda: _File(path, busy_timeout, migrations))

    def beat(self, instances: Sequence[Instance]) -> Beaten:
        """Register or refresh all of them."""
        rows.check_beat(instances)
        receipts = self._call(lambda connection: _beat(connection, instances), write=True)
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


class _Line:
    """One connection to the file, and the line of threads that wait for it."""

    def __init__(self, path: Path, busy_timeout: float, migrations: Sequence[schema.Migration]) -> None:
        self._path = path
        self._busy_timeout = busy_timeout
        self._migrations = migrations
        self._turn = native_lock()
        self._connection: sqlite3.Connection | None = None
        self._opened: os.stat_result | None = None

    @contextlib.contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Within, it is the caller's alone. Closed where an error leaves by here."""
        if not self._turn.acquire(timeout=self._busy_timeout):
            raise sqlite3.OperationalError(f"no turn within {self._busy_timeout:g} s")
        try:
            if self._connection is None or not self._is_current():
                self._open()
            assert self._connection is not None
            yield self._connection
        except BaseException:
            self._close()
            raise
        finally:
            self._turn.release()

    def hold(self) -> bool:
        """Close the connection, once whoever uses it is done, and let nobody open one until `release`."""
        is_held = self._turn.acquire(timeout=self._busy_timeout)
        if is_held:
            self._close()
        return is_held

    def release(self) -> None:
        """Let the next one in."""
        self._turn.release()

    def _is_current(self) -> bool:
        """Whether the file is still the one that was opened: a removed one is another for all who open it now."""
        try:
            return self._opened is not None and os.path.samestat(self._opened, self._path.stat())
        except FileNotFoundError:
            return False

    def _open(self) -> None:
        self._close()
        # SQLite gives its other files the mode of this one. An empty file is a database without tables.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._opened = self._path.stat()
        self._connection = sqlite3.connect(
            self._path, timeout=self._busy_timeout, isolation_level=None, check_same_thread=False
        )
        _use_wal(self._connection, time.monotonic() + self._busy_timeout)
        self._connection.execute("PRAGMA synchronous = NORMAL")
        _migrate(self._connection, self._migrations, str(self._path))

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _File:
    """The file as one process has it open: a connection that reads and one that writes.

    Threads stand in line for each, since SQLite's own waiting is a series of naps, and reading is short.
    """

    def __init__(self, path: Path, busy_timeout: float, migrations: Sequence[schema.Migration]) -> None:
        self._reading = _Line(path, busy_timeout, migrations)
        self._writing = _Line(path, busy_timeout, migrations)
        self._held: list[_Line] = []
        _FILES.add(self)

    def do(self, work: Callable[[sqlite3.Connection], T], write: bool) -> T:
        """Return what ``work`` makes of a connection, in a transaction of its own where it writes."""
        if not write:
            with self._reading.connection() as connection:
                return work(connection)
        with self._writing.connection() as connection, transaction(connection):
            return work(connection)

    def close(self) -> None:
        """Close the connections."""
        self.hold()
        self.release()

    def hold(self) -> None:
        """Close the connections, and open none until `release`."""
        self._held = [line for line in (self._reading, self._writing) if line.hold()]

    def release(self) -> None:
        """Open them again when they are wanted."""
        while self._held:
            self._held.pop().release()


_FILES: weakref.WeakSet[_File] = weakref.WeakSet()
"""What is closed before a fork. SQLite counts a process's locks in memory: a child that inherited the counts would wait
for locks that nobody holds, and believe that it holds others."""


def _before_fork() -> None:
    for file in list(_FILES):
        file.hold()


def _after_fork() -> None:
    for file in list(_FILES):
        file.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """A write: nobody else writes until it ends, and all of it counts or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _use_wal(connection: sqlite3.Connection, deadline: float) -> None:
    """Make it a WAL file, for good. SQLite does not wait by itself where two do so at once."""
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            _native_sleep(WAL_PAUSE)
            continue
        if mode != "wal":
            raise sqlite3.OperationalError(f"its folder can't hold a shared file (journal mode {mode})")
        return


def _migrate(connection: sqlite3.Connection, migrations: Sequence[schema.Migration], where: str) -> None:
    """Bring the tables to the newest version that ``migrations`` know. Raises ConfigError."""
    if not schema.outstanding(_version(connection), migrations, schema.PREFIX, where):
        return
    with transaction(connection):
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


def native_lock() -> Lock:
    """Return a lock of native threads, also where gevent has replaced them: its thread pool has such ones."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        return threading.Lock()
    made: Lock = monkey.get_original("_thread", "allocate_lock")()
    return made


def _native_sleep(seconds: float) -> None:
    monkey = sys.modules.get("gevent.monkey")
    (time.sleep if monkey is None else monkey.get_original("time", "sleep"))(seconds)
