"""What is encoded is what json would say; what is decoded does not depend on how the bytes were cut."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from modelyard.types import Burst, ModelOutput
from modelyard.wire.chunks import WRITE_SIZE, ChunkEncoder, PieceDecoder, encode_output
from modelyard.wire.decoder import NUL
from modelyard.wire.messages import dbgpt_messages, openai_messages, output_from_wire, text_of_content
from running import ROOT

RECORDINGS = sorted((ROOT / "tests" / "wire").glob("*.jsonl"))
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}

TEXTS = [
    ["a"],
    [" token", " token"],
    ["", "a", ""],
    ["你", "好", "🙂"],
    ['"', "\\", "\n\r\t\b\f", "\x00\x1f\x7f", "</script>", "\u2028"],
    ["x" * 5000, "y"],
    ["\ud83d\ude42"],
    [",", '"', '",', ',"', '","', "\\", '\\",', "", ",", "", '"'],
    [str(n) for n in range(3000)],
]


def encoded(bursts: list[Burst], *, delta: bool) -> bytes:
    encoder = ChunkEncoder(delta=delta)
    return b"".join(write for burst in bursts for write in encoder.encode(burst))


def chunks(data: bytes) -> list[dict[str, Any]]:
    assert data.endswith(NUL) or data == b""
    return [json.loads(part) for part in data.split(NUL)[:-1]]


def plain(text: str) -> str:
    """Return ``text`` as UTF-8 can carry it."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@pytest.mark.parametrize("pieces", TEXTS, ids=range(len(TEXTS)))
def test_each_piece_is_a_chunk_with_the_whole_text_so_far(pieces):
    found = chunks(encoded([Burst(pieces)], delta=False))
    assert [c["text"] for c in found] == [plain("".join(pieces[: n + 1])) for n in range(len(pieces))]


@pytest.mark.parametrize("pieces", TEXTS, ids=range(len(TEXTS)))
def test_who_asks_for_pieces_gets_the_new_piece_only(pieces):
    found = chunks(encoded([Burst(pieces)], delta=True))
    assert [c["text"] for c in found] == [plain(piece) for piece in pieces]


@pytest.mark.parametrize("delta", [False, True])
def test_a_chunk_is_what_json_says_of_a_model_output(delta):
    bursts = [Burst(["a", "b"]), Burst(["c"], "length", USAGE, {"speed": 1.5})]
    texts = ["a", "b", "c"] if delta else ["a", "ab", "abc"]
    want = [ModelOutput(text, incremental=delta).to_dict() for text in texts]
    want[-1] |= {"finish_reason": "length", "usage": USAGE, "metrics": {"speed": 1.5}}
    found = chunks(encoded(bursts, delta=delta))
    assert found == want
    assert [list(chunk) for chunk in found] == [list(output) for output in want]


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("pieces", TEXTS, ids=range(len(TEXTS)))
def test_how_pieces_are_joined_to_bursts_changes_no_byte(pieces, delta):
    one_by_one = [Burst([piece]) for piece in pieces]
    pairs = [Burst(pieces[n : n + 2]) for n in range(0, len(pieces), 2)]
    assert encoded([Burst(pieces)], delta=delta) == encoded(one_by_one, delta=delta) == encoded(pairs, delta=delta)


@pytest.mark.parametrize("delta", [False, True])
def test_text_leaves_as_utf8_and_not_as_escapes(delta):
    data = encoded([Burst(["你好"])], delta=delta)
    assert "你好".encode() in data
    assert b"\\u" not in data


@pytest.mark.parametrize(
    ("piece", "text"), [("\ud800", "\ufffd"), ("a\udc00b", "a\ufffdb"), ("\ude42\ud83d", "\ufffd\ufffd")]
)
@pytest.mark.parametrize("delta", [False, True])
def test_half_a_surrogate_pair_becomes_a_replacement_character(piece, text, delta):
    assert chunks(encoded([Burst([piece])], delta=delta))[0]["text"] == text


@pytest.mark.parametrize("delta", [False, True])
def test_a_burst_that_only_ends_the_answer_has_no_new_text(delta):
    _, *ending = chunks(encoded([Burst(["a"]), Burst([], "stop", USAGE)], delta=delta))
    assert {chunk["text"] for chunk in ending} == {"" if delta else "a"}
    told = [(chunk["finish_reason"], chunk["usage"]) for chunk in ending]
    assert told == ([("stop", USAGE)] if delta else [("stop", None), (None, USAGE)])


