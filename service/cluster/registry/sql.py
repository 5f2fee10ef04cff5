"""A registry in PostgreSQL, MySQL or MariaDB, by SQLAlchemy, for controllers on many machines.

The server's clock is the store's. A row's id is the SHA-256 of its key and address: these may be longer than MySQL can
index, and some collations treat different names as equal.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import operator
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from sqlalchemy import (
    URL,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    delete,
    insert,
    inspect,
    literal_column,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy import exc as faults
from sqlalchemy.sql.dml import Insert

from ...errors import ConfigError, RegistryUnavailable
from ...processes import PerProcess
from . import limits, rows, schema
from .address import StoreAddress
from .base import ANY_GENERATION, HEARTBEAT_TIMEOUT, Beaten, Instance, Receipt
from .forgetting import Forgetting

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
BATCH = 500
"""The most rows that one statement names."""


class _Process:
    """The engine of one process, and whether it has made or checked the tables."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.has_tables = False


class SqlRegistry(ABC):
    """A registry that the processes of many machines share through a database server.

    A subclass has what differs between databases: the clock, the upserts, locks, and the meaning of errors.
    """

    driver: ClassVar[str]
    """Dialect and driver, as SQLAlchemy names them."""
    clock: ClassVar[str]
    """The server's clock, in microseconds since 1970, as an expression."""
    connect_args: ClassVar[Mapping[str, Any]]
    migrations: ClassVar[Sequence[schema.Migration]]

    def __init__(
        self,
        address: StoreAddress,
        heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
        *,
        migrations: Sequence[schema.Migration] | None = None,
    ) -> None:
        """Use the database at ``address``; nothing is connected yet. Raises ConfigError."""
        self.heartbeat_timeout = heartbeat_timeout
        self._address = address
        self._url = _driver_url(address, self.driver)
        self._migrations = self.migrations if migrations is None else migrations
        self._prefix = address.prefix or schema.PREFIX
        self._table, self._schema = _tables(self._prefix)
        self._registering = self.registering(self._table)
        self._refreshing = self.refreshing(self._table)
        self._touching = self.touching(self._table)
        self._clock = literal_column(self.clock, BigInteger)
        self._forgetting = Forgetting(self)
        self._processes = PerProcess(lambda: _Process(self._make_engine()))

    # The differences between databases

    def prepare(self, engine: Engine) -> None:  # noqa: B027 - optional
        """Limit the time of each call on ``engine``, if the driver's timeouts do not."""

    def relax(self, connection: Connection) -> None:  # noqa: B027 - optional
        """Do not wait for the disk: if the server's machine dies, the next heartbeat repeats this transaction."""

    @abstractmethod
    def registering(self, table: Table) -> Insert:
        """Return the upsert of instances that get a new generation."""

    @abstractmethod
    def refreshing(self, table: Table) -> Insert:
        """Return the upsert of instances that have a generation: a row with a newer one stays as it is."""

    @abstractmethod
    def touching(self, table: Table) -> Insert:
        """Return the upsert that changes nothing but the heartbeat of a row."""

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

    # The registry

    def beat(self, instances: Sequence[Instance]) -> Beaten:
        """Register or refresh all instances."""
        limits.check_beat(instances)
        receipts = self._call(lambda connection: self._beat(connection, instances)) if instances else []
        self._forgetting.after(instances)
        return Beaten(receipts, rows.interval(self.heartbeat_timeout))

    def deregister(self, instances: Sequence[Instance], *, forget: bool = False) -> list[Receipt]:
        """Mark instances unhealthy until they beat again; with ``forget`` remove their rows."""
        limits.check_identities(instances)
        return self._call(lambda connection: self._deregister(connection, instances, forget)) if instances else []

    def instances(self, key: str | None = None, *, healthy_only: bool = False) -> list[Instance]:
        """Return all rows, or those of one key, ordered by key and address."""
        statement = select(self._table, self._clock.label("now"))
        if key is not None:
            limits.check_lookup(key)
            statement = statement.where(self._table.c.worker_key == key)
        held = self._call(lambda connection: connection.execute(statement).mappings().all())
        instances = [rows.read(row, row["now"] / rows.MICROSECONDS, self.heartbeat_timeout) for row in held]
        return rows.ordered(instances, healthy_only=healthy_only)

    def close(self) -> None:
        """Close this process's connections; a later call opens them again."""
        if process := self._processes.pop():
            process.engine.dispose()

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

    def _call(self, work: Callable[[Connection], T]) -> T:
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

    def _unavailable(self, error: BaseException | None) -> RegistryUnavailable:
        # MySQL's errors are a number and a text.
        message = error.args[1] if error is not None and len(error.args) == 2 else error
        return RegistryUnavailable(f"the registry {self._address.shown} can't be used: {self._address.hide(message)}")

    # Tables

    def _migrate(self, engine: Engine) -> None:
        """Bring the tables to the newest version of the migrations. Raises ConfigError."""
        with engine.begin() as connection:
            if not self._outstanding(self._version(connection)):
                return
        with engine.begin() as connection:
            # Processes that start at the same time wait here for the first one, which does all the work.
            lock = f"{self._prefix}_schema"
            if not self.lock_schema(connection, lock):
                raise RegistryUnavailable(f"the registry {self._address.shown}: another process is making its tables")
            try:
                self._migrate_locked(connection)
            except BaseException:
                # This ends the lock too, which MySQL would leave to the next user of this connection.
                connection.invalidate()
                raise
            self.unlock_schema(connection, lock)

    def _migrate_locked(self, connection: Connection) -> None:
        connection.execute(text(f"CREATE TABLE IF NOT EXISTS {self._schema.name} (version INTEGER NOT NULL)"))
        for version, statements in self._outstanding(self._version(connection)):
            for statement in statements:
                self._run_migration(connection, statement)
            connection.execute(delete(self._schema))
            connection.execute(insert(self._schema).values(version=version))
            log.info("registry %s: its tables are of version %d now", self._address.shown, version)

    def _run_migration(self, connection: Connection, statement: str) -> None:
        try:
            connection.execute(text(statement))
        except faults.DBAPIError as error:
            if not self.is_done_already(error.orig):
                raise

    def _outstanding(self, held: int | None) -> list[tuple[int, list[str]]]:
        return schema.outstanding(held, self._migrations, self._prefix, self._address.shown)

    def _version(self, connection: Connection) -> int | None:
        if not inspect(connection).has_table(self._schema.name):
            return None
        return connection.execute(select(self._schema.c.version)).scalar()

    # Rows

    def _beat(self, connection: Connection, instances: Sequence[Instance]) -> list[Receipt]:
        if all(instance.generation is not None for instance in instances):
            self.relax(connection)
        now = connection.execute(select(self._clock)).scalar_one()
        # All transactions lock rows in this order, also where a beat needs several statements.
        by_id = dict(sorted(((row_id(instance), instance) for instance in instances), key=operator.itemgetter(0)))
        for upsert, chosen in itertools.groupby(by_id.items(), lambda item: self._upsert(item[1])):
            connection.execute(upsert, [_values(row, instance, now) for row, instance in chosen])
        held = self._generations(connection, list(by_id))
        return [rows.receipt(instance, held.get(row_id(instance))) for instance in instances]

    def _upsert(self, instance: Instance) -> Insert:
        if instance.generation is None:
            return self._registering
        return self._touching if instance.generation == ANY_GENERATION else self._refreshing

    def _deregister(self, connection: Connection, instances: Sequence[Instance], forget: bool) -> list[Receipt]:
        held = self._generations(connection, sorted(row_id(instance) for instance in instances), lock=True)
        receipts = [rows.receipt(instance, held.get(row_id(instance))) for instance in instances]
        ids = [
            row_id(instance) for instance, receipt in zip(instances, receipts, strict=True) if not receipt.superseded
        ]
        for chosen in _batches(ids):
            is_meant = self._table.c.id.in_(chosen)
            if forget:
                connection.execute(delete(self._table).where(is_meant))
            else:
                connection.execute(update(self._table).where(is_meant).values(deregistered=True))
        return receipts

    def _generations(self, connection: Connection, ids: list[str], *, lock: bool = False) -> dict[str, int]:
        """Return the generations of the rows that exist; with ``lock`` they stay until the transaction ends."""
        generations: dict[str, int] = {}
        for chosen in _batches(ids):
            statement = select(self._table.c.id, self._table.c.generation).where(self._table.c.id.in_(chosen))
            if lock:
                statement = statement.order_by(self._table.c.id).with_for_update()
            generations.update((row.id, row.generation) for row in connection.execute(statement))
        return generations


