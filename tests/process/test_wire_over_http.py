"""The bytes of the worker API, as they leave real gunicorn workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from clients import DELTA, Connection, chunks_of, outputs, request_bytes
from running import INLINE, WORKER_CLASSES, Service, Services

from scripts import script

MODELS = """
[[models]]
name = "echo"

[[models]]
name = "slow"
engine = "echo"
delay = 0.02

[[models]]
name = "script"
worker_class = "scripted:Scripted"

[[models]]
name = "blocking"
worker_class = "scripted:Blocking"

[[models]]
name = "echo-embed"
"""

KEYS = {"text", "error_code", "incremental", "model_context", "finish_reason", "usage", "metrics"}


@pytest.fixture(scope="module", params=WORKER_CLASSES)
def service(request: pytest.FixtureRequest, run_module: Services) -> Iterator[Service]:
    service = run_module.start(
        MODELS, worker_class=request.param, first_output_timeout=0.3, silence_timeout=0.3, drain_timeout=2
    )
    yield service
    service.kill()


def ask(model: str, **more: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "human", "content": "Hello"}], **more}


def test_a_stream_is_read_by_the_loop_of_the_peers_client(service: Service) -> None:
    with service.post("generate_stream", ask("echo", max_new_tokens=3), stream=True) as response:
        found = list(outputs(response))
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/octet-stream"
    assert [chunk["text"] for chunk in found] == [" token", " token token", " token token token"]
    assert all(set(chunk) == KEYS for chunk in found)
    assert [chunk["incremental"] for chunk in found] == [False] * 3
    assert [chunk["finish_reason"] for chunk in found] == [None, None, "length"]
    assert found[-1]["usage"] == {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}


def test_who_asks_for_pieces_gets_only_what_is_new(service: Service) -> None:
    with service.post("generate_stream", ask("echo", max_new_tokens=3), stream=True, headers=DELTA) as response:
        found = list(outputs(response))
    assert response.headers["Content-Type"] == "application/x-model-output-delta"
    assert [chunk["text"] for chunk in found] == [" token"] * 3
    assert all(chunk["incremental"] is True and set(chunk) == KEYS for chunk in found)


def test_pieces_cost_bytes_in_proportion_to_the_length_of_the_answer(service: Service) -> None:
    sizes = [
        len(service.post("generate_stream", ask("echo", max_new_tokens=count), headers=DELTA).content)
        for count in (100, 1000)
    ]
    assert sizes[1] < 11 * sizes[0]


def test_a_piece_leaves_when_it_is_ready_and_not_with_the_next_one(service: Service) -> None:
    with Connection(service.port) as client:
        client.send("POST", "generate_stream", ask("slow", max_new_tokens=3))
        client.read_head()
        writes = []
        while data := client.read_http_chunk():
            writes.append([chunk["text"] for chunk in chunks_of(data)])
    assert writes == [[" token"], [" token token"], [" token token token"]]


def test_a_whole_answer_is_one_output(service: Service) -> None:
    answer = service.post("generate", ask("echo", max_new_tokens=2))
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert set(answer.json()) == KEYS
    assert answer.json()["text"] == " token token"
    assert answer.json()["error_code"] == 0


@pytest.mark.parametrize("service", INLINE, indirect=True)
def test_answers_carry_the_load(service: Service) -> None:
    streamed = service.post("generate_stream", ask("slow", max_new_tokens=1))
    whole = service.post("generate", ask("echo"))
    embedded = service.post("embeddings", {"model": "echo-embed", "input": ["a"]})
    assert streamed.headers["Modelyard-Load"] == "slots=8;free=7;waiting=0"
    assert whole.headers["Modelyard-Load"] == "slots=8;free=8;waiting=0"
    assert embedded.headers["Modelyard-Load"] == "slots=64;free=64;waiting=0"


def test_proxies_are_told_not_to_hold_a_stream_back(service: Service) -> None:
    headers = service.post("generate_stream", ask("echo")).headers
    assert (headers["X-Accel-Buffering"], headers["Cache-Control"]) == ("no", "no-cache")


def test_an_http_1_0_client_gets_the_stream_until_the_connection_ends(service: Service) -> None:
    with Connection(service.port) as client:
        client.send("POST", "generate_stream", ask("echo", max_new_tokens=2), version="1.0")
        head = client.read_head()
        body = client.read_body(head)
    assert head.status == 200
    assert "transfer-encoding" not in head.headers
    assert [chunk["text"] for chunk in chunks_of(body)] == [" token", " token token"]


def test_a_connection_serves_one_request_after_the_other(service: Service) -> None:
    with Connection(service.port) as client:
        for _ in range(3):
            client.send("POST", "generate_stream", ask("echo", max_new_tokens=2))
            head, body = client.read_answer()
            assert (head.status, len(chunks_of(body))) == (200, 2)
            client.send("POST", "generate", ask("nobody"))
            assert json.loads(client.read_answer()[1])["error_code"] != 0
            client.send("GET", "/healthz")
            assert client.read_answer()[0].status == 200


def test_pipelined_requests_are_answered_in_order(service: Service) -> None:
    with Connection(service.port) as client:
        client.sock.sendall(
            request_bytes("POST", "generate_stream", ask("slow", max_new_tokens=2))
            + request_bytes("POST", "count_token", {"model": "echo", "prompt": "a b c"})
            + request_bytes("GET", "/healthz")
        )
        head, body = client.read_answer()
        assert [chunk["text"] for chunk in chunks_of(body)] == [" token", " token token"]
        assert client.read_answer()[1] == b"3"
        head, body = client.read_answer()
        assert (head.status, json.loads(body)) == (200, {"status": "ok"})


def test_a_request_behind_a_stream_does_not_end_the_stream(service: Service) -> None:
    with Connection(service.port) as client:
        client.send("POST", "generate_stream", ask("slow", max_new_tokens=20))
        client.read_head()
        client.read_http_chunk()
        client.send("GET", "/healthz")
        rest = b""
        while data := client.read_http_chunk():
            rest += data
        assert chunks_of(rest)[-1]["finish_reason"] == "length"
        assert client.read_answer()[0].status == 200


def test_headers_leave_before_the_first_piece_when_it_is_late(service: Service, tmp_path: Path) -> None:
    with Connection(service.port) as client:
        client.send("POST", "generate_stream", script(pieces=1, until=str(tmp_path / "go")))
        head = client.read_head()
        (tmp_path / "go").touch()
        body = client.read_body(head)
    assert head.status == 200
    assert chunks_of(body)[-1]["text"] == "x"


@pytest.mark.parametrize("model", ["script", "blocking"])
def test_silence_is_broken_by_empty_chunks(service: Service, model: str) -> None:
    with Connection(service.port) as client:
        client.send("POST", "generate_stream", script(model, before=10, pieces=1))
        client.read_head()
        assert client.read_http_chunk() == b"\0"
        assert client.read_http_chunk() == b"\0"


@pytest.mark.parametrize("service", INLINE, indirect=True)
def test_empty_chunks_between_pieces_are_no_texts(service: Service, tmp_path: Path) -> None:
    with Connection(service.port) as client:
        client.send("POST", "generate_stream", script(pieces=2, until=str(tmp_path / "go")))
        head = client.read_head()
        body = b""
        while not body.endswith(b"\0\0"):
            body += client.read_http_chunk()
        (tmp_path / "go").touch()
        body += client.read_body(head)
    assert [chunk["text"] for chunk in chunks_of(body)] == ["x", "xx", "xx", "xx"]


def test_a_refused_stream_is_a_chunk_that_ends_in_nul(service: Service) -> None:
    unknown = service.post("generate_stream", ask("nobody"))
    assert (unknown.status_code, unknown.headers["Content-Type"]) == (200, "application/octet-stream")
    [chunk] = chunks_of(unknown.content)
    assert set(chunk) == KEYS
    assert chunk["error_code"] != 0
    assert "nobody" in chunk["text"]
    wrong = service.post("generate_stream", ask("echo", temperature="hot"))
    assert wrong.status_code == 422
    assert "temperature" in chunks_of(wrong.content)[0]["text"]


def test_an_engine_that_fails_late_ends_the_stream_with_an_error(service: Service) -> None:
    service.may_show_tracebacks = True
    with service.post("generate_stream", script(pieces=5, each=0.01, fail_at=2), stream=True) as response:
        found = list(outputs(response))
    assert response.status_code == 200
    assert [chunk["error_code"] for chunk in found] == [0, 0, 500]
    assert "the script says so" not in found[-1]["text"], "an engine's words may hold a prompt"
    assert service.post("generate", ask("echo")).status_code == 200


def test_unicode_travels_as_it_is(service: Service) -> None:
    answer = service.post(
        "generate_stream", {"model": "echo", "prompt": "x", "max_new_tokens": 1, "model_context": {"ü": "日"}}
    )
    assert answer.status_code == 200
    counted = service.post("count_token", {"model": "echo", "prompt": "ünï 日本 😀"})
    assert counted.json() == 3
    fault = service.post("generate", ask("größe-日本"))
    assert "größe-日本".encode() in fault.content


def test_a_head_request_starts_nothing(service: Service) -> None:
    with Connection(service.port) as client:
        client.send("HEAD", "/healthz")
        head = client.read_head()
        assert head.status == 200
        client.send("HEAD", "generate_stream")
        assert client.read_head().status == 405
