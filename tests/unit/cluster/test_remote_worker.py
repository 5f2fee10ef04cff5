from __future__ import annotations

import functools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from faulty import (
    LAST,
    STREAM_TYPE,
    Faulty,
    Peer,
    Script,
    breaks_off,
    dribbles,
    faulty,
    http_chunk,
    output,
    resets,
    says,
    stalls,
    stream_head,
    streamed,
    whole,
)
from modelyard import errors
from modelyard.cluster import remote_answer
from modelyard.cluster.remote_machine import RemoteMachine
from modelyard.cluster.remote_model import RemoteModelWorker
from modelyard.engines.base import cut_texts, tokens_of
from modelyard.sessions.session import Session
from modelyard.streams import Cancel, OutputStream
from modelyard.types import Burst, GenerateRequest, HostModels, ModelMetadata, SupportedModel, Terms, WorkerType
from modelyard.wire.chunks import PieceDecoder
from modelyard.wire.errors import BY_CODE
from running import wait_until

USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
ENDING = output("", finish_reason="stop", usage=USAGE)


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session(connect_timeout=2, read_timeout=5)
    yield made
    made.close()


def worker_at(server: Faulty, session: Session, key: str = "m@llm") -> RemoteModelWorker:
    return RemoteModelWorker(key, server.url, session)


def stream_of(server: Faulty, session: Session, **fields: Any) -> OutputStream:
    return worker_at(server, session).generate_stream(GenerateRequest("m", prompt="x", **fields), Cancel())


def read(stream: OutputStream) -> tuple[list[str], BaseException | None]:
    """Return the pieces that came, and the error that followed, if one did."""
    pieces: list[str] = []
    with stream:
        try:
            for burst in stream:
                pieces += burst.pieces if burst is not None else []
        except errors.ModelyardError as error:
            return pieces, error
    return pieces, None


def text_from(script: Script, session: Session) -> str:
    with faulty(script) as server:
        pieces, error = read(stream_of(server, session))
    assert error is None
    return "".join(pieces)


# What is asked


def test_a_stream_asks_for_pieces_of_the_workers_own_process(session: Session):
    messages = [{"role": "human", "content": "Grüße"}]
    request = GenerateRequest("m", messages, temperature=0.0, max_new_tokens=5, chat_model=False, stop=["."])
    with faulty(says(streamed(ENDING))) as server:
        worker_at(server, session).generate(request, Cancel())
        worker_at(server, session).generate(replace(request, terms=Terms(wait=False)), Cancel())
    patient, at_once = server.requests
    assert (patient.method, patient.path) == ("POST", "/api/worker/generate_stream")
    assert patient.headers["accept"] == "application/x-model-output-delta"
    assert patient.headers["modelyard-route"] == at_once.headers["modelyard-route"] == "local"
    assert "prefer" not in patient.headers
    assert at_once.headers["prefer"] == "wait=0"
    assert "Grüße".encode() in patient.body
    assert patient.json() == {
        "model": "m",
        "messages": messages,
        "temperature": 0.0,
        "max_new_tokens": 5,
        "chat_model": False,
        "stop": ".",
        "echo": False,
    }


def test_a_worker_of_dbgpt_0_5_takes_the_prompt(session: Session):
    """It requires messages, and takes one stop only, as a string."""
    context = {"conv_uid": "c1"}
    message = {"role": "human", "content": "hi", "round_index": 3}
    with faulty(says(streamed(ENDING))) as server:
        worker = worker_at(server, session)
        worker.generate(GenerateRequest("m", prompt="x", stop=["###"]), Cancel())
        worker.generate(GenerateRequest("m", prompt="x", stop=["a", "b"]), Cancel())
        worker.generate(GenerateRequest("m", [message], context=context), Cancel())
    raw, two_stops, chat = (request.json() for request in server.requests)
    assert (raw["messages"], raw["stop"]) == ([], "###")
    assert two_stops["stop"] == ["a", "b"]
    assert (chat["messages"], chat["context"]) == ([message], context)
    assert "stop" not in chat


def test_messages_are_sent_in_the_words_that_every_worker_understands(session: Session):
    parts = [{"type": "text", "text": "a "}, {"type": "text", "object": {"data": "b", "format": "text"}}]
    said = [("system", "s"), ("user", parts), ("assistant", "c"), ("human", "d"), ("ai", "e")]
    request = GenerateRequest("m", [{"role": role, "content": content} for role, content in said], echo=True)
    with faulty(says(streamed(ENDING))) as server:
        worker_at(server, session).generate(request, Cancel())
    sent = server.requests[0].json()
    assert [(message["role"], message["content"]) for message in sent["messages"]] == [
        *(("system", "s"), ("human", "a b"), ("ai", "c")),
        *(("human", "d"), ("ai", "e")),
    ]
    assert sent["echo"] is True


