"""Rows and receipts as JSON: a controller writes them, its clients read them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from ...types import JSONObject, known, plain
from .base import Instance, Receipt

MAX_INSTANCES = 1000
"""The most instances that a controller accepts in one body."""

_FIELDS_OF_THE_STORE = ("last_heartbeat", "healthy")


def whole(instance: Instance) -> JSONObject:
    """Return a row for a response of a controller, with all fields."""
    return {**plain(instance), "last_heartbeat": iso(instance.last_heartbeat, "Z")}


def sent(instance: Instance) -> JSONObject:
    """Return an instance for a client's request: without absent values, and without the fields of the store."""
    return {
        name: value for name, value in plain(instance).items() if value is not None and name not in _FIELDS_OF_THE_STORE
    }


def read_instances(value: Any) -> list[Instance]:
    """Return the rows of an answer; unknown keys are ignored. Raises ValueError."""
    if not isinstance(value, list):
        raise ValueError("is not a list")  # noqa: TRY004 - each fault of an answer is the same error
    return [_read_instance(entry) for entry in value]


def _read_instance(entry: Any) -> Instance:
    try:
        fields = known(Instance, entry)
        return Instance(**{**fields, "last_heartbeat": seconds(fields.get("last_heartbeat"))})
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"has a row that is not valid: {error}") from None


def read_receipts(value: Any, instances: Sequence[Instance]) -> list[Receipt]:
    """Return the receipts of an answer, one for each of ``instances``. Raises ValueError if they do not match."""
    try:
        receipts = [Receipt(**known(Receipt, entry)) for entry in value["instances"]]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"has no receipts: {error}") from None
    if [(receipt.key, receipt.url) for receipt in receipts] != [(instance.key, instance.url) for instance in instances]:
        raise ValueError("has receipts that do not match the instances that were sent")
    return receipts


def iso(at: float | None, zone: str = "") -> str | None:
    """Return seconds since 1970 as ISO 8601, in UTC."""
    return None if at is None else datetime.fromtimestamp(at, UTC).replace(tzinfo=None).isoformat() + zone


def seconds(text: str | None) -> float | None:
    """Return ISO 8601 as seconds since 1970; without a zone it is UTC. Raises ValueError if it is not a time."""
    if text is None:
        return None
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
