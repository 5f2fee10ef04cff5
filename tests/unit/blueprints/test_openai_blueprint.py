"""OpenAI's API over Flask's test client: the answers and errors to the letter, and what reaches the engine."""

from __future__ import annotations

import base64
import itertools
import json
import logging
import math
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import steered
from flask import Flask, abort
from flask.testing import FlaskClient
from in_process import SCRIPTED
from modelyard import Modelyard
from modelyard.access.tokens import INFER, WORKER, digest_of, new_secret
from modelyard.blueprints.request import streaming
from modelyard.engines.base import OfTexts
from modelyard.engines.echo import Echo
from modelyard.engines.scripted import Answers
from modelyard.server.clients import Clients
from modelyard.server.extension import create_app
from modelyard.server.runtime import Runtime
from modelyard.settings.settings import INLINE, Settings
from modelyard.sockets import HELD
from official import CheckedClient
from steered import Steered
from werkzeug.test import TestResponse


@pytest.fixture(scope="module")
def answers() -> Answers:
    """What the model ``gpt`` answers: the last message of the user, unless a test says something else."""
    return Answers()


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, answers: Answers) -> Iterator[Flask]:
    Steered.reset()
    folder = tmp_path_factory.mktemp("openai")
    settings = Settings(state_dir=str(folder / "state"), models_dirs=[str(folder / "models")], max_body_bytes=64 * 1024)
    settings.model_tables = (
        {"name": "team/gpt", "worker_class": SCRIPTED, "script": answers.key},
        {"name": "steered", "worker_class": steered.PATH, "limit_model_concurrency": 1, "max_waiting": 0},
        {"name": "emb", "engine": "echo", "worker_type": "text2vec"},
        {"name": "rank", "worker_class": steered.PATH, "worker_type": "reranker"},
    )
    made = create_app(settings)
    made.test_client_class = CheckedClient
    runtime: Runtime = made.extensions["modelyard"]
    runtime.start()
    assert runtime.wait_loaded(30)
    yield made
    Steered.go.set()
    assert runtime.requests == set(), "a request was never closed"
    assert runtime.budget.held == 0, "a thread of the budget was lost"
    runtime.stop()
    assert Steered.running() == []


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def post(client: FlaskClient, path: str, body: Any, **options: Any) -> TestResponse:
    # Buffered, the client reads all of it and closes it, as a server does.
    return client.post(path, json=body, buffered=True, **options)


def chat(client: FlaskClient, text: str = "a b", model: str = "team/gpt", **fields: Any) -> TestResponse:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    return post(client, "/v1/chat/completions", body)


def events_of(response: TestResponse) -> list[dict[str, Any]]:
    """Return the objects of a stream that ends in order."""
    lines = response.get_data(as_text=True).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2] if not line.startswith(":")]


def error_of(response: TestResponse) -> dict[str, Any]:
    error = response.get_json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    return error


# Chat


def test_a_chat_completion_has_openais_keys(client):
    response = chat(client, "one two")
    answer = response.get_json()
    assert response.status_code == 200
    assert answer.pop("id").startswith("chatcmpl-")
    assert isinstance(answer.pop("created"), int)
    assert answer.pop("system_fingerprint").startswith("modelyard-")
    assert answer == {
        "object": "chat.completion",
        "model": "team/gpt",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "one two", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4},
    }


def test_a_stream_is_byte_for_byte_what_clients_read(client):
    response = chat(client, 'He said "hi", then\n left', stream=True)
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert "Content-Length" not in response.headers
    first = json.loads(response.data.split(b"\n\n")[0].removeprefix(b"data: "))
    head = json.dumps({key: first[key] for key in list(first)[:5]}, separators=(",", ":"))[:-1]
    assert list(first)[:5] == ["id", "object", "created", "model", "system_fingerprint"]
    assert first["object"] == "chat.completion.chunk"

    def event(delta: str, reason: str = "null") -> str:
        choice = f'{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{reason}}}'
        return f'data: {head},"choices":[{choice}]}}\n\n'

    pieces = [r"He", r" said", r" \"hi\",", r" then\n", r" left"]
    expected = event('{"role":"assistant","content":""}')
    expected += "".join(event(f'{{"content":"{piece}"}}') for piece in pieces)
    expected += event("{}", '"stop"') + "data: [DONE]\n\n"
    assert response.get_data(as_text=True) == expected