def test_a_stream_asks_for_nothing_before_its_first_burst_is_wanted(session: Session):
    with faulty(says(streamed(ENDING))) as server:
        stream_of(server, session).close()
        with stream_of(server, session) as stream:
            assert server.connections == 0
            next(stream)
            assert len(server.requests) == 1


def test_a_request_that_can_not_be_written_as_json_is_invalid(session: Session):
    with faulty(says(streamed(ENDING))) as server, pytest.raises(errors.InvalidRequest, match="can't be sent on"):
        worker_at(server, session).generate(GenerateRequest("m", prompt="\ud800"), Cancel())


# What comes


def test_pieces_that_come_together_are_one_burst(session: Session):
    sent = streamed(output("a"), output("b"), output("c", finish_reason="length", usage=USAGE, metrics={"speed": 1}))
    with faulty(says(sent)) as server, stream_of(server, session) as stream:
        assert list(stream) == [Burst(["a", "b", "c"], "length", USAGE, {"speed": 1})]


def test_a_piece_is_given_out_when_it_comes_and_not_with_the_next(session: Session):
    taken = threading.Event()

    def script(peer: Peer) -> bool:
        peer.send(stream_head(), http_chunk(output("a")))
        taken.wait(20)
        peer.send(http_chunk(output("b") + ENDING), LAST)
        return True

    with faulty(script) as server, stream_of(server, session) as stream:
        assert next(stream) == Burst(["a"])
        taken.set()
        assert next(stream) == Burst(["b"], "stop", USAGE)
        assert list(stream) == []


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_an_answer_may_be_cut_anywhere(session: Session, size: int):
    sent = streamed(output("größe "), b"\0", output("日本"), output("😀") + output("!"), ENDING)
    assert text_from(dribbles(sent, size), session) == "größe 日本😀!"


def test_an_answer_that_ends_with_its_connection_is_read_as_it_comes(session: Session):
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n\r\n"
    assert text_from(breaks_off(head, output("a"), output("b"), ENDING), session) == "ab"


@pytest.mark.parametrize(
    ("texts", "pieces"),
    [
        (["a", "ab", "abc"], ["a", "b", "c"]),
        (["a", "a", "ab"], ["a", "b"]),
        (["a ", "a b ", "a b"], ["a ", "b "]),
        (["a b ", "a b", "a b c"], ["a b ", "c"]),
        (["a\ufffd", "a日", "a日b"], ["a\ufffd", "日", "b"]),
        (["", "", "a"], ["a"]),
    ],
)
def test_of_a_text_that_comes_whole_each_time_only_what_is_new_is_given_out(
    session: Session, texts: list[str], pieces: list[str]
):
    sent = streamed(*(output(text, incremental=False) for text in texts), content_type=STREAM_TYPE)
    with faulty(says(sent)) as server:
        assert read(stream_of(server, session)) == (pieces, None)


def test_the_last_text_of_a_peer_may_be_empty(session: Session):
    last = output("", incremental=False, finish_reason="stop", usage=USAGE)
    with faulty(says(streamed(output("ab", incremental=False), last))) as server:
        answer = worker_at(server, session).generate(GenerateRequest("m", prompt="x"), Cancel())
    assert (answer.text, answer.finish_reason, answer.usage) == ("ab", "stop", USAGE)


@pytest.mark.parametrize(
    "content_of",
    [
        lambda text: {"type": "text", "object": {"data": text, "format": "text"}},
        lambda text: [{"type": "text", "object": {"data": text, "format": "text"}}],
        lambda text: [
            {"type": "thinking", "object": {"data": "hm", "format": "text"}},
            {"type": "text", "object": {"data": text, "format": "text"}},
        ],
    ],
)
def test_content_in_the_place_of_text_is_understood(session: Session, content_of: Callable[[str], Any]):
    chunks = [
        json.dumps({"error_code": 0, "content": content_of(text), "finish_reason": None}).encode() + b"\0"
        for text in ("Hel", "Hello")
    ]
    assert text_from(says(streamed(*chunks)), session) == "Hello"


def test_keys_of_peers_that_nobody_knows_are_passed_over(session: Session):
    chunk = output("a", incremental=False, is_function_calling_model=True, tool_calls=None, finish_reason=3)
    assert text_from(says(streamed(chunk)), session) == "a"


def test_the_load_is_known_as_soon_as_the_headers_are_there(session: Session):
    load = "Modelyard-Load: slots=8;free=7;waiting=0"
    with faulty(stalls(stream_head(load), http_chunk(b"\0"))) as server:
        worker = worker_at(server, session)
        with worker.generate_stream(GenerateRequest("m", prompt="x"), Cancel()) as stream:
            assert (worker.load, stream.load) == (None, None)
            assert next(stream) is None
            assert worker.load == stream.load == "slots=8;free=7;waiting=0"


