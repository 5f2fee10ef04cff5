"""Anthropic's client: its accumulator of a stream, its runner of tools, thoughts, errors and counts."""

from __future__ import annotations

import os

import pytest
from anthropic import Anthropic, APIStatusError, BadRequestError, NotFoundError, beta_tool

MODEL = "claude-opus-5-5"
QUESTION = [{"role": "user", "content": "What is the weather in San Francisco?"}]


@pytest.fixture(scope="module")
def client() -> Anthropic:
    place = {"base_url": os.environ["INTEROP_URL"].removesuffix("/v1"), "api_key": "none"}
    return Anthropic(**place, max_retries=0, _strict_response_validation=True)


@beta_tool
def get_weather(location: str) -> str:
    """Return the weather of a place.

    Args:
        location: The city.
    """
    return f"sunny in {location}"


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def check_stream(client: Anthropic) -> None:
    with client.messages.stream(model=MODEL, max_tokens=100, messages=ask("one two three")) as stream:
        pieces = list(stream.text_stream)
        message = stream.get_final_message()
    assert len(pieces) == 3
    assert message.content[0].text == "".join(pieces) == "one two three"
    assert (message.stop_reason, message.usage.output_tokens) == ("end_turn", 3)


def check_limit(client: Anthropic) -> None:
    message = client.messages.create(model=MODEL, max_tokens=2, messages=ask("one two three"))
    assert (message.stop_reason, message.content[0].text) == ("max_tokens", "one two")


def check_thoughts(client: Anthropic) -> None:
    with client.messages.stream(model=MODEL, max_tokens=100, messages=ask("a riddle")) as stream:
        thoughts = [event.thinking for event in stream if event.type == "thinking"]
        message = stream.get_final_message()
    assert "".join(thoughts) == "An old one."
    assert [block.type for block in message.content] == ["thinking", "text"]
    again = [*ask("a riddle"), {"role": "assistant", "content": message.content}, *ask("one")]
    assert client.messages.create(model=MODEL, max_tokens=9, messages=again).content[0].text == "one"


def check_tool_runner(client: Anthropic) -> None:
    for is_streamed in (False, True):
        runner = client.beta.messages.tool_runner(
            model=MODEL, max_tokens=100, messages=QUESTION, tools=[get_weather], stream=is_streamed
        )
        message = runner.until_done()
        assert message.content[0].text == "The tool has the answer."


def check_counts(client: Anthropic) -> None:
    plain = client.messages.count_tokens(model=MODEL, messages=QUESTION)
    tools = client.messages.count_tokens(model=MODEL, messages=QUESTION, tools=[get_weather.to_dict()])
    assert 0 < plain.input_tokens < tools.input_tokens


def check_errors(client: Anthropic) -> None:
    with pytest.raises(NotFoundError, match="there is no model 'none'"):
        client.messages.create(model="none", max_tokens=9, messages=ask("a"))
    with pytest.raises(BadRequestError, match="max_tokens"):
        client.messages.create(model=MODEL, max_tokens=0, messages=ask("a"))
    with pytest.raises(APIStatusError) as raised:
        client.messages.create(model=MODEL, max_tokens=9, messages=ask("too busy"))
    assert (raised.value.status_code, raised.value.type) == (529, "overloaded_error")


def check_error_within_a_stream(client: Anthropic) -> None:
    pieces: list[str] = []
    with (
        pytest.raises(APIStatusError, match="the engine breaks"),
        client.messages.stream(model=MODEL, max_tokens=9, messages=ask("break off")) as stream,
    ):
        pieces.extend(stream.text_stream)
    assert "".join(pieces) == "one two"
