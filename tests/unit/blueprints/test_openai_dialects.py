"""OpenAI's responses and Anthropic's messages: what they mean as a chat, and how answers look in each."""

from __future__ import annotations

import json
from typing import Any

import pytest
from modelyard.blueprints.openai import anthropic, responses, schemas
from modelyard.blueprints.openai.answers import Choice, Header, Usage, chat_answer
from modelyard.blueprints.openai.response_events import ResponseEvents, response_answer
from modelyard.errors import EngineError, InvalidRequest, Overloaded
from modelyard.types import Burst, JSONObject
from official import faults_of

HEADER = Header("x_1", "m", 5)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": SCHEMA}}
CALL_BEGINS = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
CALL_GOES_ON = {"index": 0, "function": {"arguments": '{"city":"Paris"}'}}
BURSTS = [
    Burst(["Hm"], deltas=[{"reasoning_content": "think"}]),
    Burst(["", ""], deltas=[{"tool_calls": [CALL_BEGINS]}, {"tool_calls": [CALL_GOES_ON]}]),
    Burst([], "tool_calls", {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}),
]
CHOICE = Choice(
    "Hm",
    "tool_calls",
    "think",
    [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}],
)


def events_of(encoder: Any, bursts: list[Burst]) -> list[tuple[str, JSONObject]]:
    data = encoder.begin() + b"".join(write for burst in bursts for write in encoder.encode(burst)) + encoder.end()
    found = []
    for event in data.decode().split("\n\n")[:-1]:
        name, body = event.split("\n")
        found.append((name.removeprefix("event: "), json.loads(body.removeprefix("data: "))))
    assert all(name == body["type"] for name, body in found)
    path = "/messages" if isinstance(encoder, anthropic.MessageEvents) else "/responses"
    assert [fault for _, body in found for fault in faults_of(path, body, event=True)] == []
    return found


def test_whole_answers_are_what_their_vendors_publish():
    body = {"input": "a", "tools": [{"type": "function", "name": "weather"}]}
    response = response_answer(HEADER, [CHOICE], usage(), responses.generation(body, "m"))
    assert faults_of("/responses", response) == []
    message = anthropic.message_answer(
        HEADER, [CHOICE], usage(), anthropic.generation({"max_tokens": 9, "messages": MESSAGES}, "m")
    )
    assert faults_of("/messages", message) == []
    assert faults_of("/messages", {**message, "role": "user"}) != []


def usage() -> Usage:
    counted = Usage(1)
    counted.add(0, BURSTS[-1].usage)
    return counted


# Anthropic

MESSAGES = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "text", "text": "Let me see."},
            {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Paris"}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "call_1", "content": [{"type": "text", "text": "sunny"}]},
            {"type": "text", "text": "And now?", "cache_control": {"type": "ephemeral"}},
        ],
    },
]
CHAT = [
    {"role": "system", "content": "Be short.\nBe kind."},
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}
        ],
        "reasoning_content": "hm",
    },
    {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
    {"role": "user", "content": "And now?"},
]


FORM = {"type": "json_schema", "schema": SCHEMA}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def message(**fields: Any) -> JSONObject:
    return {"model": "m", "max_tokens": 9, "messages": MESSAGES, **fields}


def test_a_message_is_read_as_a_chat():
    system = [{"type": "text", "text": "Be short."}, {"type": "text", "text": "Be kind."}]
    tools = [{"name": "weather", "description": "d", "input_schema": SCHEMA}]
    choice = {"type": "any", "disable_parallel_tool_use": True}
    body = message(system=system, tools=tools, tool_choice=choice, stop_sequences=["END"], top_k=4, thinking={})
    request = anthropic.generation(body, "m").requests[0]
    assert request.options["messages"] == CHAT
    assert request.options["tools"] == [FUNCTION]
    assert (request.options["tool_choice"], request.options["parallel_tool_calls"]) == ("required", False)
    assert (request.max_new_tokens, request.stop, request.top_k) == (9, ["END"], 4)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages[0].content[0]"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].source"),
        ({"system": 5}, "system"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
    ],
)
def test_a_message_that_can_not_be_read_is_refused_with_its_field(fields, field):
    with pytest.raises(InvalidRequest) as refused:
        anthropic.generation(message(**fields), "m")
    assert refused.value.errors[0]["field"] == field