@pytest.mark.parametrize("batch", [False, True])
def test_priority_and_session_cross_as_headers(session: Session, batch: bool):
    with faulty(says(streamed(output("a"), ENDING))) as server:
        request = GenerateRequest(
            "m", prompt="x", terms=Terms(batch=batch, session="0123" if batch else "", request_id="r1")
        )
        list(worker_at(server, session).generate_stream(request, Cancel()))
        (sent,) = server.requests
    assert sent.headers.get("modelyard-priority") == ("batch" if batch else None)
    assert sent.headers.get("x-session-id") == ("0123" if batch else None)
    assert sent.headers["x-request-id"] == "r1"
    assert set(json.loads(sent.body)) == {"model", "messages", "prompt", "echo"}


@pytest.mark.parametrize("batch", [False, True])
def test_the_priority_of_vectors_crosses_too(session: Session, batch: bool):
    cancel = Cancel()
    with faulty(says(whole(200, [[1.0]], "Modelyard-Queue-Ms: 1500"))) as server:
        worker = worker_at(server, session, "m@text2vec")
        assert worker.embeddings(["x"], cancel, Terms(batch=batch)) == [[1.0]]
        assert worker.rerank("q", ["x"], Cancel(), Terms(batch=batch)) == [1.0]
        sent = server.requests
    assert [one.headers.get("modelyard-priority") for one in sent] == ["batch" if batch else None] * 2
    assert cancel.queued == 1.5


@pytest.mark.parametrize(("header", "queued"), [("1500", 1.5), ("-1", 0.0), ("1e3", 0.0), ("", 0.0)])
def test_the_time_in_line_is_known_as_soon_as_the_headers_are_there(session: Session, header: str, queued: float):
    cancel = Cancel()
    with faulty(says(streamed(output("a"), ENDING, headers=[f"Modelyard-Queue-Ms: {header}"]))) as server:
        list(worker_at(server, session).generate_stream(GenerateRequest("m", prompt="x"), cancel))
    assert cancel.queued == queued


@pytest.mark.parametrize("sent", [stream_head(), stream_head() + http_chunk(output("a")[:-1])])
def test_where_nothing_comes_the_stream_says_so_about_once_a_second(session: Session, sent: bytes):
    with faulty(stalls(sent)) as server, stream_of(server, session) as stream:
        began = time.monotonic()
        assert next(stream) is None
        assert next(stream) is None
        assert time.monotonic() - began < 4


def test_an_empty_chunk_ends_a_silence(session: Session):
    hasty = Session(read_timeout=0.4)
    beats = threading.Event()

    def script(peer: Peer) -> bool:
        peer.send(stream_head(), http_chunk(output("a")))
        for _ in range(4):
            beats.wait(0.2)
            peer.send(http_chunk(b"\0"))
        peer.send(http_chunk(ENDING), LAST)
        return True

    with faulty(script) as server:
        assert read(stream_of(server, hasty)) == (["a"], None)
    hasty.close()


# What breaks

HALF = output("half a chunk")[:-4]


@pytest.mark.parametrize(
    "script",
    [
        breaks_off(),
        resets(),
        breaks_off(stream_head()),
        breaks_off(stream_head(), http_chunk(b"\0")),
        breaks_off(stream_head(), http_chunk(HALF)[:-9]),
        breaks_off(stream_head(), http_chunk(HALF)),
        resets(stream_head(), http_chunk(HALF)),
        says(streamed(HALF)),
        breaks_off(b"HTTP/1.1 200 OK\r\n\r\n", HALF),
        says(streamed(b"nonsense\0")),
        says(streamed(b"[]\0")),
        says(streamed(b'{"content": [{"type": "image_url"}]}\0')),
        says(streamed(b'{"text": 5}\0')),
        says(streamed(b'{"text": ["a"], "incremental": true}\0')),
        says(streamed(b'{"content": {"type": ' + b"[" * 900 + b"]" * 900 + b"}}\0")),
        says(whole(200, b"<html>Welcome to our proxy</html>", content_type="text/html")),
    ],
)
def test_what_breaks_before_a_piece_has_come_may_be_asked_elsewhere(session: Session, script: Script):
    with faulty(script) as server:
        pieces, error = read(stream_of(server, session))
        assert server.url.split("/")[2] in str(error)
    assert pieces == []
    assert type(error) is errors.WorkerUnreachable


