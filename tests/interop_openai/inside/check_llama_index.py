"""LlamaIndex's OpenAI model: text, chat, streams, tools and objects."""

from __future__ import annotations

import asyncio
import os

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAI, OpenAIResponses
from pydantic import BaseModel

CITY = "San Francisco, CA"
HELLO = [ChatMessage(role="system", content="Be kind."), ChatMessage(role="user", content="Hello there")]


class Joke(BaseModel):
    """A joke."""

    setup: str
    punchline: str


def get_weather(location: str) -> str:
    """Return the weather of a place."""
    return f"sunny in {location}"


@pytest.fixture(params=[OpenAI, OpenAIResponses])
def model(request: pytest.FixtureRequest) -> OpenAI | OpenAIResponses:
    place = {"api_base": os.environ["INTEROP_URL"], "api_key": "none", "max_retries": 0}
    return request.param(model="gpt-4o-mini", **place)


def check_complete(model: OpenAI) -> None:
    assert model.complete("one two three").text == "one two three"


def check_complete_with_the_completions_api() -> None:
    # Without max_tokens it fetches the table of OpenAI's tokenizer.
    model = OpenAI("gpt-3.5-turbo-instruct", max_tokens=16, api_base=os.environ["INTEROP_URL"], api_key="none")
    assert model.complete("one two three").text == "one two three"
    assert [chunk.delta for chunk in model.stream_complete("one two")] == ["one", " two", ""]


def check_chat(model: OpenAI) -> None:
    assert model.chat(HELLO).message.content == "Hello there"


def check_stream(model: OpenAI) -> None:
    *_, last = model.stream_chat(HELLO)
    assert last.message.content == "Hello there"


def check_asynchronous_stream(model: OpenAI) -> None:
    async def read() -> str | None:
        last = None
        async for chunk in await model.astream_chat(HELLO):
            last = chunk
        return last.message.content if last is not None else None

    assert asyncio.run(read()) == "Hello there"


def check_tools(model: OpenAI) -> None:
    tool = FunctionTool.from_defaults(get_weather)
    response = model.chat_with_tools([tool], "What is the weather in San Francisco?")
    calls = model.get_tool_calls_from_response(response)
    assert [(call.tool_name, call.tool_kwargs) for call in calls] == [
        ("get_weather", {"location": "San Francisco, CA"})
    ]
    result = model.predict_and_call([tool], "What is the weather in San Francisco?")
    assert result.response == f"sunny in {CITY}"


def check_tools_in_a_stream(model: OpenAI) -> None:
    tool = FunctionTool.from_defaults(get_weather)
    *_, last = model.stream_chat_with_tools([tool], "What is the weather in San Francisco?")
    calls = model.get_tool_calls_from_response(last)
    assert [(call.tool_name, call.tool_kwargs) for call in calls] == [
        ("get_weather", {"location": "San Francisco, CA"})
    ]


def check_objects(model: OpenAI) -> None:
    joke = model.structured_predict(Joke, PromptTemplate("Tell me a joke about {topic}."), topic="cats")
    assert joke.punchline == "They like the mouse."
