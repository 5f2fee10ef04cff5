"""The tables of a store of keys in a SQLite file, or in the memory of one process."""

from __future__ import annotations

import functools
import itertools
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ...errors import RegistryUnavailable
from ..registry import schema
from ..registry.sqlite_store import SqliteStore
from .base import KIND, LEASE, MICROSECONDS
from .tables import Statements, TableKeyStore

T = TypeVar("T")

MIGRATIONS: tuple[schema.Migration, ...] = (
    (
        """
        CREATE TABLE {prefix}_api_keys (
            id TEXT NOT NULL PRIMARY KEY,
            live_name TEXT UNIQUE,
            document TEXT NOT NULL,
            created INTEGER NOT NULL,
            changed INTEGER NOT NULL
        )
        """,
        """
        CREATE TABLE {prefix}_api_key_use (
            key_id TEXT NOT NULL PRIMARY KEY,
            window_start INTEGER NOT NULL,
            requests INTEGER NOT NULL,
            tokens INTEGER NOT NULL
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE {prefix}_api_key_places (
            key_id TEXT NOT NULL,
            holder TEXT NOT NULL,
            places INTEGER NOT NULL,
            expires INTEGER NOT NULL,
            PRIMARY KEY (key_id, holder)
        ) WITHOUT ROWID
        """,
    ),
    (
        "CREATE TABLE {prefix}_ended_sign_ins (id TEXT NOT NULL, expires INTEGER NOT NULL)",
        "CREATE INDEX {prefix}_ended_sign_ins_id ON {prefix}_ended_sign_ins (id)",
    ),
)


class _Statements:
    """A transaction on a connection."""

    def __init__(self, connection: sqlite3.Connection, clock: Callable[[], float] = time.time) -> None:
        connection.create_function("store_now", 0, lambda: int(clock() * MICROSECONDS))
        self._connection = connection

    def run(self, statement: str, **values: Any) -> Sequence[Mapping[str, Any]]:
        # A sqlite3.Row is read like a mapping.
        return self._connection.execute(_named(statement), values).fetchall()


@functools.cache
def _named(statement: str) -> str:
    return statement.replace("{prefix}", schema.PREFIX).replace("{now}", "store_now()").replace("{lock}", "")


class _FileTables:
    """The tables in a file. A file that is not there has no keys; a broken one is an error, and never set aside."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._store = SqliteStore(
            path, MIGRATIONS, kind=KIND, version_table=f"{schema.PREFIX}_api_keys_schema", keeps_open=True
        )

    def read(self, work: Callable[[Statements], T]) -> T | None:
        try:
            self._path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise RegistryUnavailable(f"the {KIND} in {self._path} can't be used: {error.strerror}") from error
        return self._store.read(lambda connection: work(_Statements(connection)))

    def write(self, work: Callable[[Statements], T], *, is_durable: bool = False) -> T:
        return self._store.write(lambda connection: work(_Statements(connection)), is_durable=is_durable)

    def close(self) -> None:
        self._store.close()


class _MemoryTables:
    """The tables in the memory of this process, on one connection."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(":memory:", check_same_thread=False)
        self._connection.row_factory = sqlite3.Row
        for statement in itertools.chain(*MIGRATIONS):
            self._connection.execute(_named(statement))
        self._statements = _Statements(self._connection, clock)
        # Python 3.13 warns of a connection that was not closed.
        weakref.finalize(self, self._connection.close)

    def read(self, work: Callable[[Statements], T]) -> T | None:
        return self.write(work)

    def write(self, work: Callable[[Statements], T], *, is_durable: bool = False) -> T:
        with self._lock, self._connection:
            return work(self._statements)

    def close(self) -> None:
        """Do nothing: the keys end with the process."""


class SqliteKeyStore(TableKeyStore):
    """A store of keys in a file that the processes of a machine share."""

    def __init__(self, path: Path, lease: float = LEASE) -> None:
        """Use the file ``path``, in a folder that exists; nothing is opened yet."""
        super().__init__(_FileTables(path), lease)


class MemoryKeyStore(TableKeyStore):
    """A store of keys that ends with its process."""

    def __init__(self, lease: float = LEASE, clock: Callable[[], float] = time.time) -> None:
        """Begin without keys; ``clock`` returns seconds since 1970."""
        super().__init__(_MemoryTables(clock), lease)