def test_a_person_that_runs_the_application_may_speak_in_between():
    said = [*MESSAGES, {"role": "system", "content": [{"type": "text", "text": "Hurry."}]}]
    said.append({"role": "system", "content": "Please."})
    messages = anthropic.generation(message(messages=said), "m").requests[0].options["messages"]
    assert messages[-2:] == [{"role": "system", "content": "Hurry."}, {"role": "system", "content": "Please."}]


@pytest.mark.parametrize("fields", [{"output_config": {"format": FORM}}, {"output_format": FORM}])
def test_the_json_of_a_message_is_that_of_a_chat(fields):
    options = anthropic.generation(message(**fields), "m").requests[0].options
    assert options["response_format"]["type"] == "json_schema"
    assert options["response_format"]["json_schema"]["schema"] == SCHEMA


def test_an_image_that_a_tool_returns_is_shown_by_the_user_after_all_results():
    picture = f"data:image/png;base64,{PIXEL}"
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    results = [
        {"type": "tool_result", "tool_use_id": "call_1", "content": [{"type": "image", "source": source}]},
        {"type": "tool_result", "tool_use_id": "call_2", "content": "none"},
        {"type": "text", "text": "And now?"},
    ]
    said = [*MESSAGES[:2], {"role": "user", "content": results}]
    expected = [
        {"role": "tool", "content": "", "tool_call_id": "call_1"},
        {"role": "tool", "content": "none", "tool_call_id": "call_2"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": picture}}]},
    ]
    outputs = [
        {
            "type": "function_call_output",
            "call_id": "call_1",
            "output": [{"type": "input_image", "image_url": picture}],
        },
        {"type": "function_call_output", "call_id": "call_2", "output": "none"},
    ]
    for items in (outputs, [*outputs, ITEMS[1]]):
        messages = responses.generation({"input": [*ITEMS[:5], *items]}, "m").requests[0].options["messages"]
        assert messages[3:6] == expected
    messages = anthropic.generation(message(messages=said), "m").requests[0].options["messages"]
    expected[2]["content"].append({"type": "text", "text": "And now?"})
    assert messages[2:] == expected


def test_the_events_of_a_message_are_those_of_its_blocks():
    encoder = anthropic.MessageEvents(HEADER, Usage(1), anthropic.generation(message(), "m"))
    events = events_of(encoder, BURSTS)
    assert [name for name, _ in events] == [
        "message_start",
        *("content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]
    started = [body["content_block"]["type"] for name, body in events if name == "content_block_start"]
    assert started == ["thinking", "text", "tool_use"]
    assert [body["index"] for name, body in events if name == "content_block_stop"] == [0, 1, 2]
    deltas = [body["delta"] for name, body in events if name == "content_block_delta"]
    assert deltas[1] == {"type": "signature_delta", "signature": ""}, "a client waits for it at the end of a thought"
    assert deltas[3] == {"type": "input_json_delta", "partial_json": '{"city":"Paris"}'}
    assert 0 < events[0][1]["message"]["usage"]["input_tokens"] < 100, "a quarter of the characters"
    assert events[-2][1]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2][1]["usage"] == {"input_tokens": 3, "output_tokens": 4}


def test_a_deferred_tool_is_offered_once_a_search_has_found_it():
    tools = [{"name": name, "input_schema": SCHEMA, "defer_loading": True} for name in ("weather", "time")]
    search = {"type": "tool_use", "id": "call_1", "name": "ToolSearch", "input": {"query": "time"}}
    found = {
        "type": "tool_result",
        "tool_use_id": "call_1",
        "content": [{"type": "tool_reference", "tool_name": "time"}],
    }
    asked = [{"role": "user", "content": "Time?"}]
    tools.append({"name": "ToolSearch", "input_schema": SCHEMA})

    def offered(messages: list[JSONObject]) -> tuple[list[str], list[JSONObject]]:
        request = anthropic.generation(message(messages=messages, tools=tools), "m").requests[0]
        names = [tool["function"]["name"] for tool in request.options["tools"]]
        return names, request.options.get("messages", request.messages)

    assert offered(asked)[0] == ["ToolSearch"]
    answers = [{"role": "assistant", "content": [search]}, {"role": "user", "content": [found]}]
    names, messages = offered(asked + answers)
    assert names == ["time", "ToolSearch"]
    assert messages[-1] == {"role": "tool", "tool_call_id": "call_1", "content": "time"}


def test_a_whole_message_has_its_blocks():
    answer = anthropic.message_answer(HEADER, [CHOICE], usage(), anthropic.generation(message(), "m"))
    assert answer["content"] == [
        {"type": "thinking", "thinking": "think", "signature": ""},
        {"type": "text", "text": "Hm"},
        {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Paris"}},
    ]
    assert (answer["stop_reason"], answer["usage"]) == ("tool_use", {"input_tokens": 3, "output_tokens": 4})


def test_cached_tokens_are_told_in_the_words_of_each_dialect():
    counted = Usage(2)
    for index in range(4):  # two prompts, two choices each
        details = {"prompt_tokens_details": {"cached_tokens": 5 if index % 2 else 2}}
        counted.add(index, {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4, **details})
    total = {"prompt_tokens": 6, "completion_tokens": 4, "total_tokens": 10}
    assert counted.total() == {**total, "prompt_tokens_details": {"cached_tokens": 4}}
    answer = anthropic.message_answer(HEADER, [CHOICE], counted, anthropic.generation(message(), "m"))
    assert answer["usage"] == {"input_tokens": 2, "cache_read_input_tokens": 4, "output_tokens": 4}
    answer = response_answer(HEADER, [CHOICE], counted, responses.generation({"input": "a"}, "m"))
    assert answer["usage"]["input_tokens"] == 6
    assert answer["usage"]["input_tokens_details"] == {"cached_tokens": 4, "cache_write_tokens": 0}


def test_tokens_of_reasoning_are_those_that_the_engine_reports():
    counted, details = Usage(2), {"completion_tokens_details": {"reasoning_tokens": 3}}
    for index in range(2):
        counted.add(index, {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8, **details})
    assert counted.total() == {
        **{"prompt_tokens": 3, "completion_tokens": 10, "total_tokens": 13},
        "completion_tokens_details": {"reasoning_tokens": 6},
    }
    answer = response_answer(HEADER, [CHOICE], counted, responses.generation({"input": "a"}, "m"))
    assert answer["usage"]["output_tokens_details"] == {"reasoning_tokens": 6}


def test_a_message_that_fails_ends_with_an_error_event():
    encoder = anthropic.MessageEvents(HEADER, Usage(1), anthropic.generation(message(), "m"))
    body = json.loads(encoder.failure(Overloaded("full")).split(b"data: ")[1])
    assert body == {"type": "error", "error": {"type": "overloaded_error", "message": "full"}}


def test_a_refusal_is_a_refusal_in_a_chat_and_a_text_elsewhere():
    burst = Burst(["", ""], "stop", deltas=[{"refusal": "I can"}, {"refusal": "not."}])
    choice = Choice()
    for delta in burst.deltas or ():
        choice.add("", delta)
    answer = chat_answer(HEADER, [choice], usage(), schemas.chat({"messages": CHAT}, "m"))
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": None, "refusal": "I cannot."}
    assert faults_of("/chat/completions", answer) == []
    whole = anthropic.message_answer(HEADER, [choice], usage(), anthropic.generation(message(), "m"))
    assert whole["content"] == [{"type": "text", "text": "I cannot."}]
    events = events_of(message_events(), [burst])
    texts = [body["delta"]["text"] for name, body in events if name == "content_block_delta"]
    assert texts == ["I can", "not."]
    whole = response_answer(HEADER, [choice], usage(), responses.generation({"input": "a"}, "m"))
    streamed = events_of(response_events(), [burst])[-1][1]["response"]
    for response in (whole, streamed):
        assert response["output"][0]["content"][0]["text"] == "I cannot."


# Responses

ITEMS = [
    {"role": "developer", "content": "Be kind."},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
    {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city":"Paris"}'},
    {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
]


def test_the_items_of_a_response_are_read_as_a_chat():
    tools = [{"type": "function", "name": "weather", "description": "d", "parameters": SCHEMA}]
    body = {"input": ITEMS, "instructions": "Be short.", "tools": tools, "max_output_tokens": 9}
    body["text"] = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}}
    request = responses.generation({**body, "tool_choice": {"type": "function", "name": "weather"}}, "m").requests[0]
    assert request.options["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "hm",
            "tool_calls": CHAT[2]["tool_calls"],
        },
        {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
    ]
    assert request.options["tools"] == [FUNCTION]
    assert request.options["tool_choice"] == "required"
    assert request.options["response_format"]["json_schema"] == {"name": "x", "schema": SCHEMA, "strict": True}
    assert request.max_new_tokens == 9


def test_the_tools_that_a_response_may_call_are_named_without_their_function():
    tools = [{"type": "function", "name": name} for name in ("weather", "time")]
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "time"}]}
    body = {"input": "a", "tools": tools, "tool_choice": choice}
    options = responses.generation(body, "m").requests[0].options
    assert options == {
        "tools": [{"type": "function", "function": {"name": "time"}}],
        "tool_choice": "required",
    }