def of_row(table: Table) -> list[str]:
    """Return the names of the columns that a beat writes, without the generation."""
    return [column.name for column in table.columns if column.name not in ("id", "generation")]


def row_id(instance: Instance) -> str:
    """Return the name of an instance's row."""
    return hashlib.sha256(f"{instance.key}\0{instance.url}".encode()).hexdigest()


def _driver_url(address: StoreAddress, driver: str) -> URL:
    try:
        url = make_url(address.url).set(drivername=driver)
    except (faults.ArgumentError, ValueError):
        # The text of the error quotes the address, password and all.
        raise ConfigError(f"registry {address.shown}: not a valid address of a database") from None
    if not url.database:
        raise ConfigError(
            f"registry {address.shown}: names no database, as in {url.get_backend_name()}://host/modelyard"
        )
    return url


def _tables(prefix: str) -> tuple[Table, Table]:
    metadata = MetaData()
    instances = Table(
        f"{prefix}_instances",
        metadata,
        Column("id", Text, primary_key=True),
        Column("worker_key", Text),
        Column("url", Text),
        Column("weight", Float),
        Column("enabled", Boolean),
        Column("check_healthy", Boolean),
        Column("capabilities", Text),
        Column("last_load", Text),
        Column("prompt_template", Text),
        Column("generation", BigInteger),
        Column("last_heartbeat", BigInteger),
        Column("deregistered", Boolean),
    )
    return instances, Table(f"{prefix}_schema", metadata, Column("version", Integer))


def _values(row: str, instance: Instance, now: int) -> dict[str, Any]:
    return {"id": row, **rows.columns(instance, instance.generation or now, now)}


def _batches(ids: list[str]) -> list[list[str]]:
    return [ids[start : start + BATCH] for start in range(0, len(ids), BATCH)]
