"""A JSON Schema as people read types."""

from __future__ import annotations

from typing import Any

import pytest
from modelyard.blueprints.openapi.notation import limits_of, prose, type_of
from modelyard.blueprints.openapi.shapes import (
    INTEGER,
    NULL,
    STRING,
    any_of_fields,
    array,
    either,
    nullable,
    one_of,
    record,
    ref,
)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({}, "any"),
        (STRING, "string"),
        (nullable(INTEGER), "integer"),
        (NULL, "null"),
        (one_of("a", "b"), "&#34;a&#34; | &#34;b&#34;"),
        (array(STRING), "string[]"),
        (array(either(STRING, INTEGER)), "(string | integer)[]"),
        (record({"a": nullable(array(INTEGER))}), "{a: integer[] | null}"),
        (array(nullable(STRING)), "(string | null)[]"),
        (either(STRING, array(STRING), NULL), "string | string[]"),
        (record({"a": STRING}, {"b": nullable(INTEGER)}), "{a: string, b?: integer | null}"),
        ({**record({"a": STRING}), **any_of_fields("a")}, "{a: string}"),
        (ref("Usage"), '<a href="#Usage">Usage</a>'),
        ({"type": "string", "enum": ["<b>"]}, "&#34;&lt;b&gt;&#34;"),
    ],
)
def test_a_type_on_one_line(schema: dict[str, Any], expected: str):
    assert type_of(schema) == expected


def test_a_long_type_has_a_line_for_each_field():
    names = [f"quite_a_long_name_{n}" for n in range(4)]
    inner = record(dict.fromkeys(names, STRING))
    text = type_of(record({"inner": inner, "other": nullable(inner), "last": STRING}))
    fields = [f"    {name}: string" for name in names]
    lines = ["{", "  inner: {", *fields, "  }", "  other: {", *fields, "  } | null", "  last: string", "}"]
    assert text.split("\n") == lines


def test_a_long_choice_has_a_line_for_each_type():
    text = type_of(either(record({"a": one_of("x" * 40)}), record({"b": one_of("y" * 40)})))
    assert [line.strip()[:5] for line in text.split("\n")] == ["", "| {a:", "| {b:"]


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (STRING, ""),
        ({"minimum": 0.0, "maximum": 2.0}, "0 to 2"),
        ({"minimum": 0.5}, "at least 0.5"),
        ({"maximum": 10_000_000}, "at most 10,000,000"),
        ({"minimum": -(2**63), "maximum": 2**63 - 1}, ""),
        ({"minLength": 1}, "not empty"),
        ({"minLength": 1, "maxLength": 512}, "1 to 512 characters"),
        ({"maxItems": 16}, "at most 16 items"),
        ({"pattern": "^a$"}, "matches ^a$"),
    ],
)
def test_the_limits_in_words(schema: dict[str, Any], expected: str):
    assert limits_of(schema) == expected


def test_code_within_a_description():
    assert prose("With `a<b`, more.") == "With <code>a&lt;b</code>, more."
