"""PostgreSQL behind `sql`, by psycopg 3."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import psycopg
from sqlalchemy import Connection, Engine, Table, event, func, select, text
from sqlalchemy.dialects.postgresql import insert as insert_into
from sqlalchemy.sql.dml import Insert

from . import schema
from .address import StoreAddress
from .base import HEARTBEAT_TIMEOUT
from .dialects import ANSWER_TIMEOUT, CONNECT_TIMEOUT, LOCK_TIMEOUT, of_row
from .sql import SqlRegistry

T = TypeVar("T")
LOOK_INTERVAL = 0.1
"""Seconds between two looks at the time while a server says nothing."""


class PostgreSQL:
    """PostgreSQL by psycopg 3."""

    driver = "postgresql+psycopg"
    clock = "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"
    connect_args: Mapping[str, Any] = MappingProxyType(
        {
            "connect_timeout": CONNECT_TIMEOUT,
            "tcp_user_timeout": ANSWER_TIMEOUT * 1000,
            "options": f"-c statement_timeout={ANSWER_TIMEOUT}s -c lock_timeout={LOCK_TIMEOUT}s "
            f"-c idle_in_transaction_session_timeout={2 * ANSWER_TIMEOUT}s",
        }
    )

    def prepare(self, engine: Engine) -> None:
        """Bound what a call may take."""
        event.listen(engine, "do_connect", _connect)

    def relax(self, connection: Connection) -> None:
        """Let this transaction be lost when the server's machine dies."""
        connection.execute(text("SET LOCAL synchronous_commit = off"))

    def register(self, table: Table) -> Insert:
        """Return the upsert of those that get a new generation."""
        insert = insert_into(table)
        new: dict[str, Any] = {name: insert.excluded[name] for name in of_row(table)}
        new["generation"] = func.greatest(table.c.generation + 1, insert.excluded.generation)
        return insert.on_conflict_do_update(index_elements=[table.c.id], set_=new)

    def refresh(self, table: Table) -> Insert:
        """Return the upsert of those that have a generation."""
        insert = insert_into(table)
        new = {name: insert.excluded[name] for name in [*of_row(table), "generation"]}
        older = table.c.generation <= insert.excluded.generation
        return insert.on_conflict_do_update(index_elements=[table.c.id], set_=new, where=older)

    def touch(self, table: Table) -> Insert:
        """Return the upsert of a heartbeat and nothing else."""
        insert = insert_into(table)
        new = {name: insert.excluded[name] for name in ("last_heartbeat", "deregistered")}
        return insert.on_conflict_do_update(index_elements=[table.c.id], set_=new)

    def lock_schema(self, connection: Connection, name: str) -> bool:
        """Take the lock of the migrations."""
        # Ends with the transaction. Waits at most lock_timeout, which is an error then.
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))
        return True

    def unlock_schema(self, connection: Connection, name: str) -> None:
        """Do nothing: the lock ends with the transaction."""

    def is_retryable(self, error: BaseException | None) -> bool:
        """Whether the same transaction may succeed when it is run again."""
        # Serialization failure, deadlock.
        return getattr(error, "sqlstate", None) in ("40001", "40P01")

    def is_table_missing(self, error: BaseException | None) -> bool:
        """Whether the tables have gone."""
        return getattr(error, "sqlstate", None) == "42P01"

    def is_done_already(self, error: BaseException | None) -> bool:
        """Never: what was cut off was undone."""
        return False


class BoundedConnection(psycopg.Connection[Any]):
    """A connection on which no call waits longer than a server may take to answer.

    The server's own statement_timeout means nothing where the server, or its disk, stands still.
    """

    def wait(self, gen: Generator[Any, Any, T], interval: float = LOOK_INTERVAL, timeout: float | None = None) -> T:
        """Wait for an answer; OperationalError after `ANSWER_TIMEOUT`."""
        # Older versions know no timeout.
        options = {} if timeout is None else {"timeout": timeout}
        return super().wait(self._bounded(gen), interval, **options)

    def _bounded(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        deadline = time.monotonic() + ANSWER_TIMEOUT + 1
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > deadline:
                    # What comes later would be taken for the answer to something else.
                    self.close()
                    raise psycopg.OperationalError(f"no answer within {ANSWER_TIMEOUT + 1} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            value: T = end.value
            return value


def _connect(_dialect: Any, _record: Any, arguments: Any, parameters: Any) -> BoundedConnection:
    return BoundedConnection.connect(*arguments, **parameters)


class PostgresqlRegistry(SqlRegistry):
    """A registry in PostgreSQL."""

    def __init__(
        self,
        address: StoreAddress,
        heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
        *,
        migrations: Sequence[schema.Migration] = schema.POSTGRESQL,
    ) -> None:
        """Use the database at ``address``; nothing is connected yet. Raises ConfigError."""
        super().__init__(address, PostgreSQL(), heartbeat_timeout, migrations)
