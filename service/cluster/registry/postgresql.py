"""The registry in PostgreSQL: the part of `sql` that is its own, by psycopg 3."""

from __future__ import annotations

import time
from collections.abc import Generator
from types import MappingProxyType
from typing import Any, TypeVar

import psycopg
from sqlalchemy import Connection, Engine, Table, event, func, select, text
from sqlalchemy.dialects.postgresql import insert as insert_into
from sqlalchemy.sql.dml import Insert

from . import schema
from .database import ANSWER_TIMEOUT, CONNECT_TIMEOUT, LOCK_TIMEOUT, Database
from .sql import SqlRegistry, of_row

T = TypeVar("T")
CHECK_INTERVAL = 0.1
"""Seconds between two checks of the time while a server is silent."""


class PostgresqlDatabase(Database):
    """PostgreSQL."""

    driver = "postgresql+psycopg"
    clock = "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"
    connect_args = MappingProxyType(
        {
            "connect_timeout": CONNECT_TIMEOUT,
            "tcp_user_timeout": ANSWER_TIMEOUT * 1000,
            "options": f"-c statement_timeout={ANSWER_TIMEOUT}s -c lock_timeout={LOCK_TIMEOUT}s "
            f"-c idle_in_transaction_session_timeout={2 * ANSWER_TIMEOUT}s",
        }
    )

    def prepare(self, engine: Engine) -> None:
        """Bound the time of each call."""
        event.listen(engine, "do_connect", _connect)

    def relax(self, connection: Connection) -> None:
        """Do not wait for the disk: this transaction may be lost when the server's machine dies."""
        connection.execute(text("SET LOCAL synchronous_commit = off"))

    def lock_schema(self, connection: Connection, name: str) -> bool:
        """Take the lock of the migrations."""
        # Ends with the transaction. Waits for lock_timeout at most, and raises then.
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))
        return True

    def is_retryable(self, error: BaseException | None) -> bool:
        """Return whether the same transaction may succeed when it is run again."""
        # A serialization failure, a deadlock.
        return getattr(error, "sqlstate", None) in ("40001", "40P01")

    def is_table_missing(self, error: BaseException | None) -> bool:
        """Return whether the tables have gone."""
        return getattr(error, "sqlstate", None) == "42P01"


class PostgresqlRegistry(SqlRegistry):
    """A registry in PostgreSQL."""

    database = PostgresqlDatabase
    migrations = schema.POSTGRESQL

    def registering(self, table: Table) -> Insert:
        """Return the upsert of instances that are issued a new generation."""
        insert = insert_into(table)
        new: dict[str, Any] = {name: insert.excluded[name] for name in of_row(table)}
        new["generation"] = func.greatest(table.c.generation + 1, insert.excluded.generation)
        return insert.on_conflict_do_update(index_elements=[table.c.id], set_=new)

    def refreshing(self, table: Table) -> Insert:
        """Return the upsert of instances that have a generation."""
        insert = insert_into(table)
        new = {name: insert.excluded[name] for name in [*of_row(table), "generation"]}
        older = table.c.generation <= insert.excluded.generation
        return insert.on_conflict_do_update(index_elements=[table.c.id], set_=new, where=older)

    def touching(self, table: Table) -> Insert:
        """Return the upsert of a heartbeat alone."""
        insert = insert_into(table)
        new = {name: insert.excluded[name] for name in ("last_heartbeat", "deregistered")}
        return insert.on_conflict_do_update(index_elements=[table.c.id], set_=new)


class BoundedConnection(psycopg.Connection[Any]):
    """A connection whose calls wait for a limited time.

    The server's own statement_timeout has no effect if the server, or its disk, hangs.
    """

    def wait(self, gen: Generator[Any, Any, T], interval: float = CHECK_INTERVAL, timeout: float | None = None) -> T:
        """Wait for an answer. Raises OperationalError after `ANSWER_TIMEOUT`."""
        # Older versions have no timeout.
        options = {} if timeout is None else {"timeout": timeout}
        return super().wait(self._bounded(gen), interval, **options)

    def _bounded(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        deadline = time.monotonic() + ANSWER_TIMEOUT + 1
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > deadline:
                    # A late answer would be read as the answer to another statement.
                    self.close()
                    raise psycopg.OperationalError(f"no answer within {ANSWER_TIMEOUT + 1} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            value: T = end.value
            return value


def _connect(_dialect: Any, _record: Any, arguments: Any, parameters: Any) -> BoundedConnection:
    return BoundedConnection.connect(*arguments, **parameters)