@pytest.mark.parametrize("delta", [False, True])
def test_a_burst_that_says_nothing_is_no_write(delta):
    assert ChunkEncoder(delta=delta).encode(Burst([])) == []


@pytest.mark.parametrize("delta", [False, True])
def test_only_the_last_chunk_of_the_last_burst_tells_the_end(delta):
    pieces = [str(n) for n in range(5000)]
    found = chunks(encoded([Burst(pieces, "length", USAGE)], delta=delta))
    assert [c["finish_reason"] for c in found] == [None] * 4999 + ["length"]
    assert [c["usage"] for c in found[:-1]] == [None] * 4999


@pytest.mark.parametrize("delta", [False, True])
def test_no_write_is_much_larger_than_the_limit(delta):
    encoder = ChunkEncoder(delta=delta)
    writes = [w for n in range(20) for w in encoder.encode(Burst([f" piece {n} {m}" for m in range(100)]))]
    assert max(map(len, writes)) < 3 * WRITE_SIZE
    assert all(write.endswith(NUL) for write in writes)


def test_pieces_cost_bytes_in_proportion_to_the_length_of_the_answer():
    short, long = (len(encoded([Burst([" token"] * n)], delta=True)) for n in (256, 1024))
    assert long == 4 * short
    assert len(encoded([Burst([" token"] * 1024)], delta=False)) > 20 * long


@pytest.mark.parametrize("seed", range(5))
def test_random_text_survives_the_way_there_and_back(seed):
    chance = random.Random(seed)
    alphabet = [*map(chr, range(0x250)), *"你好🙂", "\ud800", "\udfff", '"', "\\", "\x00"]
    pieces = ["".join(chance.choices(alphabet, k=chance.randrange(12))) for _ in range(200)]
    for delta in (False, True):
        encoder, decoder, found = ChunkEncoder(delta=delta), PieceDecoder(), []
        while pieces_left := pieces[len(found) :]:
            burst = Burst(pieces_left[: chance.randrange(1, 9)])
            for write in encoder.encode(burst):
                found += decoder.feed(write)
        decoder.flush()
        whole = "".join(c["text"] for c in found) if delta else found[-1]["text"]
        # Halves of a pair at the seam of two pieces are replaced one by one.
        assert whole == "".join(map(plain, pieces))


# The decoder


def stream() -> bytes:
    bursts = [Burst(["a", '"\\', "你好", "🙂"]), Burst(["z"], "stop", USAGE)]
    return NUL + encoded(bursts, delta=False) + NUL + NUL


def test_wherever_the_bytes_are_cut_the_chunks_are_the_same():
    data = stream()
    whole = PieceDecoder().feed(data)
    assert [c["text"] for c in whole] == ["a", 'a"\\', 'a"\\你好', 'a"\\你好🙂', 'a"\\你好🙂z']
    for cut in range(len(data) + 1):
        decoder = PieceDecoder()
        assert decoder.feed(data[:cut]) + decoder.feed(data[cut:]) == whole
        decoder.flush()


def test_byte_by_byte_the_chunks_are_the_same():
    decoder, found = PieceDecoder(), []
    for byte in stream():
        found += decoder.feed(bytes([byte]))
    assert found == PieceDecoder().feed(stream())


def delta_stream() -> bytes:
    bursts = [Burst(["a", '"\\', "你好", "🙂", "", ",", '",']), Burst(["x" * 40]), Burst(["z"], "stop", USAGE)]
    return NUL + encoded(bursts[:1], delta=True) + NUL + encoded(bursts[1:], delta=True) + NUL


def texts(fed: tuple[list[str], list[dict[str, Any]]]) -> list[str]:
    return fed[0] + [chunk["text"] for chunk in fed[1]]


def test_wherever_the_bytes_are_cut_the_pieces_are_the_same():
    data = delta_stream()
    want = [chunk["text"] for chunk in PieceDecoder().feed(data)]
    assert want == ["a", '"\\', "你好", "🙂", "", ",", '",', "x" * 40, "z"]
    for cut in range(len(data) + 1):
        decoder = PieceDecoder()
        assert texts(decoder.feed_pieces(data[:cut])) + texts(decoder.feed_pieces(data[cut:])) == want
        decoder.flush()


@pytest.mark.parametrize("pieces", TEXTS, ids=range(len(TEXTS)))
def test_chunks_that_are_but_a_piece_are_read_as_that(pieces):
    assert PieceDecoder().feed_pieces(encoded([Burst(pieces)], delta=True)) == ([plain(p) for p in pieces], [])


