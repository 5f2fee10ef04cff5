"""The registry in MySQL or MariaDB: the part of `sql` that is theirs, by PyMySQL."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from pymysql.constants import ER
from sqlalchemy import ColumnElement, Connection, Table, func, literal_column, select
from sqlalchemy.dialects.mysql import insert as insert_into
from sqlalchemy.sql.dml import Insert

from . import schema
from .database import ANSWER_TIMEOUT, CONNECT_TIMEOUT, LOCK_TIMEOUT, Database
from .sql import SqlRegistry, of_row

ONE: ColumnElement[int] = literal_column("1")
"""Not a parameter: the driver joins many rows into one statement only if all parameters are values of rows."""


class MysqlDatabase(Database):
    """MySQL or MariaDB."""

    driver = "mysql+pymysql"
    clock = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))"
    connect_args = MappingProxyType(
        {
            "charset": "utf8mb4",
            "connect_timeout": CONNECT_TIMEOUT,
            "read_timeout": ANSWER_TIMEOUT,
            "write_timeout": ANSWER_TIMEOUT,
            "init_command": f"SET SESSION innodb_lock_wait_timeout = {LOCK_TIMEOUT}",
        }
    )

    def lock_schema(self, connection: Connection, name: str) -> bool:
        """Take the lock of the migrations."""
        # The lock is the server's, not the database's; its name has at most 64 characters.
        digest = func.md5(func.concat(func.coalesce(func.database(), ""), name))
        return connection.execute(select(func.get_lock(digest, LOCK_TIMEOUT))).scalar() == 1

    def unlock_schema(self, connection: Connection, name: str) -> None:
        """Release the lock of the migrations."""
        digest = func.md5(func.concat(func.coalesce(func.database(), ""), name))
        connection.execute(select(func.release_lock(digest)))

    def is_retryable(self, error: BaseException | None) -> bool:
        """Return whether the same transaction may succeed when it is run again."""
        return bool(_number(error) in (ER.CHECKREAD, ER.LOCK_DEADLOCK))

    def is_table_missing(self, error: BaseException | None) -> bool:
        """Return whether the tables have gone."""
        return bool(_number(error) == ER.NO_SUCH_TABLE)

    def is_done_already(self, error: BaseException | None) -> bool:
        """Return whether a migration's statement had been run."""
        return bool(_number(error) in (ER.TABLE_EXISTS_ERROR, ER.DUP_FIELDNAME, ER.DUP_KEYNAME))


class MysqlRegistry(SqlRegistry):
    """A registry in MySQL or MariaDB."""

    database = MysqlDatabase
    migrations = schema.MYSQL

    def registering(self, table: Table) -> Insert:
        """Return the upsert of instances that are issued a new generation."""
        insert = insert_into(table)
        new: dict[str, Any] = {name: insert.inserted[name] for name in of_row(table)}
        new["generation"] = func.greatest(table.c.generation + ONE, insert.inserted.generation)
        return insert.on_duplicate_key_update(new)

    def refreshing(self, table: Table) -> Insert:
        """Return the upsert of instances that have a generation."""
        insert = insert_into(table)
        older = table.c.generation <= insert.inserted.generation
        # Assigned from left to right: the generation is last, since the others compare with its old value.
        names = [*of_row(table), "generation"]
        return insert.on_duplicate_key_update(
            [(name, func.if_(older, insert.inserted[name], table.c[name])) for name in names]
        )

    def touching(self, table: Table) -> Insert:
        """Return the upsert of a heartbeat alone."""
        insert = insert_into(table)
        return insert.on_duplicate_key_update(
            {name: insert.inserted[name] for name in ("last_heartbeat", "deregistered")}
        )


def _number(error: BaseException | None) -> object:
    return error.args[0] if error is not None and error.args else None