def test_reasoning_before_a_call_and_reasoning_alone_are_read_too():
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
    call, output = ITEMS[4:]
    body = {"input": [ITEMS[1], thought, call, output, thought, {"role": "user", "content": "Well?"}]}
    messages = responses.generation(body, "m").requests[0].options["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant", "user"]
    assert [message.get("reasoning_content") for message in messages] == [None, "hm", None, "hm", None]
    assert messages[1]["tool_calls"] == CHAT[2]["tool_calls"]
    assert messages[3]["content"] == ""


def test_null_is_absent_and_the_effort_is_that_of_a_chat():
    absent = dict.fromkeys(
        ["instructions", "tools", "tool_choice", "text", "previous_response_id", "stream", "metadata"]
    )
    body = {**absent, "input": [{"type": None, "role": "user", "content": "a"}], "reasoning": {"effort": "low"}}
    request = responses.generation(body, "m").requests[0]
    assert request.messages == [{"role": "user", "content": "a"}]
    assert request.extra == {"reasoning_effort": "low"}
    assert responses.generation({**body, "reasoning": {"effort": None}}, "m").requests[0].extra == {}


NAMESPACE = {
    "type": "namespace",
    "name": "agents",
    "tools": [{"type": "function", "name": "spawn", "parameters": SCHEMA}],
}