def test_usage_comes_last_where_it_is_asked_for(client):
    events = events_of(chat(client, "one two", stream=True, stream_options={"include_usage": True}))
    assert [event["usage"] for event in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
    assert all("usage" not in event for event in events_of(chat(client, stream=True)))


def test_several_choices_begin_in_order_and_count_the_prompt_once(client):
    events = events_of(chat(client, "one two", n=3, stream=True, stream_options={"include_usage": True}))
    choices = [event["choices"][0] for event in events if event["choices"]]
    assert [choice["index"] for choice in choices[:3]] == [0, 1, 2]
    assert ["role" in choice["delta"] for choice in choices] == [True] * 3 + [False] * (len(choices) - 3)
    for index in range(3):
        own = [choice for choice in choices if choice["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in own) == "one two"
        assert [choice["finish_reason"] for choice in own if choice["finish_reason"]] == ["stop"]
    assert events[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8}
    whole = chat(client, "one two", n=3).get_json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in whole["choices"]] == ["one two"] * 3
    assert whole["usage"] == events[-1]["usage"]


def test_what_reaches_the_engine(client, answers):
    messages = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "three", "reasoning_content": "hm", "tool_calls": None},
        {"role": "user", "content": "four", "name": "Ada"},
    ]
    fields = {"max_completion_tokens": 3, "max_tokens": 9, "stop": "END", "seed": 2**32 + 5, "temperature": 0.5, "n": 2}
    absent = {"logprobs": None, "tools": None, "response_format": {"type": "text"}, "verbosity": "low", "stream": False}
    body = {"model": "team/gpt", "messages": messages, **fields, **absent}
    assert post(client, "/v1/chat/completions", body).status_code == 200
    first, second = (call.request for call in answers.asked[-2:])
    assert first is not None
    assert second is not None
    assert first.messages == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "one two"},
        {"role": "assistant", "content": "three"},
        {"role": "user", "content": "four"},
    ]
    assert (first.max_new_tokens, first.stop, first.temperature) == (3, ["END"], 0.5)
    assert [first.seed, second.seed] == [5, 6]


def test_answers_of_others_may_be_sent_back_as_they_are(client, answers):
    function = {"name": "f", "arguments": "{}"}
    messages = [
        {"role": "assistant", "content": None, "refusal": "No.", "audio": None, "annotations": []},
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": None, "function_call": function, "reasoning": "hm"},
        {"role": "function", "name": "f", "content": "5"},
        {"role": "user", "content": "a"},
    ]
    assert post(client, "/v1/chat/completions", {"model": "team/gpt", "messages": messages}).status_code == 200
    call = {"id": "f", "type": "function", "function": function}
    assert last_options(answers)["messages"] == [
        {"role": "assistant", "content": "No."},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "5", "tool_call_id": "f"},
        {"role": "user", "content": "a"},
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("functions", [{"name": "f"}]),
        ("response_format", {"type": "json_object"}),
        ("top_logprobs", 1),
        ("logit_bias", {"5": 1}),
        ("grammar", 'root ::= "a"'),
        ("json_schema", {"const": 1}),
        ("modalities", ["text", "audio"]),
    ],
)
def test_what_a_model_can_not_do_is_refused_with_model_and_field(client, field, value):
    more = {"logprobs": True} if field == "top_logprobs" else {}
    response = chat(client, model="steered", **{field: value}, **more)
    error = error_of(response)
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert field in error["message"]
    assert "'steered'" in error["message"]
    assert error["param"] in (field, "logprobs")


def test_calls_in_a_history_are_refused_as_such(client):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c", "content": "5"}]
    error = error_of(post(client, "/v1/chat/completions", {"model": "steered", "messages": messages}))
    assert error["param"] == "messages"
    assert "calls of tools" in error["message"]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("text", "messages[0]"),
        ({"content": "a"}, "messages[0].role"),
        ({"role": "robot", "content": "a"}, "messages[0].role"),
        ({"role": "tool", "content": "a"}, "messages[0].tool_call_id"),
        ({"role": "assistant", "tool_calls": [{"id": "c"}]}, "messages[0].tool_calls[0].function"),
        ({"role": "function", "content": "a"}, "messages[0].name"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[0].content[0]"),
    ],
)
def test_a_message_that_can_not_be_read_is_named(client, message, field):
    response = post(client, "/v1/chat/completions", {"model": "team/gpt", "messages": [message]})
    assert response.status_code == 400
    assert error_of(response)["param"] == field


def test_an_error_in_the_middle_of_a_stream_is_an_event(client):
    data = chat(client, "break", "steered", stream=True).get_data(as_text=True)
    *_, last, end = data.split("\n\n")
    error = json.loads(last.removeprefix("data: "))["error"]
    assert end == ""
    assert (error["type"], error["code"]) == ("server_error", "engine_error")
    assert "RuntimeError" in error["message"]


def test_an_error_before_the_first_piece_is_a_status(client):
    response = chat(client, "crash", "steered", stream=True)
    assert response.status_code == 500
    assert response.headers["x-should-retry"] == "false"
    assert error_of(response)["code"] == "engine_error"


def test_a_prompt_that_is_too_long_says_so_in_the_words_that_clients_look_for(client):
    response = chat(client, "refuse", "steered")
    error = error_of(response)
    assert response.status_code == 400
    assert error["code"] == "context_length_exceeded"
    assert "prompt is too long" in error["message"]
    assert "context_length_exceeded" in error["message"]


