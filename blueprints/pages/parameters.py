"""The parameters of a model as the fields of a form, from their descriptions, and what a form changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import FieldError, InvalidRequest
from ...settings.params import MASK, Param
from ...settings.sizes import size
from ...types import JSONObject

NEW, OLD = "new.", "old."
"""What stands before the name of a parameter in a form: for its value, and for the one that the page has shown."""
_TYPES: Mapping[str, type] = {"int": int, "float": float, "bool": bool}
_SHAPES: Mapping[str, type] = {"list": list, "dict": dict, "lists": dict}
_SHAPE_WORDS = {"list": "separated by commas", "dict": "NAME=VALUE, …", "lists": "NAME=VALUE+VALUE, …"}
_FIXED = frozenset({"fixed", "operator"})


@dataclass(frozen=True)
class FormField:
    """A parameter in a form."""

    name: str
    help: str
    value: str
    """The text of its value; empty for a private one, which is never sent to a browser."""
    kind: str
    """``choice``, ``number``, ``secret`` or ``text``."""
    choices: tuple[str, ...]
    limits: str
    """What it accepts, for people."""
    step: str
    low: float | None
    high: float | None
    is_set: bool
    """Whether a private one has a value."""
    is_fixed: bool
    """Whether a form can't change it."""

    @classmethod
    def of(cls, description: JSONObject) -> FormField:
        """Return the field of a ParameterDescription."""
        extra = description.get("ext_metadata") or {}
        tags = set(str(extra.get("tags", "")).split(","))
        kind, value, low, high = description["param_type"], description["default_value"], *_bounds(extra)
        choices = ("true", "false") if kind == "bool" else tuple(map(str, description.get("valid_values") or ()))
        words = extra.get("words") or {}
        is_private = "privacy" in tags or value == MASK
        is_number = kind in ("int", "float") and not words and "size" not in tags
        shape = "secret" if is_private else "choice" if choices else "number" if is_number else "text"
        return cls(
            name=str(description["param_name"]),
            help=str(description.get("description") or ""),
            value="" if is_private else next((word for word, number in words.items() if number == value), _text(value)),
            kind=shape,
            choices=choices,
            limits="" if is_private else _limits(kind, extra, low, high, is_size="size" in tags),
            step="1" if kind == "int" else "any",
            low=low,
            high=high,
            is_set=is_private and value == MASK,
            is_fixed=not _FIXED.isdisjoint(tags),
        )


def changes(form: Mapping[str, str], descriptions: Iterable[JSONObject]) -> JSONObject:
    """Return the parameters that a form changes, with their values.

    A field that has the text that the page has shown, or none, changes nothing. Raises InvalidRequest with every field
    that is not valid.
    """
    changed: JSONObject = {}
    faults: list[FieldError] = []
    for description in descriptions:
        field = FormField.of(description)
        text = form.get(NEW + field.name, "").strip()
        if field.is_fixed or not text or text == form.get(OLD + field.name, ""):
            continue
        try:
            changed[field.name] = _declared(field, description).parse(text)
        except ValueError as error:
            faults.append({"field": field.name, "message": str(error)})
    if faults:
        raise InvalidRequest.of_fields(faults)
    return changed


def in_order(descriptions: Sequence[JSONObject]) -> tuple[list[FormField], list[FormField]]:
    """Return the fields that a form may change, and the others."""
    fields = [FormField.of(description) for description in descriptions]
    return [each for each in fields if not each.is_fixed], [each for each in fields if each.is_fixed]


def _declared(field: FormField, description: JSONObject) -> Param:
    """Return the declaration that a description is of, as far as a text needs it: another process may have it."""
    extra = description.get("ext_metadata") or {}
    shape = str(extra.get("text_of", ""))
    return Param(
        name=field.name,
        type=_SHAPES.get(shape) or _TYPES.get(description["param_type"], str),
        nullable=True,
        required=False,
        default=None,
        help=field.help,
        choices=None if description["param_type"] == "bool" else field.choices or None,
        min=field.low,
        max=field.high,
        tags=frozenset(str(extra.get("tags", "")).split(",")) & {"size"},
        words=extra.get("words") or {},
        of_lists=shape == "lists",
    )


def _bounds(extra: Mapping[str, Any]) -> tuple[float | None, float | None]:
    low, high = (extra.get(name) for name in ("min", "max"))
    return low if isinstance(low, int | float) else None, high if isinstance(high, int | float) else None


def _limits(
    kind: str, extra: Mapping[str, Any], low: float | None, high: float | None, *, is_size: bool = False
) -> str:
    shape, default = extra.get("text_of", ""), extra.get("default")
    parts = [_SHAPE_WORDS[shape]] if shape in _SHAPE_WORDS else []
    if low is not None or high is not None:
        ends = ("" if end is None else size(int(end)) if is_size else _grouped(end) for end in (low, high))
        parts = [" … ".join(ends).strip()]
    elif kind in ("int", "float"):
        parts = ["a whole number" if kind == "int" else "a number"]
    parts += list(extra.get("words") or ())
    if default is not None:
        parts.append(f"default {_text(default)}")
    return ", ".join(parts)


def _grouped(value: float) -> str:
    """Return a number with groups of thousands, as in ``12 345``."""
    return f"{value:,}".replace(",", "\u202f")


def _text(value: Any) -> str:
    """Return a value as people write it: ``60`` for 60.0."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).lower() if isinstance(value, bool) else str(value)
