"""The text of tokens: whole letters, stop texts over several pieces, calls of tools wherever the pieces are cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from modelyard.engines.token_text import HermesCalls, StopTexts, TokenText

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


def decoded(tokens: Any) -> str:
    return bytes(tokens).decode(errors="replace")


def test_letters_of_several_tokens_come_whole():
    text = TokenText(decoded)
    assert [text.feed(token) for token in "é🙂x".encode()] == ["", "é", "", "", "", "🙂", "x"]
    assert text.rest() == ""


def test_what_never_becomes_a_letter_is_not_held_back_for_ever():
    text = TokenText(decoded)
    pieces = [text.feed(token) for token in b"\xff" * 8 + b"ab"]
    assert "".join(pieces) == "\ufffd" * 8 + "ab"
    assert pieces[-1] == "b"


def test_half_a_letter_at_the_end_is_left_out():
    text = TokenText(decoded)
    assert [text.feed(token) for token in "a🙂".encode()[:-1]] == ["a", "", "", ""]
    assert text.rest() == ""


@pytest.mark.parametrize("size", range(1, 12))
def test_a_text_ends_before_the_first_stop_text_however_it_is_cut(size):
    whole, stop = "one two stop three", StopTexts(["stop", "tower"])
    pieces = [stop.feed(whole[at : at + size]) for at in range(0, len(whole), size) if not stop.hit]
    assert "".join(pieces) == "one two "
    assert stop.hit
    assert stop.rest() == ""


def test_what_only_began_like_a_stop_text_comes_with_the_next_piece_or_at_the_end():
    stop = StopTexts(["stop"])
    assert [stop.feed(piece) for piece in ("st", "ay st", "o")] == ["", "stay ", ""]
    assert (stop.hit, stop.rest()) == (False, "sto")
    assert StopTexts([]).feed("all") == "all"
    assert StopTexts([""]).feed("all") == "all"


def parsed(text: str, size: int, at_most: int | None = None) -> tuple[str, list[Any]]:
    calls = HermesCalls(at_most)
    parts = [calls.feed(text[at : at + size]) for at in range(0, len(text), size)] + [calls.rest()]
    return "".join(outside for outside, _ in parts), [call for _, found in parts for call in found]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 11, 13, 500])
def test_calls_are_taken_out_of_the_text_however_it_is_cut(size):
    text, calls = parsed(f"I look.{CALL}\n{CALL}\n", size)
    assert text.rstrip() == "I look."
    assert [call["index"] for call in calls] == [0, 1]
    assert len({call["id"] for call in calls}) == 2
    for call in calls:
        assert (call["type"], call["function"]["name"]) == ("function", "f")
        assert json.loads(call["function"]["arguments"]) == {"a": 1}


def test_a_call_without_its_last_mark_counts_if_it_is_whole():
    assert len(parsed(CALL.removesuffix("</tool_call>"), 5)[1]) == 1
    broken = '<tool_call>{"name": "f", "argu'
    assert parsed(broken, 5) == (broken, [])


@pytest.mark.parametrize("written", ["not json", "[1]", '{"arguments": {}}', '{"name": 5}'])
def test_what_is_no_call_stays_text(written):
    text = f"<tool_call>{written}</tool_call>"
    assert parsed(text, 4) == (text, [])


def test_a_call_without_arguments_has_an_empty_object():
    (call,) = parsed('<tool_call>{"name": "f"}</tool_call>', 4)[1]
    assert call["function"]["arguments"] == "{}"


def test_after_the_last_call_that_is_wanted_nothing_comes():
    text, calls = parsed(f"{CALL}{CALL} and more", 6, at_most=1)
    assert (text, len(calls)) == ("", 1)
