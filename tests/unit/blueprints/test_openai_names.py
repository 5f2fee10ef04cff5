"""Aliases, defaults and fallbacks over HTTP: all APIs answer alike, under the name that the client asked for."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import steered
from flask import Flask
from flask.testing import FlaskClient
from in_process import SCRIPTED
from modelyard.engines.scripted import Answers
from modelyard.errors import NotReady, Overloaded, PromptTooLong
from modelyard.server.extension import create_app
from modelyard.server.runtime import Runtime
from modelyard.settings.settings import Settings
from werkzeug.test import TestResponse

HELLO = [{"role": "user", "content": "a b"}]
LARGE = Answers()
SMALL = Answers()


def app_with(folder: Path, **options: Any) -> Flask:
    """Return an application with the models ``large`` and ``small``, which answers when it is started."""
    folders = {"state_dir": str(folder / "state"), "models_dirs": [str(folder / "models")]}
    settings = Settings(**folders, **options)
    settings.model_tables = (
        {"name": "large", "worker_class": SCRIPTED, "script": LARGE.key, "context_length": 8192},
        {"name": "small", "worker_class": SCRIPTED, "script": SMALL.key, "context_length": 2048},
        {"name": "größe", "engine": "echo"},
        {"name": "emb", "engine": "echo", "worker_type": "text2vec"},
        {"name": "rank", "worker_class": steered.PATH, "worker_type": "reranker"},
    )
    return create_app(settings)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    made = app_with(
        tmp_path_factory.mktemp("names"),
        aliases={"gpt": "large", "ada": "emb", "jina": "rank", "future": "not-yet", "size": "größe"},
        default_models={"llm": "large"},
        fallbacks={"large": ["small"], "gone": ["small"]},
        unknown_models="default",
    )
    runtime: Runtime = made.extensions["modelyard"]
    runtime.start()
    assert runtime.wait_loaded(30)
    yield made
    assert runtime.requests == set(), "a request was never closed"
    assert runtime.budget.held == 0, "a thread of the budget was lost"
    runtime.stop()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def post(client: FlaskClient, path: str, **body: Any) -> TestResponse:
    return client.post(path, json=body, buffered=True)


TEXT = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "a b"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 5},
    "/v1/responses": {"input": "a b"},
}


@pytest.mark.parametrize("path", TEXT)
def test_a_whole_answer_has_the_name_that_was_asked_for(client, path):
    response = post(client, path, model="gpt", **TEXT[path])
    assert response.get_json()["model"] == "gpt"
    assert response.headers["Modelyard-Model"] == "large"
    response = post(client, path, model="large", **TEXT[path])
    assert response.get_json()["model"] == "large"
    assert "Modelyard-Model" not in response.headers


@pytest.mark.parametrize("path", TEXT)
def test_a_stream_too(client, path):
    response = post(client, path, model="gpt", stream=True, **TEXT[path])
    events = [line for line in response.get_data(as_text=True).split("\n") if line.startswith("data: {")]
    event = json.loads(events[0].removeprefix("data: "))
    event = event.get("message") or event.get("response") or event
    assert event["model"] == "gpt"
    assert response.headers["Modelyard-Model"] == "large"


@pytest.mark.parametrize("stream", [False, True])
def test_a_header_takes_every_name(client, stream):
    response = post(client, "/v1/chat/completions", model="size", messages=HELLO, stream=stream)
    assert response.headers["Modelyard-Model"] == "gr%C3%B6%C3%9Fe"


def test_vectors_and_rankings_too(client):
    response = post(client, "/v1/embeddings", model="ada", input=["a"])
    assert (response.get_json()["model"], response.headers["Modelyard-Model"]) == ("ada", "emb")
    assert response.get_json()["usage"]["prompt_tokens"] == 1
    response = post(client, "/v1/rerank", model="jina", query="a", documents=["a a", "b"])
    assert (response.get_json()["model"], response.headers["Modelyard-Model"]) == ("jina", "rank")
    # The scores of a reranker are made probabilities, by whatever name it is called.
    assert response.get_json()["results"][0]["relevance_score"] == pytest.approx(0.8808, abs=1e-4)


def test_the_worker_api_of_dbgpt_too(client):
    response = post(client, "/api/worker/generate", model="gpt", prompt="a b")
    assert response.get_json()["text"] == "a b"
    assert response.headers["Modelyard-Model"] == "large"
    assert response.headers["Modelyard-Load"].startswith("slots=")
    response = post(client, "/api/worker/generate_stream", model="gpt", prompt="a b")
    assert json.loads(response.data.split(b"\0")[-2])["text"] == "a b"
    assert response.headers["Modelyard-Model"] == "large"
    response = post(client, "/api/worker/embeddings", model="ada", input=["a"])
    assert len(response.get_json()) == 1
    assert response.headers["Modelyard-Model"] == "emb"
    assert post(client, "/api/worker/model_metadata", model="gpt").get_json()["context_length"] == 8192
    assert post(client, "/api/worker/count_token", model="gpt", prompt="a b c").get_json() == 3


def test_what_another_router_sends_names_the_model_itself(client):
    response = client.post(
        "/api/worker/generate", json={"model": "gpt", "prompt": "a"}, headers={"Modelyard-Route": "local"}
    )
    assert response.status_code == 200
    assert "there is no model 'gpt'" in response.get_json()["text"]


def test_changes_are_of_models_by_their_own_names(client):
    response = post(client, "/api/worker/apply", model="gpt", apply_type="stop")
    assert response.status_code == 404


# Fallbacks


@pytest.mark.parametrize("path", TEXT)
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_goes_to_the_fallback(client, path, stream):
    LARGE.fail(PromptTooLong("9000 tokens, model 'large' has a context of 8192"))
    response = post(client, path, model="gpt", stream=stream, **TEXT[path])
    assert response.status_code == 200
    assert response.headers["Modelyard-Model"] == "small"
    assert '"model":"gpt"' in response.get_data(as_text=True)


def test_if_the_fallback_refuses_too_the_error_is_that_of_the_model(client):
    LARGE.fail(PromptTooLong("9000 tokens, model 'large' has a context of 8192"))
    SMALL.fail(PromptTooLong("9000 tokens, model 'small' has a context of 2048"))
    response = post(client, "/v1/chat/completions", model="gpt", messages=HELLO)
    assert response.status_code == 400
    assert "Modelyard-Model" not in response.headers
    assert response.get_json()["error"] == {
        "message": "the prompt is too long (context_length_exceeded): "
        "9000 tokens, model 'large' has a context of 8192; "
        "fallbacks tried: small (9000 tokens, model 'small' has a context of 2048)",
        "type": "invalid_request_error",
        "param": None,
        "code": "context_length_exceeded",
    }


def test_a_fallback_answers_for_a_model_that_is_not_there(client):
    response = post(client, "/v1/chat/completions", model="gone", messages=HELLO)
    assert (response.get_json()["model"], response.headers["Modelyard-Model"]) == ("gone", "small")


def test_an_overload_is_passed_on(client):
    LARGE.fail(Overloaded("full", retry_after=3))
    response = post(client, "/v1/chat/completions", model="large", messages=HELLO)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "3")
    assert "fallbacks" not in response.get_json()["error"]["message"]


def test_several_choices_may_be_those_of_the_fallback(client):
    LARGE.fail(NotReady("a"))
    LARGE.fail(NotReady("b"))
    response = post(client, "/v1/chat/completions", model="large", messages=HELLO, n=2)
    assert [choice["message"]["content"] for choice in response.get_json()["choices"]] == ["a b", "a b"]
    assert response.headers["Modelyard-Model"] == "small"


@pytest.mark.parametrize("stream", [False, True])
def test_the_access_line_has_both_names(client, caplog, stream):
    caplog.set_level(logging.INFO, "modelyard.access")
    post(client, "/v1/chat/completions", model="gpt", messages=HELLO, stream=stream)
    post(client, "/v1/chat/completions", model="large", messages=HELLO, stream=stream)
    lines = [json.loads(record.message) for record in caplog.records if record.name == "modelyard.access"]
    assert [(line["model"], line.get("answered_by")) for line in lines] == [("gpt", "large"), ("large", None)]


# Defaults


def test_without_a_model_the_default_answers(client):
    response = post(client, "/v1/chat/completions", messages=HELLO)
    assert response.get_json()["model"] == "large"
    assert "Modelyard-Model" not in response.headers
    assert post(client, "/v1/embeddings", input="a").get_json()["model"] == "emb", "the only one needs no default"


def test_the_default_answers_for_a_model_that_does_not_exist(client):
    response = post(client, "/v1/messages", model="claude-9", messages=HELLO, max_tokens=5)
    assert (response.get_json()["model"], response.headers["Modelyard-Model"]) == ("claude-9", "large")
    response = post(client, "/v1/embeddings", model="ada-9", input="a")
    assert response.status_code == 404, "no vectors of a model that the client does not know"


# The list


def test_aliases_are_listed_with_what_they_stand_for(client):
    entries = {entry["id"]: entry for entry in client.get("/v1/models").get_json()["data"]}
    assert list(entries) == ["ada", "emb", "gpt", "größe", "jina", "large", "rank", "size", "small"]
    assert entries["gpt"] == {**entries["large"], "id": "gpt", "alias_of": "large"}
    assert (entries["gpt"]["max_model_len"], entries["gpt"]["capabilities"]) == (8192, ["completion"])
    assert client.get("/v1/models/gpt").get_json() == entries["gpt"]


def test_an_alias_of_a_model_that_is_not_there_is_unknown(client):
    response = client.get("/v1/models/future")
    assert response.status_code == 404
    assert "there is no model 'not-yet' here" in response.get_json()["error"]["message"]


def test_without_tables_nothing_stands_in_between(tmp_path):
    runtime: Runtime = app_with(tmp_path).extensions["modelyard"]
    assert runtime.cluster is not None
    assert runtime.manager is runtime.cluster.manager