def test_the_tools_of_an_agent_are_its_functions_and_those_of_its_namespaces():
    tools = [{"type": "function", "name": "weather"}, NAMESPACE, {"type": "web_search"}]
    call = {**ITEMS[4], "name": "spawn", "namespace": "agents"}
    generation = responses.generation({"input": [*ITEMS[:4], call, ITEMS[5]], "tools": tools}, "m")
    options = generation.requests[0].options
    assert [tool["function"]["name"] for tool in options["tools"]] == ["weather", "agents__spawn"]
    assert options["messages"][2]["tool_calls"][0]["function"]["name"] == "agents__spawn"
    assert [tool["type"] for tool in generation.body["tools"]] == ["function"] * 2, "the answer names those in effect"


def test_a_call_within_a_namespace_is_told_as_the_client_named_it():
    body = {
        "input": "a",
        "tools": [NAMESPACE],
        "tool_choice": {"type": "function", "name": "spawn", "namespace": "agents"},
    }
    generation = responses.generation(body, "m")
    function = {"name": "agents__spawn", "arguments": "{}"}
    call = {"index": 0, "id": "call_1", "type": "function", "function": function}
    events = events_of(
        ResponseEvents(HEADER, Usage(1), generation), [Burst([""], "tool_calls", deltas=[{"tool_calls": [call]}])]
    )
    whole = response_answer(HEADER, [Choice("", "tool_calls", "", [call])], usage(), generation)
    for item in (events[2][1]["item"], events[-1][1]["response"]["output"][0], whole["output"][0]):
        assert (item["name"], item["namespace"]) == ("spawn", "agents")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"input": []}, "input"),
        ({"input": [5]}, "input[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "robot", "content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [{"type": "namespace", "name": "x", "tools": [5]}]}, "tools[0].tools"),
        ({"text": {"format": 5}}, "text.format"),
    ],
)
def test_a_response_that_can_not_be_made_is_refused_with_its_field(fields, field):
    with pytest.raises(InvalidRequest) as refused:
        responses.generation({"input": "a", **fields}, "m")
    assert refused.value.errors[0]["field"] == field


