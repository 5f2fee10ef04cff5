"""The rules of all stores: the generation after a beat, the health of an instance, and the columns of its row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .base import ANY_GENERATION, Instance, Receipt

MAX_INTERVAL = 20.0
MICROSECONDS = 1_000_000


def interval(heartbeat_timeout: float) -> float:
    """Return the seconds between two beats: an instance stays healthy if two beats are lost."""
    return min(MAX_INTERVAL, heartbeat_timeout / 3)


def is_healthy(instance: Instance, deregistered: bool, now: float, heartbeat_timeout: float) -> bool:
    """Return whether an instance is healthy at ``now``, in seconds by the store's clock."""
    if deregistered:
        return False
    return not instance.check_healthy or now - (instance.last_heartbeat or 0.0) <= heartbeat_timeout


def settle(sent: int | None, held: int | None, now: int) -> int | None:
    """Return the generation of a row after a beat; None if the beat is superseded.

    ``sent`` is the generation of the beat, ``held`` that of the row (None: no row), ``now`` the store's clock in
    microseconds.
    """
    if sent is None or (sent == ANY_GENERATION and held is None):
        return max(now, 0 if held is None else held + 1)
    if sent == ANY_GENERATION:
        return held
    return None if held is not None and sent < held else sent


def outlives(held: int, sent: int | None) -> bool:
    """Return whether the generation of a row is newer than that of a beat or deregistration."""
    return sent is not None and sent != ANY_GENERATION and sent < held


def receipt(instance: Instance, held: int | None) -> Receipt:
    """Return the receipt of an instance whose row has the generation ``held`` (None: no row)."""
    if held is None:
        return Receipt(instance.key, instance.url, instance.generation or 0)
    return Receipt(instance.key, instance.url, held, superseded=outlives(held, instance.generation))


def ordered(instances: list[Instance], *, healthy_only: bool) -> list[Instance]:
    """Return the instances by key and address, independent of the collation of a database."""
    return sorted((row for row in instances if row.healthy or not healthy_only), key=lambda row: (row.key, row.url))


def columns(instance: Instance, generation: int, now: int) -> dict[str, Any]:
    """Return the columns of an instance that beats at ``now``, in microseconds."""
    return {
        "worker_key": instance.key,
        "url": instance.url,
        "weight": instance.weight,
        "enabled": instance.enabled,
        "check_healthy": instance.check_healthy,
        "capabilities": json.dumps(instance.capabilities),
        "last_load": instance.load,
        "prompt_template": instance.prompt_template,
        "generation": generation,
        "last_heartbeat": now,
        "deregistered": False,
    }


def read(row: Mapping[Any, Any], now: float, heartbeat_timeout: float) -> Instance:
    """Return the instance of a row's columns; ``now`` is the store's clock in seconds."""
    instance = Instance(
        key=row["worker_key"],
        url=row["url"],
        weight=row["weight"],
        enabled=bool(row["enabled"]),
        check_healthy=bool(row["check_healthy"]),
        capabilities=json.loads(row["capabilities"]),
        load=row["last_load"],
        prompt_template=row["prompt_template"],
        generation=row["generation"],
        last_heartbeat=row["last_heartbeat"] / MICROSECONDS,
    )
    instance.healthy = is_healthy(instance, bool(row["deregistered"]), now, heartbeat_timeout)
    return instance