def test_a_chunk_that_says_more_than_a_piece_is_given_whole_with_all_that_follow():
    plain_one, more = encoded([Burst(["a"])], delta=True), encoded([Burst(["b"], "stop", USAGE)], delta=True)
    decoder = PieceDecoder()
    assert decoder.feed_pieces(plain_one + more) == (["a"], [json.loads(more[:-1])])
    _, found = decoder.feed_pieces(plain_one + more + plain_one)
    assert [(chunk["text"], chunk["finish_reason"]) for chunk in found] == [("a", None), ("b", "stop"), ("a", None)]


@pytest.mark.parametrize("text", [b'a",1,"b', b'a", "b": "c', b'a"', b"\\", b"\xff"])
def test_what_only_looks_like_a_piece_is_no_piece(text):
    chunk = encoded([Burst(["?"])], delta=True).replace(b"?", text)
    decoder = PieceDecoder()
    try:
        want = PieceDecoder().feed(chunk)
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            decoder.feed_pieces(chunk)
    else:
        assert decoder.feed_pieces(chunk) == ([], want)


def test_a_chunk_is_given_as_soon_as_its_nul_is_there():
    decoder = PieceDecoder()
    assert decoder.feed(b'{"text": "a"}') == []
    assert decoder.feed(NUL) == [{"text": "a"}]


def test_empty_chunks_are_skipped():
    assert PieceDecoder().feed(NUL * 5) == []
    assert PieceDecoder().feed(b"") == []


@pytest.mark.parametrize("cut", range(1, 13))
def test_a_stream_that_breaks_off_inside_a_chunk_is_an_error(cut):
    decoder = PieceDecoder()
    decoder.feed(b'{"text": "a"}\0' + b'{"text": "b"}'[:cut])
    with pytest.raises(ValueError, match=f"broke off inside a chunk, after {cut} bytes"):
        decoder.flush()


@pytest.mark.parametrize("chunk", [b"{", b"[1]", b'"text"', b"null", b"\xff\xfe", b'{"text": "\\ud800"}', b"{}{}"])
def test_what_is_no_json_object_is_an_error(chunk):
    with pytest.raises(ValueError, match=r"."):
        PieceDecoder().feed(chunk + NUL)


@pytest.mark.parametrize("step", [1, 7, 50, 1000])
def test_a_chunk_over_the_limit_is_an_error_however_it_comes(step):
    data = b'{"text": "' + b"x" * 100 + b'"}' + NUL
    decoder = PieceDecoder(limit=50)
    with pytest.raises(ValueError, match="over 50 bytes"):
        for first in range(0, len(data), step):
            decoder.feed(data[first : first + step])
    assert PieceDecoder(limit=len(data)).feed(data)


def test_many_chunks_within_the_limit_may_be_over_it_together():
    assert len(PieceDecoder(limit=20).feed(b'{"text": "a"}\0' * 100)) == 100


# Outputs of the peers


def recorded_chunks() -> list[str]:
    lines = [json.loads(line) for path in RECORDINGS for line in path.read_text().splitlines()]
    return [chunk for line in lines for chunk in line["response"].get("chunks", ())]


def test_the_recorded_chunks_decode_to_what_was_said():
    found = [output_from_wire(c) for text in recorded_chunks() for c in PieceDecoder().feed(text.encode())]
    assert len(RECORDINGS) == 2
    assert [o.text for o in found] == [" token", " token token", " token token token"] * 2
    assert all(o.success and not o.incremental for o in found)


def test_what_we_encode_is_byte_for_byte_what_was_recorded():
    recorded = recorded_chunks()[:3]
    assert encoded([Burst([" token"] * 3)], delta=False) == "".join(recorded).encode()


def test_a_whole_output_is_encoded_with_its_seven_keys():
    output = ModelOutput("你好", error_code=3, usage=USAGE)
    assert json.loads(encode_output(output)) == output.to_dict()
    assert "你好".encode() in encode_output(output)


@pytest.mark.parametrize(
    ("chunk", "text"),
    [
        ({"text": "a", "unknown": 1}, "a"),
        ({"text": None}, ""),
        ({}, ""),
        ({"content": "a"}, "a"),
        ({"content": {"type": "text", "object": {"data": "a", "format": "text"}}}, "a"),
        (
            {
                "content": [
                    {"type": "thinking", "object": {"data": "hm", "format": "text"}},
                    {"type": "text", "object": {"data": "a", "format": "text"}},
                    {"type": "text", "object": {"data": "b", "format": "text"}},
                ]
            },
            "ab",
        ),
        ({"text": "a", "content": "b"}, "a"),
    ],
)
def test_the_text_is_read_from_either_peers_keys(chunk, text):
    assert output_from_wire({**chunk, "error_code": 0}).text == text