@pytest.mark.parametrize(
    "rest",
    [b"", http_chunk(b"\0"), http_chunk(HALF)[:-9], http_chunk(HALF), http_chunk(HALF) + LAST, b"zz\r\n"],
)
@pytest.mark.parametrize("ends", [breaks_off, resets])
def test_what_breaks_after_a_piece_is_lost_but_for_the_pieces_that_came(
    session: Session, ends: Callable[..., Script], rest: bytes
):
    taken = threading.Event()

    def script(peer: Peer) -> bool | None:
        peer.send(stream_head(), http_chunk(output("Hello ") + output("you")))
        taken.wait(20)
        return ends(rest)(peer)

    with faulty(script) as server, stream_of(server, session) as stream:
        assert next(stream) == Burst(["Hello ", "you"])
        taken.set()
        with pytest.raises(errors.WorkerLost):
            list(stream)


def test_a_worker_that_never_answers_is_unreachable_and_one_that_stalls_is_lost():
    hasty = Session(read_timeout=0.3)
    with faulty(stalls()) as server:
        pieces, error = read(stream_of(server, hasty))
        assert (pieces, type(error)) == ([], errors.WorkerSilent)
    with faulty(stalls(stream_head(), http_chunk(output("a")))) as server:
        pieces, error = read(stream_of(server, hasty))
        assert (pieces, type(error)) == (["a"], errors.WorkerLost)
    assert "silent for 0.3 s" in str(error)
    hasty.close()


def test_a_peers_answer_need_not_say_how_it_ended(session: Session):
    assert text_from(says(streamed(output("a"))), session) == "a"


@pytest.mark.parametrize("sent", [streamed(), streamed(b"\0\0"), whole(200, b"")])
def test_an_answer_without_a_word_is_an_error(session: Session, sent: bytes):
    with faulty(says(sent)) as server:
        pieces, error = read(stream_of(server, session))
    assert (pieces, type(error)) == ([], errors.EngineError)
    assert "an empty answer" in str(error)


def test_a_chunk_over_the_limit_is_refused(session: Session, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote_answer, "PieceDecoder", functools.partial(PieceDecoder, limit=1000))
    with faulty(stalls(stream_head(), http_chunk(b"x" * 2000))) as server:
        _, error = read(stream_of(server, session))
    assert "over 1000 bytes" in str(error)


# What a worker says went wrong


def refused(code: str | None, error_code: int = 500, text: str = "why", **told: Any) -> bytes:
    context = {"error": code, **told} if code else None
    return output(text, error_code=error_code, incremental=False, model_context=context)


@pytest.mark.parametrize("kind", sorted(set(BY_CODE.values()), key=lambda kind: kind.code))
def test_an_error_of_ours_is_the_same_here(session: Session, kind: type[errors.ModelyardError]):
    for script in (says(streamed(refused(kind.code))), says(whole(503, refused(kind.code)))):
        with faulty(script) as server:
            pieces, error = read(stream_of(server, session))
        assert (pieces, type(error), str(error)) == ([], kind, "why")


def test_every_error_of_ours_has_a_code_of_its_own():
    assert len(BY_CODE) == len(set(BY_CODE)) > 25
    assert BY_CODE["overloaded"] is errors.Overloaded
    assert BY_CODE["prompt_too_long"] is errors.PromptTooLong
    assert BY_CODE["cancelled"] is errors.WorkerLost, "somebody else's client has gone"


def test_a_refusal_tells_the_load_and_when_to_come_again(session: Session):
    told = ["Retry-After: 7", "Modelyard-Load: slots=1;free=0;waiting=3"]
    with faulty(says(whole(503, refused("overloaded", 503), *told, content_type=STREAM_TYPE))) as server:
        worker = worker_at(server, session)
        stream = worker.generate_stream(GenerateRequest("m", prompt="x"), Cancel())
        _, error = read(stream)
    assert isinstance(error, errors.Overloaded)
    assert (error.retry_after, error.load) == (7, "slots=1;free=0;waiting=3")
    assert worker.load == stream.load == "slots=1;free=0;waiting=3"


def test_an_invalid_request_names_its_fields(session: Session):
    faults = [{"field": "top_p", "message": "too large"}]
    with faulty(says(whole(422, refused("invalid_request", 422, errors=faults)))) as server:
        _, error = read(stream_of(server, session))
    assert isinstance(error, errors.InvalidRequest)
    assert error.errors == faults


def test_an_error_after_pieces_follows_them(session: Session):
    with faulty(says(streamed(output("a"), output("b") + refused("engine_error") + output("c")))) as server:
        pieces, error = read(stream_of(server, session))
    assert (pieces, type(error), str(error)) == (["a", "b"], errors.EngineError, "why")


@pytest.mark.parametrize(
    ("error_code", "kind"),
    [
        (1, errors.EngineError),
        (500, errors.EngineError),
        (404, errors.UnknownModel),
        (422, errors.InvalidRequest),
        (503, errors.Unavailable),
        ("?", errors.EngineError),
        ([503], errors.EngineError),
        ({"code": 503}, errors.EngineError),
    ],
)
def test_an_error_without_a_code_of_ours_goes_by_its_number(
    session: Session, error_code: Any, kind: type[errors.ModelyardError]
):
    with faulty(says(streamed(refused(None, error_code)))) as server:
        _, error = read(stream_of(server, session))
    assert (type(error), str(error)) == (kind, "why")


