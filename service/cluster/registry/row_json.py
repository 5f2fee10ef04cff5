"""Rows and receipts as they travel between a controller and its clients, and back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from ...types import JSONObject, known, plain
from .base import Instance, Receipt

MAX_INSTANCES = 1000
"""How many instances a controller takes in one body."""

_SAID_BY_THE_STORE = ("last_heartbeat", "healthy")


def row(instance: Instance) -> JSONObject:
    """Return a row whole, for whoever asks for it."""
    return {**plain(instance), "last_heartbeat": iso(instance.last_heartbeat, "Z")}


def told(instance: Instance) -> JSONObject:
    """Return what a client tells of an instance."""
    return {
        name: value for name, value in plain(instance).items() if value is not None and name not in _SAID_BY_THE_STORE
    }


def instances_in(value: Any) -> list[Instance]:
    """Return the rows of an answer, of which keys that are not known are ignored. ValueError where it has none."""
    if not isinstance(value, list):
        raise ValueError("is no list")  # noqa: TRY004 - whatever is wrong with an answer, it is one error
    return [_instance(entry) for entry in value]


def _instance(entry: Any) -> Instance:
    try:
        fields = known(Instance, entry)
        return Instance(**{**fields, "last_heartbeat": seconds(fields.get("last_heartbeat"))})
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"has a row that is none: {error}") from None


def receipts_in(value: Any, wanted: Sequence[Instance]) -> list[Receipt]:
    """Return the receipts of an answer, one each of ``wanted``. ValueError where it has others."""
    try:
        found = [Receipt(**known(Receipt, entry)) for entry in value["instances"]]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"has no receipts: {error}") from None
    if [(one.key, one.url) for one in found] != [(one.key, one.url) for one in wanted]:
        raise ValueError("has other receipts than those of the instances that were sent")
    return found


def iso(at: float | None, zone: str = "") -> str | None:
    """Return seconds since 1970 as ISO 8601, in UTC."""
    return None if at is None else datetime.fromtimestamp(at, UTC).replace(tzinfo=None).isoformat() + zone


def seconds(text: str | None) -> float | None:
    """Return ISO 8601 as seconds since 1970; without a zone it counts as UTC. ValueError where it is no time."""
    if text is None:
        return None
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
