"""A registry in PostgreSQL, MySQL or MariaDB, by SQLAlchemy, for controllers on many machines.

The server's clock is the store's. A row's id is the SHA-256 of its key and address: these may be longer than MySQL can
index, and some collations treat different names as equal.
"""

from __future__ import annotations

import hashlib
import itertools
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    MetaData,
    Table,
    Text,
    delete,
    select,
    update,
)
from sqlalchemy.sql.dml import Insert

from . import limits, rows, schema
from .address import StoreAddress
from .base import ANY_GENERATION, HEARTBEAT_TIMEOUT, Beaten, Instance, Receipt
from .database import Database
from .forgetting import Forgetting

BATCH = 500
"""The most rows that one statement names."""


class SqlRegistry(ABC):
    """A registry that the processes of many machines share through a database server.

    A subclass has what differs between databases: the upserts.
    """

    database: ClassVar[type[Database]]
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
        self._database = self.database(address, self.migrations if migrations is None else migrations)
        self._table = _table(self._database.prefix)
        self._registering = self.registering(self._table)
        self._refreshing = self.refreshing(self._table)
        self._touching = self.touching(self._table)
        self._forgetting = Forgetting(self)

    # The differences between databases

    @abstractmethod
    def registering(self, table: Table) -> Insert:
        """Return the upsert of instances that get a new generation."""

    @abstractmethod
    def refreshing(self, table: Table) -> Insert:
        """Return the upsert of instances that have a generation: a row with a newer one stays as it is."""

    @abstractmethod
    def touching(self, table: Table) -> Insert:
        """Return the upsert that changes nothing but the heartbeat of a row."""

    # The registry

    def beat(self, instances: Sequence[Instance]) -> Beaten:
        """Register or refresh all instances."""
        limits.check_beat(instances)
        receipts = self._database.transact(lambda connection: self._beat(connection, instances)) if instances else []
        self._forgetting.after(instances)
        return Beaten(receipts, rows.interval(self.heartbeat_timeout))

    def deregister(self, instances: Sequence[Instance], *, forget: bool = False) -> list[Receipt]:
        """Mark instances unhealthy until they beat again; with ``forget`` remove their rows."""
        limits.check_identities(instances)
        return (
            self._database.transact(lambda connection: self._deregister(connection, instances, forget))
            if instances
            else []
        )

    def instances(self, key: str | None = None, *, healthy_only: bool = False) -> list[Instance]:
        """Return all rows, or those of one key, ordered by key and address."""
        statement = select(self._table, self._database.now.label("now"))
        if key is not None:
            limits.check_lookup(key)
            statement = statement.where(self._table.c.worker_key == key)
        held = self._database.transact(lambda connection: connection.execute(statement).mappings().all())
        instances = [rows.read(row, row["now"] / rows.MICROSECONDS, self.heartbeat_timeout) for row in held]
        return rows.ordered(instances, healthy_only=healthy_only)

    def close(self) -> None:
        """Close this process's connections; a later call opens them again."""
        self._database.close()

    # Rows

    def _beat(self, connection: Connection, instances: Sequence[Instance]) -> list[Receipt]:
        if all(instance.generation is not None for instance in instances):
            self._database.relax(connection)
        now = connection.execute(select(self._database.now)).scalar_one()
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


def _table(prefix: str) -> Table:
    return Table(
        f"{prefix}_instances",
        MetaData(),
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


def _values(row: str, instance: Instance, now: int) -> dict[str, Any]:
    return {"id": row, **rows.columns(instance, instance.generation or now, now)}


def _batches(ids: list[str]) -> list[list[str]]:
    return [ids[start : start + BATCH] for start in range(0, len(ids), BATCH)]
