"""The parts of tool calls, as clients add them up: id, type and name once, an index from 0, arguments that are JSON."""

from __future__ import annotations

from typing import Any

import pytest
from modelyard.engines.tool_calls import ToolCalls
from modelyard.types import Burst, JSONObject


def call(index: int | None, call_id: str | None, name: str | None, arguments: Any) -> JSONObject:
    return {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def begins(index: int, call_id: str, arguments: str) -> JSONObject:
    return {"index": index, "id": call_id, "type": "function", "function": {"name": "f", "arguments": arguments}}


def goes_on(index: int, arguments: str) -> JSONObject:
    return {"index": index, "function": {"arguments": arguments}}


def answer(reason: str, *parts: Any) -> tuple[list[JSONObject], str | None]:
    """Return the parts of an answer in which each of ``parts`` came in a burst of its own, and how it ended."""
    calls = ToolCalls()
    bursts = [Burst([""], deltas=[{"tool_calls": [part]}]) for part in parts]
    tidied = [calls.tidied(burst) for burst in [*bursts, Burst([], reason)]]
    left = [burst for burst in tidied if burst is not None]
    taken = [part for burst in left for delta in burst.deltas or () for part in delta["tool_calls"]]
    return taken, left[-1].finish_reason


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        # id, type and name in each part
        ([call(0, "a", "f", '{"x"'), call(0, "a", "f", ":1}")], [begins(0, "a", '{"x"'), goes_on(0, ":1}")]),
        # no index, and arguments that are an object
        ([call(None, "a", "f", {"x": 1}), call(None, "b", "f", {})], [begins(0, "a", '{"x":1}'), begins(1, "b", "{}")]),
        # an index for two calls; the first has no arguments
        (
            [call(0, "a", "f", ""), call(0, "b", "f", "{}")],
            [begins(0, "a", ""), goes_on(0, "{}"), begins(1, "b", "{}")],
        ),
        # an index that begins far away
        ([call(10**9, "a", "f", "{}")], [begins(0, "a", "{}")]),
        ([None, 5, call(0, "a", "f", "{}")], [begins(0, "a", "{}")]),
    ],
)
def test_parts_of_calls_are_those_that_clients_add_up(parts, expected):
    assert answer("stop", *parts) == (expected, "tool_calls")


@pytest.mark.parametrize(("reason", "arguments"), [("tool_calls", "{}"), ("stop", "{}"), ("length", "")])
def test_a_call_without_arguments_ends_as_an_object_unless_it_is_cut_off(reason, arguments):
    parts, _ = answer(reason, call(0, None, "f", ""))
    assert parts[0]["id"].startswith("call_")
    assert "".join(part["function"]["arguments"] for part in parts) == arguments


def test_text_beside_calls_stays_and_a_burst_with_nothing_new_is_left_out():
    calls = ToolCalls()
    text = Burst(["a", "b"], deltas=[{}, {"tool_calls": [None]}])
    assert calls.tidied(text) == Burst(["a", "b"], deltas=[{}, {}])
    assert calls.tidied(Burst([""], deltas=[{"tool_calls": 5}])) is None
    assert calls.tidied(Burst([], "stop")) == Burst([], "stop")
