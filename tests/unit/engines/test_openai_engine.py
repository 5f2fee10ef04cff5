"""The engine over OpenAI's API: a real service behind it, and scripts for what real servers do wrong."""

from __future__ import annotations

import json
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from faulty import LAST, Faulty, Peer, Script, faulty, http_chunk, in_turn, stream_head, whole
from in_process import SCRIPTED, service
from modelyard.cluster.remote_model import RemoteModelWorker
from modelyard.engines import openai, openai_events
from modelyard.engines.base import tokens_of
from modelyard.engines.openai import OpenAI, OpenAIParams
from modelyard.engines.openai_answers import BackendAnswer, refusal
from modelyard.engines.openai_events import EventDecoder
from modelyard.engines.openai_fields import NEVER_SENT
from modelyard.engines.scripted import Answers
from modelyard.errors import (
    Cancelled,
    EngineError,
    InvalidRequest,
    ModelyardError,
    NotReady,
    Overloaded,
    PromptTooLong,
    StartFailed,
    WorkerLost,
    WorkerSilent,
    WorkerUnreachable,
)
from modelyard.sessions.session import Session
from modelyard.settings.params import describe, from_json
from modelyard.streams import Cancel, whole_answer
from modelyard.types import Burst, GenerateRequest, Terms, WorkerType
from running import wait_until

HELLO = [{"role": "human", "content": "one two"}]


def engine(url: str, name: str = "gpt", kind: str = "llm", **params: Any) -> OpenAI:
    return OpenAI(OpenAIParams(model_name=name, engine="openai", worker_type=kind, base_url=url, **params))


@contextmanager
def started(made: OpenAI) -> Iterator[OpenAI]:
    made.start(lambda sentence: None)
    try:
        yield made
    finally:
        made.stop()


def ask(made: OpenAI, cancel: Cancel | None = None, **fields: Any) -> list[Burst]:
    request = GenerateRequest("gpt", **({"messages": HELLO} | fields))
    return [burst for burst in made.generate_stream(request, cancel or Cancel()) if burst is not None]


# A real service behind it


@pytest.fixture(scope="module")
def answers() -> Answers:
    return Answers()


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory, answers: Answers) -> Iterator[str]:
    tables = [
        {"name": "gpt", "worker_class": SCRIPTED, "script": answers.key},
        {"name": "emb", "engine": "echo", "worker_type": "text2vec", "limit_model_concurrency": 4},
        {"name": "rank", "engine": "echo", "worker_type": "reranker", "limit_model_concurrency": 4},
    ]
    with service(tmp_path_factory.mktemp("backend"), tables, role="standalone") as runtime:
        yield f"http://127.0.0.1:{runtime.settings.port}/v1/"


def test_text_comes_in_bursts_with_its_usage(backend, answers):
    with started(engine(backend)) as made:
        bursts = ask(made, max_new_tokens=5, temperature=0.5, stop=["END"])
        output = whole_answer(iter(bursts))
    assert output.text == "one two"
    assert output.finish_reason == "stop"
    assert output.usage == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
    request = answers.asked[-1].request
    assert request is not None
    assert (request.max_new_tokens, request.temperature, request.stop) == (5, 0.5, ["END"])
    assert request.messages == [{"role": "user", "content": "one two"}]


def test_a_raw_prompt_is_a_completion(backend, answers):
    with started(engine(backend)) as made:
        assert whole_answer(iter(ask(made, messages=[], prompt="three four"))).text == "three four"
    assert answers.asked[-1].request is not None
    assert answers.asked[-1].request.prompt == "three four"


def test_options_go_there_and_deltas_come_back(backend, answers):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    answers.say_deltas({"reasoning_content": "hm"}, {"tool_calls": [call]}, finish_reason="tool_calls")
    with started(engine(backend)) as made:
        bursts = ask(made, options={"tools": [tool], "tool_choice": "auto"})
    deltas = [delta for burst in bursts for delta in burst.deltas or ()]
    assert deltas == [{"reasoning_content": "hm"}, {"tool_calls": [call]}]
    assert bursts[-1].finish_reason == "tool_calls"


def test_vectors_and_scores_are_those_of_the_backend(backend):
    with started(engine(backend, "emb", "text2vec")) as made:
        rows = made.embed(["one"] * 300, Cancel())
    assert len(rows) == 300
    assert len(rows[0]) == 384
    with started(engine(backend, "rank", "reranker")) as made:
        scores = made.rerank("one", ["two", "one"], Cancel())
    assert scores[1] > scores[0]


def test_a_cancel_ends_the_answer_at_the_backend(backend, answers):
    answers.hold("one")
    cancel = Cancel()
    with started(engine(backend)) as made:
        bursts = made.generate_stream(GenerateRequest("gpt", HELLO), cancel)
        assert next(burst for burst in bursts if burst is not None).pieces == ["one"]
        asked = answers.asked[-1]
        cancel.set()
        with pytest.raises(ModelyardError):
            list(bursts)
    assert asked.ended.wait(10)
    assert asked.cancelled


def test_the_start_says_what_the_backend_has(backend):
    with pytest.raises(StartFailed, match=r"no model 'large' \(backend_model\); it has emb, gpt, rank"):
        engine(backend, "large").start(lambda sentence: None)
    with started(engine(backend, "large", backend_model="gpt")) as made:
        assert whole_answer(iter(ask(made))).text == "one two"


