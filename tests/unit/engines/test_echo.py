"""echo says what it is told to: the same every time, exactly as many pieces, at the pace that is set."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from modelyard.engines.echo import DIMENSIONS, PIECES_A_BURST, Echo, EchoParams
from modelyard.streams import Cancel, whole_answer
from modelyard.types import Burst, GenerateRequest


def echo(**params: Any) -> Echo:
    given = {"model_name": "e", "engine": "echo", **params}
    return Echo(EchoParams(**given))


def bursts(engine: Echo, cancel: Cancel | None = None, **request: Any) -> list[Burst | None]:
    return list(engine.generate_stream(GenerateRequest("e", **{"prompt": "a b", **request}), cancel or Cancel()))


def pieces(found: list[Burst | None]) -> list[str]:
    return [piece for burst in found if burst for piece in burst.pieces]


@pytest.mark.parametrize("count", [0, 1, 3, 63, 64, 65, 128, 1000])
def test_it_answers_exactly_as_many_pieces_as_are_asked_for(count):
    found = bursts(echo(), max_new_tokens=count)
    assert pieces(found) == [" token"] * count
    assert [b.finish_reason for b in found] == [None] * (len(found) - 1) + ["length"]
    assert found[-1].usage == {"prompt_tokens": 2, "completion_tokens": count, "total_tokens": count + 2}
    assert all(len(b.pieces) <= PIECES_A_BURST for b in found)


def test_without_a_number_it_answers_the_default():
    assert len(pieces(bursts(echo()))) == 16
    assert len(pieces(bursts(echo(default_max_new_tokens=3)))) == 3


def test_told_to_it_repeats_the_words_of_the_prompt_in_turn():
    found = bursts(echo(reply="prompt"), prompt="you said 你好", max_new_tokens=5)
    assert "".join(pieces(found)) == " you said 你好 you said"
    assert pieces(bursts(echo(reply="prompt"), prompt="", max_new_tokens=2)) == [" token", " token"]


def test_messages_are_a_prompt_unless_it_is_said_otherwise():
    messages = [
        {"role": "human", "content": "from messages"},
        {"role": "ai", "content": [{"type": "text", "text": "x"}]},
    ]
    engine = echo(reply="prompt")
    assert "".join(pieces(bursts(engine, messages=messages, max_new_tokens=3))) == " from messages x"
    assert "".join(pieces(bursts(engine, messages=messages, chat_model=False, max_new_tokens=2))) == " a b"


def test_without_a_delay_everything_is_ready_at_once():
    assert [len(b.pieces) for b in bursts(echo(), max_new_tokens=130) if b] == [64, 64, 2]


def test_with_a_delay_each_piece_comes_by_itself_and_in_its_time():
    began = time.monotonic()
    found = bursts(echo(delay=0.02), max_new_tokens=5)
    assert [len(b.pieces) for b in found if b] == [1] * 5
    assert time.monotonic() - began >= 0.1


def test_a_long_delay_is_ticked_through():
    answer = echo(delay=2.5).generate_stream(GenerateRequest("e", prompt="a"), cancel := Cancel())
    assert next(answer) is None
    cancel.set()
    assert list(answer) == []


def test_a_cancel_ends_it_at_once():
    cancel = Cancel()
    answer = echo(delay=3600).generate_stream(GenerateRequest("e", prompt="a"), cancel)
    cancel.set()
    assert list(answer) == []
    assert bursts(echo(), cancel, max_new_tokens=10**6) == []


def test_whole_it_is_one_text():
    answer = echo().generate_stream(GenerateRequest("e", prompt="a", max_new_tokens=3), Cancel())
    assert whole_answer(answer).text == " token token token"


def test_a_vector_is_384_floats_of_length_one_and_always_the_same():
    texts = ["a cat sat", "", "你好", "\ud800", "x " * 1000]
    rows = echo(worker_type="text2vec").embed(texts, Cancel())
    assert [len(row) for row in rows] == [DIMENSIONS] * len(texts) == [384] * 5
    assert all(math.isclose(sum(x * x for x in row), 1.0) for row in rows)
    assert rows == echo().embed(texts, Cancel())


def test_texts_that_share_words_are_near():
    rows = echo().embed(["the cat sat here", "the cat sat there", "stocks fell on monday"], Cancel())
    near, far = (sum(a * b for a, b in zip(rows[0], other, strict=True)) for other in rows[1:])
    assert near > 0.5 > far


def test_it_ranks_by_the_share_of_the_querys_words():
    assert echo().rerank("cat sat", ["A cat sat", "cat", "dog", ""], Cancel()) == [1.0, 0.5, 0.0, 0.0]
    assert echo().rerank("", ["a"], Cancel()) == [0.0]


def test_it_counts_words_and_tells_its_context():
    assert [echo().count_token(text) for text in ("", "a", " a  b\nc ")] == [0, 1, 3]
    metadata = echo(context_length=99, model_alias="nick").metadata()
    assert (metadata.model, metadata.context_length, metadata.chat_model) == ("nick", 99, True)
