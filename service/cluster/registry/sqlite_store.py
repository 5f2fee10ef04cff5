"""A SQLite file that the processes of a machine share: turns, transactions, and the tables in it.

Each call opens a connection and closes it. Writes are BEGIN IMMEDIATE transactions in WAL mode: readers never wait, and
writers wait for each other, for a bounded time. The host's clock, in UTC, is the store's.

The last connection of all that is closed empties the log of writes into the file, and waits for the disk: 14 ms a call,
against 0.4. So a store for frequent calls keeps one open.

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
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from ...errors import RegistryUnavailable
from . import schema, sqlite_file

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
_kept_open: weakref.WeakSet[SqliteStore] = weakref.WeakSet()


def _before_fork() -> None:
    """Wait until no connection is open, and close those that are kept open, so that none is inherited.

    SQLite counts a process's locks in memory. A child with the counts of its parent would wait for locks that no
    process holds, and believe that it holds others.
    """
    _held_for_fork[threading.get_ident()] = [turn for turn in _TURNS if turn.acquire(timeout=2 * BUSY_TIMEOUT)]
    for store in list(_kept_open):
        store.close()


def _after_fork() -> None:
    for turn in _held_for_fork.pop(threading.get_ident(), ()):
        turn.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


class SqliteStore:
    """The tables of one kind in a file, which are made and upgraded by their migrations."""

    def __init__(
        self,
        path: Path,
        migrations: Sequence[schema.Migration],
        *,
        busy_timeout: float = BUSY_TIMEOUT,
        kind: str = schema.REGISTRY,
        version_table: str = "modelyard_schema",
        replaces_broken: bool = False,
        keeps_open: bool = False,
    ) -> None:
        """Use the file ``path``, in a folder that exists; nothing is opened yet.

        ``kind`` is what messages call it; ``version_table`` has the version of the tables. With ``replaces_broken`` a
        file that is broken is set aside, and a new one made in its place: for rows that are written again and again.
        One that ``keeps_open`` has a connection from its first write until `close`.
        """
        self.path = path
        self._kind = kind
        self._busy_timeout = busy_timeout
        self._migrations = migrations
        self._version_table = version_table
        self._replaces_broken = replaces_broken
        self._keeps_open = keeps_open
        self._kept: tuple[int, Callable[[], object]] | None = None
        """What closes the connection that is kept open, and the number (inode) of its file."""
        self._has_seen_tables = False

    def close(self) -> None:
        """Close the connection that is kept open; a later call opens it again."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept[1]()

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return the result of ``work``, which only reads."""
        return self._call(work, _READING)

    def write(self, work: Callable[[sqlite3.Connection], T], *, is_durable: bool = False) -> T:
        """Return the result of ``work`` in a transaction of its own.

        One that is durable is on the disk before this returns; others may be lost when the machine dies.
        """

        def write(connection: sqlite3.Connection) -> T:
            if is_durable:
                connection.execute("PRAGMA synchronous = FULL")
            with _transaction(connection):
                result = work(connection)
            if self._keeps_open:
                self._keep_open()
            return result

        return self._call(write, _WRITING)

    def _keep_open(self) -> None:
        """Have one more connection, to the file that is there now. Only the one writer calls this."""
        number = self.path.stat().st_ino
        if self._kept is not None and self._kept[0] == number:
            return
        self.close()
        connection = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
        # An application's tests may drop a store: Python 3.13 warns of a connection that was not closed.
        self._kept = number, weakref.finalize(self, connection.close)
        _kept_open.add(self)
        # A connection counts from its first look into the file.
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()

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
            raise RegistryUnavailable(f"the {self._kind} in {self.path} can't be used: {error}") from error

    def _in_sound_file(self, work: Callable[[sqlite3.Connection], T], deadline: float) -> T:
        """Return the result of ``work`` in the file, or in a new one in place of one that is broken."""
        number = sqlite_file.make(self.path)
        try:
            return self._opened(work, deadline)
        except sqlite3.DatabaseError as error:
            if not self._replaces_broken or not sqlite_file.is_broken(error):
                raise
            if not sqlite_file.set_aside(self.path, number, error):
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
        if not self._has_seen_tables or (self._version(connection) or 0) < len(self._migrations):
            self._migrate(connection)
            self._has_seen_tables = True

    def _migrate(self, connection: sqlite3.Connection) -> None:
        """Bring the tables to the newest version of the migrations. Raises ConfigError."""
        if not self._outstanding(connection):
            return
        with _transaction(connection):
            connection.execute(self._named("CREATE TABLE IF NOT EXISTS {versions} (version INTEGER NOT NULL)"))
            # Read again: another process may just have done it.
            for version, statements in self._outstanding(connection):
                for statement in statements:
                    connection.execute(statement)
                connection.execute(self._named("DELETE FROM {versions}"))
                connection.execute(self._named("INSERT INTO {versions} VALUES (?)"), (version,))

    def _named(self, statement: str) -> str:
        return statement.replace("{versions}", self._version_table)

    def _outstanding(self, connection: sqlite3.Connection) -> list[tuple[int, list[str]]]:
        where = f"{self._kind} {self.path}"
        return schema.outstanding(self._version(connection), self._migrations, schema.PREFIX, where)

    def _version(self, connection: sqlite3.Connection) -> int | None:
        exists = "SELECT 1 FROM sqlite_master WHERE name = ?"
        if connection.execute(exists, (self._version_table,)).fetchone() is None:
            return None
        (version,) = connection.execute(self._named("SELECT max(version) FROM {versions}")).fetchone()
        return None if version is None else int(version)


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
