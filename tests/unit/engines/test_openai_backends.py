"""Several servers behind one model: the least busy answers, or the next one if it refuses before its first piece."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests
from faulty import LAST, Faulty, Peer, Script, faulty, http_chunk, stream_head, whole
from in_process import service
from modelyard.engines.openai import OpenAI, OpenAIParams
from modelyard.engines.openai_backends import Backend, Backends
from modelyard.errors import (
    ConfigError,
    EngineError,
    NotReady,
    Overloaded,
    StartFailed,
    WorkerLost,
    WorkerUnreachable,
)
from modelyard.streams import Cancel, whole_answer
from modelyard.types import GenerateRequest
from running import wait_until

A, B, C = "http://a/v1", "http://b/v1", "http://c/v1"


@pytest.fixture
def backends() -> Backends:
    return Backends(f"{A}, {B}/,{C}", "it", 8)


def results(
    backends: Backends, answers: dict[str, list[Any]], cancel: Cancel | None = None, session: str = ""
) -> Iterator[Any]:
    """Return the results of servers that give, or raise, what ``answers`` has for their addresses."""

    def call(backend: Backend) -> Generator[Any, None, None]:
        for answer in answers[backend.url]:
            if isinstance(answer, Exception):
                raise answer
            yield answer

    return backends.results(call, cancel or Cancel(), session)


# Which one


def test_addresses_are_read_and_named(backends):
    assert [(backend.url, backend.where) for backend in backends] == [
        (A, "it at http://a"),
        (B, "it at http://b"),
        (C, "it at http://c"),
    ]
    assert [backend.where for backend in Backends(A, "it", 8)] == ["it"]
    for urls in (" , ", "ftp://a", "http://user:hunter2@a"):
        with pytest.raises(ConfigError, match="base_url") as caught:
            Backends(urls, "it", 8)
        assert "hunter2" not in str(caught.value)


def test_requests_at_once_are_spread(backends):
    open_ones = [results(backends, {A: ["a", "z"], B: ["b", "z"], C: ["c", "z"]}) for _ in range(6)]
    assert sorted(next(one) for one in open_ones) == ["a", "a", "b", "b", "c", "c"]
    for one in open_ones:
        one.close()
    assert [backend.requests for backend in backends] == [0, 0, 0]


def test_a_session_stays_at_one_server_until_half_of_its_slots_are_taken(backends):
    answers = {A: ["a", "z"], B: ["b", "z"], C: ["c", "z"]}
    homes = {session: next(results(backends, answers, session=session)) for session in "0123456789"}
    assert set(homes.values()) == {"a", "b", "c"}
    for session, home in homes.items():
        assert {next(results(backends, answers, session=session)) for _ in range(5)} == {home}
    open_ones = [results(backends, answers, session="0") for _ in range(5)]
    first, *others, last = [next(one) for one in open_ones]
    assert {first, *others} == {homes["0"]}
    assert last != first
    answers[f"http://{first}/v1"] = [WorkerUnreachable("gone")]
    assert {next(results(backends, answers, session="0")) for _ in range(5)} == {last}


def test_each_is_tried_once_until_one_answers(backends):
    answers = {A: [None, WorkerUnreachable("gone")], B: [Overloaded("full")], C: [None, "c", "d"]}
    for _ in range(20):
        assert [result for result in results(backends, answers) if result is not None] == ["c", "d"]
    assert {backend.url: bool(backend.trouble) for backend in backends} == {A: True, B: False, C: False}
    assert [backend.requests for backend in backends] == [0, 0, 0]


def test_one_that_was_not_reached_is_left_out_while_others_answer(backends):
    first, second, third = backends
    first.note("gone")
    answers = {A: ["a"], B: ["b"], C: [NotReady("starts")]}
    assert {next(results(backends, answers)) for _ in range(20)} == {"b"}
    second.note("gone")
    third.note("gone")
    assert {next(results(backends, answers)) for _ in range(50)} == {"a", "b"}, "all are tried where none answers"


def test_room_elsewhere_is_worth_waiting_for(backends):
    answers: dict[str, list[Any]] = {
        A: [WorkerUnreachable("gone")],
        B: [Overloaded("full", 7)],
        C: [NotReady("starts")],
    }
    for _ in range(20):
        with pytest.raises(Overloaded, match="full") as caught:
            list(results(backends, answers))
        assert caught.value.retry_after == 7


@pytest.mark.parametrize(
    ("error", "kind"), [(EngineError("broke"), EngineError), (WorkerUnreachable("broke off"), WorkerLost)]
)
def test_after_a_piece_nothing_is_sent_again(backends, error, kind):
    answers = {url: ["piece", error] for url in (A, B, C)}
    found = results(backends, answers)
    assert next(found) == "piece"
    with pytest.raises(kind):
        next(found)


def test_an_error_that_is_no_refusal_and_a_cancel_end_the_search(backends):
    with pytest.raises(EngineError):
        list(results(backends, {url: [EngineError("broke")] for url in (A, B, C)}))
    cancel = Cancel()
    cancel.set(NotReady("stopped"))
    with pytest.raises(NotReady, match="stopped"):
        list(results(backends, {url: [NotReady("stopped")] for url in (A, B, C)}, cancel))
    assert not any(backend.trouble for backend in backends)


# Real connections

DONE = b"data: [DONE]\n\n"


def text(word: str) -> bytes:
    """Return the streamed answer of one word."""
    event = {"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": "stop"}]}
    parts = [b"data: " + json.dumps(event).encode() + b"\n\n", DONE]
    return stream_head(content_type="text/event-stream") + b"".join(map(http_chunk, parts)) + LAST


class Listed:
    """A server that lists the model unless it is told not to, and gives one answer to everything else."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.models: bytes = whole(200, {"data": [{"id": "gpt"}]})

    def script(self) -> Script:
        def script(peer: Peer) -> bool:
            peer.send(self.models if peer.request.method == "GET" else self.answer)
            return True

        return script


