"""Calls that go through to another server: what leaves, what comes back, and how what it refuses reads."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from faulty import LAST, Faulty, Peer, faulty, head, http_chunk, stream_head, whole
from in_process import service
from modelyard.errors import ConfigError
from modelyard.server.extension import create_app
from modelyard.server.runtime import Runtime
from modelyard.settings.loading import deserialize, load, serialize
from modelyard.settings.passthrough import SERVED, PassThrough
from running import wait_until

FORM = "multipart/form-data; boundary=xyz"


def form(**fields: str) -> bytes:
    """Return the body of a form with a file beside its fields."""
    parts = [f'--xyz\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n' for n, v in fields.items()]
    sound = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + b"\0\xff\r\n"
    return sound + "".join(parts).encode() + b"--xyz--\r\n"


class Backend:
    """A server whose next answer the test sets."""

    def __init__(self) -> None:
        self.answer: bytes | Callable[[Peer], None] = whole(200, {"text": "hello"})

    def script(self, peer: Peer) -> bool:
        peer.send(self.answer) if isinstance(self.answer, bytes) else self.answer(peer)
        return isinstance(self.answer, bytes)


class Place:
    """A service, and the server behind it."""

    def __init__(self, runtime: Runtime, server: Faulty, backend: Backend) -> None:
        self.url = f"http://127.0.0.1:{runtime.settings.port}"
        self.runtime = runtime
        self.server = server
        self._backend = backend

    def ask(self, method: str, path: str, answer: Any = None, **options: Any) -> requests.Response:
        if answer is not None:
            self._backend.answer = answer
        return requests.request(method, f"{self.url}{path}", timeout=20, allow_redirects=False, **options)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    backend = Backend()
    with faulty(backend.script) as server:
        base = server.url.removesuffix("/api") + "/their/v1/"
        table = (
            PassThrough(path="/audio", base_url=base, model="whisper", api_key="k-1"),
            PassThrough(path="/audio", base_url=base.replace("their", "other"), model="tts"),
            PassThrough(path="/files", base_url=base, silence_timeout=20),
            PassThrough(path="/images/generations", base_url="http://127.0.0.1:1/v1"),
        )
        folder = tmp_path_factory.mktemp("through")
        echo = [{"name": "e", "engine": "echo"}]
        with service(folder, echo, role="standalone", passthrough=table, max_body_bytes=64 * 1024) as runtime:
            yield Place(runtime, server, backend)
            assert runtime.requests == set()
            assert runtime.budget.held == 0


# There


def test_a_form_goes_through_as_it_is_with_the_key_of_the_operator_alone(place):
    body = form(model="whisper")
    headers = {"Content-Type": FORM, "Authorization": "Bearer client", "Cookie": "a=b", "X-Api-Key": "client"}
    headers |= {"Accept": "text/plain", "OpenAI-Beta": "x=1", "X-Forwarded-For": "10.0.0.1", "TE": "trailers"}
    response = place.ask("POST", "/v1/audio/transcriptions?x=a%20b&y=%C3%BC", data=body, headers=headers)
    assert (response.status_code, response.json()) == (200, {"text": "hello"})
    assert response.headers["x-request-id"].startswith("req_")
    sent = place.server.requests[-1]
    assert (sent.method, sent.path) == ("POST", "/their/v1/audio/transcriptions?x=a%20b&y=%C3%BC")
    assert sent.body == body
    passed = {name: sent.headers.get(name) for name in ("content-type", "accept", "openai-beta", "authorization")}
    assert passed == {"content-type": FORM, "accept": "text/plain", "openai-beta": "x=1", "authorization": "Bearer k-1"}
    assert not {"cookie", "x-api-key", "x-forwarded-for", "te"} & set(sent.headers)


@pytest.mark.parametrize("prefix", ["/v1", "", "/api/v1"])
def test_each_prefix_and_method_goes_through(place, prefix):
    for method, path in (
        ("GET", "/files"),
        ("DELETE", "/files/f-1"),
        ("GET", "/files/f-1/content"),
        ("POST", "/files"),
    ):
        assert place.ask(method, f"{prefix}{path}", whole(201, {})).status_code == 201
        sent = place.server.requests[-1]
        assert (sent.method, sent.path, sent.body) == (method, f"/their/v1{path}", b"")
        assert "authorization" not in sent.headers


@pytest.mark.parametrize("path", ["/v1/files", "/v1/files/f-1"])
def test_its_methods_are_those_of_the_files(place, path):
    answer = place.ask("OPTIONS", path)
    assert (answer.status_code, answer.headers["Allow"]) == (200, "GET, POST, PUT, PATCH, DELETE, OPTIONS")


@pytest.mark.parametrize(
    ("options", "server"),
    [
        ({"json": {"model": "tts", "input": "x"}}, "other"),
        ({"json": {"model": "whisper"}}, "their"),
        ({"data": form(model="tts"), "headers": {"Content-Type": FORM}}, "other"),
    ],
)
def test_the_model_of_json_or_a_form_chooses_the_server(place, options, server):
    assert place.ask("POST", "/v1/audio/speech", whole(200, {}), **options).status_code == 200
    assert place.server.requests[-1].path == f"/{server}/v1/audio/speech"


@pytest.mark.parametrize(
    ("options", "status", "param", "words"),
    [
        ({"json": {"model": "gpt"}}, 404, "model", "whisper, tts"),
        ({"json": {}}, 400, "model", "whisper, tts"),
        ({"json": {"model": 5}}, 400, "model", "missing"),
        ({"data": b"not json"}, 400, "model", "missing"),
        ({"data": form(), "headers": {"Content-Type": FORM}}, 400, "model", "missing"),
        ({"data": form(model="x"), "headers": {"Content-Type": "multipart/form-data"}}, 400, "model", "missing"),
        ({"data": b" " * (64 * 1024 + 1)}, 413, None, "max_body_bytes"),
    ],
)
def test_what_is_for_no_server_is_refused(place, options, status, param, words):
    seen = len(place.server.requests)
    response = place.ask("POST", "/v1/audio/speech", **options)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert words in error["message"]
    assert len(place.server.requests) == seen


def twice(boundary: str = "xyz") -> bytes:
    return form(model="whisper").removesuffix(b"--xyz--\r\n") + form(model="tts").replace(b"xyz", boundary.encode())


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/v1/audio/speech", b'{"model": "whisper", "model": "tts"}', "application/json"),
        ("/v1/audio/speech", b'{"model": "whisper", "Model": "tts"}', "application/json"),
        ("/v1/audio/speech?model=tts", b'{"model": "whisper"}', "application/json"),
        ("/v1/audio/speech", twice(), FORM),
    ],
)
def test_two_models_in_one_request_are_refused(place, path, body, kind):
    seen = len(place.server.requests)
    response = place.ask("POST", path, data=body, headers={"Content-Type": kind})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "model")
    assert "more than once" in response.json()["error"]["message"]
    assert len(place.server.requests) == seen


def test_the_server_reads_the_form_by_the_boundary_that_was_read_before(place):
    headers = {"Content-Type": "multipart/form-data; boundary=abc; boundary=xyz"}
    assert place.ask("POST", "/v1/audio/speech", whole(200, {}), data=form(model="tts"), headers=headers).ok
    assert place.server.requests[-1].headers["content-type"] == FORM


def test_what_was_read_as_json_is_sent_as_json(place):
    body = b'{"model": "whisper", "x": "&model=tts&"}'
    headers = {"Content-Type": "application/x-www-form-urlencoded"}  # curl's default
    assert place.ask("POST", "/v1/audio/speech", whole(200, {}), data=body, headers=headers).ok
    sent = place.server.requests[-1]
    assert (sent.path, sent.headers["content-type"], sent.body) == ("/their/v1/audio/speech", "application/json", body)


def test_a_form_of_too_many_parts_is_refused(place):
    body = b'--xyz\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 1001
    response = place.ask("POST", "/v1/audio/speech", data=body, headers={"Content-Type": FORM})
    assert (response.status_code, response.json()["error"]["type"]) == (413, "invalid_request_error")


@pytest.mark.parametrize("path", ["/v1/files/%2e%2e/%2e%2e/admin", "/v1/files/a/%2e%2e", "/v1/moderations"])
def test_no_path_leads_out_of_the_table(place, path):
    session = requests.Session()
    prepared = session.prepare_request(requests.Request("GET", place.url))
    prepared.url = place.url + path  # requests itself would resolve the dots
    seen = len(place.server.requests)
    response = session.send(prepared, timeout=20)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
    assert len(place.server.requests) == seen


def test_a_path_is_quoted_again(place):
    assert place.ask("GET", "/v1/files/a%20%C3%BC%3Fb%23", whole(200, {})).status_code == 200
    assert place.server.requests[-1].path == "/their/v1/files/a%20%C3%BC%3Fb%23"


# Back


def test_an_answer_comes_as_it_is_with_few_of_its_headers(place):
    sound = bytes(range(256)) * 400
    headers = ("Content-Disposition: attachment", "Set-Cookie: a=b", "Server: theirs", "Keep-Alive: timeout=1")
    response = place.ask("GET", "/v1/files/f", whole(200, sound, *headers, content_type="audio/mpeg"))
    assert response.content == sound
    kept = {name: response.headers.get(name) for name in ("Content-Type", "Content-Length", "Content-Disposition")}
    assert kept == {
        "Content-Type": "audio/mpeg",
        "Content-Length": str(len(sound)),
        "Content-Disposition": "attachment",
    }
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "Set-Cookie" not in response.headers
    assert response.headers["Server"] != "theirs"


@pytest.mark.parametrize("name", ["Content-Type", "Content-Disposition"])
def test_a_header_that_no_answer_may_have_is_cleaned(place, name):
    answer = f"HTTP/1.1 200 OK\r\n{name}: audio/\0x\r\nContent-Length: 2\r\n\r\nok".encode()
    response = place.ask("GET", "/v1/files", answer)
    assert (response.status_code, response.content) == (200, b"ok")
    assert response.headers[name] == "audio/ x"


def test_a_stream_is_passed_on_as_it_comes(place):
    goes_on = threading.Event()

    def slowly(peer: Peer) -> None:
        peer.send(stream_head(content_type="text/event-stream"), http_chunk(b"data: 1\n\n"))
        assert goes_on.wait(20)
        peer.send(http_chunk(b"data: 2\n\n"), LAST)

    with place.ask("GET", "/v1/files/f", slowly, stream=True) as response:
        chunks = response.iter_content(None)
        assert next(chunks) == b"data: 1\n\n"
        goes_on.set()
        assert list(chunks) == [b"data: 2\n\n"]


def test_a_client_that_goes_ends_the_request_there(place):
    hung_up = threading.Event()

    def stays(peer: Peer) -> None:
        peer.send(stream_head(content_type="audio/mpeg"), http_chunk(b"a"))
        peer.wait_hung_up()
        hung_up.set()

    response = place.ask("GET", "/v1/files/f", stays, stream=True)
    assert not hung_up.is_set()
    response.close()
    assert hung_up.wait(20)
    wait_until(lambda: not place.runtime.requests, "the request is over here")


def test_an_answer_that_breaks_off_does_not_look_whole(place):
    def breaks_off(peer: Peer) -> None:
        peer.send(stream_head(content_type="audio/mpeg"), http_chunk(b"a"))

    with pytest.raises(requests.RequestException):
        _ = place.ask("GET", "/v1/files/f", breaks_off).content


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (whole(404, {"error": {"message": "no such file", "code": "gone", "param": "id"}}), 404, "no such file"),
        (whole(422, {"detail": "bad sound"}), 422, "bad sound"),
        (whole(409, b"<html>", content_type="text/html"), 409, "a page of HTML"),
        (whole(401, {"error": "no"}), 500, "api_key"),
        (whole(429, {"error": {"message": "slow down"}}, "Retry-After: 7"), 503, "slow down"),
        (whole(500, {"error": {"message": "broke"}}), 500, "broke"),
        (head(302, "Location: http://127.0.0.1:1/", "Content-Length: 0"), 500, "redirect"),
        (whole(200, b"<html>welcome", content_type="text/html; charset=utf-8"), 500, "HTML"),
    ],
)
def test_what_the_server_refuses_has_openais_shape(place, answer, status, words):
    response = place.ask("GET", "/v1/files/f", answer)
    error = response.json()["error"]
    assert response.status_code == status
    assert list(error) == ["message", "type", "param", "code"]
    assert words in error["message"]
    assert response.headers.get("Retry-After") == ("7" if status == 503 else None)
    if status == 404:
        assert (error["param"], error["code"]) == ("id", "gone")


def test_a_server_that_is_away_is_unavailable(place):
    response = place.ask("POST", "/v1/images/generations", json={"prompt": "x"})
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "server_error"
    assert int(response.headers["Retry-After"]) > 0


# The table


def test_the_document_of_the_calls_leaves_them_out(place):
    document = place.ask("GET", "/openapi.json").json()
    assert not [path for path in document["paths"] if "files" in path]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"path": "/audio"}, "number 1: missing: base_url"),
        ({"path": "audio", "base_url": "http://a/v1"}, "path 'audio' must be like"),
        ({"path": "/audio/", "base_url": "http://a/v1"}, "must be like"),
        ({"path": "/a/../b", "base_url": "http://a/v1"}, "must be like"),
        ({"path": "/audio", "base_ulr": "http://a/v1"}, "did you mean base_url"),
        ({"path": "/responses/x", "base_url": "http://a/v1"}, "answers these calls itself"),
    ],
)
def test_an_entry_that_does_not_fit_is_refused_with_its_place(table, words):
    with pytest.raises(ConfigError, match=words):
        PassThrough.of(table, "[[passthrough]] number 1")


def test_every_call_of_ours_is_known_to_it(place):
    rules = [rule.rule for rule in create_app(place.runtime.settings).url_map.iter_rules()]
    served = {rule.removeprefix("/v1/").split("/")[0] for rule in rules if rule.startswith("/v1/")}
    assert served - {"audio", "files", "images", "<path:rest>", ""} == set(SERVED)


def test_a_call_needs_a_key_like_all_others(tmp_path: Path):
    with faulty(Backend().script) as server:
        table = (PassThrough(path="/files", base_url=server.url),)
        tokens = ["me infer " + "0" * 64]
        with service(tmp_path, [{"name": "e", "engine": "echo"}], passthrough=table, tokens=tokens) as runtime:
            response = requests.get(f"http://127.0.0.1:{runtime.settings.port}/v1/files", timeout=20)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
        assert server.requests == []


def test_the_table_travels_with_the_settings(tmp_path: Path):
    file = tmp_path / "modelyard.toml"
    file.write_text('[[passthrough]]\npath = "/audio"\nbase_url = "http://a/v1"\napi_key = "k"\n')
    settings = load({"config": str(file)}, {})
    assert settings.passthrough == (PassThrough(path="/audio", base_url="http://a/v1", api_key="k"),)
    assert deserialize(serialize(settings)).passthrough == settings.passthrough
    assert json.loads(serialize(settings))["passthrough"][0]["api_key"] == "k"
