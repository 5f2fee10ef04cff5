"""A database server that a registry, or a store of keys, has its tables in: connections, migrations, transactions.

A subclass has what differs between databases: the clock, locks, and the meaning of errors.
"""

from __future__ import annotations

import logging
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from sqlalchemy import (
    URL,
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    Table,
    create_engine,
    delete,
    insert,
    inspect,
    literal_column,
    make_url,
    select,
    text,
)
from sqlalchemy import exc as faults

from ...errors import ConfigError, RegistryUnavailable
from ...processes import PerProcess
from . import schema
from .address import StoreAddress

log = logging.getLogger(__name__)
T = TypeVar("T")

CONNECT_TIMEOUT = 2
ANSWER_TIMEOUT = 4
LOCK_TIMEOUT = 3
"""Seconds, as integers: the drivers accept no others."""
POOL_SIZE = 5
POOL_OVERFLOW = 15
POOL_TIMEOUT = 5.0
RECYCLE_AFTER = 1800
RETRY_FOR = 5.0
"""Seconds during which a transaction that met a deadlock is tried again."""


class _Process:
    """The engine of one process, and whether it has made or checked the tables."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.has_tables = False


class Database(ABC):
    """A database server, and the tables of one kind in it, which are made and upgraded by their migrations."""

    driver: ClassVar[str]
    """Dialect and driver, as SQLAlchemy names them."""
    clock: ClassVar[str]
    """The server's clock, in microseconds since 1970, as an expression."""
    connect_args: ClassVar[Mapping[str, Any]]

    def __init__(
        self,
        address: StoreAddress,
        migrations: Sequence[schema.Migration],
        *,
        kind: str = schema.REGISTRY,
        version_table: str = "schema",
    ) -> None:
        """Use the database at ``address``; nothing is connected yet. Raises ConfigError.

        ``kind`` is what messages call it; ``version_table`` has the version of the tables.
        """
        self.where = f"{kind} {address.shown}"
        self.prefix = address.prefix or schema.PREFIX
        self.now = literal_column(self.clock, BigInteger)
        """The time by the server's clock, for a SELECT."""
        self._address = address
        self._url = self._driver_url()
        self._migrations = migrations
        self._versions = Table(f"{self.prefix}_{version_table}", MetaData(), Column("version", Integer))
        self._processes = PerProcess(lambda: _Process(self._make_engine()))

    # The differences between databases

    def prepare(self, engine: Engine) -> None:  # noqa: B027 - optional
        """Limit the time of each call on ``engine``, if the driver's timeouts do not."""

    def relax(self, connection: Connection) -> None:  # noqa: B027 - optional
        """Do not wait for the disk: this transaction may be lost when the server's machine dies."""

    @abstractmethod
    def lock_schema(self, connection: Connection, name: str) -> bool:
        """Take the lock of the migrations. Return False if it was not free in time."""

    def unlock_schema(self, connection: Connection, name: str) -> None:  # noqa: B027 - optional
        """Release the lock, if it does not end with the transaction."""

    @abstractmethod
    def is_retryable(self, error: BaseException | None) -> bool:
        """Return whether the same transaction may succeed when it is run again."""

    @abstractmethod
    def is_table_missing(self, error: BaseException | None) -> bool:
        """Return whether the tables have gone."""

    def is_done_already(self, error: BaseException | None) -> bool:
        """Return whether a migration's statement failed because it had been run before."""
        return False

    # Transactions

    def transact(self, work: Callable[[Connection], T]) -> T:
        """Return the result of ``work`` in a transaction, repeated after a deadlock, or if the tables have gone."""
        process = self._processes.get()
        deadline = time.monotonic() + RETRY_FOR
        pause = 0.005
        while True:
            try:
                if not process.has_tables:
                    self._migrate(process.engine)
                    process.has_tables = True
                with process.engine.begin() as connection:
                    return work(connection)
            except faults.DBAPIError as error:
                is_emptied = process.has_tables and self.is_table_missing(error.orig)
                if is_emptied:
                    process.has_tables = False
                if not (is_emptied or self.is_retryable(error.orig)) or time.monotonic() > deadline:
                    raise self._unavailable(error.orig) from error
            except faults.SQLAlchemyError as error:
                raise self._unavailable(error) from error
            time.sleep(random.uniform(0, pause))  # noqa: S311 (so that two transactions do not meet again)
            pause = min(2 * pause, 0.2)

    def read(self, work: Callable[[Connection], T]) -> T | None:
        """Return the result of ``work``, which only reads; None if there are no tables yet, without making them."""
        process = self._processes.get()
        try:
            if not process.has_tables:
                with process.engine.begin() as connection:
                    if self._version(connection) is None:
                        return None
        except faults.DBAPIError as error:
            raise self._unavailable(error.orig) from error
        except faults.SQLAlchemyError as error:
            raise self._unavailable(error) from error
        return self.transact(work)

    def close(self) -> None:
        """Close this process's connections; a later call opens them again."""
        if process := self._processes.pop():
            process.engine.dispose()

    def _driver_url(self) -> URL:
        try:
            url = make_url(self._address.url).set(drivername=self.driver)
        except (faults.ArgumentError, ValueError):
            # The text of the error quotes the address, password and all.
            raise ConfigError(f"{self.where}: not a valid address of a database") from None
        if not url.database:
            raise ConfigError(f"{self.where}: names no database, as in {url.get_backend_name()}://host/modelyard")
        return url

    def _make_engine(self) -> Engine:
        engine = create_engine(
            self._url,
            connect_args=dict(self.connect_args),
            isolation_level="READ COMMITTED",
            hide_parameters=True,
            pool_size=POOL_SIZE,
            max_overflow=POOL_OVERFLOW,
            pool_timeout=POOL_TIMEOUT,
            pool_pre_ping=True,
            pool_recycle=RECYCLE_AFTER,
        )
        self.prepare(engine)
        return engine

    def _unavailable(self, error: BaseException | None) -> RegistryUnavailable:
        # MySQL's errors are a number and a text.
        message = error.args[1] if error is not None and len(error.args) == 2 else error
        return RegistryUnavailable(f"the {self.where} can't be used: {self._address.hide(message)}")

    # Tables

    def _migrate(self, engine: Engine) -> None:
        """Bring the tables to the newest version of the migrations. Raises ConfigError."""
        with engine.begin() as connection:
            if not self._outstanding(self._version(connection)):
                return
        with engine.begin() as connection:
            # Processes that start at the same time wait here for the first one, which does all the work.
            lock = self._versions.name
            if not self.lock_schema(connection, lock):
                raise RegistryUnavailable(f"the {self.where}: another process is making its tables")
            try:
                self._migrate_locked(connection)
            except BaseException:
                # This ends the lock too, which MySQL would leave to the next user of this connection.
                connection.invalidate()
                raise
            self.unlock_schema(connection, lock)

    def _migrate_locked(self, connection: Connection) -> None:
        connection.execute(text(f"CREATE TABLE IF NOT EXISTS {self._versions.name} (version INTEGER NOT NULL)"))
        for version, statements in self._outstanding(self._version(connection)):
            for statement in statements:
                self._run_migration(connection, statement)
            connection.execute(delete(self._versions))
            connection.execute(insert(self._versions).values(version=version))
            log.info("%s: its tables are of version %d now", self.where, version)

    def _run_migration(self, connection: Connection, statement: str) -> None:
        try:
            connection.execute(text(statement))
        except faults.DBAPIError as error:
            if not self.is_done_already(error.orig):
                raise

    def _outstanding(self, held: int | None) -> list[tuple[int, list[str]]]:
        return schema.outstanding(held, self._migrations, self.prefix, self.where)

    def _version(self, connection: Connection) -> int | None:
        if not inspect(connection).has_table(self._versions.name):
            return None
        return connection.execute(select(self._versions.c.version)).scalar()
