"""The table of answers: which row answers a request, and what its answer is made of."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from modelyard.engines.scripted import Answers, Scripted, ScriptedParams
from modelyard.engines.scripted_table import read_table
from modelyard.errors import ConfigError, EngineError, Overloaded, PromptTooLong
from modelyard.types import Burst, GenerateRequest

TABLE = """
[[answer]]
role = "tool"
text = "It is sunny."

[[answer]]
when = "(?i)weather"
tool = "get_weather"
reasoning = "I need it."
text = "Let me look."
tool_calls = [{ name = "get_weather", arguments = { city = "Paris" } }, { name = "get_time" }]

[[answer]]
when = "weather"
text = "I can't know."

[[answer]]
when = "slowly"
text = "one two"
pause = 0.001
finish_reason = "content_filter"

[[answer]]
when = "break"
text = "one two"
error = "engine"

[[answer]]
when = "busy"
error = "overloaded"

[[answer]]
when = "long"
error = "too_long"
"""
TOOLS = {"tools": [{"type": "function", "function": {"name": "get_weather"}}], "tool_choice": "auto"}


@pytest.fixture
def engine(tmp_path: Path) -> Scripted:
    table = tmp_path / "answers.toml"
    table.write_text(TABLE)
    engine = Scripted(ScriptedParams(model_name="gpt", engine="scripted", table=str(table)))
    engine.start(lambda sentence: None)
    return engine


def bursts(engine: Scripted, text: str, role: str = "user", **fields: Any) -> list[Burst]:
    request = GenerateRequest("gpt", [{"role": role, "content": text}], **fields)
    return [burst for burst in engine.generate_stream(request, threading.Event()) if burst is not None]


def text_of(answer: list[Burst]) -> str:
    return "".join("".join(burst.pieces) for burst in answer)


def test_the_first_row_whose_conditions_hold_answers(engine):
    assert text_of(bursts(engine, "the weather?")) == "I can't know."
    assert text_of(bursts(engine, "The weather?", options=TOOLS)) == "Let me look."
    assert text_of(bursts(engine, "weather: 30", "tool", options=TOOLS)) == "It is sunny."
    assert text_of(bursts(engine, "something else")) == "something else"


def test_reasoning_text_and_calls_come_in_pieces_as_openais_deltas(engine):
    answer = bursts(engine, "The weather?", options=TOOLS)
    deltas = [delta for burst in answer for delta in burst.deltas or ()]
    assert [delta["reasoning_content"] for delta in deltas[:2]] == ["I nee", "d it."]
    parts = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert [part["index"] for part in parts] == [0, 0, 0, 1, 1, 1]
    heads = [part for part in parts if "id" in part]
    assert [head["function"] for head in heads] == [
        {"name": "get_weather", "arguments": ""},
        {"name": "get_time", "arguments": ""},
    ]
    assert heads[0]["id"] != heads[1]["id"]
    arguments = "".join(part["function"]["arguments"] for part in parts if part["index"] == 0)
    assert json.loads(arguments) == {"city": "Paris"}
    assert answer[-1].finish_reason == "tool_calls"


def test_a_row_pauses_and_ends_as_it_is_written(engine):
    answer = bursts(engine, "slowly")
    assert [burst.pieces for burst in answer] == [["one"], [" two"], []]
    assert answer[-1].finish_reason == "content_filter"


@pytest.mark.parametrize(("text", "error"), [("busy", Overloaded), ("long", PromptTooLong), ("break", EngineError)])
def test_a_row_fails_with_the_error_that_it_names(engine, text, error):
    with pytest.raises(error):
        bursts(engine, text)


def test_probabilities_come_with_each_piece_where_they_are_wanted(engine):
    answer = bursts(engine, "one two", options={"logprobs": True, "top_logprobs": 1})
    entries = [delta["logprobs"]["content"][0] for burst in answer for delta in burst.deltas or ()]
    assert [entry["token"] for entry in entries] == ["one", " two"]
    assert entries[1]["bytes"] == list(b" two")
    assert entries[1]["top_logprobs"][0]["logprob"] == entries[1]["logprob"] < 0


def test_an_answer_ends_at_the_most_tokens(engine):
    answer = bursts(engine, "the weather", max_new_tokens=2)
    assert (text_of(answer), answer[-1].finish_reason) == ("I can't", "length")


def test_a_script_of_a_test_follows_a_table_where_it_has_no_step(tmp_path):
    path = tmp_path / "answers.toml"
    path.write_text(TABLE)
    answers = Answers()
    answers.follow(path)
    engine = Scripted(ScriptedParams(model_name="gpt", engine="scripted", script=answers.key))
    answers.say("from the test")
    assert [text_of(bursts(engine, "the weather")) for _ in range(2)] == ["from the test", "I can't know."]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[[answer]]\nsay = 'x'\n", "answer 1: 'say' is unknown; there are when, role, tool, text"),
        ("[[answer]]\n[[answer]]\nerror = 'fire'\n", "answer 2: error must be one of engine, overloaded, too_long"),
        ("[[answer]]\nwhen = 5\n", "answer 1: when is 5, which is of another type"),
        ("[[answer]]\ntool_calls = [{}]\n", "answer 1: tool_calls must be a list of tables with a name"),
        ("[[answer]]\nwhen = '('\n", "answer 1: when is not a regular expression"),
        ("x = 1\n", "has no \\[\\[answer\\]\\] that can be read"),
    ],
)
def test_a_row_that_is_wrong_is_named(tmp_path, table, message):
    path = tmp_path / "answers.toml"
    path.write_text(table)
    with pytest.raises(ConfigError, match=message):
        read_table(path)
