"""`load` reads a body field by field, and gives what marshmallow's own `Schema.load` gives."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
from flask import Flask, request
from marshmallow import Schema, ValidationError, fields, missing
from modelyard.blueprints import controller_schemas, worker_schemas
from modelyard.blueprints.openai import schemas as openai_schemas
from modelyard.blueprints.request.current import current_request
from modelyard.blueprints.request.fields import load
from modelyard.errors import InvalidRequest

VALUES: tuple[Any, ...] = ("text", "", 1, -1, 0.5, True, [], ["a", 1], {}, {"a": 1}, {1: "a"}, float("nan"), 10**30)


def schemas_of(module: ModuleType) -> list[Any]:
    return [pytest.param(value, id=name) for name, value in vars(module).items() if isinstance(value, Schema)]


EVERY = [schema for module in (controller_schemas, worker_schemas, openai_schemas) for schema in schemas_of(module)]


def outcome(read: Callable[[dict[str, Any]], Any], body: dict[str, Any]) -> str:
    """Return what ``read`` loads of a body, or the fields that it refuses with the messages for each."""
    try:
        return repr(read(body))
    except InvalidRequest as error:
        return repr([(re.split(r"[.[]", entry["field"])[0], entry["message"]) for entry in error.errors])
    except ValidationError as error:
        faults = error.normalized_messages().items()
        return repr([(field, message) for field, messages in faults for message in leaves(messages)])


def leaves(messages: Any) -> list[str]:
    if isinstance(messages, dict):
        return [leaf for inner in messages.values() for leaf in leaves(inner)]
    return [str(message) for message in messages]


@pytest.mark.parametrize("schema", EVERY)
def test_a_body_is_read_as_marshmallow_reads_it(schema: Schema):
    names = [field.data_key or name for name, field in schema.fields.items()]
    bodies: list[dict[str, Any]] = [{}, {"unknown": 1}, *(dict.fromkeys(names, value) for value in VALUES)]
    bodies += [{name: value} for name in names for value in VALUES]
    for body in bodies:
        assert outcome(partial(load, schema), body) == outcome(schema.load, body), body


@pytest.mark.parametrize("schema", EVERY)
def test_null_means_absent(schema: Schema):
    body = {field.data_key or name: None for name, field in schema.fields.items()}
    assert outcome(partial(load, schema), body) == outcome(schema.load, {})


@pytest.mark.parametrize("schema", EVERY)
def test_no_field_has_a_default(schema: Schema):
    assert all(field.load_default is missing for field in schema.fields.values())


def test_the_faults_within_a_field_have_their_paths():
    class Entries(Schema):
        rows = fields.List(fields.Dict(keys=fields.String(), values=fields.Integer()))

    with pytest.raises(InvalidRequest) as caught:
        load(Entries(), {"rows": [{"a": 1}, {"b": "x"}, 3]})
    assert [entry["field"] for entry in caught.value.errors] == ["rows[1].b.value", "rows[2]"]


def test_the_current_request_is_the_one_that_the_application_has_made():
    with Flask(__name__).test_request_context("/path"):
        current = current_request()
        assert request == current
        assert type(current) is Flask.request_class
