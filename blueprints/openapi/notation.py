"""Write a JSON Schema as people read types: ``{role: "user", content?: string}``, with links to named schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from markupsafe import Markup, escape

from ...types import JSONObject

WIDTH = 64
"""The characters of a line: a longer type is written over several."""
LARGEST_SHOWN = 2**53
"""Limits beyond it are those of a 64-bit integer, which tell a reader nothing."""
_INDENT = "  "


def type_of(schema: JSONObject) -> Markup:
    """Return the type that a schema describes, over several lines where it is long; null is left out at its top."""
    return _wrapped(_without_null(schema), "")


def limits_of(schema: JSONObject) -> str:
    """Return the ranges that a schema sets, as words: ``1 to 128``, ``at most 16 items``. Empty without any."""
    found = [
        text
        for least, most, unit in (
            ("minimum", "maximum", ""),
            ("minLength", "maxLength", "characters"),
            ("minItems", "maxItems", "items"),
        )
        if (text := _range(schema.get(least), schema.get(most), unit))
    ]
    if schema.get("pattern"):
        found.append(f"matches {schema['pattern']}")
    return ", ".join(found)


def prose(text: str) -> Markup:
    """Return a description, in which what stands between backticks is code."""
    parts = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if n % 2 else part for n, part in enumerate(parts))


def name_of(reference: str) -> str:
    """Return the last part of a reference: the name of a component."""
    return reference.rpartition("/")[2]


def _range(least: float | None, most: float | None, unit: str) -> str:
    low, high = _shown(least), _shown(most)
    if unit and least == 1 and not high:
        return "not empty"
    text = f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}" if high else ""
    return f"{text} {unit}".strip() if text else ""


def _shown(limit: float | None) -> str:
    if limit is None or abs(limit) > LARGEST_SHOWN:
        return ""
    return f"{int(limit):,}" if limit == int(limit) else f"{limit:g}"


def _without_null(schema: JSONObject) -> JSONObject:
    """Return a schema without the null that it takes: of a field, it means absent."""
    changed = dict(schema)
    if isinstance(schema.get("type"), list):
        (changed["type"],) = [kind for kind in schema["type"] if kind != "null"] or ["null"]
    if "enum" in schema:
        changed["enum"] = [value for value in schema["enum"] if value is not None]
    if "anyOf" in schema:
        changed["anyOf"] = [each for each in schema["anyOf"] if each != {"type": "null"}]
    return changed


def _wrapped(schema: JSONObject, indent: str) -> Markup:
    """Return a type at an indentation: on one line if it fits, else its parts on lines of their own."""
    line = _line(schema)
    if len(line.striptags()) + len(indent) <= WIDTH:
        return line
    inner = indent + _INDENT
    if len(kinds := _kinds(schema)) == 2 and "null" in kinds:
        return _wrapped(_without_null(schema), indent) + Markup(" | null")
    if choices := schema.get("anyOf"):
        return Markup("").join(Markup("\n{}| {}").format(inner, _wrapped(each, inner)) for each in _typed(choices))
    if "properties" in schema:
        fields = Markup("").join(
            Markup("{}{}: {}\n").format(inner, name, _wrapped(field, inner)) for name, field in _fields(schema)
        )
        return Markup("{{\n{}{}}}").format(fields, indent)
    if "items" in schema:
        return _listed(_wrapped(schema["items"], indent), schema["items"])
    return line


def _line(schema: JSONObject) -> Markup:
    """Return a type on one line."""
    if (kinds := _kinds(schema)) == ["null"]:
        return Markup("null")
    if "$ref" in schema:
        name = name_of(schema["$ref"])
        return Markup('<a href="#{}">{}</a>').format(name, name)
    if "enum" in schema:
        return escape(" | ".join(map(json.dumps, schema["enum"])))
    if len(kinds) > 1:
        return escape(" | ").join(_line({**schema, "type": each}) for each in kinds)
    if choices := _typed(schema.get("anyOf", ())):
        return escape(" | ").join(map(_line, choices))
    if "items" in schema:
        return _listed(_line(schema["items"]), schema["items"])
    if "contentSchema" in schema:
        return _line(schema["contentSchema"])
    if "properties" in schema:
        fields = Markup(", ").join(Markup("{}: {}").format(name, _line(field)) for name, field in _fields(schema))
        return Markup("{{{}}}").format(fields)
    return escape(kinds[0] if kinds else "any")


def _kinds(schema: JSONObject) -> list[str]:
    """Return the types of JSON that a schema names."""
    kind = schema.get("type", [])
    return kind if isinstance(kind, list) else [kind]


def _typed(choices: Any) -> list[JSONObject]:
    """Return those of several schemas that are types, and not rules for the fields of one."""
    return [each for each in choices if each.keys() != {"required"}]


def _fields(schema: JSONObject) -> Iterator[tuple[str, JSONObject]]:
    """Yield the fields of an object, those that may be absent with a question mark."""
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        yield name if name in required else f"{name}?", field


def _listed(text: Markup, items: JSONObject) -> Markup:
    choices = _typed(items.get("anyOf", ())), items.get("enum", ()), _kinds(items)
    is_joined = any(len(each) > 1 for each in choices)
    return Markup("({})[]").format(text) if is_joined else text + Markup("[]")
