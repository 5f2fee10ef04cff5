"""List the models of a service: those that it hosts, with their states, and those that it could start."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..client.answers import ModelState
from ..client.client import Client
from ..types import JSONObject, SupportedModel


@dataclass
class Row:
    """A model; ``state`` is None if it is not hosted, ``path_exist`` if the service does not list it."""

    name: str
    type: str | None
    state: str | None = None
    reason: str | None = None
    path: str | None = None
    path_exist: bool | None = None
    enabled: bool | None = None
    load: str | None = None
    """The requests that run and that wait; None if there are none, or the service does not report them."""

    @property
    def weights(self) -> str | None:
        """``there`` or ``missing``, for the weights; None if it needs none, or the service does not list it."""
        if not self.path or self.path_exist is None:
            return None
        return "there" if self.path_exist else "missing"


def rows(hosted: Iterable[ModelState], supported: Sequence[SupportedModel]) -> list[Row]:
    """Return all models, those that are hosted first."""
    listed = [_hosted_row(model, supported) for model in hosted]
    keys = {(row.name, row.type) for row in listed} | {(row.name, None) for row in listed if row.type is None}
    for model in supported:
        name, kind = name_of(model), model.worker_type or None
        if (name, kind) not in keys and (name, None) not in keys:
            row = Row(name, kind, reason=None if model.enabled else "can't be run by the service: see its log")
            listed.append(_with_weights(row, model))
    return listed


def load_of(model: JSONObject) -> str | None:
    """Return the load of one of the ``models`` of `Client.status` as text; None if it has none."""
    waiting = model.get("waiting") or {}
    numbers = (
        (model.get("running"), "running"),
        (waiting.get("interactive"), "waiting"),
        (waiting.get("batch"), "waiting as batch"),
    )
    return ", ".join(f"{number} {word}" for number, word in numbers if number) or None


def supported_models(client: Client) -> list[SupportedModel]:
    """Return the models that the service could start, on any of its hosts."""
    return [model for host in client.supported_models() for model in host.models]


def name_of(model: SupportedModel) -> str:
    """Return the name by which a model is called: its alias, or else its name."""
    return str(value_of(model, "model_alias") or model.model)


def value_of(model: SupportedModel, param: str) -> Any:
    """Return the value of a parameter; None if the model does not have it."""
    return next((d.get("default_value") for d in model.params if d.get("param_name") == param), None)


def _hosted_row(state: ModelState, supported: Sequence[SupportedModel]) -> Row:
    row = Row(*state)
    named = [model for model in supported if row.name in (name_of(model), model.model)]
    exact = [model for model in named if (name_of(model), model.worker_type) == (row.name, row.type)]
    return _with_weights(row, (exact or named)[0]) if named else row


def _with_weights(row: Row, model: SupportedModel) -> Row:
    row.path, row.path_exist, row.enabled = model.path or None, model.path_exist, model.enabled
    return row
