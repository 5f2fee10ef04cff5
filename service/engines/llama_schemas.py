"""The JSON schemas of a request as llama.cpp's compiler of grammars reads them."""

from __future__ import annotations

from typing import Any

from ..errors import InvalidRequest
from ..types import JSONObject
from .llama_patterns import Pattern

_VALUES = frozenset({"const", "default", "enum", "examples"})
"""The keys of a schema whose values are no schemas."""
_MAPS = frozenset({"$defs", "definitions", "patternProperties", "properties"})
"""The keys of a schema whose values have schemas by names."""
_ROOT = "the-whole"
MAX_ALTERNATIVES = 1000
"""The most alternatives of one schema. The library looks at all of them for each token, and compiles optional
properties in the square of their number: 3000 of either hold up all requests of a model for minutes."""
MAX_ALTERNATIVES_TOGETHER = 4 * MAX_ALTERNATIVES
"""The most of all schemas of a request."""


def with_schemas(options: JSONObject) -> JSONObject:
    """Return the options of a request with their schemas as the library reads them.

    A pattern that it can't read is left out. Raises InvalidRequest for one in a schema that is ``strict``, and for
    too many alternatives.
    """
    schemas = _Schemas()
    changed: JSONObject = {}
    if isinstance(options.get("json_schema"), dict):
        changed["json_schema"] = schemas.read("json_schema", options["json_schema"])
    if isinstance(form := options.get("response_format"), dict):
        changed["response_format"] = _of_format(schemas, form)
    if isinstance(tools := options.get("tools"), list):
        changed["tools"] = [_of_tool(schemas, f"tools[{index}]", tool) for index, tool in enumerate(tools)]
    if isinstance(options.get("grammar"), str):
        schemas.count("grammar", options["grammar"].count("|"))
    return options | changed


def _of_format(schemas: _Schemas, form: JSONObject) -> JSONObject:
    field, inner = "response_format", form.get("json_schema")
    if isinstance(form.get("schema"), dict):
        form = {**form, "schema": schemas.read(f"{field}.schema", form["schema"])}
    if isinstance(inner, dict) and isinstance(inner.get("schema"), dict):
        schema = schemas.read(f"{field}.json_schema", inner["schema"], is_strict=inner.get("strict") is True)
        form = {**form, "json_schema": {**inner, "schema": schema}}
    return form


def _of_tool(schemas: _Schemas, field: str, tool: JSONObject) -> JSONObject:
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("parameters"), dict):
        return tool
    return {**tool, "function": {**function, "parameters": schemas.read(field, function["parameters"])}}


class _Schemas:
    """Reads the schemas of one request, and counts their alternatives."""

    def __init__(self) -> None:
        self._together = 0

    def read(self, field: str, schema: JSONObject, *, is_strict: bool = False) -> JSONObject:
        """Return a schema as the library reads it. Raises InvalidRequest."""
        reader = _Schema(is_strict=is_strict)
        try:
            made = reader.whole(schema)
        except ValueError as error:
            message = f"has a pattern that can't be kept to: {error}; leave it out"
            raise InvalidRequest.of_field(field, message) from None
        except RecursionError:
            raise InvalidRequest.of_field(field, "is nested too deeply") from None
        self.count(field, reader.alternatives)
        return made

    def count(self, field: str, alternatives: int) -> None:
        """Raise InvalidRequest if there are too many alternatives in one schema, or in all."""
        self._together += alternatives
        if alternatives > MAX_ALTERNATIVES or self._together > MAX_ALTERNATIVES_TOGETHER:
            raise InvalidRequest.of_field(
                field,
                f"has {alternatives} alternatives (values of enum, branches, properties that are not required), "
                f"{self._together} with those before: at most {MAX_ALTERNATIVES} are taken, and "
                f"{MAX_ALTERNATIVES_TOGETHER} in all",
            )


class _Schema:
    """Translates one schema."""

    def __init__(self, *, is_strict: bool) -> None:
        self._is_strict = is_strict
        self.alternatives = 0
        """How many values and branches there are to choose from."""
        self._has_root = False
        """Whether a part refers to the whole."""

    def whole(self, schema: JSONObject) -> JSONObject:
        """Return the schema. Raises ValueError for a pattern that the library can't read, if it is strict."""
        made: JSONObject = self._part(schema)
        if not self._has_root:
            return made
        return {**made, "$defs": {**(made.get("$defs") or {}), _ROOT: made}, "$ref": f"#/$defs/{_ROOT}"}

    def _part(self, part: Any) -> Any:
        if isinstance(part, list):
            return [self._part(item) for item in part]
        if not isinstance(part, dict):
            return part
        self.alternatives += _alternatives(part)
        made: JSONObject = {}
        for key, value in part.items():
            if key in _VALUES:
                made[key] = value
            elif key in _MAPS and isinstance(value, dict):
                made[key] = {name: self._part(inner) for name, inner in value.items()}
            elif key == "pattern" and isinstance(value, str):
                made |= self._pattern(value)
            elif key == "$ref" and value == "#":
                self._has_root = True
                made[key] = f"#/$defs/{_ROOT}"
            else:
                made[key] = self._part(value)
        return made

    def _pattern(self, text: str) -> JSONObject:
        self.alternatives += text.count("|")
        try:
            return {"pattern": Pattern(text).translated()}
        except ValueError:
            if self._is_strict:
                raise
            return {}


def _alternatives(part: JSONObject) -> int:
    """Return how many values, branches and optional properties a part of a schema has itself."""
    count = sum(len(part[name]) for name in ("enum", "anyOf", "oneOf") if isinstance(part.get(name), list))
    if isinstance(properties := part.get("properties"), dict):
        required = part.get("required")
        names = required if isinstance(required, list) else ()
        count += len(properties.keys() - {name for name in names if isinstance(name, str)})
    return count
