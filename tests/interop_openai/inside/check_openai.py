"""OpenAI's client: its accumulators of streams, its parsers, and errors, of chats and responses."""

from __future__ import annotations

import os

import pytest
from openai import APIError, APIStatusError, NotFoundError, OpenAI
from pydantic import BaseModel

MODEL = "gpt-6-astra"
QUESTION = "What is the weather in San Francisco?"
PARAMETERS = {
    "type": "object",
    "properties": {"location": {"type": "string"}},
    "required": ["location"],
    "additionalProperties": False,
}
WEATHER = {"name": "get_weather", "description": "The weather.", "parameters": PARAMETERS, "strict": True}


class Joke(BaseModel):
    """A joke."""

    setup: str
    punchline: str


@pytest.fixture(scope="module")
def client() -> OpenAI:
    place = {"base_url": os.environ["INTEROP_URL"], "api_key": "none"}
    return OpenAI(**place, max_retries=0, _strict_response_validation=True)


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def check_chat_stream(client: OpenAI) -> None:
    options = {"include_usage": True}
    with client.chat.completions.stream(model=MODEL, messages=ask("one two"), n=2, stream_options=options) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta" and event.delta]
        answer = stream.get_final_completion()
    assert sorted(deltas) == [" two", " two", "one", "one"]
    assert [choice.message.content for choice in answer.choices] == ["one two", "one two"]
    assert answer.usage.completion_tokens == 4


def check_chat_tools(client: OpenAI) -> None:
    tools = [{"type": "function", "function": WEATHER}]
    with client.chat.completions.stream(model=MODEL, messages=ask(QUESTION), tools=tools) as stream:
        events = [event.type for event in stream]
        message = stream.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.done" in events
    call = message.tool_calls[0]
    assert call.function.parsed_arguments == {"location": "San Francisco, CA"}
    again = [*ask(QUESTION), message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    answer = client.chat.completions.create(model=MODEL, messages=again, tools=tools)
    assert answer.choices[0].message.content == "The tool has the answer."


def check_chat_parse(client: OpenAI) -> None:
    answer = client.chat.completions.parse(model=MODEL, messages=ask("Tell me a joke."), response_format=Joke)
    assert answer.choices[0].message.parsed.punchline == "They like the mouse."


def check_chat_probabilities(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ask("one two"), logprobs=True, top_logprobs=1)
    assert [entry.token for entry in answer.choices[0].logprobs.content] == ["one", " two"]


def check_response_stream(client: OpenAI) -> None:
    with client.responses.stream(model=MODEL, input="a riddle") as stream:
        events = [event.type for event in stream]
        answer = stream.get_final_response()
    assert "response.reasoning_text.delta" in events
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert answer.output_text == "What has keys and no locks?"


def check_response_tools(client: OpenAI) -> None:
    tools = [{"type": "function", **WEATHER}]
    with client.responses.stream(model=MODEL, input=QUESTION, tools=tools) as stream:
        stream.until_done()
        call = stream.get_final_response().output[0]
    assert call.parsed_arguments == {"location": "San Francisco, CA"}
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    given = [*ask(QUESTION), call.to_dict(), output]
    assert client.responses.create(model=MODEL, input=given, tools=tools).output_text == "The tool has the answer."


def check_response_parse(client: OpenAI) -> None:
    answer = client.responses.parse(model=MODEL, input="Tell me a joke.", text_format=Joke)
    assert answer.output_parsed.punchline == "They like the mouse."


def check_errors(client: OpenAI) -> None:
    with pytest.raises(NotFoundError, match="there is no model 'none'"):
        client.chat.completions.create(model="none", messages=ask("a"))
    with pytest.raises(APIStatusError) as raised:
        client.chat.completions.create(model=MODEL, messages=ask("too busy"))
    assert (raised.value.status_code, raised.value.code) == (503, "overloaded")


def check_error_within_a_stream(client: OpenAI) -> None:
    pieces: list[str] = []
    with pytest.raises(APIError, match="the engine breaks"):
        for chunk in client.chat.completions.create(model=MODEL, messages=ask("break off"), stream=True):
            pieces.append(chunk.choices[0].delta.content or "")
    assert "".join(pieces) == "one two"
    events = list(client.responses.create(model=MODEL, input="break off", stream=True))
    assert events[-1].type == "response.failed"
    assert "the engine breaks" in events[-1].response.error.message