def test_overload_is_503_with_a_pause(app, client):
    worker = next(w for w in app.extensions["modelyard"].local.models.workers() if w.name == "steered")
    held = worker.gate.request()
    try:
        response = chat(client, "a", "steered")
    finally:
        held.release()
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1
    assert error_of(response)["type"] == "overloaded_error"


@pytest.mark.parametrize(
    ("path", "prompt", "nothing"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, {"delta": {}}),
        ("/v1/completions", {"prompt": "a"}, {"text": ""}),
    ],
)
def test_a_silence_is_broken_by_comments_and_after_a_minute_by_an_event(
    app, client, answers, monkeypatch, path, prompt, nothing
):
    monkeypatch.setattr(streaming, "EVENT_TIMEOUT", 0.3)
    settings = app.extensions["modelyard"].settings
    first, silence = settings.first_output_timeout, settings.silence_timeout
    settings.first_output_timeout = settings.silence_timeout = 0.1
    answers.hold()
    try:
        response = client.post(path, json={"model": "team/gpt", "stream": True, **prompt})
        begun, *silences, event = itertools.islice(response.iter_encoded(), 4)
        assert begun.startswith(b"data: " if "messages" in prompt else b":")
        assert (b'"role":"assistant"' in begun) == ("messages" in prompt)
        assert silences == [b": keep-alive\n\n"] * 2
        (choice,) = json.loads(event.removeprefix(b"data: "))["choices"]
        assert choice == {"index": 0, **nothing, "logprobs": None, "finish_reason": None}
        response.close()
    finally:
        settings.first_output_timeout, settings.silence_timeout = first, silence


def test_a_whole_answer_leaves_with_its_headers(client):
    body = {"model": "team/gpt", "messages": [{"role": "user", "content": "a"}]}
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as peer:
        sock, _ = listener.accept()
        with sock, peer:
            environ = {"gunicorn.socket": sock, HELD: held}
            assert client.post("/v1/chat/completions", json=body, environ_overrides=environ).status_code == 200
            assert held == [sock]
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK) == 1
            Clients(1.0, 1.0, 1).end_request({HELD: held})
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK) == 0


def test_the_kernel_holds_what_stands_around_the_first_and_the_last_write(client, answers):
    held: list[int] = []

    def note(sock: socket.socket) -> None:
        held.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK))

    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as peer:
        sock, _ = listener.accept()
        with sock, peer:
            body = {"model": "team/gpt", "messages": [{"role": "user", "content": "a"}], "stream": True}
            answers.say("a", "b", "c", delay=0.05)
            response = client.post("/v1/chat/completions", json=body, environ_overrides={"gunicorn.socket": sock})
            for _ in response.iter_encoded():
                note(sock)
            response.close()
            note(sock)
    first, *rest, last, closed = held
    assert (first, last, closed) == (1, 1, 0)
    assert not any(rest)


# Tools, JSON, probabilities

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
TIME = {"type": "function", "function": {"name": "time"}}
CALL_BEGINS = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
CALL_GOES_ON = {"index": 0, "function": {"arguments": '{"city":"Paris"}'}}
LOGPROBS = {"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}], "refusal": None}


def last_options(answers: Answers) -> dict[str, Any]:
    request = answers.asked[-1].request
    assert request is not None
    return request.options


def test_a_tool_call_is_streamed_as_deltas_and_whole_as_one(client, answers):
    deltas = ({"reasoning_content": "hm"}, {"tool_calls": [CALL_BEGINS]}, {"tool_calls": [CALL_GOES_ON]})
    answers.say_deltas(*deltas, finish_reason="tool_calls")
    events = events_of(chat(client, tools=[WEATHER], stream=True))
    choices = [event["choices"][0] for event in events]
    assert [choice["delta"] for choice in choices] == [{"role": "assistant", "content": ""}, *deltas, {}]
    assert choices[-1]["finish_reason"] == "tool_calls"
    answers.say_deltas(*deltas, finish_reason="tool_calls")
    choice = chat(client, tools=[WEATHER]).get_json()["choices"][0]
    whole = {"name": "weather", "arguments": '{"city":"Paris"}'}
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "reasoning_content": "hm",
        "tool_calls": [{"id": "call_1", "type": "function", "function": whole}],
    }
    assert choice["finish_reason"] == "tool_calls"


def test_probabilities_stand_beside_their_text(client, answers):
    answers.say_deltas({"content": "a", "logprobs": LOGPROBS}, {"content": "b"})
    events = events_of(chat(client, logprobs=True, top_logprobs=2, stream=True))
    assert [event["choices"][0]["logprobs"] for event in events] == [None, LOGPROBS, None, None]
    assert last_options(answers) == {"logprobs": True, "top_logprobs": 2}
    answers.say_deltas({"content": "a", "logprobs": LOGPROBS}, {"content": "b", "logprobs": LOGPROBS})
    choice = chat(client, logprobs=True).get_json()["choices"][0]
    assert choice["message"]["content"] == "ab"
    assert choice["logprobs"]["content"] == LOGPROBS["content"] * 2


