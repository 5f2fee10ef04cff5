"""The playground without a browser: who may use its endpoint, what it answers, and how words become HTML."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from modelyard import Modelyard
from modelyard.access.keys import Limits, new_key
from modelyard.access.tokens import digest_of, new_secret, parse_scopes
from modelyard.blueprints.pages import playground
from modelyard.blueprints.pages.markdown import LARGEST
from modelyard.server.extension import KEY
from modelyard.worker.states import State
from pages_service import OWN, SECRETS, TOKENS, Build, building, sign_in
from running import ROOT

EVENTS = {**OWN, "Accept": "text/event-stream"}
TABLES = ({"name": "said", "worker_class": "steered:Steered", "worker_type": "llm"}, {"name": "echo-embed"})
SCRIPTS = ROOT / "blueprints" / "pages" / "static"


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    with building(tmp_path) as build:
        yield build


@pytest.fixture
def client(build: Build) -> FlaskClient:
    return build(model_tables=TABLES).test_client()


def chat(client: FlaskClient, words: str, headers: Any = EVENTS, **fields: Any) -> Any:
    body = {"messages": [{"role": "user", "content": words}], "stream": True, **fields}
    return client.post("/ui/playground/chat", json=body, headers=headers, buffered=True)


def events_of(response: Any) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def text_of(events: list[Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event.get("choices", ()))


def test_the_page_offers_the_models_that_answer_and_the_code_for_their_api(client: FlaskClient):
    page = client.get("/ui/playground?model=said")
    assert page.status_code == 200
    assert "<option selected>said</option>" in page.text
    assert "echo-embed" not in page.text
    assert 'data-api="/v1"' in page.text
    assert 'action="/ui/playground/chat" data-words="/ui/playground/words"' in page.text
    assert 'href="/docs"' in page.text


def test_without_a_model_that_answers_it_says_so(build: Build):
    page = build(role="gateway", model_tables=()).test_client().get("/ui/playground")
    assert "No model answers" in page.text
    assert "<textarea" not in page.text


@pytest.mark.parametrize("state", [State.READY, State.LOADING, State.UNLOADED, State.STOPPED, State.FAILED])
def test_models_that_a_request_loads_are_offered_and_stopped_ones_are_not(
    build: Build, monkeypatch: pytest.MonkeyPatch, state: State
):
    app = build(model_tables=TABLES)
    monkeypatch.setattr(app.extensions[KEY].manager, "model_states", lambda: {"said@llm": state})
    page = app.test_client().get("/ui/playground").text
    assert ("<option>said</option>" in page) == (state not in (State.STOPPED, State.FAILED))


def test_an_answer_is_that_of_the_api_as_a_stream(client: FlaskClient):
    response = chat(client, "one two", model="said", stream_options={"include_usage": True})
    assert response.content_type.startswith("text/event-stream")
    events = events_of(response)
    assert text_of(events) == " one two"
    assert events[-1]["usage"]["completion_tokens"] == 2


def test_an_error_within_the_stream_comes_after_what_was_said(client: FlaskClient):
    events = events_of(chat(client, "break"))
    assert text_of(events) == " break"
    assert events[-1]["error"]["message"].startswith("the engine of model 'said' failed")


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"temperature": 9}, 422, "temperature"),
        ({"model": "other"}, 404, "other"),
        ({"messages": []}, 422, "messages"),
    ],
)
def test_a_refusal_is_a_line_of_text(client: FlaskClient, fields: dict[str, Any], status: int, words: str):
    response = chat(client, "x", **fields)
    assert (response.status_code, response.content_type) == (status, "text/plain; charset=utf-8")
    assert words in response.text


@pytest.mark.parametrize("path", ["chat", "words"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "null"},
        {"Origin": "http://localhost:81"},
        {},
    ],
)
def test_the_sign_in_is_of_no_use_to_another_site(build: Build, path: str, headers: dict[str, str]):
    client = build(tokens=TOKENS, model_tables=TABLES).test_client()
    sign_in(client, SECRETS["infer"])
    assert chat(client, "one").status_code == 200
    refused = client.post(f"/ui/playground/{path}", data=b'{"messages": []}', headers=headers)
    assert refused.status_code == 403
    assert client.post("/v1/chat/completions", json={}, headers=OWN).status_code == 401, "the API reads no cookie"


def test_who_may_not_use_models_gets_neither_page_nor_answer(build: Build):
    client = build(tokens=TOKENS, model_tables=TABLES).test_client()
    assert chat(client, "x").status_code == 401
    sign_in(client, SECRETS["worker"])
    assert client.get("/ui/playground").status_code == 403
    assert chat(client, "x").status_code == 403
    assert ">Playground<" not in client.get("/ui/").text


def test_the_models_and_the_limits_are_those_of_the_key(build: Build):
    app = build(model_tables=(*TABLES, {"name": "echo"}))
    secret = new_secret()
    limits = Limits(requests=1)
    key = new_key("ann", digest_of(secret), parse_scopes("infer"), ["sai*"], limits=limits)
    app.extensions[KEY].keys.add(key)
    client = app.test_client()
    sign_in(client, secret)
    page = client.get("/ui/playground").text
    assert "<option>said</option>" in page
    assert "<option>echo</option>" not in page
    assert chat(client, "x", model="echo").status_code == 403
    first = chat(client, "x", model="said")
    assert (first.status_code, first.headers["x-ratelimit-remaining-requests"]) == (200, "0")
    assert text_of(events_of(first)) == " x"
    assert chat(client, "x", model="said").status_code == 429


def test_the_names_of_models_are_text(build: Build):
    name = "<b>\"'&"
    client = build(model_tables=({**TABLES[0], "name": name},)).test_client()
    page = client.get("/ui/playground").text
    assert "<b>" not in page
    assert "<option>&lt;b&gt;&#34;&#39;&amp;</option>" in page


def test_words_become_html_up_to_a_size(client: FlaskClient):
    def html(body: bytes) -> Any:
        return client.post("/ui/playground/words", data=body, headers={**OWN, "Accept": "text/plain"})

    assert html("**ä** <b>".encode()).text == "<p><strong>ä</strong> &lt;b&gt;</p>\n"
    assert html(b"\xff").status_code == 422
    assert html(b"x" * (LARGEST + 1)).status_code == 413


def test_without_the_library_words_stay_text(client: FlaskClient, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(playground, "_has_markdown", lambda: False)
    assert "data-words" not in client.get("/ui/playground").text
    assert client.post("/ui/playground/words", data=b"x", headers=OWN).status_code == 501


def test_the_page_of_a_model_leads_to_where_it_is_tried(client: FlaskClient):
    assert 'href="/ui/playground?model=said"' in client.get("/ui/model?name=said&type=llm").text
    assert 'href="/ui/similarity?model=echo-embed"' in client.get("/ui/model?name=echo-embed&type=text2vec").text


def test_in_an_application_it_names_the_api_of_the_prefix_or_none(tmp_path: Path):
    for openai, expected in ((True, 'data-api="/ml/v1"'), (False, 'data-api=""')):
        app = Flask("shop")
        folder = str(tmp_path / str(openai))
        options = {"models": ["echo"], "placement": "inline", "insecure": True}
        Modelyard(app, url_prefix="/ml", openai=openai, pages=True, state_dir=folder, **options)
        runtime = app.extensions[KEY]
        try:
            runtime.start()
            assert runtime.wait_loaded(10)
            page = app.test_client().get("/ml/ui/playground").text
        finally:
            runtime.stop()
        assert expected in page
        assert ('id="curl"' in page) == openai


def test_all_scripts_together_are_small():
    assert sum(path.stat().st_size for path in SCRIPTS.glob("*.js")) < 20_000