UNKNOWN_THERE = "Cound not found worker instances for model name a b and worker type llm"


@pytest.mark.parametrize(
    ("text", "error_code", "kind"),
    [
        (f"**LLMServer Generate Error, Please CheckErrorInfo.**: {UNKNOWN_THERE}", 1, errors.UnknownModel),
        (UNKNOWN_THERE, 1, errors.UnknownModel),
        (UNKNOWN_THERE, 2, errors.EngineError),
        (f"{UNKNOWN_THERE}, said the backend", 1, errors.EngineError),
        (f"the backend said: {UNKNOWN_THERE}", 1, errors.EngineError),
    ],
)
def test_only_the_whole_sentence_of_dbgpt_says_that_a_model_is_unknown_there(
    session: Session, text: str, error_code: int, kind: type[errors.ModelyardError]
):
    with faulty(says(streamed(refused(None, error_code, text)))) as server:
        _, error = read(stream_of(server, session))
    assert (type(error), str(error)) == (kind, text)


def test_an_error_that_has_no_words_is_one_all_the_same(session: Session):
    chunk = json.dumps({"error_code": 1, "content": {"type": "image_url"}}).encode() + b"\0"
    for script in (says(streamed(chunk)), says(whole(500, chunk))):
        with faulty(script) as server:
            _, error = read(stream_of(server, session))
        assert isinstance(error, errors.EngineError)


FASTAPI = {"detail": [{"loc": ["body", "model"], "msg": "Field required", "type": "missing"}]}


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (whole(422, FASTAPI), errors.InvalidRequest, "body.model: Field required"),
        (whole(401, {"detail": "who are you"}), errors.Unauthorized, "who are you"),
        (whole(403, {"detail": "not you"}), errors.Forbidden, "not you"),
        (whole(404, {"detail": "Not Found"}), errors.WorkerUnreachable, r"not known there, .*\(Not Found\)$"),
        (whole(405, b""), errors.WorkerUnreachable, "its role is another, or its prefix$"),
        (whole(413, b"too large"), errors.RequestTooLarge, "too large"),
        (whole(429, b""), errors.Overloaded, "429"),
        (whole(500, b"Internal Server Error"), errors.EngineError, "Internal Server Error"),
        (whole(502, b"<html>Bad Gateway</html>"), errors.WorkerUnreachable, "Bad Gateway"),
        (whole(503, b"", "Retry-After: 9"), errors.Unavailable, "503"),
        (whole(504, b""), errors.WorkerUnreachable, "504"),
        (whole(307, b"", "Location: http://elsewhere/"), errors.WorkerUnreachable, "http://elsewhere/.* not followed"),
        (whole(204, b""), errors.EngineError, "204"),
        (whole(500, b"[1]\xff"), errors.EngineError, "500"),
        (
            whole(404, {"type": "urn:modelyard:error:unknown_model", "detail": "no such", "status": 404}),
            errors.UnknownModel,
            "^no such$",
        ),
        (whole(400, {"type": "urn:modelyard:error:of_tomorrow", "detail": "new"}), errors.InvalidRequest, "new"),
        (whole(422, {"detail": [{"loc": 5, "msg": "odd"}, 7, [[]]]}), errors.InvalidRequest, "422: odd$"),
        (whole(500, {"type": ["x"], "detail": {"msg": {}}}), errors.EngineError, "status 500$"),
        (whole(400, {"error_code": 1, "model_context": {"error": ["x"]}, "text": 5}), errors.InvalidRequest, "valid"),
    ],
)
def test_a_status_that_is_none_of_success_is_an_error(
    session: Session, answer: bytes, kind: type[errors.ModelyardError], words: str
):
    with faulty(says(answer)) as server:
        _, error = read(stream_of(server, session))
        assert type(error) is kind
        with pytest.raises(kind, match=words):
            worker_at(server, session).count_token("x")
    if isinstance(error, errors.Unavailable):
        assert error.retry_after == (9 if b"Retry-After" in answer else 1)


# Closing


def test_closing_a_stream_hangs_up(session: Session):
    with faulty(stalls(stream_head(), http_chunk(output("a")))) as server:
        stream = stream_of(server, session)
        assert next(stream) == Burst(["a"])
        stream.close()
        wait_until(lambda: server.open_connections == 0, "hung up")
        assert list(stream) == []


