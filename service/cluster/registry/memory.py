"""A registry in the memory of one process: for tests, and for a service that works alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from . import limits, rows
from .base import ANY_GENERATION, HEARTBEAT_TIMEOUT, Beaten, Instance, Receipt
from .forgetting import Forgetting


@dataclass(slots=True)
class Row:
    """An instance as of its last beat, and whether it was deregistered since."""

    instance: Instance
    deregistered: bool = False


@dataclass(slots=True)
class Table:
    """The rows by key and address, and the lock that guards them. Several registries may share one."""

    rows: dict[str, dict[str, Row]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class MemoryRegistry:
    """A registry that ends with its process."""

    def __init__(
        self,
        heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
        table: Table | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Keep rows in ``table`` (default: a new one); ``clock`` returns seconds since 1970."""
        self.heartbeat_timeout = heartbeat_timeout
        self.table = table or Table()
        self._clock = clock
        self._forgetting = Forgetting(self)

    def beat(self, instances: Sequence[Instance]) -> Beaten:
        """Register or refresh all instances."""
        limits.check_beat(instances)
        with self.table.lock:
            now = self._clock()
            receipts = [self._beat_one(instance, now) for instance in instances]
        self._forgetting.after(instances)
        return Beaten(receipts, rows.interval(self.heartbeat_timeout))

    def _beat_one(self, instance: Instance, now: float) -> Receipt:
        at_key = self.table.rows.setdefault(instance.key, {})
        row = at_key.get(instance.url)
        held = row.instance.generation if row else None
        generation = rows.settle(instance.generation, held, int(now * rows.MICROSECONDS))
        if generation is None:
            return rows.receipt(instance, held)
        latest = row.instance if row and instance.generation == ANY_GENERATION else instance
        at_key[instance.url] = Row(
            replace(latest, capabilities=list(latest.capabilities), generation=generation, last_heartbeat=now)
        )
        return rows.receipt(instance, generation)

    def deregister(self, instances: Sequence[Instance], *, forget: bool = False) -> list[Receipt]:
        """Mark instances unhealthy until they beat again; with ``forget`` remove their rows."""
        limits.check_identities(instances)
        with self.table.lock:
            return [self._deregister_one(instance, forget) for instance in instances]

    def _deregister_one(self, instance: Instance, forget: bool) -> Receipt:
        at_key = self.table.rows.get(instance.key, {})
        row = at_key.get(instance.url)
        receipt = rows.receipt(instance, row.instance.generation if row else None)
        if row is None or receipt.superseded:
            return receipt
        row.deregistered = True
        if forget:
            del at_key[instance.url]
            if not at_key:
                del self.table.rows[instance.key]
        return receipt

    def instances(self, key: str | None = None, *, healthy_only: bool = False) -> list[Instance]:
        """Return all rows, or those of one key, ordered by key and address."""
        if key is not None:
            limits.check_lookup(key)
        with self.table.lock:
            now = self._clock()
            groups = self.table.rows.values() if key is None else [self.table.rows.get(key, {})]
            instances = [self._read(row, now) for group in groups for row in group.values()]
        return rows.ordered(instances, healthy_only=healthy_only)

    def _read(self, row: Row, now: float) -> Instance:
        healthy = rows.is_healthy(row.instance, row.deregistered, now, self.heartbeat_timeout)
        return replace(row.instance, capabilities=list(row.instance.capabilities), healthy=healthy)

    def close(self) -> None:
        """Do nothing: it has no connections."""
