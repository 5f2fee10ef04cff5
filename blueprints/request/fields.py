"""Fields of schemas, and how a schema reads a body or a query."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields, missing, validate

from ...errors import FieldError, InvalidRequest
from ...types import JSONObject

MAX_FAULTS = 20
"""Faults of a list that an error has."""


class Number(fields.Float):
    """A JSON number, never a string; NaN and infinity are refused."""

    def _validated(self, value: Any) -> float:
        if isinstance(value, str):
            raise self.make_error("invalid", input=value)
        return super()._validated(value)


class Flag(fields.Boolean):
    """true or false, never a number or a word."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class Base(Schema):
    """A schema that ignores unknown keys."""

    class Meta:  # noqa: D106 - marshmallow reads it
        unknown = EXCLUDE


def integer(least: int, most: int) -> fields.Integer:
    """Return a field of integers in a range."""
    return fields.Integer(strict=True, validate=validate.Range(least, most))


def number(least: float, most: float) -> Number:
    """Return a field of numbers in a range."""
    return Number(validate=validate.Range(least, most))


def fault(field: str, message: str) -> InvalidRequest:
    """Return the error for one field."""
    return InvalidRequest.of_field(field, message)


@contextmanager
def renamed_faults(names: Mapping[str, str]) -> Iterator[None]:
    """Raise the InvalidRequest of a body that was translated with the names that its client has sent.

    ``names`` are the client's, by those of the translation; the first that fits is taken.
    """
    try:
        yield
    except InvalidRequest as error:
        if not error.errors:
            raise
        faults: list[FieldError] = [
            {"field": _renamed(entry["field"], names), "message": entry["message"]} for entry in error.errors
        ]
        raise type(error).of_fields(faults) from None


def _renamed(field: str, names: Mapping[str, str]) -> str:
    for name, sent in names.items():
        rest = field.removeprefix(name)
        if field.startswith(name) and (not rest or rest[0] in ".["):
            return sent + rest
    return field


def stops(stop: Any, most: int) -> list[str]:
    """Return the texts of a ``stop``: a string, or a list of ``most`` at most. Raises InvalidRequest."""
    if stop is None:
        return []
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise fault("stop", "must be a string or a list of strings")
    if len(texts) > most:
        raise fault("stop", f"has {len(texts)} entries, at most {most} are accepted")
    return [text for text in texts if text]


def load(schema: Schema, body: Mapping[str, Any]) -> JSONObject:
    """Return the checked fields of ``body``; null means absent. Raises InvalidRequest with each fault.

    It is for schemas that only have fields: no hooks, no validators of their own, no defaults.
    """
    loaded: JSONObject = {}
    faults: dict[str, Any] = {}
    # Field by field: the schema's own `load` takes as long for a field that is absent as for one that is there.
    for name, field in schema.fields.items():
        key = name if field.data_key is None else field.data_key
        value = body.get(key)
        if value is None and not field.required:
            continue
        try:
            loaded[field.attribute or name] = field.deserialize(missing if value is None else value, key, body)
        except ValidationError as error:
            faults[key] = error.messages
    if faults:
        raise InvalidRequest.of_fields(_flat(faults, ""))
    return loaded


def load_query(schema: Schema, query: Mapping[str, str]) -> JSONObject:
    """Return the checked fields of a query; an empty value means absent. Raises InvalidRequest with each fault."""
    return load(schema, {name: value for name, value in query.items() if value})


def load_each(schema: Schema, entries: list[Any]) -> list[JSONObject]:
    """Return the checked fields of every entry. Raises InvalidRequest with faults such as ``[3].url``."""
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise fault(f"[{index}]", "must be an object")
    present = [{key: value for key, value in entry.items() if value is not None} for entry in entries]
    try:
        loaded: list[JSONObject] = schema.load(present, many=True)
    except ValidationError as error:
        raise InvalidRequest.of_fields(_flat(error.messages, "")[:MAX_FAULTS]) from None
    return loaded


def _flat(messages: Any, path: str) -> list[FieldError]:
    """Return the faults in marshmallow's nested messages, each with the path of its field."""
    if isinstance(messages, dict):
        faults: list[FieldError] = []
        for key, inner in messages.items():
            step = f"[{key}]" if isinstance(key, int) else f".{key}" if path else str(key)
            faults += _flat(inner, path + step)
        return faults
    return [{"field": path, "message": str(message)} for message in messages]
