"""The file of a SQLite registry, as one process has it open: connections, turns, forks, WAL, and its tables."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from . import schema

WAL_PAUSE = 0.01
T = TypeVar("T")


class Lock(Protocol):
    """A lock of threads."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take it; False where it was not free in time."""

    def release(self) -> None:
        """Give it back."""


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
        _make(self._path)
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


class SqliteFile:
    """The file as one process has it open: a connection that reads and one that writes.

    Threads stand in line for each, since SQLite's own waiting is a series of naps, and reading is short.
    """

    def __init__(self, path: Path, busy_timeout: float, migrations: Sequence[schema.Migration]) -> None:
        self._reading = _Line(path, busy_timeout, migrations)
        self._writing = _Line(path, busy_timeout, migrations)
        self._held: dict[int, list[_Line]] = {}
        """What each thread that is about to fork holds."""
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
        for line in (self._reading, self._writing):
            if line.hold():
                line.release()

    def hold(self) -> None:
        """Close the connections, and open none until `release`."""
        self._held[threading.get_ident()] = [line for line in (self._reading, self._writing) if line.hold()]

    def release(self) -> None:
        """Open them again when they are wanted."""
        for line in self._held.pop(threading.get_ident(), ()):
            line.release()


_FILES: weakref.WeakSet[SqliteFile] = weakref.WeakSet()
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


def _make(path: Path) -> None:
    """Make an empty file, which is a database without tables, for its owner; SQLite gives its other files this mode.

    It gets its name when it is closed: to close a file that this process has open as a database gives up the locks on
    it, and whoever leaves as the last one, as it seems then, takes the log of writes away.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}: make it")
    if path.exists():
        return
    descriptor, nameless = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        os.close(descriptor)
        with contextlib.suppress(FileExistsError):
            os.link(nameless, path)
    finally:
        Path(nameless).unlink()


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