def test_the_start_says_that_nobody_listens():
    with pytest.raises(StartFailed, match=r"refuses connections|refused"):
        engine("http://127.0.0.1:1/v1").start(lambda sentence: None)


# What servers do wrong


def answering(*parts: bytes | Callable[[Peer], None]) -> Script:
    """Return a script that lists the model, and answers everything else with ``parts``."""

    def script(peer: Peer) -> bool:
        if peer.request.method == "GET":
            peer.send(whole(200, {"data": [{"id": "gpt", "max_model_len": 4096}]}))
            return True
        for part in parts:
            peer.send(part) if isinstance(part, bytes) else part(peer)
        return False

    return script


def streamed(*events: Any) -> bytes:
    """Return the answer that streams ``events``: objects, or lines as they are."""
    lines = [
        event if isinstance(event, bytes) else b"data: " + json.dumps(event).encode() + b"\n\n" for event in events
    ]
    return stream_head(content_type="text/event-stream") + b"".join(map(http_chunk, lines)) + LAST


def chunk(text: str | None, reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}], **more}


DONE = b"data: [DONE]\n\n"


@contextmanager
def over(*parts: bytes | Callable[[Peer], None], **params: Any) -> Iterator[tuple[OpenAI, Faulty]]:
    with faulty(answering(*parts)) as server, started(engine(server.url, **params)) as made:
        yield made, server


def test_keep_alives_odd_lines_and_empty_choices_are_read_over():
    odd = (b": keep-alive\n\n", b"event: message\r\ndata:" + json.dumps(chunk("a")).encode() + b"\r\n\r\n")
    events = (*odd, {"choices": []}, {"choices": None}, {"choices": 5}, chunk("b", "stop"), DONE)
    with over(streamed(*events)) as (made, _):
        assert whole_answer(iter(ask(made))).text == "ab"
        assert made.metadata().context_length == 4096


def event(value: Any, end: bytes = b"\n\n") -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + end


def last(**more: Any) -> bytes:
    return event(chunk(None, "stop", **more))


COUNTS = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
ODD_STREAMS = {
    "a byte order mark": b"\xef\xbb\xbf" + event(chunk("grün")) + last() + DONE,
    "lines of CRLF": (event(chunk("grün")) + last() + DONE).replace(b"\n", b"\r\n"),
    "no space": (event(chunk("grün")) + last() + DONE).replace(b"data: ", b"data:"),
    "comments, names and ids": b": hm\n\nevent: x\nid: 1\nretry: 5\n" + event(chunk("grün")) + last() + DONE,
    "no end": event(chunk("grün")) + last(),
    "no reason": event(chunk("grün")) + DONE,
    "the reason twice": event(chunk("grün")) + last() + last() + DONE,
    "the reason with the text": event(chunk("grün", "stop")) + DONE,
    "no choices first": event({"choices": [], "prompt_filter_results": []}) + event(chunk("grün")) + last() + DONE,
    "usage in every event": event(chunk("grün", usage={**COUNTS, "completion_tokens": 1})) + last(usage=COUNTS),
    "usage and error that are null": event(chunk("grün", usage=None, error=None)) + last(usage=COUNTS) + DONE,
    "usage that says nothing": event(chunk("grün", usage={}))
    + last(usage=COUNTS)
    + event({"choices": [], "usage": {}})
    + DONE,
    "events without data": b"data:\n\n" + event(chunk("grün")) + b"data: \n\n" + last() + DONE,
    "usage after the reason": event(chunk("grün")) + last() + event({"choices": [], "usage": COUNTS}) + DONE,
}


@pytest.mark.parametrize("size", [1, 10_000])
@pytest.mark.parametrize("odd", ODD_STREAMS)
def test_streams_of_all_servers_are_read_however_they_are_cut(odd, size):
    decoder, answer, data = EventDecoder(), BackendAnswer("backend"), ODD_STREAMS[odd]
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    bursts = [answer.burst(decoder.feed(part)) for part in parts]
    output = whole_answer(burst for burst in [*bursts, answer.ending()] if burst is not None)
    assert (output.text, output.finish_reason) == ("grün", "stop")
    assert output.usage == (COUNTS if "usage" in odd else None)