def test_messages_with_tools_reach_the_engine_as_they_are(client, answers):
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": "Be short."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "sunny"}]},
    ]
    body = {"model": "team/gpt", "messages": messages, "tools": [WEATHER], "parallel_tool_calls": False}
    assert post(client, "/v1/chat/completions", body).status_code == 200
    assert last_options(answers) == {
        "tools": [WEATHER],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
        ],
    }


@pytest.mark.parametrize(
    ("choice", "tools", "mode"),
    [
        ("auto", [WEATHER, TIME], "auto"),
        ("required", [WEATHER, TIME], "required"),
        ({"type": "function", "function": {"name": "time"}}, [TIME], "required"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TIME]}}, [TIME], "auto"),
    ],
)
def test_the_choice_of_tools_becomes_a_word_that_engines_know(client, answers, choice, tools, mode):
    assert chat(client, tools=[WEATHER, TIME], tool_choice=choice).status_code == 200
    assert last_options(answers) == {"tools": tools, "tool_choice": mode}


def test_a_schema_may_be_null(client, answers):
    form = {"type": "json_schema", "json_schema": {"name": "any", "schema": None}}
    assert chat(client, response_format=form).status_code == 200
    assert last_options(answers) == {"response_format": form}


def test_a_schema_without_a_name_gets_one(client, answers):
    form = {"type": "json_schema", "json_schema": {"schema": {"const": 1}}}
    assert chat(client, response_format=form).status_code == 200
    assert last_options(answers)["response_format"]["json_schema"] == {"schema": {"const": 1}, "name": "schema"}


THOUGHT = {"type": "thinking", "thinking": "a thought of five words", "signature": ""}
USE = {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Paris"}}
RESULT = {"type": "tool_result", "tool_use_id": "call_1", "content": "sunny"}


@pytest.mark.parametrize(
    ("path", "body", "more"),
    [
        ("/chat/completions/input_tokens", {"messages": [{"role": "user", "content": "a b"}]}, {"tools": [WEATHER]}),
        (
            "/messages/count_tokens",
            {"messages": [{"role": "user", "content": "a b"}]},
            {"tools": [{"name": "weather", "input_schema": {"type": "object"}}]},
        ),
        (
            "/messages/count_tokens",
            {"messages": [{"role": "assistant", "content": [USE]}, {"role": "user", "content": [RESULT]}]},
            {"messages": [{"role": "assistant", "content": [THOUGHT, USE]}, {"role": "user", "content": [RESULT]}]},
        ),
        ("/responses/input_tokens", {"input": "a b"}, {"tools": [{"type": "function", "name": "weather"}]}),
    ],
)
def test_tools_and_thoughts_count_as_tokens_of_a_prompt(client, path, body, more):
    def count(**fields: Any) -> int:
        response = post(client, f"/v1{path}", {"model": "team/gpt", **body, **fields})
        assert response.status_code == 200, response.text
        return response.get_json()["input_tokens"]

    assert count() > 0
    assert count(**more) > count()


def test_what_asks_for_nothing_is_left_out(client, answers):
    body = {"tools": [WEATHER], "tool_choice": "none", "logit_bias": {}, "logprobs": False}
    assert chat(client, **body, response_format={"type": "text"}).status_code == 200
    assert last_options(answers) == {}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": 5}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
            "response_format.json_schema.name",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused_with_their_field(client, fields, param):
    response = chat(client, **fields)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


# Completions


def test_completions_answer_each_prompt(client, answers):
    body = {"model": "team/gpt", "prompt": ["one two", "three"], "n": 2}
    answer = post(client, "/v1/completions", body).get_json()
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    texts = [(choice["index"], choice["text"], choice["logprobs"]) for choice in answer["choices"]]
    assert texts == [(0, "one two", None), (1, "one two", None), (2, "three", None), (3, "three", None)]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
    request = answers.asked[-1].request
    assert request is not None
    assert request.max_new_tokens == 16


def test_a_completion_that_wants_no_probabilities_may_say_so(client):
    body = {"model": "team/gpt", "prompt": "a", "logprobs": False}
    assert post(client, "/v1/completions", body).status_code == 200


def test_a_model_of_another_type_is_named_as_the_field_at_fault(client):
    response = chat(client, model="emb")
    assert response.status_code == 400
    assert error_of(response)["param"] == "model"


def test_completions_stream(client):
    events = events_of(post(client, "/v1/completions", {"model": "team/gpt", "prompt": "one two", "stream": True}))
    choices = [event["choices"][0] for event in events]
    assert [choice["text"] for choice in choices] == ["one", " two", ""]
    assert [choice["finish_reason"] for choice in choices] == [None, None, "stop"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [5, "a"]}, "prompt"),
        ({"prompt": [1, -2]}, "prompt"),
        ({"prompt": [[1], [True]]}, "prompt[1]"),
        ({"prompt": ["a", []]}, "prompt[1]"),
        ({"prompt": "a", "logprobs": 6}, "logprobs"),
        ({"prompt": "a", "best_of": 3, "n": 2}, "best_of"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
        ({"prompt": ["a"] * 100, "n": 2}, "n"),
        ({"prompt": "a", "stop": ["a"] * 17}, "stop"),
        ({"prompt": "a", "temperature": 3}, "temperature"),
    ],
)
def test_a_completion_that_does_not_fit_is_refused_with_its_field(client, fields, param):
    response = post(client, "/v1/completions", {"model": "team/gpt", **fields})
    assert response.status_code == 400
    assert error_of(response)["param"] == param


