"""Applications with handlers, hooks, hosts and paths of their own: they stay, and the calls answer beside them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Flask, Response, abort, jsonify, request
from flask.json.provider import DefaultJSONProvider
from flask.testing import FlaskClient
from modelyard import Modelyard
from modelyard.blueprints.request.mounted import MountedBlueprint
from modelyard.server.runtime import Runtime
from running import wait_until
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import BaseConverter
from werkzeug.test import Client

PROMPT = {"model": "echo", "prompt": "x", "max_new_tokens": 3}
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "stream": True}
MODELS = {"models": ["echo"], "placement": "inline", "openai": True}


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FlaskClient]]:
    """Puts Modelyard into an application, starts it, and returns its client."""
    monkeypatch.setenv("MODELYARD_STATE_DIR", str(tmp_path / "state"))
    runtimes: list[Runtime] = []

    def mount(app: Flask, **options: Any) -> FlaskClient:
        options = {**MODELS, "instance": f"app-{len(runtimes)}", **options}
        runtimes.append(Modelyard(**options).init_app(app))
        runtimes[-1].start()
        assert runtimes[-1].wait_loaded(10)
        return app.test_client()

    yield mount
    for runtime in runtimes:
        runtime.stop()


def ask(client: FlaskClient | Client, prefix: str = "/api", **how: Any) -> None:
    """Check that a whole answer, two streams, a refusal and health are as everywhere."""
    how["buffered"] = True  # read and closed, as a server does
    assert client.post(f"{prefix}/worker/generate", json=PROMPT, **how).json["text"] == " token token token"
    chunks = client.post(f"{prefix}/worker/generate_stream", json=PROMPT, **how).data.split(b"\0")
    assert [json.loads(chunk)["text"] for chunk in chunks if chunk][-1] == " token token token"
    events = client.post(f"{prefix}/v1/chat/completions", json=CHAT, **how).text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    refusal = client.post(f"{prefix}/worker/apply", json={}, **how)
    assert (refusal.status_code, refusal.content_type) == (422, "application/problem+json")
    assert client.get(f"{prefix}/healthz", **how).json == {"status": "ok"}
    assert client.get(f"{prefix}/readyz", **how).json["ready"] is True


def slots_free(app: Flask) -> bool:
    """Return whether no call holds a slot or a thread."""
    runtime: Runtime = app.extensions["modelyard"]
    return runtime.budget.held == 0


# Hooks


def test_an_after_request_may_read_a_stream_as_a_whole(mount: Callable[..., FlaskClient]) -> None:
    app, sizes = Flask("app"), []

    @app.after_request
    def measure(response: Response) -> Response:
        sizes.append(len(response.data))
        return response

    ask(mount(app))
    assert all(sizes)
    assert slots_free(app)


@pytest.mark.parametrize("reads", [True, False], ids=["read to its end", "hung up"])
def test_a_stream_that_an_after_request_wraps_is_closed(mount: Callable[..., FlaskClient], reads: bool) -> None:
    app = Flask("app")

    @app.after_request
    def wrap(response: Response) -> Response:
        response.direct_passthrough = False
        response.response = (piece for piece in response.iter_encoded())
        return response

    client = mount(app)
    response = client.post("/api/worker/generate_stream", json=PROMPT, buffered=False)
    pieces = iter(response.response)
    next(pieces)
    if reads:
        assert not [piece for piece in pieces if not piece.endswith(b"\0")]
    response.close()
    wait_until(lambda: slots_free(app), "its thread is free", timeout=5)


def test_a_stream_that_an_after_request_wraps_before_another_fails_is_closed(
    mount: Callable[..., FlaskClient],
) -> None:
    app = Flask("app")

    @app.after_request
    def fail(response: Response) -> Response:
        raise RuntimeError("an after_request of the application")

    @app.after_request
    def wrap(response: Response) -> Response:
        response.direct_passthrough = False
        response.response = list(response.iter_encoded())[:1]
        return response

    client = mount(app)
    assert client.post("/api/worker/generate_stream", json=PROMPT).status_code == 500
    assert slots_free(app)


def test_functions_that_an_application_calls_at_the_end_of_a_response_are_called(
    mount: Callable[..., FlaskClient],
) -> None:
    app, ended = Flask("app"), []

    @app.after_request
    def note(response: Response) -> Response:
        path = request.path
        response.call_on_close(lambda: ended.append(path))
        return response

    ask(mount(app))
    assert "/api/worker/generate_stream" in ended
    assert "/api/v1/chat/completions" in ended


# Errors, JSON, names


class Prices(DefaultJSONProvider):
    def dumps(self, obj: Any, **kwargs: Any) -> str:
        return super().dumps({"theirs": obj}, **kwargs)

    def loads(self, s: str | bytes, **kwargs: Any) -> Any:
        return {"theirs": super().loads(s, **kwargs)}


def test_a_json_provider_of_the_application_writes_and_reads_nothing_of_ours(
    mount: Callable[..., FlaskClient],
) -> None:
    app = Flask("app")
    app.json = Prices(app)
    client = mount(app)
    # The client reads with the provider, too.
    answer = client.post("/api/worker/generate", data=json.dumps(PROMPT), content_type="application/json")
    assert json.loads(answer.data)["text"] == " token token token"


@pytest.mark.parametrize("trap", [False, True])
def test_a_handler_for_every_exception_gets_none_of_ours(mount: Callable[..., FlaskClient], trap: bool) -> None:
    app = Flask("app")
    app.config.update(TRAP_HTTP_EXCEPTIONS=trap, PROPAGATE_EXCEPTIONS=trap)
    app.register_error_handler(Exception, lambda error: (jsonify(theirs=str(error)), 500))
    client = mount(app)
    ask(client)
    assert client.get("/nowhere").json["theirs"].startswith("404")
    assert client.get("/api/worker/generate").json["theirs"].startswith("405")


def test_a_rule_for_every_path_has_what_is_left(mount: Callable[..., FlaskClient]) -> None:
    app = Flask("app")
    app.add_url_rule("/", "front", lambda: "front")
    app.add_url_rule("/<path:path>", "every", lambda path: f"page {path}", methods=["GET", "POST", "PUT"])
    client = mount(app)
    ask(client)
    assert client.get("/some/page").text == "page some/page"
    assert client.post("/api/worker/nothing").text == "page api/worker/nothing"
    assert client.get("/api/worker/generate").text == "page api/worker/generate"


class Even(BaseConverter):
    regex = "[0-9]*[02468]"


def test_names_and_converters_of_the_application_are_its_own(mount: Callable[..., FlaskClient]) -> None:
    app = Flask("app")
    app.url_map.converters.update(even=Even, path=Even, default=Even)
    for name in ("models", "health", "worker", "openai", "modelyard"):
        blueprint = Blueprint(name, __name__)
        blueprint.add_url_rule(f"/{name}/<even:number>", "show", lambda number: f"number {number}")
        app.register_blueprint(blueprint)
    client = mount(app)
    ask(client)
    assert client.get("/health/12").text == "number 12"
    assert client.get("/models/13").status_code == 404


def test_an_abort_of_the_application_stays_its_own(mount: Callable[..., FlaskClient]) -> None:
    app = Flask("app")
    app.add_url_rule("/gone", "gone", lambda: abort(410))
    app.register_error_handler(410, lambda error: ("their page", 410))
    assert mount(app).get("/gone").text == "their page"


# Hosts and paths


def test_an_application_below_a_path(mount: Callable[..., FlaskClient]) -> None:
    app = Flask("app")
    app.config["APPLICATION_ROOT"] = "/shop"
    client = mount(app)
    ask(client, "/api", base_url="http://localhost/shop")


@pytest.mark.parametrize("matches_subdomains", [False, True])
def test_an_application_with_a_name_of_its_server(mount: Callable[..., FlaskClient], matches_subdomains: bool) -> None:
    app = Flask("app", subdomain_matching=matches_subdomains)
    app.config["SERVER_NAME"] = "shop.test:5000"
    app.add_url_rule("/", "front", lambda: "front")
    app.add_url_rule("/", "blog", lambda: "blog", subdomain="blog")
    client = mount(app)
    ask(client)
    assert client.get("/").text == "front"
    if matches_subdomains:
        assert client.get("/", base_url="http://blog.shop.test:5000").text == "blog"


def test_an_application_that_matches_hosts(mount: Callable[..., FlaskClient]) -> None:
    app = Flask("app", host_matching=True, static_host="static.test")
    app.add_url_rule("/", "front", lambda: "front", host="shop.test")
    app.add_url_rule("/<path:path>", "every", lambda path: path, host="files.test")
    client = mount(app)
    for host in ("shop.test", "127.0.0.1:8000", "localhost"):
        ask(client, base_url=f"http://{host}")
    assert client.get("/", base_url="http://shop.test").text == "front"
    assert client.get("/api/worker", base_url="http://files.test").text == "api/worker"


def test_every_blueprint_answers_at_every_host_and_has_a_name_that_exemptions_find(tmp_path: Path) -> None:
    app, table = Flask("app"), tmp_path / "config.toml"
    table.write_text('[[passthrough]]\npath = "/audio"\nbase_url = "http://127.0.0.1:1/v1"\n')
    Modelyard(app, role="standalone", models=[], openai=True, docs=True, pages=True, metrics="open", config=str(table))
    assert len(app.blueprints) >= 8
    for name, blueprint in app.blueprints.items():
        assert isinstance(blueprint, MountedBlueprint), name
        assert name.startswith("modelyard_"), "docs/flask.md says so"
    for endpoint, view in app.view_functions.items():
        assert view.__name__ and view.__qualname__ and view.__module__, f"Flask-Limiter names {endpoint}"


def test_the_calls_may_have_a_subdomain_of_their_own(mount: Callable[..., FlaskClient]) -> None:
    app = Flask("app", subdomain_matching=True)
    app.config["SERVER_NAME"] = "shop.test"
    client = mount(app, subdomain="ml")
    ask(client, base_url="http://ml.shop.test")
    assert client.get("/api/healthz", base_url="http://shop.test").status_code == 404


def test_a_proxy_fix_changes_nothing_for_the_application(mount: Callable[..., FlaskClient]) -> None:
    app = Flask("app")
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1, x_port=1, x_prefix=1)  # type: ignore[method-assign]
    app.add_url_rule("/where", "where", lambda: f"{request.remote_addr} {request.url}")
    client = mount(app)
    ask(client)
    behind = {"X-Forwarded-For": "10.1.2.3", "X-Forwarded-Host": "shop.test", "X-Forwarded-Prefix": "/shop"}
    assert client.get("/where", headers=behind).text == "10.1.2.3 http://shop.test/shop/where"
    answer = client.post("/api/worker/generate", json=PROMPT, headers=behind)
    assert answer.status_code == 403, "another machine"
    behind["X-Forwarded-For"] = "127.0.0.1"
    assert client.post("/api/worker/generate", json=PROMPT, headers=behind).json["error_code"] == 0
    assert client.post("/api/worker/apply", json={}, headers=behind).status_code == 403


def test_two_applications_in_one_process(mount: Callable[..., FlaskClient]) -> None:
    one, two = Flask("one"), Flask("two")
    mount(one)
    mount(two, url_prefix="/ml")
    client = Client(DispatcherMiddleware(one, {"/two": two}))
    here = {"environ_base": {"REMOTE_ADDR": "127.0.0.1"}}
    ask(client, **here)
    ask(client, "/two/ml", **here)


def test_a_factory_may_be_called_again(mount: Callable[..., FlaskClient]) -> None:
    for _ in range(2):
        ask(mount(Flask("app")))


# Commands


APPLICATION = """
import os, threading
from flask import Flask
from modelyard import Modelyard

def create_app():
    app = Flask("app")
    Modelyard(app, models=["echo"])
    return app
"""


@pytest.mark.parametrize("command", [["routes"], ["shell"]])
def test_flasks_commands_start_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    (tmp_path / "shop.py").write_text(APPLICATION)
    monkeypatch.setenv("MODELYARD_STATE_DIR", str(tmp_path / "state"))
    said = "import threading; print('threads', [thread.name for thread in threading.enumerate()])"
    done = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "shop:create_app", *command],
        cwd=tmp_path,
        input=said,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert ("/api/worker/generate" in done.stdout) or "threads ['MainThread']" in done.stdout
    assert not (tmp_path / "state").exists()
