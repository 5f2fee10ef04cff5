"""Which slot a prompt goes to: the one that it continues, an unused one, the one that was used longest ago."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from modelyard.engines.llama_slots import PromptSlots, prompt_of
from modelyard.types import GenerateRequest
from pictures import BLUE, RED, data_url, png, question


def slot_for(slots: PromptSlots, prompt: str) -> int | None:
    with slots.holding(prompt) as number:
        return number


def test_a_prompt_goes_to_the_slot_that_it_continues():
    slots = PromptSlots(3)
    assert [slot_for(slots, prompt) for prompt in ("a", "b", "a c", "b d", "a c e", "a c e")] == [0, 1, 0, 1, 0, 0]


def test_a_new_prompt_takes_an_unused_slot_although_another_begins_like_it():
    slots = PromptSlots(2)
    assert [slot_for(slots, f"{'s' * 900}{name}") for name in ("a", "b", "aa", "bb")] == [0, 1, 0, 1]


def test_then_it_takes_the_one_that_was_used_longest_ago():
    slots = PromptSlots(3)
    assert [slot_for(slots, prompt) for prompt in ("aa", "bb", "cc", "aab", "dd")] == [0, 1, 2, 0, 1]


def test_among_those_that_begin_like_it_where_there_are_any():
    slots = PromptSlots(3)
    for prompt in ("long" * 50 + "a", "other", "long" * 50 + "b"):
        slot_for(slots, prompt)
    assert slot_for(slots, "long" * 50 + "c") == 0
    assert slot_for(slots, "long" * 50 + "d") == 2
    assert slot_for(slots, "new") == 1


def test_a_busy_slot_is_never_taken():
    slots = PromptSlots(2)
    with ExitStack() as held:
        assert [held.enter_context(slots.holding(prompt)) for prompt in ("a", "ab", "abc")] == [0, 1, None]
    assert slot_for(slots, "abc") == 1
    assert slot_for(PromptSlots(0), "a") is None


def test_a_next_turn_continues_the_prompt_of_the_one_before():
    first = [{"role": "system", "content": "s"}, {"role": "user", "content": "\ud800"}]
    more = [*first, {"role": "assistant", "content": "x"}, {"role": "user", "content": "b"}]
    assert prompt_of(of(more)).startswith(prompt_of(of(first)))
    assert not prompt_of(of(more, tools=[{"type": "function"}])).startswith(prompt_of(of(first)))
    assert prompt_of(GenerateRequest("m", prompt="raw")) == "raw"
    assert prompt_of(GenerateRequest("m", options={"prompt": [1, 2]})) == "1 2 "


def test_images_count_by_their_content():
    red, blue = (prompt_of(of([question(data_url(png(color)))])) for color in (RED, BLUE))
    assert red != blue
    assert len(red) < 200


def of(messages: Sequence[dict[str, Any]], **options: Any) -> GenerateRequest:
    return GenerateRequest("m", messages=[{"role": "user", "content": "x"}], options={"messages": messages, **options})