@pytest.mark.parametrize("sent", [b"", stream_head(), stream_head() + http_chunk(output("a"))])
def test_a_cancel_ends_a_stream_at_once(session: Session, sent: bytes):
    cancel = Cancel()
    with faulty(stalls(sent)) as server:

        def cancel_soon() -> None:
            wait_until(lambda: server.requests, "the request")
            cancel.set(errors.Draining("going"))

        thread = threading.Thread(target=cancel_soon)
        thread.start()
        began = time.monotonic()
        with pytest.raises(errors.Draining, match="going"):
            worker_at(server, session).generate(GenerateRequest("m", prompt="x"), cancel)
        assert time.monotonic() - began < 1
        thread.join(10)
        wait_until(lambda: server.open_connections == 0, "hung up")


def test_streams_use_one_connection_after_the_other(session: Session):
    with faulty(says(streamed(output("a"), ENDING, content_type=STREAM_TYPE))) as server:
        for _ in range(5):
            assert read(stream_of(server, session)) == (["a"], None)
        assert server.connections == 1


def test_five_hundred_streams_that_break_leave_nothing_behind(session: Session):
    scripts = [
        breaks_off(stream_head(), http_chunk(output("a"))),
        resets(stream_head(), http_chunk(output("a"))),
        says(streamed(output("a"), HALF)),
        says(streamed(refused("engine_error"))),
        breaks_off(),
    ]
    with faulty(lambda peer: scripts[peer.number % len(scripts)](peer)) as server:
        before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
        failures = [read(stream_of(server, session))[1] for _ in range(500)]
        assert all(failures)
        wait_until(lambda: server.open_connections <= 1, "all connections ended but one that may be used again")
        assert len(os.listdir("/proc/self/fd")) <= before + 2
        wait_until(lambda: threading.active_count() <= threads + 1, "all threads ended")


# Other calls


def test_embeddings_are_one_row_a_text(session: Session):
    load = "Modelyard-Load: slots=64;free=64;waiting=0"
    with faulty(says(whole(200, [[1.5, -2.0], [0.0, 1e-3]], load))) as server:
        worker = worker_at(server, session, "e@text2vec")
        assert worker.embeddings(["a", "ü"], Cancel()) == [[1.5, -2.0], [0.0, 1e-3]]
        assert worker.load == "slots=64;free=64;waiting=0"
        worker.embeddings(["a", "b"], Cancel(), Terms(wait=False))
    assert server.requests[0].path == "/api/worker/embeddings"
    assert server.requests[0].json() == {"model": "e", "input": ["a", "ü"]}
    assert [request.headers.get("prefer") for request in server.requests] == [None, "wait=0"]
    assert {request.headers["modelyard-route"] for request in server.requests} == {"local"}


def test_rerank_sends_the_query_along_and_takes_one_row(session: Session):
    with faulty(says(whole(200, [[0.5, 0.25]]))) as server:
        assert worker_at(server, session, "r@reranker").rerank("q", ["a", "b"], Cancel()) == [0.5, 0.25]
    assert server.requests[0].json() == {"model": "r", "input": ["a", "b"], "query": "q", "worker_type": "reranker"}


@pytest.mark.parametrize("body", [b"null", b"[1, 2]", b"[[1]]", b"{}", b"no JSON", b"", b'[["a", "b"], [true, true]]'])
def test_vectors_that_do_not_fit_the_texts_are_an_error(session: Session, body: bytes):
    with faulty(says(whole(200, body))) as server:
        worker = worker_at(server, session)
        with pytest.raises(errors.WorkerUnreachable, match="m@llm at http://localhost"):
            worker.embeddings(["a", "b"], Cancel())
        with pytest.raises(errors.WorkerUnreachable, match="m@llm at http://localhost"):
            worker.rerank("q", ["a", "b"], Cancel())


def test_embeddings_end_with_their_cancel(session: Session):
    cancel = Cancel()
    with faulty(stalls()) as server:
        timer = threading.Thread(target=lambda: (wait_until(lambda: server.requests, "asked"), cancel.set()))
        timer.start()
        with pytest.raises(errors.Cancelled):
            worker_at(server, session).embeddings(["a"], cancel)
        timer.join(10)


def test_tokens_are_counted_by_the_model_that_is_meant(session: Session):
    with faulty(says(whole(200, 7))) as server:
        assert worker_at(server, session).count_token("a b") == 7
    assert server.requests[0].json() == {"model": "m", "prompt": "a b"}
    with faulty(says(whole(200, "seven"))) as server, pytest.raises(errors.WorkerUnreachable, match="not a count"):
        worker_at(server, session).count_token("a b")


def test_metadata_is_understood_from_both_peers(session: Session):
    said = {
        "model": "m",
        "context_length": 4096,
        "chat_model": False,
        "is_function_calling_model": True,
        "metadata": None,
        "ext_metadata": {"prompt_roles": ["a"], "prompt_sep": "\n", "prompt_chat_template": "{{ x }}"},
    }
    with faulty(says(whole(200, said))) as server:
        assert worker_at(server, session).metadata() == ModelMetadata("m", 4096, False, {}, "{{ x }}")
    with faulty(says(whole(200, {"model": "m", "ext_metadata": None}))) as server:
        assert worker_at(server, session).metadata() == ModelMetadata("m")


