"""What a service hosts and what it could host, as one list: ``/readyz`` tells states, ``models/supports`` the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..types import JSONObject, split_worker_key, worker_key
from .client import ServiceClient, are_objects


@dataclass
class Row:
    """A model; ``state`` is None where it is not hosted, only supported. ``path_exist`` is None where nobody knows."""

    name: str
    type: str | None
    state: str | None = None
    reason: str | None = None
    path: str | None = None
    path_exist: bool | None = None
    enabled: bool | None = None

    @property
    def weights(self) -> str | None:
        """Whether the weights are there, in a word; None where none are needed, or nobody knows."""
        if not self.path or self.path_exist is None:
            return None
        return "there" if self.path_exist else "missing"

    def plain(self) -> JSONObject:
        """Return it for machines."""
        return dict(vars(self))


@dataclass
class Hosted:
    """All rows, those that are hosted first, and whether the service is ready."""

    ready: bool
    reason: str | None
    rows: list[Row]

    @classmethod
    def of(cls, client: ServiceClient) -> Hosted:
        """Ask the service. Raises Failure."""
        status = client.status()
        supported = list(supported_models(client))
        rows = [_hosted(model, supported) for model in status["models"]]
        there = {(row.name, row.type) for row in rows} | {(row.name, None) for row in rows if row.type is None}
        for model in supported:
            name, kind = registered_name(model), str(model["worker_type"]) or None
            if (name, kind) not in there and (name, None) not in there:
                row = Row(name, kind, reason=None if model["enabled"] else "can't be run there: see its log")
                rows.append(_with_weights(row, model))
        return cls(bool(status.get("ready")), status.get("reason"), rows)


def supported_models(client: ServiceClient) -> Iterator[JSONObject]:
    """Yield every SupportedModel of every host that the service tells of."""
    hosts = client.get("models/supports")
    if not are_objects(hosts, "models"):
        raise client.stranger()
    for host in hosts:
        if not are_objects(host["models"], "model", "worker_type", "params", "enabled"):
            raise client.stranger()
        yield from host["models"]


def registered_name(model: JSONObject) -> str:
    """Return the name that a SupportedModel is called by: its alias, or its own."""
    return str(value_of(model, "model_alias") or model["model"])


def value_of(model: JSONObject, param: str) -> Any:
    """Return the value of a parameter of a SupportedModel; None where it has none."""
    found = (d.get("default_value") for d in model.get("params") or [] if d.get("param_name") == param)
    return next(found, None)


def _hosted(told: JSONObject, supported: Sequence[JSONObject]) -> Row:
    key = str(told.get("model"))
    try:
        name, kind = split_worker_key(key)
        row = Row(name, kind.value, told.get("state"), told.get("reason"))
    except ValueError:  # One that could not even be declared: it has no type.
        row = Row(key, None, told.get("state"), told.get("reason"))
    named = [model for model in supported if row.name in (registered_name(model), model["model"])]
    exact = [model for model in named if row.type and _key(model) == key]
    return _with_weights(row, (exact or named)[0]) if named else row


def _key(model: JSONObject) -> str:
    try:
        return worker_key(registered_name(model), str(model["worker_type"]))
    except ValueError:
        return ""


def _with_weights(row: Row, model: JSONObject) -> Row:
    row.path, row.path_exist, row.enabled = model.get("path") or None, model.get("path_exist"), model.get("enabled")
    return row
