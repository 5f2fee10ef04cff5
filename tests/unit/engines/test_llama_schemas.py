"""JSON schemas for llama.cpp: patterns mean the same in its words, and what it can't read is left out or refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from modelyard.engines.llama_patterns import Pattern
from modelyard.engines.llama_schemas import MAX_ALTERNATIVES, with_schemas
from modelyard.errors import InvalidRequest

TEXTS = [
    "",
    "a",
    "b",
    "ab",
    "c",
    "xaby",
    "5",
    "2026",
    "ä",
    "ää",
    "日本",
    "日本本",
    "🙂",
    "🙂🙂",
    "_",
    "-",
    "]",
    "^",
    "a-]",
    "a.b",
    "a b",
    "Z",
]
PATTERNS = [
    *("ab", "^a", "b$", "", "^$", "^a$|^b$", "a|^5$", "^(a|b)+$", "^(?:a|b)*?$", "^(?P<name>a)b?$"),
    *(r"^\d{4}$", r"^\d{2,}$", r"^\w+$", r"^\W$", r"^\D+$", r"^\S+$", r"\s", r"^a\.b$", r"^\/?5$", r"^[\w.-]+$"),
    *("^ä+$", "^ä?$", "^日本{2}$", "^🙂{2}$", r"^\u00e4{2}$", r"^\xe4$", "^[äö]+$", "^[^a]+$", "^.$", "^.*$", "^a.b$"),
    *(r"^[\]^-]+$", r"^[-a\]]+$", "^[^-a]+$", "^[^^]+$", r"^[\^]$", "^[A-Z_]$", "^[ -~]+$", r"^[^\d_]$"),
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_means_the_same(pattern):
    translated = Pattern(pattern).translated()
    for text in TEXTS:
        assert bool(re.search(translated, text)) == bool(re.search(pattern, text, re.ASCII)), (translated, text)
    assert not re.search(translated, 'a"b\\'), "it would end the text, or make it no JSON"


def test_half_pairs_of_javascript_are_one_character():
    assert Pattern(r"^\ud83d\ude42{2}$").translated() == "^([🙂]{2})$"


UNREADABLE = [
    *("^(?=a)b$", "(?<!a)b", r"^\p{L}$", r"\bword\b", r"^(a)\1$", r"^\n$", '^"$', "a^b", "a$b", "(^a)", "*a", "a**"),
    *("(a", "a)", "[a", "[]", "[z-a]", r"[\d-z]", "a{", "\\"),
]


@pytest.mark.parametrize("pattern", UNREADABLE)
def test_what_can_not_be_kept_to_is_refused_if_it_is_strict_and_else_left_out(pattern):
    schema = {"type": "string", "pattern": pattern}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    with pytest.raises(InvalidRequest) as refused:
        with_schemas({"response_format": form})
    assert refused.value.errors[0]["field"] == "response_format.json_schema"
    form["json_schema"]["strict"] = None
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    options = with_schemas({"response_format": form, "json_schema": schema, "tools": [tool], "logprobs": True})
    assert options == {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "string"}, "strict": None},
        },
        "json_schema": {"type": "string"},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}],
        "logprobs": True,
    }


def schema_of(schema: dict[str, Any]) -> Any:
    return with_schemas({"json_schema": schema})["json_schema"]


def test_only_what_is_a_schema_is_changed():
    schema = {
        "type": "object",
        "properties": {"pattern": {"type": "string", "pattern": "^a$"}, "enum": {"pattern": "^b$"}, "$ref": True},
        "enum": [{"pattern": r"^\d$"}],
        "anyOf": [{"pattern": "^c$"}, {"$ref": "#/$defs/x"}],
        "$defs": {"x": {"pattern": 5}},
    }
    expected = {
        **schema,
        "properties": {"pattern": {"type": "string", "pattern": "^(a)$"}, "enum": {"pattern": "^(b)$"}, "$ref": True},
        "anyOf": [{"pattern": "^(c)$"}, {"$ref": "#/$defs/x"}],
    }
    assert schema_of(schema) == expected


def test_the_whole_may_be_referred_to():
    schema = {"type": "object", "properties": {"next": {"$ref": "#"}}, "$defs": {"x": {}}}
    made = schema_of(schema)
    (name,) = made["$defs"].keys() - {"x"}
    assert made["$ref"] == f"#/$defs/{name}"
    assert made["$defs"][name]["properties"] == {"next": {"$ref": f"#/$defs/{name}"}}


def test_what_is_nested_too_deeply_is_refused():
    schema: dict[str, Any] = {}
    for _ in range(2000):
        schema = {"items": schema}
    with pytest.raises(InvalidRequest, match="nested"):
        schema_of(schema)
    with pytest.raises(InvalidRequest, match="nested"):
        schema_of({"pattern": "(" * 5000})


def properties(count: int, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{number}": {} for number in range(count)}, **more}


MANY = MAX_ALTERNATIVES + 1
TOO_MANY: list[tuple[dict[str, Any], str]] = [
    ({"json_schema": {"enum": list(range(MANY))}}, "json_schema"),
    ({"json_schema": properties(MANY)}, "json_schema"),
    ({"json_schema": {"items": {"anyOf": [{"const": number} for number in range(MANY)]}}}, "json_schema"),
    ({"json_schema": {"pattern": "^(" + "a|" * MANY + "b)$"}}, "json_schema"),
    ({"grammar": 'root ::= "a"' + ' | "b"' * MANY}, "grammar"),
    ({"response_format": {"type": "json_object", "schema": properties(MANY)}}, "response_format.schema"),
    ({"tools": [{"function": {"parameters": properties(MAX_ALTERNATIVES)}}] * 5}, "tools[4]"),
]


@pytest.mark.parametrize(("options", "field"), TOO_MANY, ids=[f"{field} {i}" for i, (_, field) in enumerate(TOO_MANY)])
def test_a_schema_that_would_hold_up_a_model_is_refused(options, field):
    with pytest.raises(InvalidRequest, match="1000 are taken") as refused:
        with_schemas(options)
    assert refused.value.errors[0]["field"] == field


def test_what_is_required_is_no_alternative():
    schema = properties(2000, required=[f"p{number}" for number in range(2000)])
    assert schema_of(schema) == schema
    assert schema_of({"enum": list(range(MAX_ALTERNATIVES))})
