"""Bodies are read as WIRE says: null is absent, unknown keys are ignored, everything else has a type and a range."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from modelyard.blueprints import worker_schemas as schemas
from modelyard.blueprints.request.fields import load
from modelyard.errors import InvalidRequest
from modelyard.types import GenerateRequest

MESSAGES = [{"role": "human", "content": "hi"}]


def request(**fields: Any) -> GenerateRequest:
    return schemas.generate_request({"model": "m", "prompt": "p", **fields})


def faults(call: Any, *arguments: Any) -> list[str]:
    """Return the fields that a refusal names."""
    with pytest.raises(InvalidRequest) as caught:
        call(*arguments)
    assert all(error["message"] for error in caught.value.errors)
    return [error["field"] for error in caught.value.errors]


def fault(**fields: Any) -> list[str]:
    return faults(schemas.generate_request, {"model": "m", "prompt": "p", **fields})


# Prompts


def test_what_the_peers_send_is_taken():
    body = {
        "model": "echo",
        "messages": [{"role": "human", "content": "hi 你好", "round_index": 0}],
        "prompt": "hi",
        "temperature": 0.5,
        "max_new_tokens": 3,
        "stop_token_ids": [],
        "echo": False,
        "metrics": False,
        "version": "v2",
        "chat_model": True,
        "span_id": "empty_span",
        "context": {"any": ["thing"]},
        "stop": "###",
        "unknown": object(),
    }
    assert schemas.generate_request(body) == GenerateRequest(
        "echo",
        messages=body["messages"],
        prompt="hi",
        temperature=0.5,
        max_new_tokens=3,
        chat_model=True,
        span_id="empty_span",
        context={"any": ["thing"]},
        stop=["###"],
    )


def test_every_field_of_a_request_can_be_sent_and_null_means_absent():
    names = {f.name for f in dataclasses.fields(GenerateRequest)} - {"terms", "whole"}  # of headers and callers
    assert names - set(schemas.PromptSchema().fields) == {"messages", "stop"}
    assert request(**dict.fromkeys(names - {"model", "prompt"})) == GenerateRequest("m", prompt="p")


RANGES = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "top_k": (-1, 1_000_000),
    "min_p": (0, 1),
    "seed": (-1, 2**32 - 1),
    "max_new_tokens": (1, 10_000_000),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0, 100),
    "context_len": (1, 100_000_000),
}
INTEGERS = {"top_k", "seed", "max_new_tokens", "context_len"}


@pytest.mark.parametrize("name", RANGES)
def test_numbers_are_taken_within_their_range_and_no_further(name):
    least, most = RANGES[name]
    for value in (least, most):
        assert getattr(request(**{name: value}), name) == value
    for value in (least - 1, most + 1, 10**15, -(10**15)):
        assert fault(**{name: value}) == [name]


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("value", ["1", "", True, False, [1], {}, float("nan"), float("inf"), float("-inf")], ids=repr)
def test_what_is_no_number_is_refused(name, value):
    assert fault(**{name: value}) == [name]


@pytest.mark.parametrize("name", sorted(INTEGERS))
@pytest.mark.parametrize("value", [1.5, 1.0, 1e30])
def test_what_is_no_whole_number_is_refused(name, value):
    assert fault(**{name: value}) == [name]


def test_every_number_of_a_prompt_has_a_range():
    numbers = {f.name for f in dataclasses.fields(GenerateRequest) if "int" in str(f.type) or "float" in str(f.type)}
    assert numbers - {"stop_token_ids"} == set(RANGES)


@pytest.mark.parametrize("name", ["echo", "metrics", "chat_model"])
def test_flags_are_true_or_false(name):
    assert getattr(request(messages=MESSAGES, **{name: True}), name) is True
    assert getattr(request(messages=MESSAGES, **{name: False}), name) is False
    for value in (0, 1, "true", "", [], {}):
        assert fault(**{name: value}) == [name]


def test_an_absent_echo_is_false():
    assert request().echo is False


@pytest.mark.parametrize("name", ["model", "prompt", "span_id"])
@pytest.mark.parametrize("value", [5, True, ["x"], {"x": 1}], ids=repr)
def test_texts_are_strings(name, value):
    assert fault(**{name: value}) == [name]


@pytest.mark.parametrize("value", ["", "x" * 513])
def test_a_model_has_a_name_of_some_length(value):
    assert fault(model=value) == ["model"]
    assert request(model="x" * 512).model == "x" * 512


@pytest.mark.parametrize("body", [{}, {"model": None, "prompt": "p"}, {"prompt": "p"}])
def test_without_a_model_it_is_named(body):
    assert faults(schemas.generate_request, body) == ["model"]


def test_all_faults_are_told_at_once():
    assert sorted(fault(temperature=-1, top_k="x", echo=1)) == ["echo", "temperature", "top_k"]


# Messages


@pytest.mark.parametrize("role", ["system", "human", "ai", "user", "assistant"])
def test_the_roles_of_both_worlds_are_taken(role):
    assert request(messages=[{"role": role, "content": "x"}]).messages[0]["role"] == role


def test_what_an_application_showed_its_user_is_not_passed_to_the_model():
    views = [{"role": "view", "content": "<chart/>"}]
    assert request(messages=[*MESSAGES, *views]).messages == MESSAGES
    assert fault(prompt=None, messages=views) == ["messages"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "x",
        [],
        ["x"],
        [{"type": "text", "text": "x"}],
        [{"type": "text", "object": {"data": "x", "format": "text"}}],
        {"type": "text", "object": {"data": "x", "format": "text"}},
    ],
    ids=repr,
)
def test_content_is_a_string_or_parts_of_text(content):
    assert request(messages=[{"role": "human", "content": content}]).messages[0]["content"] == content


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ("hi", "messages"),
        ({}, "messages"),
        (5, "messages"),
        ("", "messages"),
        (0, "messages"),
        (False, "messages"),
        (["hi"], "messages[0]"),
        ([None], "messages[0]"),
        ([[]], "messages[0]"),
        ([*MESSAGES, {}], "messages[1].role"),
        ([{"role": "king", "content": "x"}], "messages[0].role"),
        ([{"role": None, "content": "x"}], "messages[0].role"),
        ([{"role": ["human"], "content": "x"}], "messages[0].role"),
        ([{"role": "human"}], "messages[0].content"),
        ([{"role": "human", "content": None}], "messages[0].content"),
        ([{"role": "human", "content": 5}], "messages[0].content"),
        ([{"role": "human", "content": [5]}], "messages[0].content"),
        ([{"role": "human", "content": [{"type": "image_url"}]}], "messages[0].content"),
        ([{"role": "human", "content": [{"type": ["text"]}]}], "messages[0].content"),
        (MESSAGES * 10_001, "messages"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_messages_of_another_shape_are_refused_by_their_place(messages, field):
    assert fault(messages=messages) == [field]


def test_as_many_messages_as_allowed_are_taken():
    assert len(request(messages=MESSAGES * 10_000).messages) == 10_000


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": ""},
        {"prompt": None, "messages": None},
        {"messages": []},
        {"prompt": "", "messages": []},
        {"messages": MESSAGES, "chat_model": False},
        {"prompt": "", "messages": MESSAGES, "chat_model": False},
    ],
    ids=repr,
)
def test_where_nothing_is_said_it_is_refused(body):
    assert faults(schemas.generate_request, {"model": "m", **body}) == ["messages"]


# Stops


@pytest.mark.parametrize(
    ("stop", "taken"), [(None, []), ("x", ["x"]), (["x", "y"], ["x", "y"]), ([], []), ("", []), (["", "x"], ["x"])]
)
def test_stop_is_a_string_or_a_list(stop, taken):
    assert request(stop=stop).stop == taken


@pytest.mark.parametrize("stop", [5, {}, [5], ["x", None], True, ["x"] * 65], ids=lambda value: repr(value)[:30])
def test_any_other_stop_is_refused(stop):
    assert fault(stop=stop) == ["stop"]


def test_stop_ids_are_whole_numbers_and_not_too_many():
    assert request(stop_token_ids=[0, 5]).stop_token_ids == [0, 5]
    assert fault(stop_token_ids=[1, "2", None]) == ["stop_token_ids[1]", "stop_token_ids[2]"]
    assert fault(stop_token_ids=[1] * 1025) == ["stop_token_ids"]
    assert fault(stop_token_ids=5) == ["stop_token_ids"]


# The others


def test_texts_are_a_list_of_strings():
    assert schemas.texts({"input": ["", "x"]}) == ["", "x"]
    assert schemas.texts({"input": []}) == []
    assert len(schemas.texts({"input": ["x"] * 10_000})) == 10_000


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (None, "input"),
        ("x", "input"),
        ({}, "input"),
        (["x", 5], "input[1]"),
        (["x", None], "input[1]"),
        ([["x"]], "input[0]"),
        (["x"] * 10_001, "input"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_any_other_input_is_refused_by_its_place(given, field):
    assert faults(schemas.texts, {"input": given}) == [field]
    assert faults(schemas.texts, {}) == ["input"]


SCHEMAS = {
    "embeddings": (schemas.EMBEDDINGS, {"model": "m", "query": "q"}),
    "count_token": (schemas.COUNT_TOKEN, {"model": "m", "prompt": "p"}),
    "metadata": (schemas.METADATA, {"model": "m"}),
    "apply": (
        schemas.APPLY,
        {"model": "m", "apply_type": "start", "worker_type": "llm", "params": {"a": 1}, "apply_user": "u"},
    ),
    "startup": (
        schemas.STARTUP,
        {"model": "m", "host": "h", "port": 1, "worker_type": "reranker", "params": {"a": None}},
    ),
    "descriptions": (schemas.DESCRIPTIONS, {"model": "m", "worker_type": "text2vec"}),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_whole_body_is_taken_and_unknown_keys_are_ignored(name):
    schema, body = SCHEMAS[name]
    assert load(schema, {**body, "sys_code": "x", "delete_after": False}) == body


@pytest.mark.parametrize("name", SCHEMAS)
def test_null_is_absent(name):
    schema, body = SCHEMAS[name]
    required = {field for field, declared in schema.fields.items() if declared.required}
    bare = {key: body[key] if key in required else None for key in body}
    assert load(schema, bare) == {key: body[key] for key in required}
    assert set(faults(load, schema, dict.fromkeys(body))) == required


@pytest.mark.parametrize("name", SCHEMAS)
def test_other_types_are_refused_by_name(name):
    schema, body = SCHEMAS[name]
    for key in set(body) - {"port"}:
        for value in (5, True, [], ["x"]):
            assert faults(load, schema, {**body, key: value}) == [key]


@pytest.mark.parametrize("name", ["apply", "startup", "descriptions"])
def test_a_type_of_worker_is_one_of_three(name):
    schema, body = SCHEMAS[name]
    for value in ("king", "", "LLM"):
        assert faults(load, schema, {**body, "worker_type": value}) == ["worker_type"]


def test_what_to_apply_is_one_of_four():
    schema, body = SCHEMAS["apply"]
    for value in ("start", "stop", "restart", "update_params"):
        assert load(schema, {**body, "apply_type": value})["apply_type"] == value
    assert faults(load, schema, {**body, "apply_type": "explode"}) == ["apply_type"]


def test_the_schemas_of_a_prompt_are_built_once_for_each_set_of_fields():
    one = schemas._prompt_schema(frozenset({"model", "prompt"}))
    assert one is schemas._prompt_schema(frozenset({"prompt", "model"}))