OPTIONS = [({"prompt": [1, 2]}, "prompt"), ({"logprobs": 0}, "logprobs"), ({"suffix": "b"}, "suffix")]
OPTIONS += [({"best_of": 2}, "best_of"), ({"logit_bias": {"5": 1}}, "logit_bias")]


@pytest.mark.parametrize(("fields", "option"), OPTIONS)
def test_what_only_some_engines_complete_is_an_option(client, answers, fields, option):
    body = {"prompt": "a", **fields}
    assert post(client, "/v1/completions", {"model": "team/gpt", **body}).status_code == 200
    assert last_options(answers) == {option: body[option]}
    if option != "logprobs":  # the only option of the other model
        refused = post(client, "/v1/completions", {"model": "steered", **body})
        assert (refused.status_code, error_of(refused)["param"]) == (400, option)


def test_prompts_of_token_ids_are_prompts_like_others(client, answers):
    body = {"model": "team/gpt", "prompt": [[1, 2], "one", [3]]}
    assert len(post(client, "/v1/completions", body).get_json()["choices"]) == 3
    requests = [asked.request for asked in answers.asked[-3:]]
    taken = [request.options.get("prompt", request.prompt) for request in requests if request is not None]
    assert sorted(map(str, taken)) == ["[1, 2]", "[3]", "one"]


def test_probabilities_of_a_completion_stand_in_columns(client, answers):
    def token(text: str, logprob: float | None, *others: str) -> dict[str, Any]:
        top = [{"token": other, "logprob": -1.0, "bytes": None} for other in others]
        return {"token": text, "logprob": logprob, "bytes": None, "top_logprobs": top}

    first = {"content": "ab", "logprobs": {"content": [token("a", None), token("b", -0.5, "b", "x")], "refusal": None}}
    last = {"content": "cd", "logprobs": {"content": [token("cd", -2.0)], "refusal": None}}
    expected = {
        "tokens": ["a", "b", "cd"],
        "token_logprobs": [None, -0.5, -2.0],
        "top_logprobs": [None, {"b": -1.0, "x": -1.0}, None],
        "text_offset": [1, 2, 3],
    }
    body = {"model": "team/gpt", "prompt": "z", "logprobs": 2}
    answers.say_deltas({"content": "z"}, first, last)
    choice = post(client, "/v1/completions", body).get_json()["choices"][0]
    assert (choice["text"], choice["logprobs"]) == ("zabcd", expected)
    answers.say_deltas({"content": "z"}, first, last)
    choices = [event["choices"][0] for event in events_of(post(client, "/v1/completions", {**body, "stream": True}))]
    assert [choice["text"] for choice in choices] == ["z", "ab", "cd", ""]
    columns = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    assert {name: [value for part in columns for value in part[name]] for name in expected} == expected


def test_fields_that_are_not_known_reach_the_engine_and_null_ones_do_not(client, answers):
    sent = {"guided_json": {"type": "object"}, "ignore_eos": True}
    declared = {"n": 1, "temperature": 0.5, "stop": "x", "stream_options": {}, "tools": None, "odd": None}
    assert chat(client, **sent, **declared).status_code == 200
    assert answers.asked[-1].request.extra == sent
    assert post(client, "/v1/completions", {"model": "team/gpt", "prompt": "a", **sent, **declared}).status_code == 200
    assert answers.asked[-1].request.extra == sent


# Embeddings and rerank


def test_usage_is_what_the_engine_reports(client, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "modelyard.access")
    monkeypatch.setattr(Echo, "embed", lambda self, texts, cancel: OfTexts([[1.0]] * len(texts), tokens=17))
    response = post(client, "/v1/embeddings", {"model": "emb", "input": ["a", "b"]})
    assert response.get_json()["usage"] == {"prompt_tokens": 17, "total_tokens": 17}
    assert response.headers["Modelyard-Tokens"] == "17"
    ranking = post(client, "/v1/rerank", {"model": "emb", "query": "q", "documents": ["a", "b"]})
    assert ranking.get_json()["usage"]["total_tokens"] == 17
    assert ['"prompt_tokens":17' in line for line in caplog.messages] == [True, True]


