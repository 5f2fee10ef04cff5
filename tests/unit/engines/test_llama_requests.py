"""What llama.cpp's server is asked, and what is made of its chunks and refusals."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from socketserver import UnixStreamServer
from typing import Any

import pytest
from modelyard.engines.llama_requests import LlamaAnswer, LlamaHttp, chat_body, completion_body, refusal
from modelyard.errors import EngineError, InvalidRequest, PromptTooLong
from modelyard.streams import Cancel
from modelyard.types import Burst, GenerateRequest

Chunk = dict[str, Any]
USAGE = {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
STREAMED = {
    "stream": True,
    "return_progress": True,
    "timings_per_token": True,
    "stream_options": {"include_usage": True},
}


def request(**fields: Any) -> GenerateRequest:
    return GenerateRequest("m", **fields)


# What is asked


def test_a_chat_is_streamed_with_its_messages_and_nothing_that_was_not_said():
    body = chat_body(request(messages=[{"role": "human", "content": "hi"}]), 77)
    assert body == {**STREAMED, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 80}


@pytest.mark.parametrize(
    ("extra", "fields"),
    [
        ({"reasoning_effort": "none", "unknown": 5}, {"reasoning_effort": "none"}),
        ({"reasoning_effort": "much"}, {}),
        ({"reasoning_effort": ["low"], "chat_template_kwargs": 5}, {}),
        (
            {"chat_template_kwargs": {"enable_thinking": False, "other": "{{ x }}"}},
            {"chat_template_kwargs": {"enable_thinking": False}},
        ),
        ({"chat_template_kwargs": {"enable_thinking": "no"}, "chat_template": "a"}, {}),
    ],
)
def test_a_caller_says_how_much_a_model_thinks_and_nothing_else_of_its_template(extra, fields):
    request = GenerateRequest("m", messages=[{"role": "user", "content": "a"}])
    plain = chat_body(request, 9)
    request.extra = extra
    assert chat_body(request, 9) == {**plain, **fields}


def test_a_raw_prompt_is_a_completion():
    assert completion_body(request(prompt="once"), 77) == {**STREAMED, "prompt": "once", "max_tokens": 80}


@pytest.mark.parametrize("prompt", [None, ""])
def test_an_empty_prompt_is_refused(prompt):
    with pytest.raises(InvalidRequest, match="prompt: is empty"):
        completion_body(request(prompt=prompt), 77)


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("temperature", 0.0, "temperature"),
        ("top_p", 0.5, "top_p"),
        ("top_k", 0, "top_k"),
        ("min_p", 0.0, "min_p"),
        ("seed", 0, "seed"),
        ("presence_penalty", 0.0, "presence_penalty"),
        ("frequency_penalty", -1.0, "frequency_penalty"),
        ("repetition_penalty", 1.1, "repeat_penalty"),
        ("stop", ["x", "y"], "stop"),
    ],
)
@pytest.mark.parametrize("make", [chat_body, completion_body])
def test_every_parameter_reaches_the_library_also_where_it_is_zero(make, field, value, name):
    given = request(prompt="p", messages=[{"role": "human", "content": "hi"}], **{field: value})
    assert make(given, 77)[name] == value


def test_stop_ids_need_the_tokens_ids():
    given = request(prompt="p", messages=[{"role": "human", "content": "hi"}], stop_token_ids=[2])
    assert chat_body(given, 7)["logprobs"] is True
    assert completion_body(given, 7)["logprobs"] == 1
    assert "logprobs" not in chat_body(request(messages=[]), 7)


# What is made of the answer


def play(*chunks: Chunk | BaseException, returns: object = None) -> Callable[..., object]:
    """Return a call of the library that gives these chunks to its callback, and obeys what that returns."""

    def handle(body: Chunk, callback: Callable[[Chunk], bool]) -> object:
        for chunk in chunks:
            if isinstance(chunk, BaseException):
                raise chunk
            if callback(chunk):
                return None
        return returns

    return handle


def delta(text: str | None, finish: str | None = None, **more: Any) -> Chunk:
    return {"choices": [{"delta": {"content": text}, "finish_reason": finish}], **more}


def run(handle: Callable[..., object], cancel: Cancel | None = None, limit: int = 100, **fields: Any) -> list[Burst]:
    found: list[Burst] = []

    def put(burst: Burst) -> bool:
        found.append(burst)
        return True

    LlamaAnswer(request(**fields), "m", limit).run(handle, {}, put, cancel or Cancel())
    return found


def texts(bursts: Iterable[Burst]) -> str:
    return "".join(piece for burst in bursts for piece in burst.pieces)


def test_pieces_of_a_chat_and_how_it_ended():
    found = run(
        play(
            {"choices": [{"delta": {"role": "assistant", "content": None}}]},
            delta("Hel"),
            delta("lo"),
            delta("", "length"),
            {"choices": [], "usage": {**USAGE, "prompt_tokens_details": {"cached_tokens": 1}}, "timings": {}},
        )
    )
    usage = {**USAGE, "prompt_tokens_details": {"cached_tokens": 1}}
    assert found == [Burst(["Hel"]), Burst(["lo"]), Burst([], "length", usage)]


def test_pieces_of_a_completion_and_how_it_ended():
    found = run(
        play({"choices": [{"text": "Hel"}]}, {"choices": [{"text": "", "finish_reason": "stop"}], "usage": USAGE})
    )
    assert found == [Burst(["Hel"]), Burst([], "stop", USAGE)]


def test_progress_and_chunks_without_text_are_no_pieces():
    found = run(
        play({"prompt_progress": {"total": 9, "processed": 3}, "choices": [delta("")["choices"][0]]}, delta("x"))
    )
    assert found == [Burst(["x"]), Burst([], "stop")]


def test_metrics_are_told_when_they_are_asked_for():
    handle = play(delta("x"), {"usage": USAGE, "timings": {"prompt_per_second": 10.0, "predicted_per_second": 20.0}})
    metrics = run(handle, metrics=True)[-1].metrics
    assert metrics is not None
    assert {k: metrics[k] for k in USAGE} == USAGE
    assert (metrics["prefill_tokens_per_second"], metrics["decode_tokens_per_second"]) == (10.0, 20.0)
    assert metrics["start_time_ms"] <= metrics["first_token_time_ms"] <= metrics["end_time_ms"]
    assert run(handle)[-1].metrics is None


def token(text: str, number: int) -> Chunk:
    return {"choices": [{"delta": {"content": text}, "logprobs": {"content": [{"id": number, "token": text}]}}]}


def test_a_stop_id_ends_the_answer_before_its_text():
    handle = play(
        {"prompt_progress": {"total": 4, "processed": 4}, "choices": []},
        token("a", 10),
        token("b", 11),
        token("END", 2),
        token("never", 12),
    )
    found = run(handle, stop_token_ids=[2, 99])
    assert texts(found) == "ab"
    assert found[-1].finish_reason == "stop"
    assert found[-1].usage == {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
    assert texts(run(handle, stop_token_ids=[99])) == "abENDnever"


def computed(text: str, tokens: int, finish: str | None = None) -> Chunk:
    return delta(text, finish, timings={"predicted_n": tokens})


PROMPT = {"prompt_progress": {"total": 4, "processed": 0}, "choices": []}


@pytest.mark.parametrize(
    ("limit", "chunks", "text", "reason"),
    [
        (2, [computed("a", 1), computed("b", 2), computed("never", 3)], "ab", "length"),
        (1, [computed("go \U0001f98a", 3), computed("never", 4)], "go ", "length"),
        (2, [computed("go", 1), computed(" \ufffdx", 3)], "go ", "length"),
        (3, [computed("go \U0001f98a", 3), computed("never", 4)], "go \U0001f98a", "length"),
        (2, [computed("go", 1), delta(None, "stop", timings={"predicted_n": 3})], "go", "length"),
        (2, [computed("go", 1), delta(None, "stop"), {"choices": [], "timings": {"predicted_n": 2}}], "go", "stop"),
        (2, [computed("go", 1), computed("STO", 3)], "go", "length"),
    ],
)
def test_at_the_limit_the_letters_before_half_a_character_are_kept(limit, chunks, text, reason):
    found = run(play(PROMPT, *chunks), limit=limit, stop=["STOP"])
    assert (texts(found), found[-1].finish_reason) == (text, reason)
    if reason == "length":
        assert found[-1].usage == {"prompt_tokens": 4, "completion_tokens": limit, "total_tokens": 4 + limit}


def test_an_answer_that_ends_at_our_limit_has_the_cached_tokens_too():
    prompt = {"prompt_progress": {"total": 4, "cache": 3, "processed": 3}, "choices": []}
    found = run(play(prompt, computed("a", 1)), limit=1, metrics=True)
    usage = {"prompt_tokens": 4, "completion_tokens": 1, "total_tokens": 5}
    assert found[-1].usage == {**usage, "prompt_tokens_details": {"cached_tokens": 3}}
    assert found[-1].metrics is not None
    assert "prompt_tokens_details" not in found[-1].metrics, "DB-GPT's metrics have keys of their own"


def test_a_context_smaller_than_the_models_bounds_prompt_and_answer():
    handle = play(PROMPT, computed("a", 1), computed("b", 2), computed("c", 3))
    assert texts(run(handle, context_len=6)) == "ab"
    with pytest.raises(PromptTooLong, match="context_len: is 4, and the prompt has 4 tokens"):
        run(handle, context_len=4)


@pytest.mark.parametrize("error", [ValueError("bad"), TypeError("bad")], ids=repr)
def test_what_the_library_refuses_before_it_begins_is_the_callers_fault(error):
    with pytest.raises(InvalidRequest, match=r"^prompt: bad$"):
        run(play(error))
    with pytest.raises(InvalidRequest, match=r"^messages: bad$"):
        run(play(error), messages=[{"role": "human", "content": "x"}])


def test_a_cancel_ends_it_at_the_next_chunk_and_nothing_is_said_after():
    cancel, given = Cancel(), []

    def handle(body: Chunk, callback: Callable[[Chunk], bool]) -> None:
        given.append(callback(delta("a")))
        cancel.set()
        given.append(callback(delta("b")))

    assert run(handle, cancel) == [Burst(["a"])]
    assert given == [False, True]


def test_a_reader_that_has_gone_ends_it():
    taken: list[Burst] = []

    def put(burst: Burst) -> bool:
        taken.append(burst)
        return False

    cancel = Cancel()
    cancel.on_set(lambda: None)
    handle = play(delta("a"), delta("b"))
    LlamaAnswer(request(), "m", 100).run(handle, {}, put, cancel)
    assert taken[0] == Burst(["a"])
    assert Burst(["b"]) not in taken


@pytest.mark.parametrize("error", [RuntimeError("odd"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_nothing_raised_in_the_callback_reaches_the_library(error):
    obeyed: list[bool] = []

    def put(burst: Burst) -> bool:
        raise error

    def handle(body: Chunk, callback: Callable[[Chunk], bool]) -> None:
        obeyed.append(callback(delta("a")))

    with pytest.raises(RuntimeError if isinstance(error, RuntimeError) else EngineError):
        LlamaAnswer(request(), "m", 100).run(handle, {}, put, Cancel())
    assert obeyed == [True]


@pytest.mark.parametrize(
    "chunk", [{"choices": [{"delta": 5}]}, {"choices": 5}, {"choices": [None]}, {"prompt_progress": 5}], ids=str
)
def test_a_chunk_of_another_shape_ends_it_in_an_error(chunk):
    with pytest.raises(Exception, match=r"."):
        run(play(chunk))


@pytest.mark.parametrize("error", [ValueError("bad"), RuntimeError("bad"), TypeError("bad")], ids=repr)
def test_what_the_library_raises_is_an_engine_error(error):
    with pytest.raises(EngineError, match=r"llama\.cpp failed: bad"):
        run(play(delta("a"), error))


TOO_LONG = {
    "code": 400,
    "message": "too long",
    "type": "exceed_context_size_error",
    "n_prompt_tokens": 3000,
    "n_ctx": 2048,
}


@pytest.mark.parametrize("how", ["returned", "chunk"])
def test_a_refusal_may_be_returned_or_come_as_a_chunk(how):
    handle = play(returns={"error": TOO_LONG}) if how == "returned" else play(delta("a"), {"error": TOO_LONG})
    with pytest.raises(PromptTooLong, match=r"3000 tokens, model 'm' has a context of 2048 \(n_ctx\)"):
        run(handle)


@pytest.mark.parametrize("how", ["returned", "chunk"])
def test_a_grammar_that_can_not_be_read_is_named(how):
    error = {"code": 400, "message": "failed to parse grammar", "type": "invalid_request_error"}
    handle = play(returns={"error": error}) if how == "returned" else play({"error": error})
    with pytest.raises(InvalidRequest) as refused:
        run(handle, options={"grammar": "root ::="})
    assert refused.value.errors == [{"field": "grammar", "message": "is refused: failed to parse grammar"}]
    with pytest.raises(PromptTooLong):
        run(play({"error": TOO_LONG}), options={"grammar": "root ::="})


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (TOO_LONG, PromptTooLong, "shorten it"),
        (
            {"code": 400, "message": "no such grammar", "type": "invalid_request_error"},
            InvalidRequest,
            "no such grammar",
        ),
        ({"code": 500, "message": "decode failed", "type": "server_error"}, EngineError, "llama.cpp: decode failed"),
        ({}, EngineError, "llama.cpp: "),
    ],
)
def test_a_refusal_of_the_library_becomes_one_of_ours(error, kind, says):
    found = refusal(error, "m")
    assert type(found) is kind
    assert says in str(found)


# What is asked over HTTP


class KeepsToItsConnection(BaseHTTPRequestHandler):
    """Answers one connection until it is closed, as the library's listener does with its only thread."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *message: object) -> None:
        pass


def test_many_threads_take_turns_on_one_connection(tmp_path):
    with UnixStreamServer(str(tmp_path / "s"), KeepsToItsConnection) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        http = LlamaHttp(tmp_path / "s")
        try:
            with ThreadPoolExecutor(8) as threads:
                answers = list(threads.map(lambda number: http.post("/tokenize", {"n": number}), range(40)))
            assert answers == [{"n": number} for number in range(40)]
        finally:
            http.close()
            server.shutdown()
            thread.join()
