"""The tables of a store of keys in PostgreSQL, MySQL or MariaDB, by SQLAlchemy."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, TextClause, text

from ..registry import schema
from ..registry.address import StoreAddress
from ..registry.database import Database
from .base import KIND, LEASE
from .tables import Statements, TableKeyStore

T = TypeVar("T")

POSTGRESQL: tuple[schema.Migration, ...] = (
    (
        """
        CREATE TABLE {prefix}_api_keys (
            id CHAR(16) COLLATE "C" PRIMARY KEY,
            live_name VARCHAR(64) COLLATE "C" UNIQUE,
            document TEXT NOT NULL,
            created BIGINT NOT NULL,
            changed BIGINT NOT NULL
        )
        """,
        """
        CREATE TABLE {prefix}_api_key_use (
            key_id CHAR(16) COLLATE "C" PRIMARY KEY,
            window_start BIGINT NOT NULL,
            requests BIGINT NOT NULL,
            tokens BIGINT NOT NULL
        ) WITH (fillfactor = 10)
        """,
        """
        CREATE TABLE {prefix}_api_key_places (
            key_id CHAR(16) COLLATE "C" NOT NULL,
            holder VARCHAR(64) COLLATE "C" NOT NULL,
            places BIGINT NOT NULL,
            expires BIGINT NOT NULL,
            PRIMARY KEY (key_id, holder)
        )
        """,
    ),
    (
        'CREATE TABLE {prefix}_ended_sign_ins (id VARCHAR(32) COLLATE "C" NOT NULL, expires BIGINT NOT NULL)',
        "CREATE INDEX {prefix}_ended_sign_ins_id ON {prefix}_ended_sign_ins (id)",
    ),
)
"""Most of each page of the use is free, so that a new version of a row is written beside the old, and no index."""

MYSQL: tuple[schema.Migration, ...] = (
    (
        """
        CREATE TABLE IF NOT EXISTS {prefix}_api_keys (
            id CHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
            live_name VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin UNIQUE,
            document MEDIUMTEXT NOT NULL,
            created BIGINT NOT NULL,
            changed BIGINT NOT NULL
        ) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin
        """,
        """
        CREATE TABLE IF NOT EXISTS {prefix}_api_key_use (
            key_id CHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
            window_start BIGINT NOT NULL,
            requests BIGINT NOT NULL,
            tokens BIGINT NOT NULL
        ) ENGINE = InnoDB
        """,
        """
        CREATE TABLE IF NOT EXISTS {prefix}_api_key_places (
            key_id CHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
            holder VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
            places BIGINT NOT NULL,
            expires BIGINT NOT NULL,
            PRIMARY KEY (key_id, holder)
        ) ENGINE = InnoDB
        """,
    ),
    (
        """
        CREATE TABLE IF NOT EXISTS {prefix}_ended_sign_ins (
            id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
            expires BIGINT NOT NULL,
            KEY {prefix}_ended_sign_ins_id (id)
        ) ENGINE = InnoDB
        """,
    ),
)


class _Statements:
    """A transaction on a connection."""

    def __init__(self, connection: Connection, named: Callable[[str], TextClause]) -> None:
        self._connection = connection
        self._named = named

    def run(self, statement: str, **values: Any) -> Sequence[Mapping[str, Any]]:
        result = self._connection.execute(self._named(statement), values)
        return [dict(row) for row in result.mappings()] if result.returns_rows else ()


class _ServerTables:
    """The tables in a database server."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._named = functools.cache(self._name)

    def _name(self, statement: str) -> TextClause:
        clock = self._database.clock
        own = {"{prefix}": self._database.prefix, "{now}": f"({clock})", "{lock}": "FOR UPDATE"}
        for mark, value in own.items():
            statement = statement.replace(mark, value)
        return text(statement)

    def read(self, work: Callable[[Statements], T]) -> T | None:
        return self._database.read(lambda connection: work(_Statements(connection, self._named)))

    def write(self, work: Callable[[Statements], T], *, is_durable: bool = False) -> T:
        def write(connection: Connection) -> T:
            if not is_durable:
                self._database.relax(connection)
            return work(_Statements(connection, self._named))

        return self._database.transact(write)

    def close(self) -> None:
        self._database.close()


class SqlKeyStore(TableKeyStore):
    """A store of keys that the processes of many machines share through a database server."""

    def __init__(
        self,
        database: type[Database],
        address: StoreAddress,
        migrations: Sequence[schema.Migration],
        lease: float = LEASE,
    ) -> None:
        """Use the ``database`` at ``address``; nothing is connected yet. Raises ConfigError."""
        super().__init__(
            _ServerTables(database(address, migrations, kind=KIND, version_table="api_keys_schema")), lease
        )