def test_a_header_has_the_number_of_texts_that_were_cut(client, monkeypatch):
    monkeypatch.setattr(Echo, "embed", lambda self, texts, cancel: OfTexts([[1.0]] * len(texts), cut=len(texts)))
    assert post(client, "/v1/embeddings", {"model": "emb", "input": ["a", "b"]}).headers["Modelyard-Truncated"] == "2"
    ranking = {"model": "emb", "query": "q", "documents": ["a", "b"]}
    assert post(client, "/v1/rerank", ranking).headers["Modelyard-Truncated"] == "3", "the query counts too"


def test_embeddings_are_floats_or_base64(client):
    body = {"model": "emb", "input": ["one two", "three"]}
    answer = post(client, "/v1/embeddings", body).get_json()
    assert [entry["index"] for entry in answer["data"]] == [0, 1]
    assert len(answer["data"][0]["embedding"]) == 384
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    packed = post(client, "/v1/embeddings", {**body, "encoding_format": "base64"}).get_json()
    for entry, other in zip(answer["data"], packed["data"], strict=True):
        floats = struct.unpack("<384f", base64.b64decode(other["embedding"]))
        assert all(
            math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) for a, b in zip(entry["embedding"], floats, strict=True)
        )


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": [[1, 2]]}, "input", "check_embedding_ctx_length"),
        ({"input": [1, 2]}, "input", "token ids"),
        ({"input": ""}, "input", "empty"),
        ({"input": ["a", ""]}, "input[1]", "empty"),
        ({"input": []}, "input", "must be"),
        ({"input": ["a"] * 2049}, "input", "2048"),
        ({"input": "a", "dimensions": 7}, "dimensions", "384"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "Must be"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused_with_their_field(client, fields, param, words):
    response = post(client, "/v1/embeddings", {"model": "emb", **fields})
    error = error_of(response)
    assert response.status_code == 400
    assert error["param"] == param
    assert words in error["message"]


RANKED = ["b", "a a", "a"]


def test_rerank_in_jinas_shape(client):
    body = {"model": "rank", "query": "a", "documents": [RANKED[0], {"text": RANKED[1]}, RANKED[2]]}
    answer = post(client, "/v1/rerank", {**body, "top_n": 2, "return_documents": True}).get_json()
    assert answer["model"] == "rank"
    assert answer["usage"]["total_tokens"] == 5
    assert [(entry["index"], entry["document"]) for entry in answer["results"]] == [
        (1, {"text": "a a"}),
        (2, {"text": "a"}),
    ]
    assert answer["results"][0]["relevance_score"] == pytest.approx(1 / (1 + math.exp(-2)))
    assert "document" not in post(client, "/rerank", body).get_json()["results"][0]


def test_rerank_in_coheres_shape(client):
    answer = post(client, "/v2/rerank", {"model": "rank", "query": "a", "documents": RANKED}).get_json()
    assert set(answer) == {"id", "results", "meta"}
    assert [entry["index"] for entry in answer["results"]] == [1, 2, 0]


def test_rerank_in_the_shape_of_text_embeddings_inference(client):
    body = {"query": "a", "texts": RANKED, "raw_scores": True, "return_text": True}
    assert post(client, "/rerank", body).get_json() == [
        {"index": 1, "score": 2.0, "text": "a a"},
        {"index": 2, "score": 1.0, "text": "a"},
        {"index": 0, "score": 0.0, "text": "b"},
    ]


def test_relevance_as_dbgpts_client_of_rerankers_reads_it(client):
    body = {"model": "rank", "query": "a", "documents": RANKED}
    for path in ("/api/v1/beta/relevance", "/v1/beta/relevance"):
        answer = post(client, path, body).get_json()
        assert list(answer) == ["object", "model", "data", "usage"]
        assert (answer["object"], answer["model"], answer["data"]) == ("list", "rank", [0.0, 2.0, 1.0])
        assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 5, "completion_tokens": 0}
    assert error_of(post(client, path, {**body, "query": None}))["param"] == "query"
    assert error_of(post(client, path, {**body, "documents": []}))["param"] == "documents"


@pytest.mark.parametrize("documents", [[], None, "a", [5], [{"text": 5}]])
def test_documents_that_can_not_be_ranked_are_refused(client, documents):
    response = post(client, "/v1/rerank", {"model": "rank", "query": "a", "documents": documents})
    assert response.status_code == 400
    assert str(error_of(response)["param"]).startswith("documents")


# Models