def engine(*urls: str, **params: Any) -> OpenAI:
    return OpenAI(OpenAIParams(model_name="gpt", engine="openai", base_url=",".join(urls), **params))


def ask(made: OpenAI) -> str:
    request = GenerateRequest("gpt", [{"role": "user", "content": "x"}])
    with closing(made.generate_stream(request, Cancel())) as bursts:  # type: ignore[type-var]
        return whole_answer(bursts).text


def asked(server: Faulty) -> int:
    return sum(request.method == "POST" for request in server.requests)


def test_a_server_that_has_no_room_or_has_gone_is_passed_over():
    full, good = Listed(whole(503, {"error": {"message": "full"}})), Listed(text("good"))
    with faulty(full.script()) as first, faulty(good.script()) as second:
        made = engine("http://127.0.0.1:1/v1", first.url, second.url)
        made.start(lambda sentence: None)
        try:
            assert {ask(made) for _ in range(10)} == {"good"}
            assert made.health(Cancel()) == ""
        finally:
            made.stop()
        assert asked(second) == 10


def test_the_start_fails_where_no_server_has_the_model():
    other = Listed(b"")
    other.models = whole(200, {"data": [{"id": "other"}]})
    with faulty(other.script()) as server, pytest.raises(StartFailed, match=r"refuse.*no model 'gpt'.* it has other"):
        engine("http://127.0.0.1:1/v1", server.url).start(lambda sentence: None)


def test_a_server_that_answers_again_is_used_again():
    away, good = Listed(text("back")), Listed(text("good"))
    away.models = whole(500, {})
    with faulty(away.script()) as first, faulty(good.script()) as second:
        made = engine(first.url, second.url)
        made.start(lambda sentence: None)
        try:
            assert {ask(made) for _ in range(10)} == {"good"}
            away.models, good.models = good.models, whole(401, {})
            assert made.health(Cancel()) == ""
            assert {ask(made) for _ in range(10)} == {"back"}
            away.models = good.models
            assert "api_key" in made.health(Cancel())
            assert {ask(made) for _ in range(20)} == {"good", "back"}
        finally:
            made.stop()


def test_a_cancel_ends_a_look():
    held = threading.Event()

    def stalls(peer: Peer) -> bool:
        if len(server.requests) > 1:
            held.set()
            peer.wait_hung_up()
        peer.send(whole(200, {"data": [{"id": "gpt"}]}))
        return True

    with faulty(stalls) as server:
        made = engine(server.url)
        made.start(lambda sentence: None)
        cancel = Cancel()
        thread = threading.Thread(target=made.health, args=(cancel,))
        thread.start()
        assert held.wait(20)
        cancel.set()
        thread.join(20)
        assert not thread.is_alive()
        assert not any(backend.trouble for backend in made._backends), "nothing was found out"
        made.stop()


# The whole service


def test_a_model_whose_server_does_not_answer_is_unhealthy_everywhere_until_it_does(tmp_path: Path):
    server = Listed(text("good"))
    with faulty(server.script()) as backend:
        table = {"name": "gpt", "engine": "openai", "base_url": backend.url, "limit_model_concurrency": 4}
        with service(tmp_path, [{**table, "health_interval": 0.1}], role="standalone") as runtime:
            url = f"http://127.0.0.1:{runtime.settings.port}"

            def health() -> tuple[bool, Any, list[bool]]:
                status = requests.get(f"{url}/readyz", timeout=10).json()
                rows = requests.get(f"{url}/api/controller/models", timeout=10).json()
                return (
                    status["ready"],
                    status["models"][0]["state"],
                    [row["healthy"] for row in rows if row["model_name"] == "gpt@llm"],
                )

            wait_until(lambda: health() == (True, "ready", [True]), "the model is registered")
            listed, server.models = server.models, whole(500, {})
            wait_until(lambda: health() == (False, "unhealthy", [False]), "it is unhealthy everywhere")
            body = {"model": "gpt", "stream": True, "messages": [{"role": "user", "content": "x"}]}
            answer = requests.post(f"{url}/v1/chat/completions", json=body, timeout=10)
            assert b'"content":"good"' in answer.content, "a request is sent all the same"
            server.models = listed
            wait_until(lambda: health() == (True, "ready", [True]), "it is healthy again")
