"""What the databases behind `sql` differ in: the clock, the upsert, locks, and which faults are worth another try."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, Table
from sqlalchemy.sql.dml import Insert

CONNECT_TIMEOUT = 2
ANSWER_TIMEOUT = 4
LOCK_TIMEOUT = 3
"""Seconds, and whole ones: the drivers take no others."""


class Dialect(Protocol):
    """One kind of database."""

    driver: str
    """What SQLAlchemy calls dialect and driver."""
    clock: str
    """The server's clock, in microseconds since 1970, as an expression."""
    connect_args: Mapping[str, Any]

    def prepare(self, engine: Engine) -> None:
        """See to it that no call on ``engine`` takes for ever."""

    def relax(self, connection: Connection) -> None:
        """Let this transaction be lost when the server's machine dies: the next heartbeat brings it back."""

    def register(self, table: Table) -> Insert:
        """Return the upsert of those that get a new generation."""

    def refresh(self, table: Table) -> Insert:
        """Return the upsert of those that have one: a row with a newer one stays as it is."""

    def touch(self, table: Table) -> Insert:
        """Return the upsert that leaves a row as it is but for its heartbeat."""

    def lock_schema(self, connection: Connection, name: str) -> bool:
        """Take the lock of the migrations; it ends with `unlock_schema`. False where it was not free in time."""

    def unlock_schema(self, connection: Connection, name: str) -> None:
        """Give it back."""

    def is_retryable(self, error: BaseException | None) -> bool:
        """Whether the same transaction may succeed when it is run again."""

    def is_table_missing(self, error: BaseException | None) -> bool:
        """Whether the tables have gone."""

    def is_done_already(self, error: BaseException | None) -> bool:
        """Whether a migration's statement failed because it had been run."""


def of_row(table: Table) -> list[str]:
    """Return the names of the columns that a beat writes, but for the generation."""
    return [column.name for column in table.columns if column.name not in ("id", "generation")]