def test_what_an_output_says_beside_its_text_is_read():
    output = output_from_wire(
        {"text": "no", "error_code": 7, "incremental": True, "usage": USAGE, "finish_reason": "x"}
    )
    assert output == ModelOutput("no", error_code=7, incremental=True, usage=USAGE, finish_reason="x")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a", "a"),
        ([], ""),
        (["a", "b"], "ab"),
        ([{"type": "text", "text": "a"}, "b"], "ab"),
        ([{"type": "text", "object": {"data": "a", "format": "text"}}], "a"),
    ],
)
def test_the_text_of_a_message_is_that_of_its_parts(content, text):
    assert text_of_content(content) == text


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ([{"type": "image_url", "image_url": {"url": "http://x"}}], "type 'image_url' is not understood"),
        ([{"type": "text"}], "type 'text' is not understood"),
        ([{"type": "text", "text": 5}], "type 'text'"),
        ([{}], "type None"),
        ([5], "must be a string or an object"),
        ([["a"]], "must be a string or an object"),
        (5, "must be a string or an object"),
    ],
)
def test_a_part_that_is_no_text_is_refused_by_its_kind(content, why):
    with pytest.raises(ValueError, match=why):
        text_of_content(content)


def test_roles_are_named_as_the_receiver_names_them_and_parts_become_text():
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "human", "content": "hi", "round_index": 0},
        {"role": "ai", "content": [{"type": "text", "object": {"data": "ho", "format": "text"}}]},
        {"role": "view", "content": "hm"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
    ]
    texts = ["be brief", "hi", "ho", "u", "a"]
    for convert, roles in (
        (openai_messages, ["system", "user", "assistant", "user", "assistant"]),
        (dbgpt_messages, ["system", "human", "ai", "human", "ai"]),
    ):
        assert [(m["role"], m["content"]) for m in convert(messages)] == list(zip(roles, texts, strict=True))
    assert [m.get("round_index") for m in dbgpt_messages(messages)] == [None, 0, None, None, None]
    assert all("round_index" not in m for m in openai_messages(messages))
    with pytest.raises(KeyError):
        dbgpt_messages([{"role": "human"}])


DELTAS = [{"tool_calls": [{"index": 0}]}, {}]


def test_what_comes_with_a_piece_is_the_context_of_its_chunk():
    data = encoded([Burst(["", "b"], "stop", deltas=DELTAS)], delta=True)
    first, last = chunks(data)
    assert (first["text"], first["model_context"], first["finish_reason"]) == ("", {"delta": DELTAS[0]}, None)
    assert (last["text"], last["model_context"], last["finish_reason"]) == ("b", None, "stop")
    assert set(first) == set(ModelOutput().to_dict())


def test_a_client_of_whole_texts_sees_the_text_alone():
    assert encoded([Burst(["a", "b"], deltas=DELTAS)], delta=False) == encoded([Burst(["a", "b"])], delta=False)


def test_an_end_without_a_piece_never_has_its_reason_and_its_usage_in_one_chunk():
    """A server of DB-GPT 0.8 repeats a finish_reason that comes with a usage and without new text."""
    found = chunks(encoded([Burst(["a"]), Burst([], "stop", USAGE, {"speed": 1})], delta=False))
    assert [(chunk["finish_reason"], chunk["usage"], chunk["metrics"]) for chunk in found] == [
        (None, None, None),
        ("stop", None, None),
        (None, USAGE, {"speed": 1}),
    ]
    (last,) = chunks(encoded([Burst(["a"], "stop", USAGE)], delta=False))
    assert (last["finish_reason"], last["usage"]) == ("stop", USAGE)


@pytest.mark.parametrize("pieces", [["a"], []])
def test_details_of_a_usage_are_sent_to_clients_of_pieces_alone(pieces):
    burst = Burst(pieces, "stop", {**USAGE, "prompt_tokens_details": {"cached_tokens": 1}})
    assert chunks(encoded([burst], delta=True))[-1]["usage"] == burst.usage
    assert chunks(encoded([burst], delta=False))[-1]["usage"] == USAGE
