"""What the models commands print when no service of ours answers, or something else does."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from commands import modelyard
from faulty import Peer, faulty, says, whole
from flask import Flask
from modelyard import Modelyard
from running import free_port
from werkzeug.serving import make_server

Answer = tuple[int, str, bytes, dict[str, str]]


class Stranger(BaseHTTPRequestHandler):
    """Answers every request with what the test wants, and remembers the paths."""

    answer: ClassVar[Callable[[str], Answer]]
    asked: ClassVar[list[str]]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        status, kind, body, headers = type(self).answer(self.path)
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def stranger(answer: Callable[[str], Answer]) -> Iterator[tuple[str, list[str]]]:
    """Run such a server; give its address and the paths that it was asked for."""
    asked: list[str] = []
    handler = type("Handler", (Stranger,), {"answer": staticmethod(answer), "asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = False  # a thread that outlives its test would print into what the next one captures
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def _json(value: object, status: int = 200) -> Answer:
    return status, "application/json", json.dumps(value).encode(), {}


def test_without_a_service_the_line_names_the_url_the_reason_and_the_next_step():
    url = f"http://127.0.0.1:{free_port()}/api"
    ran = modelyard("models", "list", "--url", url)
    assert (ran.status, ran.out) == (1, "")
    assert url in ran.complaint
    assert "Connection refused" in ran.complaint
    assert "modelyard serve" in ran.complaint
    assert "MODELYARD_URL" in ran.complaint


def test_the_url_of_the_environment_is_used_and_that_of_the_command_line_wins():
    one, other = f"http://127.0.0.1:{free_port()}/one", f"http://127.0.0.1:{free_port()}/other"
    assert one in modelyard("models", "list", MODELYARD_URL=one).complaint
    assert other in modelyard("models", "list", "--url", other, MODELYARD_URL=one).complaint


def test_a_name_that_does_not_resolve_is_no_traceback():
    ran = modelyard("models", "list", "--url", "http://nowhere.invalid/api")
    assert ran.status == 1
    assert "no service answers at http://nowhere.invalid/api" in ran.complaint


def test_a_password_in_the_url_is_not_shown():
    complaint = modelyard("models", "list", "--url", f"http://me:hunter2@127.0.0.1:{free_port()}/api").complaint
    assert "hunter2" not in complaint


def test_a_url_without_a_path_gets_the_usual_prefix():
    with stranger(lambda path: _json({"ready": True, "models": []} if path.endswith("readyz") else [])) as (url, asked):
        assert modelyard("models", "list", "--url", url).status == 0
        assert "/api/worker/models/supports" in asked


def test_readiness_is_looked_for_below_the_prefix_and_then_above_it():
    def answer(path: str) -> Answer:
        if path == "/readyz":
            return _json({"ready": False, "reason": "no new work", "models": [], "state": "draining"}, 503)
        return _json({"title": "Not Found"}, 404) if path.endswith("readyz") else _json([])

    with stranger(answer) as (url, asked):
        ran = modelyard("models", "list", "--url", f"{url}/ml/api/")
        assert "not ready (draining): no new work" in ran.out
        assert asked == ["/ml/api/readyz", "/ml/readyz", "/readyz", "/ml/api/worker/models/supports"]


def test_a_service_within_another_application_is_listed(tmp_path: Path):
    app = Flask("host")
    Modelyard(app, url_prefix="/ml/api", models=["echo"], state_dir=str(tmp_path), placement="inline")
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        runtime = app.extensions["modelyard"]
        runtime.start()
        assert runtime.wait_loaded(20)
        ran = modelyard("models", "list", "--url", f"http://127.0.0.1:{server.server_port}/ml/api")
        assert [row["NAME"] for row in ran.table] == ["echo"]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        app.extensions["modelyard"].stop()


def test_a_service_on_a_unix_socket_is_listed(tmp_path: Path):
    def answer(peer: Peer) -> bool:
        status = {"ready": True, "models": [{"model": "echo@llm", "state": "ready", "reason": None}]}
        return bool(says(whole(200, status if peer.request.path.endswith("readyz") else []))(peer))

    with faulty(answer, tmp_path / "Sock") as server:
        assert [row["NAME"] for row in modelyard("models", "list", "--url", server.url).table] == ["echo"]
    complaint = modelyard("models", "list", "--url", server.url).complaint
    assert f"no service answers at {server.url} (Connection refused)" in complaint


def test_a_redirect_is_not_followed():
    def answer(path: str) -> Answer:
        return 302, "text/plain", b"", {"Location": "http://127.0.0.1:9/elsewhere"}

    with stranger(answer) as (url, asked):
        complaint = modelyard("models", "list", "--url", f"{url}/api").complaint
        assert "redirects to http://127.0.0.1:9/elsewhere" in complaint
        assert len(asked) == 1


@pytest.mark.parametrize(
    ("status", "reason"),
    [(200, "is --url right?"), (404, "is --url right?"), (500, "answers with status 500"), (502, "status 502")],
)
def test_a_page_of_something_else_is_no_answer(status: int, reason: str):
    with stranger(lambda path: (status, "text/html", b"<h1>hello</h1>", {})) as (url, _):
        ran = modelyard("models", "list", "--url", f"{url}/api")
        assert ran.status == 1
        assert reason in ran.complaint


COMMANDS = [
    ["list"],
    ["stop", "x"],
    ["start", "x"],
    ["start", "x", "a=1"],
    ["start", "x", "model_path=x.gguf"],
    ["update", "x", "a=1"],
    ["params", "x"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("body", [b"<h1>hello</h1>", b"", b'{"hello": 1}', b"[1]", b'[{"models": [1]}]', b"null"])
def test_an_answer_of_another_shape_is_no_answer_to_any_command(words: list[str], body: bytes):
    with stranger(lambda path: (200, "application/json", body, {})) as (url, _):
        ran = modelyard("models", *words, "--url", f"{url}/api")
        assert ran.status == 1
        assert "is --url right?" in ran.complaint


@pytest.mark.parametrize("body", [b"<h1>hello</h1>", b"", b'{"hello": 1}'])
def test_only_null_says_that_a_model_is_forgotten_or_started(body: bytes):
    unknown = {"type": "urn:modelyard:error:unknown_model", "detail": "no such model"}

    def answer(path: str) -> Answer:
        if path.endswith("supports"):
            return _json([])
        return _json(unknown, 404) if path.endswith("apply") else (200, "application/json", body, {})

    with stranger(answer) as (url, _):
        assert modelyard("models", "stop", "x", "--forget", "--url", f"{url}/api").status == 1
        assert modelyard("models", "start", "x", "--url", f"{url}/api").status == 1
    body = b"null"
    with stranger(answer) as (url, _):
        assert modelyard("models", "stop", "x", "--forget", "--url", f"{url}/api").status == 0
        assert modelyard("models", "start", "x", "--url", f"{url}/api").status == 0


def test_a_failure_of_a_peer_is_shown_with_its_own_detail():
    with stranger(lambda path: _json({"detail": [{"loc": ["body"], "msg": "field required"}]}, 422)) as (url, _):
        assert "field required" in modelyard("models", "stop", "x", "--url", f"{url}/api").complaint


def test_what_a_service_says_can_not_move_the_cursor_nor_fill_the_screen():
    problem = {"type": "urn:modelyard:error:conflict", "detail": "one\x1b[2J\ntwo", "status": 409}
    with stranger(lambda path: _json(problem, 409)) as (url, _):
        assert modelyard("models", "stop", "x", "--url", f"{url}/api").complaint == "one\ufffd[2J two"


def test_a_service_that_does_not_answer_in_time_may_still_be_at_it():
    release = threading.Event()

    def answer(path: str) -> Answer:
        release.wait(20)
        return _json({})

    with stranger(answer) as (url, _):
        ran = modelyard("models", "stop", "x", "--url", f"{url}/api", "--timeout", "0.2")
        release.set()
    assert ran.status == 1
    assert "did not answer within 0.2 s" in ran.complaint
    assert "--timeout" in ran.complaint


def test_a_service_that_breaks_off_is_no_traceback():
    def answer(path: str) -> Answer:
        return 200, "application/json", b"{", {"Content-Length": "100"}

    with stranger(answer) as (url, _):
        ran = modelyard("models", "stop", "x", "--url", f"{url}/api", "--timeout", "5")
        assert ran.status == 1
        assert ran.complaint


def test_proxies_of_the_environment_are_not_asked():
    with stranger(lambda path: _json({"ready": True, "models": []} if path.endswith("readyz") else [])) as (url, _):
        proxy = f"http://127.0.0.1:{free_port()}"
        assert modelyard("models", "list", "--url", url, http_proxy=proxy, HTTP_PROXY=proxy).status == 0