@pytest.mark.parametrize(
    ("sent", "fault"),
    [
        ([], "not metadata"),
        ({"context_length": "long"}, "context_length is not of type int"),
        ({"chat_model": "yes"}, "chat_model"),
        ({"metadata": []}, "metadata"),
        ({"ext_metadata": ["a"]}, "prompt_chat_template is not of type str"),
        ({"ext_metadata": {"prompt_chat_template": 5}}, "prompt_chat_template is not of type str"),
    ],
)
def test_metadata_of_another_shape_is_an_invalid_answer(session: Session, sent: Any, fault: str):
    with faulty(says(whole(200, sent))) as server, pytest.raises(errors.WorkerUnreachable, match=fault):
        worker_at(server, session).metadata()


@pytest.mark.parametrize("load", ["slots=1;free=0", "slots=x;free=0;waiting=3", "slots=1;free=0;waiting=3\x0b"])
def test_a_load_that_is_not_valid_is_not_passed_on(session: Session, load: str):
    with faulty(says(whole(503, refused("overloaded", 503), f"Modelyard-Load: {load}"))) as server:
        worker = worker_at(server, session)
        stream = worker.generate_stream(GenerateRequest("m", prompt="x"), Cancel())
        _, error = read(stream)
    assert isinstance(error, errors.Overloaded)
    assert (error.load, worker.load, stream.load) == (None, None, None)


@pytest.mark.parametrize("usage", [{"prompt_tokens": "4"}, {"total_tokens": [1]}, 5])
def test_a_usage_whose_counts_are_not_numbers_is_left_out(session: Session, usage: Any):
    with faulty(says(streamed(output("a", finish_reason="stop", usage=usage)))) as server:
        answer = worker_at(server, session).generate(GenerateRequest("m", prompt="x"), Cancel())
    assert (answer.text, answer.finish_reason, answer.usage) == ("a", "stop", None)


# A host


def test_a_start_names_host_and_port_and_is_on_a_connection_of_its_own(session: Session):
    with faulty(says(whole(200, None))) as server:
        port = int(server.url.split(":")[2].split("/")[0])
        host = RemoteMachine(server.url, session)
        host.model_startup("m", WorkerType.TEXT2VEC, {"n_ctx": 5})
        host.model_startup("m", None, {})
        host.model_shutdown("m", WorkerType.LLM)
        assert server.connections == 3
    meant = {"host": "localhost", "port": port, "model": "m"}
    assert [request.json() for request in server.requests] == [
        {**meant, "worker_type": "text2vec", "params": {"n_ctx": 5}},
        {**meant, "params": {}},
        {**meant, "worker_type": "llm", "params": {}},
    ]
    paths = [request.path for request in server.requests]
    assert paths == ["/api/worker/models/startup"] * 2 + ["/api/worker/models/shutdown"]


def test_a_start_may_take_longer_than_other_calls():
    hasty = Session(read_timeout=0.2)
    late = threading.Event()

    def script(peer: Peer) -> bool:
        late.wait(0.6)
        peer.send(whole(200, None))
        return True

    with faulty(script) as server:
        RemoteMachine(server.url, hasty).model_startup("m", None, {})
        with pytest.raises(errors.WorkerUnreachable, match="silent"):
            RemoteMachine(server.url, hasty).supported_models()
    hasty.close()


def test_a_start_whose_answer_is_lost_is_not_asked_for_again(session: Session):
    with faulty(breaks_off()) as server:
        for _ in range(2):
            with pytest.raises(errors.WorkerUnreachable):
                RemoteMachine(server.url, session).model_startup("m", None, {})
        assert len(server.requests) == 2


def test_what_came_of_apply_is_told(session: Session):
    said = {"message": "restarted", "success": True, "timecost": 1.5, "more": 1}
    with faulty(says(whole(200, said))) as server:
        outcome = RemoteMachine(server.url, session).worker_apply("m", "restart", WorkerType.LLM, {"x": 1})
        assert (outcome.message, outcome.success, outcome.timecost) == ("restarted", True, 1.5)
    wanted = {"model": "m", "apply_type": "restart", "worker_type": "llm", "params": {"x": 1}}
    assert server.requests[0].json() == wanted
    with faulty(says(whole(200, {"message": "it broke", "success": False}))) as server:
        assert RemoteMachine(server.url, session).worker_apply("m", "stop", None, {}).success is False
        assert "worker_type" not in server.requests[0].json()
    with faulty(says(whole(200, {"message": 5, "success": "yes", "timecost": "long"}))) as server:
        outcome = RemoteMachine(server.url, session).worker_apply("m", "stop", None, {})
        assert (outcome.message, outcome.success, outcome.timecost) == ("", False, 0.0)
    with faulty(says(whole(200, None))) as server, pytest.raises(errors.EngineError, match="answer stop with"):
        RemoteMachine(server.url, session).worker_apply("m", "stop", None, {})