def response_events() -> ResponseEvents:
    return ResponseEvents(HEADER, Usage(1), responses.generation({"input": "a"}, "m"))


def test_the_events_of_a_response_are_those_of_its_items():
    events = events_of(response_events(), BURSTS)
    assert [name.removeprefix("response.") for name, _ in events] == [
        *("created", "in_progress"),
        *("output_item.added", "reasoning_text.delta", "reasoning_text.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        "completed",
    ]
    assert [body["sequence_number"] for _, body in events] == list(range(len(events)))
    whole = events[-1][1]["response"]
    assert [(item["type"], item["status"]) for item in whole["output"]] == [
        ("reasoning", "completed"),
        ("message", "completed"),
        ("function_call", "completed"),
    ]
    assert whole["output"][0]["content"] == [{"type": "reasoning_text", "text": "think"}]
    assert whole["output"][2]["arguments"] == '{"city":"Paris"}'
    assert whole["usage"]["total_tokens"] == 7
    assert events[2][1]["item"]["content"][0]["text"] == ""
    assert events[6][1]["item"]["content"] == []


def message_events() -> anthropic.MessageEvents:
    return anthropic.MessageEvents(HEADER, Usage(1), anthropic.generation(message(), "m"))


def test_a_response_without_text_has_an_empty_message():
    events = events_of(response_events(), [Burst([], "stop")])
    assert events[-1][1]["response"]["output"][0]["content"][0]["text"] == ""


def test_a_response_of_reasoning_alone_has_an_empty_message_too():
    events = events_of(response_events(), [Burst([""], "stop", deltas=[{"reasoning_content": "hm"}])])
    assert [item["type"] for item in events[-1][1]["response"]["output"]] == ["reasoning", "message"]


def test_a_response_that_is_cut_off_says_why():
    events = events_of(response_events(), [Burst(["a"], "length")])
    assert events[-1][0] == "response.incomplete"
    response = events[-1][1]["response"]
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in response["output"]] == ["incomplete"]
    whole = response_answer(HEADER, [Choice("a", "length")], usage(), responses.generation({"input": "a"}, "m"))
    assert (whole["status"], whole["output"][0]["status"]) == ("incomplete", "incomplete")


def test_a_response_that_fails_says_so_in_the_stream():
    body = json.loads(response_events().failure(EngineError("broken")).split(b"data: ")[1])
    assert body["type"] == "response.failed"
    # The client has a list of the codes.
    assert body["response"]["error"] == {"code": "server_error", "message": "broken"}
    body = json.loads(response_events().failure(Overloaded("full")).split(b"data: ")[1])
    assert body["response"]["error"]["code"] == "rate_limit_exceeded"


def test_a_whole_response_has_its_items():
    answer = response_answer(HEADER, [CHOICE], usage(), responses.generation({"input": "a"}, "m"))
    assert [item["type"] for item in answer["output"]] == ["reasoning", "message", "function_call"]
    assert answer["output"][0]["content"] == [{"type": "reasoning_text", "text": "think"}]
    assert answer["output"][2]["call_id"] == "call_1"
    assert (answer["status"], answer["usage"]["input_tokens"]) == ("completed", 3)


@pytest.mark.parametrize("make", [message_events, response_events])
def test_half_a_surrogate_pair_becomes_a_question_mark(make):
    (data,) = make().encode(Burst(["a\ud83d"]))
    assert "a?" in data.decode()