def test_models_are_listed(client):
    answer = client.get("/v1/models").get_json()
    assert answer["object"] == "list"
    assert [entry["id"] for entry in answer["data"]] == ["emb", "rank", "steered", "team/gpt"]
    entry = client.get("/models/team/gpt").get_json()
    assert entry == answer["data"][3]
    assert (entry["object"], entry["owned_by"], entry["capabilities"]) == ("model", "modelyard", ["completion"])
    assert entry["status"] == {"value": "loaded"}


def test_an_unknown_model_is_404(client):
    for response in (client.get("/v1/models/nowhere"), chat(client, model="nowhere")):
        error = error_of(response)
        assert response.status_code == 404
        assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "model_not_found", "model")
        assert "team/gpt" in error["message"]


def test_without_a_model_the_only_one_answers(client):
    assert post(client, "/v1/embeddings", {"input": "a"}).get_json()["model"] == "emb"
    response = post(client, "/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]})
    assert response.status_code == 400
    assert error_of(response)["param"] == "model"
    assert "steered, team/gpt" in error_of(response)["message"]


# Every answer


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat/completions", "/api/v1/chat/completions"])
def test_base_urls_have_v1_or_not(client, path):
    body = {"model": "team/gpt", "messages": [{"role": "user", "content": "a"}]}
    assert post(client, path, body).status_code == 200


def test_errors_outside_of_views_have_the_shape_too(client):
    unknown = client.post("/v1/audio/speech", json={})
    assert unknown.status_code == 404
    assert error_of(unknown)["code"] == "not_found"
    assert "/chat/completions" in error_of(unknown)["message"]
    wrong = client.get("/v1/chat/completions")
    assert wrong.status_code == 405
    assert wrong.headers["Allow"] == "POST"
    assert "use POST" in error_of(wrong)["message"]
    assert client.delete("/v1/models/team/gpt").status_code == 405
    large = client.post("/v1/completions", data=b" " * (64 * 1024 + 1))
    assert large.status_code == 413
    assert "max_body_bytes" in error_of(large)["message"]
    broken = client.post("/v1/completions", data=b"{")
    assert broken.status_code == 400
    assert "JSON" in error_of(broken)["message"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PATCH", "TRACE", "BREW"])
@pytest.mark.parametrize("path", ["/v1/completions", "/completions", "/api/v1/embeddings", "/v2/rerank"])
def test_every_other_method_is_refused_in_the_shape(client, path, method):
    response = client.open(path, method=method)
    assert response.status_code == 405
    assert response.headers["Allow"] == "POST"
    if method != "HEAD":
        assert error_of(response)["code"] == "method_not_allowed"
        assert error_of(response)["message"] == f"{method} is not allowed at {path}: use POST"


def test_made_up_methods_and_paths_without_a_call_are_refused_in_the_shape_of_their_api(client):
    unknown = client.open("/v1/nowhere", method="BREW")
    assert (unknown.status_code, error_of(unknown)["code"]) == (404, "not_found")
    message = client.open("/messages", method="TRACE")
    assert (message.status_code, message.get_json()["type"]) == (405, "error")
    model = client.open("/models/team/gpt", method="DELETE")
    assert (model.status_code, model.headers["Allow"]) == (405, "GET")
    for method, path in (("GET", "/nowhere"), ("TRACE", "/api/worker/generate"), ("BREW", "/healthz")):
        assert client.open(path, method=method).mimetype == "application/problem+json"


def test_options_names_the_methods_of_a_call(client):
    response = client.options("/v1/models")
    assert (response.status_code, response.allow.as_set()) == (200, {"get", "options"})
    assert client.options("/completions").allow.as_set() == {"post", "options"}


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1/models/", "/api/v1"])
def test_a_path_without_a_call_is_404_in_the_shape(client, path):
    response = client.get(path)
    assert response.status_code == 404
    assert error_of(response)["code"] == "not_found"


def test_a_model_of_this_process_has_its_context_length(client):
    assert client.get("/v1/models/emb").get_json()["max_model_len"] == 4096


UNNAMED = {"type": "json_schema", "name": "a b", "schema": {}}


@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        ("/v1/messages", {"stop_sequences": 5}, "stop_sequences: "),
        ("/v1/responses", {"max_output_tokens": "x"}, "max_output_tokens: "),
        ("/v1/responses", {"text": {"format": {"type": "xml"}}}, "text.format.type: "),
        (
            "/v1/responses",
            {"text": {"format": {"type": "json_schema", "name": "a b", "schema": {}}}},
            "text.format.name: ",
        ),
        ("/v1/responses", {"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input[0].arguments: "),
        ("/v1/responses", {"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id: "),
    ],
)
def test_a_fault_has_the_name_that_the_client_has_sent(client, path, fields, words):
    body = {"model": "team/gpt", "input": "a", "max_tokens": 5, "messages": [{"role": "user", "content": "a"}]}
    response = post(client, path, body | fields)
    assert response.status_code == 400
    error = response.get_json()["error"]
    assert error["message"].startswith(words)
    assert error.get("param", words) in (words, words.removesuffix(": "))


ANTHROPIC = {"anthropic-version": "2023-06-01"}


def test_anthropics_clients_list_the_models_in_their_shape(client):
    listed = client.get("/v1/models", headers=ANTHROPIC).get_json()
    names = [model["id"] for model in listed["data"]]
    assert "team/gpt" in names
    assert "emb" not in names, "it generates no text"
    assert (listed["has_more"], listed["first_id"], listed["last_id"]) == (False, names[0], names[-1])
    model = client.get("/v1/models/team/gpt", headers=ANTHROPIC).get_json()
    assert model in listed["data"]
    assert (model["type"], model["display_name"], model["max_input_tokens"]) == ("model", "team/gpt", 4096)
    assert model["created_at"].endswith("Z")
    error = client.get("/v1/models/none", headers=ANTHROPIC).get_json()
    assert (error["type"], error["error"]["type"]) == ("error", "not_found_error")


def test_overload_has_the_status_of_anthropics_api(client, answers):
    answers.refuse(7)
    body = {"model": "team/gpt", "max_tokens": 5, "messages": [{"role": "user", "content": "a"}]}
    response = post(client, "/v1/messages", body)
    assert (response.status_code, response.headers["Retry-After"]) == (529, "7")
    assert response.get_json()["error"]["type"] == "overloaded_error"


def test_before_the_models_are_there_a_request_without_a_model_may_be_repeated(tmp_path: Path):
    app = create_app(Settings(state_dir=str(tmp_path), models=["echo"]))
    runtime: Runtime = app.extensions["modelyard"]
    try:
        body = {"messages": [{"role": "user", "content": "a"}]}
        with patch.object(runtime, "start"):  # which the first request calls
            response = post(app.test_client(), "/v1/chat/completions", body)
            named = app.test_client().get("/v1/models/echo")
        for refused in (response, named):
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")
            assert error_of(refused)["code"] == "not_ready"
    finally:
        runtime.stop()


def test_each_answer_names_its_request(client):
    assert chat(client).headers["x-request-id"].startswith("req_")
    assert client.get("/v1/nowhere").headers["x-request-id"].startswith("req_")
    named = client.get("/v1/models", headers={"x-request-id": "mine-1"})
    assert named.headers["x-request-id"] == "mine-1"
    assert float(named.headers["openai-processing-ms"]) >= 0
    assert client.get("/v1/models", headers={"x-request-id": "bad id"}).headers["x-request-id"].startswith("req_")
    message = client.post("/v1/messages", json={}, headers={"x-request-id": "mine-2"})
    assert message.headers["request-id"] == "mine-2", "where Anthropic's clients read it"


def test_keys_are_tokens_with_the_scope_infer(tmp_path: Path):
    key, other = new_secret(), new_secret()
    tokens = [f"team {INFER} {digest_of(key).hex()}", f"node {WORKER} {digest_of(other).hex()}"]
    settings = Settings(state_dir=str(tmp_path), models=[], tokens=tokens)
    app = create_app(settings)
    client = app.test_client()
    try:
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert client.get("/v1/models", headers={"x-api-key": key}).status_code == 200
        missing = client.get("/v1/models")
        assert missing.status_code == 401
        assert error_of(missing)["code"] == "invalid_api_key"
        assert missing.headers["x-request-id"]
        assert client.get("/v1/models", headers={"x-api-key": other}).status_code == 403
    finally:
        app.extensions["modelyard"].stop()


def test_an_application_has_it_below_its_prefix_if_it_wants(tmp_path: Path):
    app = Flask("shop")
    options: dict[str, Any] = {"placement": INLINE, "models": ["echo"], "state_dir": str(tmp_path), "role": "worker"}
    runtime = Modelyard(app, url_prefix="/ml", openai=True, **options) and app.extensions["modelyard"]
    plain = Flask("plain")
    Modelyard(plain, url_prefix="/ml", **{**options, "models": []})

    @app.before_request
    def guard() -> None:
        if "forbidden" in (app.extensions.get("note") or ""):
            abort(401, "the shop wants a login")

    client = app.test_client()
    try:
        runtime.start()
        assert runtime.wait_loaded(30)
        body = {"model": "echo", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
        assert post(client, "/ml/v1/chat/completions", body).get_json()["usage"]["completion_tokens"] == 2
        assert error_of(client.get("/ml/v1/nowhere"))["code"] == "not_found"
        assert client.get("/v1/models").status_code == 404
        assert plain.test_client().get("/ml/v1/models").status_code == 404
        app.extensions["note"] = "forbidden"
        refused = post(client, "/ml/v1/chat/completions", body)
        assert refused.status_code == 401
        assert "login" in error_of(refused)["message"]
    finally:
        runtime.stop()
        plain.extensions["modelyard"].stop()