def test_descriptions_are_asked_for_by_name_and_type(session: Session):
    with faulty(says(whole(200, [{"param_name": "n_ctx"}]))) as server:
        host = RemoteMachine(server.url, session)
        assert host.parameter_descriptions("größe & co", WorkerType.LLM) == [{"param_name": "n_ctx"}]
        host.parameter_descriptions("m", None)
    assert [request.path.partition("?")[2] for request in server.requests] == [
        "model=gr%C3%B6%C3%9Fe+%26+co&worker_type=llm",
        "model=m",
    ]


def test_supported_models_are_read_also_where_a_peer_leaves_something_out(session: Session):
    said = [
        {"host": "10.0.0.1", "port": 8000, "models": [{"model": "m", "worker_type": "llm", "proxy": True, "new": 1}]},
        {"host": "10.0.0.2", "port": "8001", "models": None},
        {"host": 5, "port": "http", "models": [{"model": 5, "enabled": "yes", "params": 7}]},
    ]
    with faulty(says(whole(200, said))) as server:
        found = RemoteMachine(server.url, session).supported_models()
    model = SupportedModel("m", "", "llm", path_exist=False, proxy=True, enabled=False, params=[])
    nothing = SupportedModel("", "", "", path_exist=False, proxy=False, enabled=False, params=[])
    assert found == [
        HostModels("10.0.0.1", 8000, [model]),
        HostModels("10.0.0.2", 8001, []),
        HostModels("", 0, [nothing]),
    ]


def test_what_a_host_refuses_keeps_its_code(session: Session):
    document = {"type": "urn:modelyard:error:conflict", "title": "x", "status": 409, "detail": "it runs already"}
    with (
        faulty(says(whole(409, document, content_type="application/problem+json"))) as server,
        pytest.raises(errors.Conflict, match=r"^it runs already$"),
    ):
        RemoteMachine(server.url, session).model_startup("m", None, {})


def test_nobody_at_home_is_said_with_the_address(session: Session):
    with faulty(says(b"")) as server:
        url = server.url
    with suppress(errors.ModelyardError):
        session.request("GET", url)
    with pytest.raises(errors.WorkerUnreachable, match=f"{url.split('/')[2]} refused the connection"):
        RemoteModelWorker("m@llm", url, session).metadata()


def test_a_worker_of_dbgpt_is_not_trusted_with_options_it_does_not_know(session):
    with faulty(says(streamed(output("a"), ENDING, content_type=STREAM_TYPE))) as server:
        with pytest.raises(errors.Unsupported, match="worker of DB-GPT, which does not know tools"):
            list(stream_of(server, session, options={"tools": []}))
        assert "".join(piece for burst in stream_of(server, session) if burst for piece in burst.pieces) == "a"


def test_fields_that_are_not_known_go_to_the_worker_and_the_tokens_come_back(session: Session):
    extra = {"dimensions": 2}
    with faulty(says(whole(200, [[1.0, 0.5]], "Modelyard-Tokens: 9"))) as server:
        rows = worker_at(server, session, "m@text2vec").embeddings(["a"], Cancel(), extra=extra)
        scores = worker_at(server, session, "m@reranker").rerank("q", ["a", "b"], Cancel(), extra=extra)
    assert (tokens_of(rows), tokens_of(scores)) == (9, 9)
    assert [request.json()["extra"] for request in server.requests] == [extra, extra]
    with faulty(says(streamed(output("a", incremental=True)))) as server:
        list(stream_of(server, session, extra={"top_a": 1}))
    assert server.requests[0].json()["extra"] == {"top_a": 1}


@pytest.mark.parametrize(("header", "cut"), [("3", 3), ("0", 0), ("-1", 0), ("x", 0), ("9" * 30, 0), (None, 0)])
def test_the_number_of_texts_that_a_worker_has_cut_is_passed_on(session: Session, header: str | None, cut: int):
    headers = [] if header is None else [f"Modelyard-Truncated: {header}"]
    with faulty(says(whole(200, [[1.0, 0.5]], *headers))) as server:
        rows = worker_at(server, session, "m@text2vec").embeddings(["a"], Cancel())
        scores = worker_at(server, session, "m@reranker").rerank("q", ["a", "b"], Cancel())
    assert (rows, scores) == ([[1.0, 0.5]], [1.0, 0.5])
    assert (cut_texts(rows), cut_texts(scores)) == (cut, cut)