def test_a_refusal_of_the_model_is_kept_apart_from_its_text():
    deltas = [{"content": None, "refusal": text} for text in ("I can", "not.")]
    events = [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
    with over(streamed(*events, chunk(None, "stop"), DONE)) as (made, _):
        given = [delta for burst in ask(made) for delta in burst.deltas or ()]
    assert given == [{"refusal": "I can"}, {"refusal": "not."}]


def test_the_details_of_a_usage_are_kept():
    details = {"prompt_tokens_details": {"cached_tokens": 1}, "completion_tokens_details": {"reasoning_tokens": 2}}
    more = {"prompt_tokens_details": {"cached_tokens": 1, "audio_tokens": None}, "cost": 1, "total_tokens": 3}
    with over(streamed(last(usage={**COUNTS, **details, **more}), DONE)) as (made, _):
        assert ask(made)[-1].usage == {**COUNTS, **details}


def test_a_server_that_does_not_stream_is_read_too():
    answer = {"choices": [{"message": {"content": "a b"}, "finish_reason": "length"}], "usage": COUNTS}
    with over(whole(200, answer)) as (made, _):
        output = whole_answer(iter(ask(made)))
    assert (output.text, output.finish_reason, output.usage) == ("a b", "length", COUNTS)


def test_a_server_that_streams_all_the_same_is_read_too():
    with over(streamed(chunk("a"), chunk(" b", "length"), {"choices": [], "usage": COUNTS}, DONE)) as (made, _):
        output = whole_answer(iter(ask(made, whole=True)))
    assert (output.text, output.finish_reason, output.usage) == ("a b", "length", COUNTS)


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize(
    ("body", "kind", "error", "words"),
    [
        ({"error": {"message": "too hot", "code": 400}}, "application/json", InvalidRequest, "too hot"),
        ({"error": {"message": "out of memory"}}, "application/json", EngineError, "out of memory"),
        (b"<html>hello</html>", "text/html; charset=utf-8", EngineError, "answers with a page of HTML"),
    ],
)
def test_an_error_of_status_200_is_an_error(body, kind, error, words, is_whole):
    with over(whole(200, body, content_type=kind)) as (made, _), pytest.raises(error, match=words):
        ask(made, whole=is_whole)


def test_a_server_that_dies_after_a_piece_has_lost_the_answer():
    begun = stream_head(content_type="text/event-stream") + http_chunk(event(chunk("a")))
    with over(begun + b"ff\r\nhalf", Peer.reset) as (made, _), pytest.raises(WorkerLost, match="broke off"):
        ask(made)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *[("7", 7), ("0.2", 1), ("soon", 1), ("", 1)],
        *[("Wed, 21 Oct 2015 07:28:00 GMT", 1), ("Fri, 31 Dec 9999 00:00:00 GMT", 9999)],
    ],
)
def test_the_pause_of_a_busy_server_is_a_number_or_a_date(text, seconds):
    error = refusal(429, {"retry-after": text}, b"", "it")
    assert isinstance(error, Overloaded)
    assert error.retry_after == seconds


def test_the_pause_until_a_date_is_its_distance():
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    error = refusal(429, {"retry-after": date}, b"", "it")
    assert isinstance(error, Overloaded)
    assert 60 < error.retry_after <= 90


def test_reasoning_has_two_names():
    events = [{"choices": [{"delta": {name: "hm"}}]} for name in ("reasoning", "reasoning_content")]
    with over(streamed(*events, chunk(None, "stop"), DONE)) as (made, _):
        deltas = [delta for burst in ask(made) for delta in burst.deltas or ()]
    assert deltas == [{"reasoning_content": "hm"}] * 2


def test_an_answer_ends_at_done_where_the_backend_keeps_the_connection_open():
    ends = threading.Event()

    def stays(peer: Peer) -> None:
        ends.wait(20)

    events = streamed(chunk("a", "stop"), DONE).removesuffix(LAST)
    with over(events, stays, silence_timeout=5) as (made, _):
        assert whole_answer(iter(ask(made))).text == "a"
        ends.set()


def test_a_refusal_names_the_field_of_the_backend():
    body = json.dumps({"error": {"message": "too hot", "param": "temperature"}}).encode()
    error = refusal(400, {}, body, "it")
    assert isinstance(error, InvalidRequest)
    assert [fault["field"] for fault in error.errors] == ["temperature"]


FIELDS = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
ODD_TEXTS = ('say "no"', "a\\", "\u00e9\n", '","', '"}', "?!", "", " x")


def read_one_by_one(events: Sequence[bytes]) -> Burst | None:
    """Return the burst of events of which none is read like one before."""
    parts = [BackendAnswer("backend").burst([event]) for event in events]
    pieces = [piece for part in parts if part for piece in part.pieces]
    deltas = [delta for part in parts if part for delta in part.deltas or [{}] * len(part.pieces)]
    return Burst(pieces, deltas=deltas if any(deltas) else None) if pieces else None


@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":")])
def test_events_that_differ_in_their_text_are_read_as_each_alone(separators):
    chat = [chunk(text, **FIELDS) for text in ("a", *ODD_TEXTS, "b")]
    completions = [{**FIELDS, "choices": [{"index": 0, "text": text}]} for text in ("a", *ODD_TEXTS)]
    reasoned = {"choices": [{"index": 0, "delta": {"content": "c", "reasoning_content": "hm"}, "finish_reason": None}]}
    twice = {"choices": [{"index": 0, "delta": {"content": "c"}}, {"index": 1, "delta": {"content": "d"}}]}
    others = [chunk("x", **FIELDS | {"created": 2}), {**FIELDS, **reasoned}, {**FIELDS, **twice}, chunk("y", **FIELDS)]
    for made in (chat, completions, [*chat, *others, *chat, *completions]):
        events = [json.dumps(event, separators=separators).encode() for event in made]
        assert BackendAnswer("backend").burst(events) == read_one_by_one(events)
        for size in (1, 2, 3, len(events)):
            answer, pieces = BackendAnswer("backend"), []
            for first in range(0, len(events), size):
                burst = answer.read(b"".join(b"data: %b\n\n" % event for event in events[first : first + size]))
                pieces += burst.pieces if burst else []
            assert pieces == read_one_by_one(events).pieces


