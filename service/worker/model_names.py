"""What every manager says where a model is called that is not there, or none is named."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ..errors import InvalidRequest, UnknownModel, Unsupported
from ..types import WorkerType


def unknown(model: str, keys: Collection[str], kind: WorkerType | None = None) -> UnknownModel:
    """Return the error for a model of which there is none, with the worker ``keys`` that there are."""
    of_kind = f" of type {kind}" if kind else ""
    instead = f"; there are {', '.join(sorted(keys))}" if keys else "; none is here at all"
    return UnknownModel(f"there is no model {model!r}{of_kind} here{instead}")


def absent(model: str, kinds: Iterable[WorkerType], keys: Collection[str]) -> UnknownModel | Unsupported:
    """Return the error for a model that is called for one of ``kinds``: it is of another, or there is none."""
    others = [key.rpartition("@")[2] for key in keys if key.rpartition("@")[0] == model]
    if others:
        return Unsupported(f"model {model!r} is of type {', '.join(others)}: this call wants {' or '.join(kinds)}")
    return unknown(model, keys)


def only(names: Collection[str]) -> str:
    """Return the only one of the ``names`` of LLMs. InvalidRequest where there is none, or several."""
    if len(names) == 1:
        return next(iter(names))
    which = f"one of {', '.join(sorted(names))}" if names else "no LLM is here"
    raise InvalidRequest.of_fields([{"field": "model", "message": f"is missing: {which}"}])
