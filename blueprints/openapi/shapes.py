"""JSON Schemas of what no marshmallow schema describes: answers, and the parts of bodies that are checked by hand."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from ...types import JSONObject

STRING: JSONObject = {"type": "string"}
FILLED: JSONObject = {"type": "string", "minLength": 1}
INTEGER: JSONObject = {"type": "integer"}
NUMBER: JSONObject = {"type": "number"}
BOOLEAN: JSONObject = {"type": "boolean"}
NULL: JSONObject = {"type": "null"}
OBJECT: JSONObject = {"type": "object"}
ANYTHING: JSONObject = {}

_PLAIN: Mapping[Any, JSONObject] = {
    str: STRING,
    int: INTEGER,
    float: NUMBER,
    bool: BOOLEAN,
    type(None): NULL,
    Any: ANYTHING,
}


def ref(name: str) -> JSONObject:
    """Return the reference to a schema of the components."""
    return {"$ref": f"#/components/schemas/{name}"}


def one_of(*values: str) -> JSONObject:
    """Return the schema of a string that is one of ``values``."""
    return {"type": "string", "enum": list(values)}


def array(items: JSONObject, *, least: int = 0, most: int | None = None) -> JSONObject:
    """Return the schema of a list of ``least`` to ``most`` items."""
    limits = {"minItems": least} if least else {}
    return {"type": "array", "items": items, **limits, **({} if most is None else {"maxItems": most})}


def either(*schemas: JSONObject) -> JSONObject:
    """Return the schema of what fits one of ``schemas``."""
    return {"anyOf": list(schemas)}


def any_of_fields(*names: str) -> JSONObject:
    """Return the rule that an object has at least one of these fields."""
    return {"anyOf": [{"required": [name]} for name in names]}


def nullable(schema: JSONObject) -> JSONObject:
    """Return the schema of what fits ``schema``, or is null."""
    kind, choices = schema.get("type"), schema.get("anyOf")
    if schema == ANYTHING or (isinstance(kind, list) and "null" in kind) or NULL in (choices or ()):
        return schema
    if isinstance(kind, str):
        values = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
        return {**schema, "type": [kind, "null"], **values}
    return {**schema, "anyOf": [*choices, NULL]} if choices else either(schema, NULL)


def record(required: JSONObject, optional: JSONObject | None = None) -> JSONObject:
    """Return the schema of an object by the schemas of its keys; others are allowed."""
    keys = {"required": list(required)} if required else {}
    return {"type": "object", "properties": {**required, **(optional or {})}, **keys}


def record_of(cls: type[Any]) -> JSONObject:
    """Return the schema of a dataclass or named tuple as JSON, which has all of its fields."""
    return record({name: _of_type(hint) for name, hint in typing.get_type_hints(cls).items()})


def _of_type(hint: Any) -> JSONObject:
    if hint in _PLAIN:
        return _PLAIN[hint]
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        schemas = [_of_type(part) for part in parts]
        others = [schema for schema in schemas if schema != NULL]
        return nullable(others[0]) if len(others) == 1 else either(*schemas)
    if origin in (list, Sequence):
        return array(_of_type(parts[0]))
    if origin is dict:
        return OBJECT
    return record_of(hint)