def test_only_the_first_of_events_that_differ_in_their_text_is_read_as_json(monkeypatch: pytest.MonkeyPatch):
    read: list[bytes] = []

    def loads(data: bytes) -> Any:
        read.append(data)
        return json.loads(data)

    monkeypatch.setattr(openai_events.orjson, "loads", loads)
    events = [json.dumps(chunk(f"t{number}", **FIELDS)).encode() for number in range(20)]
    assert BackendAnswer("backend").burst(events) == Burst([f"t{number}" for number in range(20)])
    whole = [data for data in read if data.startswith(b"{")]
    assert len(whole) == 2  # it, and the one that is made up of it
    read.clear()
    unlike = [json.dumps(chunk("t", **FIELDS | {"obfuscation": "x" * number})).encode() for number in range(1, 60)]
    BackendAnswer("backend").burst(unlike)
    assert len(read) < 70


def test_few_events_of_an_answer_that_comes_at_once_are_read_as_json(monkeypatch: pytest.MonkeyPatch):
    read: list[bytes] = []

    def loads(data: bytes) -> Any:
        read.append(data)
        return json.loads(data)

    monkeypatch.setattr(openai_events.orjson, "loads", loads)
    texts = [f"t{number}" for number in range(20)]
    role = {**FIELDS, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    end = {**FIELDS, "choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
    events = [json.dumps(event).encode() for event in (role, *(chunk(text, **FIELDS) for text in texts), end)]
    answer = BackendAnswer("backend")
    assert answer.read(b"".join(b"data: %b\n\n" % event for event in (*events, b"[DONE]"))) == Burst(texts)
    assert answer.ending().finish_reason == "length"
    assert (
        len([data for data in read if data.startswith(b"{")]) == 4
    )  # these two, the first text, and one made up of it


@pytest.mark.parametrize("text", [b'a","b', b"a\\", b"a\n", b"\xff", b"\\x"])
def test_a_text_that_is_no_json_is_refused_wherever_it_comes(text):
    before, after = json.dumps(chunk("TEXT", **FIELDS)).encode().split(b"TEXT")
    answer = BackendAnswer("backend")
    answer.burst([before + b"a" + after, before + b"b" + after])
    with pytest.raises(EngineError, match="not JSON"):
        answer.burst([before + text + after])
    for texts in ([text], [text, b"c"], [text, b',"c'], [text, b",1,", b"c\\", b"d"]):
        answer = BackendAnswer("backend")
        events = [b"data: %b\n\n" % (before + piece + after) for piece in (b"a", *texts)]
        assert answer.read(events[0]) == Burst(["a"])
        with pytest.raises(EngineError, match="not JSON"):
            answer.read(b"".join(events[1:]))


def test_a_model_of_events_is_replaced_as_often_as_another_fits(monkeypatch: pytest.MonkeyPatch):
    read: list[bytes] = []

    def loads(data: bytes) -> Any:
        read.append(data)
        return json.loads(data)

    monkeypatch.setattr(openai_events.orjson, "loads", loads)
    answer = BackendAnswer("backend")
    for second in range(10):
        events = [json.dumps(chunk("t", **FIELDS | {"created": second})).encode() for _ in range(4)]
        for event in events:
            assert answer.read(b"data: %b\n\n" % event) == Burst(["t"])
    assert len([data for data in read if data.startswith(b"{")]) == 20


def test_a_reason_within_events_of_text_is_kept():
    events = [json.dumps(chunk(text, "length", **FIELDS)).encode() for text in ("a", "b", "c")]
    answer = BackendAnswer("backend")
    assert answer.burst(events) == Burst(["a", "b", "c"])
    assert answer.ending().finish_reason == "length"


def test_events_that_are_cut_anywhere_have_the_same_texts():
    texts = ["a", " b", "\u00e9", "c\n"] * 3
    data = b"".join(b"data: %b\n\n" % json.dumps(chunk(text, **FIELDS)).encode() for text in texts)
    for size in (50, 97, 170, 171, 340, 1000):
        answer, pieces = BackendAnswer("backend"), []
        for first in range(0, len(data), size):
            burst = answer.read(data[first : first + size])
            pieces += burst.pieces if burst else []
        assert pieces == texts


def test_an_event_of_several_lines_is_no_model_of_one_whose_lines_have_no_name():
    answer = BackendAnswer("backend")
    before, after = (b"data: {\n%b", b'"choices": [{"delta": {"content": "%b"}}]}\n\n')
    assert answer.read(before % b"data: " + after % b"a") == Burst(["a"])
    with pytest.raises(EngineError, match="not JSON"):
        answer.read(before % b"" + after % b"b")


@pytest.mark.parametrize("text", ["x" * 400_000, "\n" * 200_000])
def test_a_long_text_takes_the_memory_of_a_few_copies(text):
    event = json.dumps(chunk(text, **FIELDS)).encode()
    answer = BackendAnswer("backend")
    tracemalloc.start()
    try:
        assert answer.burst([event]) == Burst([text])
        assert tracemalloc.get_traced_memory()[1] < 20 * len(event)
    finally:
        tracemalloc.stop()


def test_an_answer_that_breaks_off_is_an_error():
    with over(streamed(chunk("a"))) as (made, _), pytest.raises(EngineError, match="broke off"):
        ask(made)


def test_what_comes_with_an_error_is_read_before_it():
    answer = BackendAnswer("backend")
    error = json.dumps({"error": {"message": "broke"}}).encode()
    events = [json.dumps(chunk(text)).encode() for text in ("one", " two")]
    assert answer.burst(events[:1]) == Burst(["one"])
    assert answer.burst([events[1], error]) == Burst([" two"])
    for go_on in (lambda: answer.burst([]), answer.ending):
        with pytest.raises(EngineError, match="broke"):
            go_on()
    with pytest.raises(EngineError, match="broke"):
        BackendAnswer("backend").burst([*events, error])  # nothing has left: another backend may answer


def test_an_error_within_the_stream_is_its_error():
    error = {"error": {"message": "out of memory", "type": "server_error"}}
    with over(streamed(chunk("a"), error)) as (made, _), pytest.raises(EngineError, match="out of memory"):
        ask(made)
    refused = {"error": {"message": "too hot", "type": "invalid_request_error", "code": 400}}
    with over(streamed(refused)) as (made, _), pytest.raises(InvalidRequest, match="too hot"):
        ask(made)


@pytest.mark.parametrize(("event", "words"), [(b"data: {\n\n", "not JSON"), (b"data: 5\n\n", "not an object")])
def test_an_event_that_can_not_be_read_is_an_error(event, words):
    with over(streamed(event)) as (made, _), pytest.raises(EngineError, match=words):
        ask(made)


def test_silence_is_an_error_and_a_sign_of_life_until_then():
    def begins(peer: Peer) -> None:
        peer.send(stream_head(content_type="text/event-stream"))
        peer.wait_hung_up()

    with over(begins, silence_timeout=1.0) as (made, server):
        bursts = made.generate_stream(GenerateRequest("gpt", HELLO), Cancel())
        with pytest.raises(EngineError, match="silent for 1 s"):
            list(bursts)
        wait_until(lambda: server.open_connections == 0, "the connection is closed")


class Queue:
    """A script that keeps its headers back until `go`, as a server does whose requests stand in line."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self, peer: Peer) -> None:
        assert self.go.wait(20)
        peer.send(streamed(chunk("late", "stop"), DONE))


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    monkeypatch.setattr(openai, "TICK", 0.02)
    made = Queue()
    yield made
    made.go.set()


def test_headers_that_are_late_leave_signs_of_life_until_they_come(queue):
    with over(queue) as (made, _):
        bursts = iter(made.generate_stream(GenerateRequest("gpt", HELLO), Cancel()))
        assert [next(bursts), next(bursts)] == [None, None]
        queue.go.set()
        assert whole_answer(bursts).text == "late"


def test_a_client_that_goes_before_the_headers_ends_the_request(queue):
    cancel = Cancel()
    with over(queue) as (made, server):
        bursts = made.generate_stream(GenerateRequest("gpt", HELLO), cancel)
        assert next(iter(bursts)) is None
        cancel.set()
        with pytest.raises(Cancelled):
            list(bursts)
        queue.go.set()
        wait_until(lambda: server.open_connections == 0, "the connection is closed")


def test_headers_that_come_after_the_reader_has_gone_are_not_kept(queue):
    with over(queue) as (made, server):
        bursts = made.generate_stream(GenerateRequest("gpt", HELLO), Cancel())
        assert next(iter(bursts)) is None
        bursts.close()
        queue.go.set()
        wait_until(lambda: server.open_connections == 0, "the connection is closed")


def test_a_client_reads_comments_while_its_request_stands_in_line_elsewhere(queue, tmp_path):
    with faulty(answering(queue)) as server:
        tables = [{"name": "gpt", "engine": "openai", "base_url": server.url, "limit_model_concurrency": 4}]
        with service(tmp_path, tables, first_output_timeout=0.05, silence_timeout=0.05) as runtime:
            body = {"model": "gpt", "messages": [{"role": "user", "content": "x"}], "stream": True}
            url = f"http://127.0.0.1:{runtime.settings.port}/v1/chat/completions"
            with requests.post(url, json=body, stream=True, timeout=20) as response:
                lines = (line for line in response.iter_lines() if line)
                shown = [next(lines) for _ in range(3)]
                queue.go.set()
                rest = b"".join(lines)
    assert b'"role":"assistant"' in shown[0]
    assert shown[1:] == [b": keep-alive"] * 2
    assert b"late" in rest and rest.endswith(b"data: [DONE]")


def test_a_backend_that_is_gone_is_unreachable():
    with over(b"") as (made, _), pytest.raises(WorkerUnreachable):
        ask(made)


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (400, {"error": {"message": "bad tool", "code": None}}, InvalidRequest, "bad tool"),
        (400, {"error": {"message": "x", "code": "context_length_exceeded"}}, PromptTooLong, "x"),
        (400, {"object": "error", "message": "maximum context length is 5"}, PromptTooLong, "maximum"),
        (
            422,
            {"error": "`inputs` must have less than 5 tokens. Given: 9", "error_type": "x"},
            PromptTooLong,
            "Given: 9",
        ),
        (422, {"detail": [{"loc": ["body", "n"], "msg": "missing"}]}, InvalidRequest, "^body.n: missing$"),
        (307, b"", EngineError, "a redirect: that is not followed .base_url.$"),
        (401, {"error": "no"}, EngineError, "api_key"),
        (404, {"error": {"message": "no such model"}}, NotReady, "backend_model"),
        (429, {"error": {"message": "slow down"}}, Overloaded, "slow down"),
        (529, {"error": {"message": "overloaded"}}, Overloaded, "overloaded"),
        (502, b"<html>Bad Gateway</html>", EngineError, "a page of HTML"),
        (500, b"", EngineError, "status 500"),
    ],
)
def test_a_refusal_becomes_an_error_of_ours(status, body, kind, words):
    with over(whole(status, body, "Retry-After: 7")) as (made, _), pytest.raises(ModelyardError, match=words) as caught:
        ask(made)
    assert type(caught.value) is kind
    if isinstance(caught.value, Overloaded):
        assert caught.value.retry_after == 7


def test_a_body_that_is_nested_too_deeply_is_a_refusal_too():
    assert type(refusal(500, {}, b"[" * 100_000, "it")) is EngineError


@pytest.mark.parametrize("answer", [{"data": [{"index": 0}]}, {"data": []}, {"data": 5}, [], b"no"])
def test_vectors_that_are_missing_are_an_error(answer):
    with over(whole(200, answer), kind="text2vec") as (made, _), pytest.raises(EngineError):
        made.embed(["a"], Cancel())


# What is sent


def test_fields_are_stripped_and_set_and_the_key_is_sent():
    params = {"strip_params": ["stream_options", "seed"], "set_params": ['extra={"a": 1}', "temperature=0"]}
    with over(streamed(chunk("a", "stop"), DONE), api_key="k-1", **params) as (made, server):
        ask(made, seed=5, temperature=1.0)
    sent = server.requests[-1]
    assert sent.path == "/api/chat/completions"
    assert sent.headers["authorization"] == "Bearer k-1"
    assert sent.json() == {
        "model": "gpt",
        "temperature": 0,
        "messages": [{"role": "user", "content": "one two"}],
        "stream": True,
        "extra": {"a": 1},
    }


def test_fields_are_sent_under_the_names_that_the_server_has_for_them():
    params = {"rename_params": ["max_tokens = max_completion_tokens", "seed=random_seed"], "strip_params": ["stop"]}
    with over(streamed(chunk("a", "stop"), DONE), **params) as (made, server):
        ask(made, seed=5, max_new_tokens=9, stop=["x"])
    sent = server.requests[-1].json()
    assert (sent["max_completion_tokens"], sent["random_seed"]) == (9, 5)
    assert not {"max_tokens", "seed", "stop"} & sent.keys()


@pytest.mark.parametrize("item", ["max_tokens", "=b", "a= "])
def test_a_name_that_is_missing_is_a_fault_of_the_configuration(item):
    with pytest.raises(StartFailed, match=f"rename_params: '{item}' must be NAME=OTHER"):
        engine("http://127.0.0.1:1/v1", rename_params=[item]).start(lambda sentence: None)


UNKNOWN = {"guided_json": {"type": "object"}, "ignore_eos": True, "seed": 7, "top_a": 0.5}


def test_fields_that_are_not_known_go_on_beside_ours():
    params = {"strip_params": ["ignore_eos"], "set_params": ["top_a=1"]}
    with over(streamed(chunk("a", "stop"), DONE), **params) as (made, server):
        ask(made, seed=5, extra=UNKNOWN)
    sent = server.requests[-1].json()
    assert {name: sent.get(name) for name in UNKNOWN} == {
        "guided_json": {"type": "object"},
        "ignore_eos": None,
        "seed": 5,
        "top_a": 1,
    }


@pytest.mark.parametrize("name", sorted(NEVER_SENT))
def test_what_is_decided_here_and_what_is_dangerous_never_goes_on(name):
    with over(streamed(chunk("a", "stop"), DONE)) as (made, server):
        ask(made, extra={name: "evil"})
    assert server.requests[-1].json().get(name) != "evil"


def test_a_caller_sets_those_parts_of_the_template_that_the_operator_allows():
    with over(streamed(chunk("a", "stop"), DONE), template_params=["enable_thinking"]) as (made, server):
        ask(made, extra={"chat_template_kwargs": {"enable_thinking": False}})
        assert server.requests[-1].json()["chat_template_kwargs"] == {"enable_thinking": False}
        for kwargs, field in (({"documents": 1}, "chat_template_kwargs.documents"), (5, "chat_template_kwargs")):
            with pytest.raises(InvalidRequest) as caught:
                ask(made, extra={"chat_template_kwargs": kwargs})
            assert [fault["field"] for fault in caught.value.errors] == [field]


def test_a_raw_prompt_may_be_token_ids_and_its_probabilities_are_those_of_a_chat():
    columns = {
        "tokens": ["a", "b"],
        "token_logprobs": [None, -0.5],
        "top_logprobs": [None, {"b": -0.5, "c": -1.5}],
        "text_offset": [0, 1],
    }
    event = {"choices": [{"index": 0, "text": "ab", "logprobs": columns, "finish_reason": "stop"}]}
    with over(streamed(event, DONE)) as (made, server):
        bursts = ask(made, messages=[], options={"prompt": [1, 2], "logprobs": 2, "suffix": "z"})
    sent = server.requests[-1]
    assert sent.path == "/api/completions"
    assert {name: sent.json()[name] for name in ("prompt", "logprobs", "suffix")} == {
        "prompt": [1, 2],
        "logprobs": 2,
        "suffix": "z",
    }
    others = [{"token": "b", "logprob": -0.5, "bytes": None}, {"token": "c", "logprob": -1.5, "bytes": None}]
    content = [
        {"token": "a", "logprob": None, "bytes": None, "top_logprobs": []},
        {"token": "b", "logprob": -0.5, "bytes": None, "top_logprobs": others},
    ]
    assert bursts[0] == Burst(["ab"], deltas=[{"logprobs": {"content": content, "refusal": None}}])


def test_an_answer_that_is_read_at_its_end_is_not_streamed():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": "yes", "reasoning": "hm", "tool_calls": [call]}
    logprobs = {"content": [{"token": "yes", "logprob": -1.0, "bytes": None, "top_logprobs": []}]}
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "tool_calls"}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    with over(whole(200, {"choices": [choice], "usage": usage})) as (made, server):
        (burst,) = ask(made, whole=True)
    delta = {"reasoning_content": "hm", "tool_calls": [call], "logprobs": {**logprobs, "refusal": None}}
    assert (burst.pieces, burst.deltas) == (["yes"], [delta])
    assert (burst.finish_reason, burst.usage) == ("tool_calls", usage)
    assert not {"stream", "stream_options", "whole"} & server.requests[-1].json().keys()


def test_a_whole_answer_may_take_longer_than_the_first_byte_of_a_stream_and_ends_with_a_cancel():
    cancel, asked = Cancel(), threading.Event()

    def silent(peer: Peer) -> None:
        asked.set()
        peer.wait_hung_up()

    with over(silent, first_byte_timeout=0.1) as (made, server):
        with pytest.raises(WorkerSilent):
            ask(made)
        asked.clear()

        def cancel_later() -> None:
            asked.wait(10)
            cancel.wait(0.2)
            cancel.set()

        canceller = threading.Thread(target=cancel_later)
        canceller.start()
        with pytest.raises(Cancelled):
            ask(made, cancel, whole=True)
        canceller.join(10)
        wait_until(lambda: server.open_connections == 0, "the connection is closed")


def test_the_best_of_several_answers_comes_whole():
    answer = {"choices": [{"index": 0, "text": "best", "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}
    with over(whole(200, answer)) as (made, server):
        output = whole_answer(iter(ask(made, messages=[], prompt="a", options={"best_of": 3})))
    assert (output.text, output.usage and output.usage["prompt_tokens"]) == ("best", 1)
    assert server.requests[-1].json()["best_of"] == 3
    assert "stream" not in server.requests[-1].json()


def test_a_prompt_that_is_repeated_stands_before_the_tokens_of_the_answer():
    columns = {"tokens": [" b", "c"], "token_logprobs": [-0.5, -1.0], "top_logprobs": None, "text_offset": [1, 3]}
    answer = {"choices": [{"index": 0, "text": "a bc", "logprobs": columns, "finish_reason": "stop"}]}
    with over(whole(200, answer)) as (made, _):
        burst = ask(made, messages=[], prompt="a", echo=True, whole=True, options={"logprobs": 0})[0]
    assert burst.pieces == ["a", " bc"]
    assert burst.deltas is not None
    assert [len(delta.get("logprobs", {}).get("content", ())) for delta in burst.deltas] == [0, 2]


@pytest.mark.parametrize(("usage", "tokens"), [({"prompt_tokens": 5, "total_tokens": 5}, 5), (None, None), ([], None)])
def test_vectors_come_with_the_tokens_that_the_backend_counts(usage, tokens):
    answer = {"data": [{"index": 0, "embedding": [0.5, 1.0]}], "usage": usage}
    with over(whole(200, answer), kind="text2vec") as (made, server):
        rows = made.embed(["a"], Cancel(), extra={"dimensions": 2, "input_type": "query", "model": "evil"})
    assert (rows, tokens_of(rows)) == ([[0.5, 1.0]], tokens)
    expected = {"model": "gpt", "input": ["a"], "encoding_format": "float", "dimensions": 2, "input_type": "query"}
    assert server.requests[-1].json() == expected


def test_scores_come_with_the_tokens_that_the_backend_counts():
    answer = {"results": [{"index": 0, "relevance_score": 0.5}], "usage": {"total_tokens": 3}}
    with over(whole(200, answer), kind="reranker") as (made, server):
        scores = made.rerank("q", ["a"], Cancel(), extra={"instruction": "rank"})
    assert (scores, tokens_of(scores)) == ([0.5], 3)
    assert server.requests[-1].json()["instruction"] == "rank"


def test_a_service_passes_fields_on_to_its_backend(tmp_path: Path):
    answer = {"data": [{"index": 0, "embedding": [0.5, 1.0]}], "usage": {"prompt_tokens": 4}}
    with faulty(answering(whole(200, answer))) as server:
        table = {"name": "gpt", "engine": "openai", "worker_type": "text2vec", "base_url": server.url}
        with service(tmp_path, [{**table, "limit_model_concurrency": 4}], role="standalone") as runtime:
            url = f"http://127.0.0.1:{runtime.settings.port}/v1/embeddings"
            body = {"input": "a", "dimensions": 2, "input_type": "query", "user": None}
            found = requests.post(url, json=body, timeout=10).json()
        assert found["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
        expected = {"model": "gpt", "input": ["a"], "encoding_format": "float", "dimensions": 2, "input_type": "query"}
        assert server.requests[-1].json() == expected


def test_a_worker_passes_fields_on_to_its_backend(tmp_path: Path):
    answer = {"data": [{"index": 0, "embedding": [0.5, 1.0]}], "usage": {"prompt_tokens": 4}}
    script = in_turn(*[answering(whole(200, answer))] * 3, answering(streamed(chunk("a", "stop"), DONE)))
    with faulty(script) as server, closing(Session(2, 10)) as session:
        table = {"engine": "openai", "base_url": server.url, "backend_model": "gpt", "limit_model_concurrency": 4}
        tables = [{**table, "name": "vec", "worker_type": "text2vec"}, {**table, "name": "gpt"}]
        with service(tmp_path, tables, role="worker") as runtime:
            url = f"http://127.0.0.1:{runtime.settings.port}/api"
            rows = RemoteModelWorker("vec@text2vec", url, session).embeddings(["a"], Cancel(), extra={"dimensions": 2})
            assert server.requests[-1].json()["dimensions"] == 2
            request = GenerateRequest("gpt", HELLO, extra={"top_a": 1}, terms=Terms(request_id="r1"))
            text = RemoteModelWorker("gpt@llm", url, session).generate(request, Cancel()).text
            assert server.requests[-1].json()["top_a"] == 1
            assert server.requests[-1].headers["x-request-id"] == "r1"
    assert (rows, tokens_of(rows), text) == ([[0.5, 1.0]], 4, "a")


def test_a_key_file_is_read(tmp_path: Path):
    file = tmp_path / "key"
    file.write_text("k-2\n")
    file.chmod(0o600)
    with over(streamed(chunk("a", "stop"), DONE), api_key_file=str(file)) as (made, server):
        ask(made)
    assert server.requests[-1].headers["authorization"] == "Bearer k-2"


def test_set_params_that_can_not_be_read_fail_the_start():
    with pytest.raises(StartFailed, match="NAME=JSON"):
        engine("http://127.0.0.1:1/v1", set_params=["temperature"]).start(lambda sentence: None)


@pytest.mark.parametrize("name", ["base_url", "api_key", "api_key_file", "ca", "set_params"])
def test_what_the_operator_decides_is_never_set_over_http_nor_shown(name):
    value: Any = ["a=1"] if name == "set_params" else "http://evil/v1"
    with pytest.raises(InvalidRequest, match="only the configuration") as caught:
        from_json(OpenAIParams, {name: value})
    assert caught.value.errors[0]["field"] == f"params.{name}"
    params = OpenAIParams(model_name="gpt", engine="openai", base_url="http://user:hunter2@host/v1", api_key="k-1")
    assert "hunter2" not in json.dumps(describe(OpenAIParams, params))
    assert "k-1" not in json.dumps(describe(OpenAIParams, params))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_wherever_the_bytes_are_cut_the_events_are_the_same(size):
    data = b": c\n\ndata: a\r\n\r\ndata:b\ndata: c\n\nid: 5\n\ndata: [DONE]\n\n"
    decoder, events = EventDecoder(), []
    for first in range(0, len(data), size):
        events += decoder.feed(data[first : first + size])
    assert events == [b"a", b"b\nc", b"[DONE]"]


def test_a_large_event_in_many_reads_is_joined_once():
    decoder, read = EventDecoder(), b"x" * 4096
    began = time.thread_time()
    assert decoder.feed(b"data: ") == [event for _ in range(2000) for event in decoder.feed(read)]
    (event,) = decoder.feed(b"\n\n")
    assert len(event) == 2000 * len(read)
    assert time.thread_time() - began < 2, "copied with each read it takes over ten seconds"


@pytest.mark.parametrize("part", [b"x" * 100, b"x" * 98 + b"\n", b"data: " + b"x" * 93 + b"\n"])
def test_an_event_has_a_bound_however_it_comes(monkeypatch, part):
    monkeypatch.setattr(openai_events, "MAX_EVENT", 1000)
    decoder = EventDecoder()
    for _ in range(3):  # each event has as much room as the first one
        assert decoder.feed(b"data: a\n\ndata: b\n") == [b"a"]
        assert [event for _ in range(9) for event in decoder.feed(part)] == []
        assert len(decoder.feed(b"\n\n")) == 1
    for _ in range(50):
        assert decoder.feed(b": keep-alive, and a part of the next\n\n: keep") == []
    with pytest.raises(ValueError, match="an event is over 1000 bytes"):
        for _ in range(12):
            decoder.feed(b"data:" + part)


def test_many_requests_at_once_have_connections_of_their_own(backend):
    texts: list[str] = []

    def one(number: int) -> None:
        texts.append(whole_answer(iter(ask(made, messages=[{"role": "user", "content": f"n {number}"}]))).text)

    with started(engine(backend)) as made:
        threads = [threading.Thread(target=one, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert sorted(texts) == sorted(f"n {number}" for number in range(16))


def test_it_is_for_every_kind_of_model():
    assert OpenAI.worker_types == frozenset(WorkerType)
    assert OpenAI.is_proxy
    assert not OpenAI.needs_weights
