"""``PARAM=VALUE`` on the command line, typed by the service's description of the parameter."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..settings.params import Param
from ..settings.sizes import size
from ..types import JSONObject
from .failures import Misuse

_TYPES: Mapping[str, type] = {"int": int, "float": float, "bool": bool}


def split_pair(text: str) -> tuple[str, str]:
    """Return both sides of ``PARAM=VALUE``. Raises Misuse."""
    name, equals, value = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not name:
        raise Misuse(f"{text!r}: expected PARAM=VALUE, as in n_ctx=4096")
    return name, value


def typed(pairs: Mapping[str, str], descriptions: Sequence[JSONObject], model: str) -> JSONObject:
    """Return the values of ``pairs``, typed by ``descriptions``; without descriptions, by the form of the texts.

    Raises Misuse for a parameter that the model does not have (the service would ignore it), and for a value that is
    not valid.
    """
    declared = {str(description.get("param_name")): description for description in descriptions}
    values: JSONObject = {}
    for name, text in pairs.items():
        if not declared:
            values[name] = guessed(text)
            continue
        if name not in declared:
            close = difflib.get_close_matches(name, declared, n=1)
            hint = f"did you mean {close[0]}?" if close else f"see modelyard models params {model}"
            raise Misuse(f"{name}: model {model!r} has no such parameter; {hint}")
        try:
            values[name] = param_of(declared[name]).parse(text)
        except ValueError as error:
            private = "privacy" in tags_of(declared[name])
            raise Misuse(f"{name}: {'does not fit' if private else error}") from error
    return values


def param_of(description: JSONObject) -> Param:
    """Return the declaration of a parameter from its ParameterDescription."""
    ext = description.get("ext_metadata") or {}
    choices = description.get("valid_values")
    return Param(
        name=str(description.get("param_name")),
        type=_TYPES.get(str(description.get("param_type")), str),
        nullable=False,
        required=bool(description.get("required")),
        default=ext.get("default", description.get("default_value")),
        help=str(description.get("description") or ""),
        choices=tuple(choices) if choices else None,
        min=ext.get("min"),
        max=ext.get("max"),
        words=ext.get("words") or {},
        tags=frozenset(tags_of(description)),
    )


def tags_of(description: JSONObject) -> list[str]:
    """Return the tags of a ParameterDescription."""
    tags = (description.get("ext_metadata") or {}).get("tags") or ""
    return [tag for tag in str(tags).split(",") if tag]


def allowed(declared: Param) -> str | None:
    """Return the values that a parameter takes, as text for people; None if it takes any."""
    if declared.choices:
        return " | ".join(declared.choices)
    if declared.words and (rest := allowed(replace(declared, words={}))):
        return ", ".join([rest, *declared.words])
    low, high = (None if end is None else _limit(declared, end) for end in (declared.min, declared.max))
    if low is not None and high is not None:
        return f"{low} .. {high}"
    if low is not None:
        return f"at least {low}"
    return f"at most {high}" if high is not None else None


def _limit(declared: Param, value: float) -> str:
    return size(int(value)) if "size" in declared.tags else f"{value:.15g}"


def guessed(text: str) -> Any:
    """Return the number, truth value or text that ``text`` looks like."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text
