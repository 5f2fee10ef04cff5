"""Turn the answers of a service into values. Each function raises ValueError for JSON of another shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..errors import InvalidRequest, UnknownModel
from ..types import ApplyOutcome, HostModels, JSONObject, SupportedModel, known


class ModelState(NamedTuple):
    """A model of a service, with its state."""

    name: str
    worker_type: str | None
    """``llm``, ``text2vec`` or ``reranker``; None for a model whose declaration failed."""
    state: str
    """One of those of ``/readyz``: ``ready``, ``unloaded``, ``loading``, ``stopped``, ``failed`` and others."""
    reason: str | None
    """Why the model is in this state; None without a reason."""

    @classmethod
    def of(cls, model: Mapping[str, Any]) -> ModelState:
        """Return one of the ``models`` of `Client.status` as a value."""
        name, at, worker_type = str(model["model"]).rpartition("@")
        state, reason = str(model["state"]), model.get("reason")
        return cls(name, worker_type, state, reason) if at else cls(worker_type, None, state, reason)


def only_model(states: Iterable[ModelState], worker_types: tuple[str, ...], url: str) -> str:
    """Return the name of the only model of the first of ``worker_types`` that has one; ready models have precedence.

    Raises InvalidRequest if there are several, and UnknownModel if there is none; ``url`` is for their texts.
    """
    states = list(states)
    for worker_type in worker_types:
        of_type = [state for state in states if state.worker_type == worker_type]
        names = sorted({state.name for state in of_type if state.state == "ready"} or {s.name for s in of_type})
        if len(names) > 1:
            fault = f"name one of those at {url}: {', '.join(names)}"
            raise InvalidRequest.of_field("model", fault)
        if names:
            return names[0]
    raise UnknownModel(f"no model of the type {' or '.join(worker_types)} is at {url}")


def status(value: Any) -> JSONObject | None:
    """Return the answer of ``/readyz``; None if it is not that of modelyard."""
    if not isinstance(value, dict):
        return None
    try:
        objects(value.get("models"), "model", "state")
    except ValueError:
        return None
    return value


def rows(value: Any) -> list[JSONObject] | None:
    """Return the rows of a registry; None if the answer is null, from a service without one."""
    return None if value is None else objects(value, "key", "url", "healthy")


def hosts(value: Any) -> list[HostModels]:
    """Return the models that each host can start."""
    return [
        HostModels(str(host["host"]), int(host["port"]), [_supported(model) for model in objects(host["models"])])
        for host in objects(value, "host", "port", "models")
    ]


def _supported(model: JSONObject) -> SupportedModel:
    objects([model], "model", "worker_type", "enabled", "params")
    objects(model["params"], "param_name")
    optional = {"path": "", "path_exist": False, "proxy": False}
    return SupportedModel(**{"worker_type": "", **optional, **known(SupportedModel, model)})


def outcome(value: Any) -> ApplyOutcome:
    """Return the outcome of an ``apply``."""
    objects([value], "success")
    return ApplyOutcome(**{"message": "", "timecost": 0.0, **known(ApplyOutcome, value)})


def objects(value: Any, *keys: str) -> list[JSONObject]:
    """Return a list of objects that have ``keys``."""
    if not isinstance(value, list) or not all(isinstance(item, dict) and set(keys) <= item.keys() for item in value):
        raise ValueError(f"expected a list of objects with {', '.join(keys) or 'any keys'}")
    return value


def vectors(value: Any, count: int, size: int | None = None) -> list[list[float]]:
    """Return ``count`` rows of floats, each of ``size`` floats if that is given."""
    if not isinstance(value, list) or len(value) != count:
        raise ValueError(f"expected a list of {count} rows")
    if not all(isinstance(row, list) and size in (None, len(row)) for row in value):
        raise ValueError(f"expected rows of {size or 'some'} floats")
    return value


def count(value: Any) -> int:
    """Return a number of tokens."""
    if not isinstance(value, int):
        raise ValueError("expected an integer")  # noqa: TRY004 - the answer is at fault, not the caller
    return value


def nothing(value: Any) -> None:
    """Check that an answer is null, which means success."""
    if value is not None:
        raise ValueError("expected null")
