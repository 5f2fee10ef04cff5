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


def with_schemas(options: JSONObject) -> JSONObject:
    """Return the options of a request with their schemas as the library reads them.

    A pattern that it can't read is left out. Raises InvalidRequest for one in a schema that is ``strict``.
    """
    changed: JSONObject = {}
    if isinstance(options.get("json_schema"), dict):
        changed["json_schema"] = _for_library("json_schema", options["json_schema"])
    if isinstance(form := options.get("response_format"), dict):
        changed["response_format"] = _of_format(form)
    if isinstance(tools := options.get("tools"), list):
        changed["tools"] = [_of_tool(f"tools[{index}]", tool) for index, tool in enumerate(tools)]
    return options | changed


def _of_format(form: JSONObject) -> JSONObject:
    field, inner = "response_format", form.get("json_schema")
    if isinstance(form.get("schema"), dict):
        form = {**form, "schema": _for_library(f"{field}.schema", form["schema"])}
    if isinstance(inner, dict) and isinstance(inner.get("schema"), dict):
        is_strict = inner.get("strict") is True
        schema = _for_library(f"{field}.json_schema", inner["schema"], is_strict=is_strict)
        form = {**form, "json_schema": {**inner, "schema": schema}}
    return form


def _of_tool(field: str, tool: JSONObject) -> JSONObject:
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("parameters"), dict):
        return tool
    return {**tool, "function": {**function, "parameters": _for_library(field, function["parameters"])}}


def _for_library(field: str, schema: JSONObject, *, is_strict: bool = False) -> JSONObject:
    try:
        return _Schema(is_strict=is_strict).whole(schema)
    except ValueError as error:
        raise InvalidRequest.of_field(field, f"has a pattern that can't be kept to: {error}; leave it out") from None
    except RecursionError:
        raise InvalidRequest.of_field(field, "is nested too deeply") from None


class _Schema:
    """Translates one schema."""

    def __init__(self, *, is_strict: bool) -> None:
        self._is_strict = is_strict
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
        try:
            return {"pattern": Pattern(text).translated()}
        except ValueError:
            if self._is_strict:
                raise
            return {}
