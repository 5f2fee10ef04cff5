"""Whatever is sent, a clear error comes back, and the next request works, on the same connection where it can."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import tiny_gguf
from clients import Connection, chunks_of
from running import Service, Services

MODELS = """
[[models]]
name = "echo"

[[models]]
name = "tiny"
model_path = "tiny.gguf"
worker_type = "llm"
n_ctx = 256

[[models]]
name = "tiny-embed"
model_path = "embed.gguf"
worker_type = "text2vec"
n_ctx = 64
truncate = "error"
"""

HELLO = [{"role": "human", "content": "Hello"}]
MARGIN = 1024 * 1024


@pytest.fixture(scope="module")
def service(run_module: Services) -> Iterator[Service]:
    folder = run_module.folder()
    models = folder / "models"
    models.mkdir()
    tiny_gguf.make(models / "tiny.gguf", "llama")
    tiny_gguf.make(models / "embed.gguf", "embed")
    (models / "text.gguf").write_text("This is no model.\n" * 100)
    whole = (models / "tiny.gguf").read_bytes()
    (models / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (folder / "outside.gguf").write_bytes(whole)
    (models / "link.gguf").symlink_to(folder / "outside.gguf")
    service = run_module.start(MODELS, folder=folder, drain_timeout=2)
    yield service
    service.kill()


@pytest.fixture
def client(service: Service) -> Iterator[Connection]:
    with Connection(service.port, timeout=60) as connection:
        yield connection


def works(client: Connection) -> bool:
    """Whether the next request on the same connection is answered."""
    client.send("POST", "generate", {"model": "echo", "messages": HELLO, "max_new_tokens": 2})
    head, body = client.read_answer()
    return head.status == 200 and json.loads(body)["text"] == " token token"


FIELDS: list[tuple[str, dict[str, Any], str]] = [
    ("missing model", {"messages": HELLO}, "model"),
    ("a number as model", {"model": 7, "messages": HELLO}, "model"),
    ("an empty model", {"model": "", "messages": HELLO}, "model"),
    ("no prompt at all", {"model": "echo"}, "messages"),
    ("an empty prompt", {"model": "echo", "prompt": ""}, "messages"),
    ("no messages and no prompt", {"model": "echo", "messages": [], "prompt": None}, "messages"),
    ("messages as a string", {"model": "echo", "messages": "Hello"}, "messages"),
    ("a message as a string", {"model": "echo", "messages": ["Hello"]}, "messages[0]"),
    ("an unknown role", {"model": "echo", "messages": [{"role": "dog", "content": "x"}]}, "messages[0].role"),
    ("a role as a list", {"model": "echo", "messages": [{"role": [], "content": "x"}]}, "messages[0].role"),
    ("a message without content", {"model": "echo", "messages": [{"role": "human"}]}, "messages[0].content"),
    ("a number as content", {"model": "echo", "messages": [{"role": "human", "content": 7}]}, "messages[0].content"),
    (
        "a picture as content",
        {"model": "echo", "messages": [{"role": "human", "content": [{"type": "image", "object": {"data": "x"}}]}]},
        "messages[0].content",
    ),
    ("a word as temperature", {"model": "echo", "messages": HELLO, "temperature": "hot"}, "temperature"),
    ("a number in quotes", {"model": "echo", "messages": HELLO, "temperature": "0.5"}, "temperature"),
    ("a negative temperature", {"model": "echo", "messages": HELLO, "temperature": -1}, "temperature"),
    ("a number over its range", {"model": "echo", "messages": HELLO, "temperature": 1e300}, "temperature"),
    ("a list as temperature", {"model": "echo", "messages": HELLO, "temperature": [1]}, "temperature"),
    ("true as top_k", {"model": "echo", "messages": HELLO, "top_k": True}, "top_k"),
    ("a fraction as top_k", {"model": "echo", "messages": HELLO, "top_k": 1.5}, "top_k"),
    ("top_p over 1", {"model": "echo", "messages": HELLO, "top_p": 1.5}, "top_p"),
    ("no new tokens", {"model": "echo", "messages": HELLO, "max_new_tokens": 0}, "max_new_tokens"),
    ("a billion tokens", {"model": "echo", "messages": HELLO, "max_new_tokens": 10**9}, "max_new_tokens"),
    ("a number as stop", {"model": "echo", "messages": HELLO, "stop": 7}, "stop"),
    ("numbers among stops", {"model": "echo", "messages": HELLO, "stop": ["a", 7]}, "stop"),
    ("words as stop_token_ids", {"model": "echo", "messages": HELLO, "stop_token_ids": ["a"]}, "stop_token_ids"),
    ("a word as echo", {"model": "echo", "messages": HELLO, "echo": "yes"}, "echo"),
]


@pytest.mark.parametrize(("body", "field"), [case[1:] for case in FIELDS], ids=[case[0] for case in FIELDS])
def test_a_field_that_does_not_fit_is_named(client: Connection, body: dict[str, Any], field: str) -> None:
    client.send("POST", "generate", body)
    head, answer = client.read_answer()
    assert head.status == 422, answer
    assert json.loads(answer)["error_code"] != 0
    assert field in json.loads(answer)["text"]
    client.send("POST", "generate_stream", body)
    head, answer = client.read_answer()
    assert head.status == 422
    assert field in chunks_of(answer)[0]["text"]
    assert works(client)


BODIES: list[tuple[str, bytes]] = [
    ("nothing", b""),
    ("no JSON", b"model=echo&prompt=x"),
    ("half of it", b'{"model": "echo", "messages": [{"role": "hum'),
    ("not a number", b'{"model": "echo", "prompt": "x", "temperature": NaN}'),
    ("infinity", b'{"model": "echo", "prompt": "x", "temperature": Infinity}'),
    ("a number of 400 digits", b'{"model": "echo", "prompt": "x", "temperature": ' + b"9" * 400 + b"}"),
    ("a list", b"[1, 2, 3]"),
    ("a word", b'"echo"'),
    ("null", b"null"),
    ("half a surrogate pair", b'{"model": "echo", "prompt": "\\ud83d"}'),
    ("bytes that are no UTF-8", b'{"model": "echo", "prompt": "\xff\xfe"}'),
    ("a NUL byte", b'{"model": "echo", "prompt": "\x00"}'),
    ("lists 10,000 deep", b'{"model": "echo", "prompt": "x", "context": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
    ("objects 10,000 deep", b'{"model": "echo", "context": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001),
    ("brackets 10,000 deep", b"[" * 10_000),
]
CALLS = ["generate", "generate_stream", "embeddings", "count_token", "model_metadata", "apply", "models/startup"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("body", [case[1] for case in BODIES], ids=[case[0] for case in BODIES])
def test_a_body_that_is_no_json_object_is_refused(client: Connection, call: str, body: bytes) -> None:
    client.send("POST", call, body)
    head, answer = client.read_answer()
    assert head.status == 422, answer
    told = json.loads(answer.rstrip(b"\0"))
    assert "body" in (told.get("text") or told["detail"])
    assert works(client)


def test_nesting_that_the_parser_still_takes_harms_nothing(client: Connection) -> None:
    for depth in (900, 1000, 1023, 1024, 1025):
        body = b'{"model": "echo", "prompt": "x", "max_new_tokens": 1, "context": ' + b"[" * depth + b"]" * depth + b"}"
        client.send("POST", "generate", body)
        head, _ = client.read_answer()
        assert head.status in (200, 422)
    assert works(client)


def test_deep_nesting_in_every_free_field_harms_nothing(client: Connection) -> None:
    deep: Any = "x"
    for _ in range(400):
        deep = [deep]
    for field in ("messages", "prompt", "stop", "model", "span_id", "temperature", "stop_token_ids"):
        client.send("POST", "generate", {"model": "echo", "prompt": "x", field: deep})
        assert client.read_answer()[0].status == 422
    client.send("POST", "apply", {"model": "echo", "apply_type": "update_params", "params": {"delay": deep}})
    assert client.read_answer()[0].status == 422
    assert works(client)


def test_an_unknown_model_is_named_with_those_that_are_there(client: Connection) -> None:
    client.send("POST", "generate", {"model": "gpt-9", "messages": HELLO})
    head, answer = client.read_answer()
    assert head.status == 200
    assert json.loads(answer)["error_code"] == 404
    assert all(name in json.loads(answer)["text"] for name in ("gpt-9", "echo@llm", "tiny@llm"))
    for call, body in (
        ("embeddings", {"model": "gpt-9", "input": ["x"]}),
        ("count_token", {"model": "gpt-9", "prompt": "x"}),
        ("model_metadata", {"model": "gpt-9"}),
        ("apply", {"model": "gpt-9", "apply_type": "start"}),
        ("models/startup", {"host": "h", "port": 1, "model": "gpt-9", "worker_type": "llm", "params": {}}),
        ("models/shutdown", {"host": "h", "port": 1, "model": "gpt-9", "worker_type": "llm", "params": {}}),
    ):
        client.send("POST", call, body)
        head, answer = client.read_answer()
        assert (head.status, head.headers["content-type"]) == (404, "application/problem+json"), call
        assert "gpt-9" in json.loads(answer)["detail"]
    assert works(client)


def test_a_model_is_not_asked_for_what_it_is_not(client: Connection) -> None:
    client.send("POST", "embeddings", {"model": "tiny", "input": ["x"]})
    head, answer = client.read_answer()
    assert head.status == 400
    assert "llm" in json.loads(answer)["detail"]
    client.send("POST", "generate", {"model": "tiny-embed", "messages": HELLO})
    head, answer = client.read_answer()
    assert json.loads(answer)["error_code"] == 400
    assert works(client)


EMBEDDINGS: list[tuple[str, Any, str]] = [
    ("missing", None, "input"),
    ("a string", "text", "input"),
    ("a number in it", ["a", 7], "input[1]"),
    ("null in it", ["a", None], "input[1]"),
    ("too many", ["a"] * 10_001, "input"),
]


@pytest.mark.parametrize(("texts", "field"), [c[1:] for c in EMBEDDINGS], ids=[c[0] for c in EMBEDDINGS])
def test_texts_that_do_not_fit_are_named(client: Connection, texts: Any, field: str) -> None:
    client.send("POST", "embeddings", {"model": "tiny-embed", "input": texts})
    head, answer = client.read_answer()
    assert head.status == 422
    assert json.loads(answer)["errors"][0]["field"] == field
    assert works(client)


def test_a_text_too_long_to_embed_is_named_by_its_index(client: Connection) -> None:
    client.send("POST", "embeddings", {"model": "tiny-embed", "input": ["short", "the " * 200, "short"]})
    head, answer = client.read_answer()
    assert head.status == 422
    problem = json.loads(answer)
    assert problem["errors"][0]["field"] == "input[1]"
    assert "64" in problem["detail"]
    client.send("POST", "embeddings", {"model": "tiny-embed", "input": ["short", ""]})
    head, answer = client.read_answer()
    assert [len(row) for row in json.loads(answer)] == [tiny_gguf.WIDTH] * 2


def test_a_prompt_longer_than_the_context_is_told_with_both_numbers(client: Connection) -> None:
    client.send("POST", "generate", {"model": "tiny", "prompt": "x" * 500})
    head, answer = client.read_answer()
    assert head.status == 422
    assert "500 tokens" in json.loads(answer)["text"]
    assert "256" in json.loads(answer)["text"]
    client.send("POST", "generate", {"model": "tiny", "prompt": "x", "max_new_tokens": 4})
    assert json.loads(client.read_answer()[1])["error_code"] == 0


def test_an_answer_that_fills_the_context_ends_there(client: Connection) -> None:
    client.send("POST", "generate", {"model": "tiny", "prompt": "x" * 250, "max_new_tokens": 1000})
    head, answer = client.read_answer()
    assert head.status == 200
    output = json.loads(answer)
    assert output["finish_reason"] in ("length", "stop")
    assert output["usage"]["total_tokens"] <= 257
    assert works(client)


def test_a_body_of_100_mb_is_refused_and_the_refusal_can_be_read(service: Service, tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(100 * 1024 * 1024)
    # As a loop: whether the answer outruns the connection's end is a race.
    for _ in range(5):
        with large.open("rb") as file:
            answer = requests.post(service.url("generate"), data=file, timeout=60)
        assert answer.status_code == 413
        assert "max_body_bytes" in answer.json()["text"]
    for expect in ("", "100-continue"):
        command = ["curl", "--silent", "--show-error", "--max-time", "60", "--write-out", "\n%{http_code}"]
        command += ["--header", f"Expect: {expect}", "--data-binary", f"@{large}", service.url("embeddings")]
        told = subprocess.run(command, capture_output=True, text=True)
        assert told.returncode == 0, told.stderr
        body, _, status = told.stdout.rpartition("\n")
        assert status == "413"
        assert "max_body_bytes" in json.loads(body)["detail"]
    assert service.post("generate", {"model": "echo", "messages": HELLO}).status_code == 200


def test_a_body_of_100_mb_without_a_length_is_refused(service: Service) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * MARGIN

    answer = requests.post(service.url("generate"), data=parts(), timeout=60)
    assert answer.status_code == 413
    assert service.post("generate", {"model": "echo", "messages": HELLO}).status_code == 200


def test_a_body_over_the_limit_leaves_no_memory_behind(service: Service) -> None:
    # Twice the limit: small enough that a server which reads it first would still get to answer.
    answer = service.post("generate", data=b" " * (32 * MARGIN))
    assert answer.status_code == 413


def test_a_body_that_ends_early_is_no_request(service: Service) -> None:
    with Connection(service.port) as client:
        client.sock.sendall(
            b"POST /api/worker/generate HTTP/1.1\r\nHost: here\r\nContent-Length: 1000\r\n\r\n" + b'{"model": "echo"'
        )
        client.sock.shutdown(socket.SHUT_WR)
        assert client.read_head().status in (400, 422)
    service.wait_for_line(path="/api/worker/generate", error="invalid_request")


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /api/worker/generate HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/worker/generate HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"POST /api/worker/generate HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    ],
    ids=["TLS", "no path", "HTTP 9", "a negative length", "a length in letters", "no chunk", "a long path"],
)
def test_what_is_no_http_ends_only_its_own_connection(service: Service, raw: bytes) -> None:
    with Connection(service.port) as client:
        client.sock.sendall(raw)
        with contextlib.suppress(OSError):  # it may be gone already
            client.sock.shutdown(socket.SHUT_WR)
            assert b"Traceback" not in client.read_rest()
    assert service.post("generate", {"model": "echo", "messages": HELLO}).status_code == 200


def test_paths_and_methods_that_are_not_there_are_problem_documents(client: Connection) -> None:
    for method, path, status in (
        ("GET", "/nowhere", 404),
        ("POST", "/api/worker/nothing", 404),
        ("GET", "generate", 405),
        ("DELETE", "apply", 405),
        ("GET", "/api/worker/../../etc/passwd", 404),
    ):
        client.send(method, path)
        head, body = client.read_answer()
        assert (head.status, head.headers["content-type"]) == (status, "application/problem+json"), path
        assert json.loads(body)["status"] == status
    assert works(client)


STARTS: list[tuple[str, dict[str, Any], int, str]] = [
    ("a file that is no GGUF", {"model_path": "text.gguf"}, 500, "text.gguf"),
    ("a file that is cut short", {"model_path": "cut.gguf"}, 500, "cut.gguf"),
    ("a missing file", {"model_path": "none.gguf"}, 422, "none.gguf"),
    ("a path outside", {"model_path": "../outside.gguf"}, 422, "outside.gguf"),
    ("a link that leads outside", {"model_path": "link.gguf"}, 422, "link.gguf"),
    ("an absolute path outside", {"model_path": "/etc/passwd", "engine": "llama.cpp"}, 422, "passwd"),
    ("a folder", {"model_path": ".", "engine": "llama.cpp"}, 422, "folder"),
    ("an unknown engine", {"model_path": "tiny.gguf", "engine": "magic"}, 422, "magic"),
    ("an engine of somebody's own", {"model_path": "tiny.gguf", "engine": "os:system"}, 422, "os:system"),
    ("a word as a number", {"model_path": "tiny.gguf", "n_ctx": "many"}, 422, "n_ctx"),
    ("a number out of range", {"model_path": "tiny.gguf", "n_ctx": 1}, 422, "n_ctx"),
    ("more slots than threads", {"model_path": "tiny.gguf", "limit_model_concurrency": 4096}, 409, "4096"),
]


@pytest.mark.parametrize(("params", "status", "told"), [case[1:] for case in STARTS], ids=[case[0] for case in STARTS])
def test_a_model_that_can_not_be_started_leaves_nothing_behind(
    service: Service, client: Connection, params: dict[str, Any], status: int, told: str
) -> None:
    before = service.status()["models"]
    body = {"host": "127.0.0.1", "port": service.port, "model": "mine", "worker_type": "llm", "params": params}
    client.send("POST", "models/startup", body)
    head, answer = client.read_answer()
    assert head.status == status, answer
    assert told in json.loads(answer)["detail"]
    assert service.status()["models"] == before
    assert works(client)


def test_a_dotted_path_over_http_names_no_code(service: Service, client: Connection) -> None:
    body = {"model": "echo-2", "worker_type": "llm", "params": {"worker_class": "scripted:Scripted"}}
    client.send("POST", "models/startup", body)
    head, _ = client.read_answer()
    assert head.status in (404, 422)
    client.send("POST", "apply", {"model": "echo", "apply_type": "restart", "params": {"worker_class": "scripted:X"}})
    head, answer = client.read_answer()
    assert head.status == 422
    assert "params.worker_class: can't be set over HTTP" in json.loads(answer)["detail"]
    assert works(client)


def test_wrong_words_to_apply_are_named(client: Connection) -> None:
    for body, field in (
        ({"model": "echo"}, "apply_type"),
        ({"model": "echo", "apply_type": "explode"}, "apply_type"),
        ({"model": "echo", "apply_type": "start", "worker_type": "dog"}, "worker_type"),
        ({"model": "echo", "apply_type": "start", "params": []}, "params"),
        ({"model": "echo", "apply_type": "update_params", "params": {"delay": "long"}}, "params.delay"),
        ({"model": "echo", "apply_type": "update_params", "params": {"delay": -1}}, "params.delay"),
    ):
        client.send("POST", "apply", body)
        head, answer = client.read_answer()
        assert head.status == 422, body
        assert json.loads(answer)["errors"][0]["field"] == field
    assert works(client)
