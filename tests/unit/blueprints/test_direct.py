"""A model host answers streams without Flask around them: every answer is the one that Flask would have given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import steered
from clients import DELTA
from flask import Flask
from flask.testing import FlaskClient
from modelyard.blueprints import direct
from modelyard.blueprints.direct import DirectStreams
from modelyard.server.app import create_app
from modelyard.server.runtime import Runtime
from modelyard.settings.settings import Settings
from steered import Steered

PATH = "/api/worker/generate_stream"
PROMPT: dict[str, Any] = {"model": "echo", "messages": [{"role": "human", "content": "hi"}], "max_new_tokens": 3}


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    """Give an application of ours; in the end nothing of it is held any more."""
    Steered.reset()
    settings = Settings(state_dir=str(tmp_path), access_log=False, max_body_bytes=10_000)
    settings.model_tables = ({"name": "echo"}, {"name": "s", "worker_class": steered.PATH})
    app = create_app(settings)
    runtime: Runtime = app.extensions["modelyard"]
    runtime.start()
    assert runtime.wait_loaded(30)
    yield app
    assert runtime.requests == set()
    assert runtime.budget.held == 0
    runtime.stop()


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give the list of the streams that were begun without Flask."""
    paths: list[str] = []
    begin = direct.begin_stream

    def noting(runtime: Runtime, request: Any, line: Any) -> Any:
        paths.append(request.path)
        return begin(runtime, request, line)

    monkeypatch.setattr(direct, "begin_stream", noting)
    return paths


def asked(client: FlaskClient, ask: Callable[[FlaskClient], Any]) -> tuple[int, list[tuple[str, str]], bytes]:
    with ask(client) as response:
        return response.status_code, list(response.headers), response.get_data()


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda c: c.post(PATH, json=PROMPT), id="whole texts"),
        pytest.param(lambda c: c.post(PATH, json=PROMPT, headers={"Accept": DELTA}), id="pieces"),
        pytest.param(lambda c: c.post(PATH, json={**PROMPT, "model": "none"}), id="an unknown model"),
        pytest.param(
            lambda c: c.post(PATH, json={**PROMPT, "model": "none"}, headers={"Accept": DELTA}),
            id="an unknown model, for pieces",
        ),
        pytest.param(lambda c: c.post(PATH, json={**PROMPT, "top_p": "much"}), id="a wrong parameter"),
        pytest.param(lambda c: c.post(PATH, data=b"{"), id="no JSON"),
        pytest.param(lambda c: c.post(PATH, data=b"x" * 20_000), id="too large"),
        pytest.param(lambda c: c.post(PATH, json={**PROMPT, "model": "s", "prompt": "", "messages": []}), id="empty"),
    ],
)
def test_an_answer_is_the_one_that_flask_gives(app: Flask, begun: list[str], ask: Callable[[FlaskClient], Any]) -> None:
    """Status, headers and body are the same, of answers and of refusals."""
    expected = asked(app.test_client(), ask)
    assert begun == []
    DirectStreams(app, app.extensions["modelyard"])
    assert asked(app.test_client(), ask) == expected
    assert begun == [PATH]


def test_all_other_calls_go_through_flask(app: Flask, begun: list[str]) -> None:
    """So do wrong methods, and paths that only begin alike."""
    DirectStreams(app, app.extensions["modelyard"])
    client = app.test_client()
    assert client.get(PATH).status_code == 405
    assert client.post(f"{PATH}/more", json=PROMPT).status_code == 404
    assert client.post("/api/worker/generate", json=PROMPT).get_json()["error_code"] == 0
    assert client.get("/healthz").status_code == 200
    assert begun == []


def test_what_is_traced_goes_through_flask(app: Flask, begun: list[str]) -> None:
    """Its span is begun and ended there."""
    DirectStreams(app, app.extensions["modelyard"])
    headers = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
    with app.test_client().post(PATH, json=PROMPT, headers=headers) as response:
        assert response.status_code == 200
    assert begun == []


def test_a_host_that_drains_refuses(app: Flask, begun: list[str]) -> None:
    """As Flask's own view does: 503, and when to ask again."""
    DirectStreams(app, app.extensions["modelyard"])
    app.extensions["modelyard"].drain(0)
    response = app.test_client().post(PATH, json=PROMPT)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert begun == [PATH]


def test_a_server_that_does_not_take_the_answer_leaves_nothing_behind(app: Flask) -> None:
    """Slot and thread are given back, as the fixture sees."""
    DirectStreams(app, app.extensions["modelyard"])

    def refuse(*args: Any) -> Any:
        raise ValueError("no such header")

    with app.test_request_context(PATH, method="POST", json=PROMPT) as context, pytest.raises(ValueError, match="such"):
        app.wsgi_app(context.request.environ, refuse)
