"""API keys at the calls: who may ask for what, limits and their headers, in the shape of each API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from flask import Flask
from flask.testing import FlaskClient
from in_process import service
from modelyard.access.keys import Key, Limits, new_key
from modelyard.access.tokens import Token, digest_of, parse_scopes
from modelyard.blueprints.request.keys import characters_of
from modelyard.cluster.registry.base import MANAGER_KEY, Instance
from modelyard.server.extension import KEY, Modelyard, create_app
from modelyard.server.runtime import Runtime
from modelyard.settings.passthrough import PassThrough
from modelyard.settings.settings import Settings
from modelyard.types import GenerateRequest
from pictures import data_url, png, question
from werkzeug.test import TestResponse

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "x" * 40}], "max_tokens": 20}


_NAMES: dict[str, Any] = {"default_models": {"llm": "echo"}, "aliases": {"fast": "echo-2"}}


class Served:
    """A service with two models, its store of keys, and a client."""

    def __init__(self, runtime: Runtime, client: FlaskClient) -> None:
        self.runtime = runtime
        self.client = client
        assert runtime.keys is not None
        self.ring = runtime.keys

    def key(self, *models: str, name: str = "ci", scopes: str = "infer", **fields: Any) -> Key:
        """Make a key whose secret is its name, which counts from now on."""
        limits = Limits(**{n: fields.pop(n) for n in ("requests", "tokens", "parallel") if n in fields})
        made = new_key(name, digest_of(name), parse_scopes(scopes), models, limits=limits, **fields)
        self.ring.add(made)
        return made

    def post(self, path: str = "/v1/chat/completions", secret: str = "ci", **body: Any) -> TestResponse:
        return self.client.post(path, json=body or CHAT, headers={"Authorization": f"Bearer {secret}"})

    def get(self, path: str, secret: str = "ci") -> TestResponse:
        return self.client.get(path, headers={"Authorization": f"Bearer {secret}"})


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    settings = Settings(state_dir=str(tmp_path / "state"), models=["echo", "echo-2", "full", "slow"], **_NAMES)
    full = {"limit_model_concurrency": 1, "max_waiting": 0}
    settings.model_tables = (
        {"name": "echo", "engine": "echo"},
        {"name": "echo-2", "engine": "echo"},
        {"name": "full", "engine": "echo", **full},
        {"name": "slow", "engine": "echo", "delay": 0.2},
    )
    settings.passthrough = (PassThrough(path="/audio", base_url="http://127.0.0.1:1/v1"),)
    app = create_app(settings)
    runtime: Runtime = app.extensions[KEY]
    runtime.start()
    assert runtime.wait_loaded(30)
    try:
        yield Served(runtime, app.test_client())
    finally:
        runtime.stop()


def error_of(response: TestResponse) -> tuple[int, str, str, str]:
    error = response.json["error"]
    return response.status_code, error["type"], error["code"], error["message"]


# Who may


def test_without_a_key_all_is_open_and_with_one_nothing_else(served):
    assert served.post(secret="none").status_code == 200
    served.key()
    assert served.post().status_code == 200
    for secret in ("none", "ci2"):
        status, kind, code, message = error_of(served.post(secret=secret))
        assert (status, kind, code) == (401, "invalid_request_error", "invalid_api_key")
        assert "not known" in message
    assert served.client.post("/v1/chat/completions", json=CHAT).status_code == 401
    assert served.client.post("/api/worker/generate", json=CHAT).status_code == 401
    assert served.client.get("/healthz").status_code == 200


def test_a_key_comes_as_x_api_key_too(served):
    served.key()
    body = {**CHAT, "max_tokens": 5}
    response = served.client.post("/v1/messages", json=body, headers={"x-api-key": "ci"})
    assert response.status_code == 200
    refused = served.client.post("/v1/messages", json=body, headers={"x-api-key": "no"})
    assert (refused.status_code, refused.json["error"]["type"]) == (401, "authentication_error")


def test_a_key_that_is_revoked_or_expired_is_refused_with_the_reason(served):
    served.key(expires=1.0)
    assert error_of(served.post()) == (
        *(401, "invalid_request_error", "invalid_api_key"),
        "the key ci has expired at 1970-01-01T00:00:01Z",
    )
    served.ring.revoke("ci")
    assert "the key ci was revoked at" in error_of(served.post())[3]


def test_the_scopes_of_a_key_are_those_of_tokens(served):
    served.key(name="asks")
    served.key(name="does", scopes="admin")
    body = {"model": "echo-2", "worker_type": "llm", "params": {}}
    status = served.post("/api/worker/models/shutdown", secret="asks", **body).status_code
    assert (status, served.post("/api/worker/models/shutdown", secret="does", **body).status_code) == (403, 200)
    assert served.post(secret="does").status_code == 200


def test_a_key_may_use_its_models_and_sees_no_others(served):
    served.key("echo")
    assert [model["id"] for model in served.get("/v1/models").json["data"]] == ["echo"]
    assert served.get("/v1/models/echo").status_code == 200
    assert served.get("/v1/models/echo-2").status_code == 403
    assert served.post().status_code == 200
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank", "/v1/responses"):
        status, kind, code, message = error_of(served.post(path, **{**CHAT, "model": "echo-2"}))
        assert (status, kind, code) == (403, "invalid_request_error", "permission_denied")
        assert message == "the key ci may not use the model 'echo-2': it may use echo"
    refused = served.post("/api/worker/generate", model="echo-2", prompt="x")
    assert (refused.status_code, refused.json["error_code"]) == (403, 403)
    (machine,) = served.get("/api/worker/models/supports").json
    assert [model["model"] for model in machine["models"]] == ["echo"]


def test_a_key_sees_the_instances_of_its_models_and_the_services_that_have_them(served):
    served.key("echo")
    keys = ["echo@llm", "echo-2@llm", MANAGER_KEY]
    served.runtime.cluster.registry.beat([Instance(key, "http://10.0.0.1:8000/api", generation=1) for key in keys])
    rows = served.get("/api/controller/instances").json
    assert [row["key"] for row in rows if "10.0.0.1" in row["url"]] == [MANAGER_KEY, "echo@llm"]
    rows = served.get("/api/controller/models").json
    assert sorted(row["model_name"] for row in rows if row["host"] == "10.0.0.1") == [MANAGER_KEY, "echo@llm"]


def test_without_a_name_the_key_must_allow_the_default(served):
    served.key("*-2")
    served.key("echo", name="other")
    body = {"messages": CHAT["messages"], "max_tokens": 3}
    assert error_of(served.post(**body))[::3] == (403, "the key ci may not use the model 'echo': it may use *-2")
    assert served.post(secret="other", **body).status_code == 200


def test_an_alias_is_allowed_by_its_own_name(served):
    served.key("fast")
    served.key("echo-2", name="other")
    body = {**CHAT, "model": "fast"}
    assert [model["id"] for model in served.get("/v1/models").json["data"]] == ["fast"]
    assert (served.post(**body).status_code, served.post(secret="other", **body).status_code) == (200, 403)


def test_the_access_line_has_the_key(served, caplog):
    made = served.key(name="shop")
    with caplog.at_level("INFO", "modelyard.access"):
        served.post(secret="shop")
    assert f'"caller":"shop","key":"{made.id}"' in caplog.messages[-1]
    assert digest_of("shop").hex() not in caplog.text


def test_while_keys_can_not_be_read_nothing_is_open(tmp_path, monkeypatch):
    app = create_app(Settings(state_dir=str(tmp_path), models=[], key_store=f"sqlite:///{tmp_path / 'keys.db'}"))
    runtime = app.extensions[KEY]
    (tmp_path / "keys.db").write_bytes(b"This is no database. " * 500)
    try:
        response = app.test_client().get("/v1/models")
        status, _, code, message = error_of(response)
        assert (status, code) == (503, "not_ready")
        assert "whether keys are needed is not known: the store of keys in" in message
        assert int(response.headers["Retry-After"]) > 0
    finally:
        runtime.stop()


# Limits


def test_requests_are_limited_with_headers_and_a_time_to_come_back(served):
    served.key(requests=2)
    first, second, third = (served.post() for _ in range(3))
    assert [response.status_code for response in (first, second, third)] == [200, 200, 429]
    assert [first.headers[f"x-ratelimit-{name}-requests"] for name in ("limit", "remaining")] == ["2", "1"]
    assert "x-ratelimit-limit-tokens" not in first.headers
    _, kind, code, message = error_of(third)
    assert (kind, code) == ("rate_limit_error", "rate_limit_exceeded")
    assert "the key ci is reached: 2 requests a minute" in message
    assert 0 < int(third.headers["Retry-After"]) <= 60
    assert third.headers["x-ratelimit-remaining-requests"] == "0"
    assert third.headers["x-ratelimit-reset-requests"].endswith("s")
    assert "x-should-retry" not in third.headers


def test_lists_and_bad_bodies_do_not_count(served):
    served.key(requests=1)
    assert served.get("/v1/models").status_code == 200
    assert served.post(**{**CHAT, "temperature": 9}).status_code == 400
    assert served.post().status_code == 200
    assert served.post().status_code == 429


def remaining_tokens(response: TestResponse) -> int:
    return int(response.headers["x-ratelimit-remaining-tokens"])


def test_tokens_are_reserved_and_then_those_that_were_used_count(served):
    served.key(tokens=1000)
    response = served.post()
    used = response.json["usage"]["total_tokens"]
    assert remaining_tokens(response) == 1000 - used
    refused = served.post(**{**CHAT, "max_tokens": 1000 - used})
    assert refused.status_code == 429
    assert served.post(**{**CHAT, "max_tokens": 500}).status_code == 200


def test_a_stream_counts_when_it_has_ended(served):
    served.key(tokens=1000, parallel=1)
    response = served.post(**{**CHAT, "model": "slow", "stream": True, "max_tokens": 2})
    assert remaining_tokens(response) == 1000 - 10 - 2
    assert served.post().status_code == 429
    text = response.get_data(as_text=True)
    assert text.endswith("[DONE]\n\n")
    # It has ended for its client, whose next request may come before the server closes it.
    after = served.post()
    assert after.status_code == 200
    response.close()


def test_a_stream_that_its_client_leaves_gives_its_place_back(served):
    served.key(tokens=1000, parallel=1)
    response = served.post(**{**CHAT, "stream": True, "max_tokens": 30})
    response.close()
    after = served.post()
    assert after.status_code == 200
    # The first request is charged with its prompt and with what had come, not with all that it had reserved.
    used = after.json["usage"]["total_tokens"]
    assert 1000 - used - 40 < remaining_tokens(after) <= 1000 - used - 10


def test_every_call_that_computes_counts(served):
    served.key(tokens=100_000, requests=100)
    calls: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"model": "echo", "prompt": ["a", "b"], "n": 2}),
        ("/v1/responses", {"model": "echo", "input": "x" * 40}),
        ("/v1/messages", CHAT),
        ("/api/worker/generate", {"model": "echo", "prompt": "x" * 40, "max_new_tokens": 20}),
        ("/api/worker/generate_stream", {"model": "echo", "prompt": "x" * 40, "max_new_tokens": 20}),
    ]
    left = 100_000
    for number, (path, body) in enumerate(calls, 1):
        response = served.post(path, **body)
        assert response.status_code == 200, path
        response.get_data()
        response.close()
        headers = served.get("/v1/models").headers
        assert int(headers["x-ratelimit-remaining-requests"]) == 100 - number, path
        previous, left = left, int(headers["x-ratelimit-remaining-tokens"])
        assert previous > left > previous - 200, path


def test_a_request_that_no_model_has_begun_costs_no_tokens(served):
    served.key(tokens=1000, parallel=1)
    assert served.post(**{**CHAT, "model": "absent"}).status_code == 404
    with served.runtime.manager.generate_stream(GenerateRequest("full", prompt="x")):
        refused = served.post(**{**CHAT, "model": "full"})
        assert (refused.status_code, remaining_tokens(refused)) == (503, 1000)
    assert served.post(**{**CHAT, "model": "full"}).status_code == 200


def test_a_request_larger_than_the_limit_is_not_to_be_repeated(served):
    served.key(tokens=25)
    response = served.post()
    assert (response.status_code, response.headers["x-should-retry"]) == (429, "false")
    assert "25 tokens a minute, and this request may use 30" in error_of(response)[3]
    # What is only assumed is no more than the limit.
    assert served.post(messages=CHAT["messages"], model="echo", max_tokens=None).status_code == 200


def test_other_apis_have_their_own_shapes(served):
    served.key(parallel=1, requests=1)
    assert served.post().status_code == 200
    refused = served.post("/v1/messages")
    assert (refused.status_code, refused.json["error"]["type"]) == (429, "rate_limit_error")
    refused = served.post("/api/worker/generate", model="echo", prompt="x")
    assert (refused.status_code, refused.json["error_code"]) == (429, 429)
    refused = served.post("/api/worker/embeddings", model="echo", input=["x"])
    assert (refused.status_code, refused.json["type"]) == (429, "urn:modelyard:error:rate_limited")
    assert int(refused.headers["Retry-After"]) > 0


def test_a_call_that_goes_through_is_for_keys_that_may_use_its_model(served):
    served.key("whisper", name="voice")
    served.key(name="all")
    for secret, body, status in (
        *(("voice", {"model": "whisper"}, 503), ("all", {"model": "whisper"}, 503), ("all", {"input": "x"}, 503)),
        *(("voice", {"model": "tts"}, 403), ("voice", {"input": "x"}, 403), ("no", {"model": "whisper"}, 401)),
    ):
        assert served.post("/v1/audio/speech", secret=secret, **body).status_code == status, (secret, body)


# Settings


def test_a_gateway_that_knows_no_store_says_what_to_set(tmp_path, caplog):
    app = create_app(Settings(role="gateway", registry="http://127.0.0.1:9/api", state_dir=str(tmp_path)))
    runtime = app.extensions[KEY]
    with caplog.at_level("INFO"):
        runtime.start()
    runtime.stop()
    assert "to accept keys, set key_store to the address of a store" in caplog.text
    assert runtime.status()["keys"] is None


def test_openai_in_an_application_requires_keys_and_its_own_views_do_not(tmp_path):
    app = Flask("shop")
    app.get("/")(lambda: "the shop")
    Modelyard(app, url_prefix="/ml/api", openai=True, placement="inline", models=["echo"], state_dir=str(tmp_path))
    runtime: Runtime = app.extensions[KEY]
    runtime.start()
    assert runtime.wait_loaded(30)
    served = Served(runtime, app.test_client())
    try:
        served.key()
        assert served.post("/ml/api/v1/chat/completions").status_code == 200
        assert served.post("/ml/api/v1/chat/completions", secret="no").status_code == 401
        assert served.client.get("/").text == "the shop"
    finally:
        runtime.stop()


def test_insecure_is_open_until_there_is_a_key(tmp_path):
    app = create_app(Settings(state_dir=str(tmp_path), models=[], insecure=True))
    runtime: Runtime = app.extensions[KEY]
    served = Served(runtime, app.test_client())
    try:
        assert served.client.get("/v1/models", environ_base={"REMOTE_ADDR": "10.0.0.9"}).status_code == 200
        served.key()
        assert served.client.get("/v1/models", environ_base={"REMOTE_ADDR": "10.0.0.9"}).status_code == 401
        assert served.get("/v1/models").status_code == 200
    finally:
        runtime.stop()


def test_the_limits_of_a_key_count_where_the_address_needs_none(tmp_path):
    app = create_app(Settings(state_dir=str(tmp_path), models=["echo"], trusted_networks=["127.0.0.0/8=infer"]))
    runtime: Runtime = app.extensions[KEY]
    runtime.start()
    assert runtime.wait_loaded(30)
    served = Served(runtime, app.test_client())
    try:
        served.key(requests=1)
        assert [served.post().status_code for _ in range(2)] == [200, 429]
        assert served.post(secret="unknown").status_code == 200
        assert served.client.post("/v1/chat/completions", json=CHAT).status_code == 200
    finally:
        runtime.stop()


def test_tokens_and_keys_are_accepted_beside_each_other(tmp_path):
    token = Token("t", parse_scopes("infer"), digest_of("token"))
    keys = f"sqlite:///{tmp_path / 'keys.db'}"
    app = create_app(Settings(state_dir=str(tmp_path), models=[], tokens=[token.line], key_store=keys))
    runtime: Runtime = app.extensions[KEY]
    served = Served(runtime, app.test_client())
    try:
        served.key()
        assert [served.get("/v1/models", secret).status_code for secret in ("token", "ci", "no")] == [200, 200, 401]
    finally:
        runtime.stop()


def test_a_worker_that_shares_the_store_of_a_cluster_accepts_keys_and_requires_none(tmp_path):
    registry = f"sqlite:///{tmp_path / 'registry.db'}"
    app = create_app(Settings(role="worker", state_dir=str(tmp_path), models=[], registry=registry))
    runtime: Runtime = app.extensions[KEY]
    served = Served(runtime, app.test_client())
    far = {"REMOTE_ADDR": "10.0.0.9"}
    path = "/api/worker/models/supports"
    try:
        served.key()
        assert served.client.get(path).status_code == 200
        assert served.client.get(path, environ_base=far).status_code == 403
        headers = {"Authorization": "Bearer ci"}
        assert served.client.get(path, environ_base=far, headers=headers).status_code == 200
    finally:
        runtime.stop()


# The real clients


def test_the_clients_of_openai_and_anthropic_understand_every_refusal(tmp_path):
    with service(tmp_path, [{"name": "echo", "engine": "echo"}]) as runtime:
        served = Served(runtime, runtime)  # type: ignore[arg-type]
        served.key("echo", requests=2)
        served.key(name="past", expires=1.0)
        root = f"http://127.0.0.1:{runtime.settings.port}"
        messages: Any = CHAT["messages"]

        def ask(secret: str, model: str = "echo") -> Any:
            with openai.OpenAI(base_url=f"{root}/v1", api_key=secret, max_retries=0) as client:
                return client.chat.completions.with_raw_response.create(model=model, messages=messages, max_tokens=5)

        assert ask("ci").headers["x-ratelimit-remaining-requests"] == "1"
        with pytest.raises(openai.AuthenticationError, match="not known"):
            ask("unknown")
        with pytest.raises(openai.AuthenticationError, match="has expired") as expired:
            ask("past")
        assert expired.value.code == "invalid_api_key"
        with pytest.raises(openai.PermissionDeniedError, match="may not use the model 'other'"):
            ask("ci", "other")
        ask("ci")
        with pytest.raises(openai.RateLimitError, match="2 requests a minute") as limited:
            ask("ci")
        assert (limited.value.code, limited.value.type) == ("rate_limit_exceeded", "rate_limit_error")
        claude = anthropic.Anthropic(base_url=root, api_key="ci", max_retries=0)
        with claude, pytest.raises(anthropic.RateLimitError, match="2 requests a minute"):
            claude.messages.create(model="echo", messages=messages, max_tokens=5)


def test_images_are_no_text_that_a_key_pays_for_in_advance():
    messages: list[Any] = [question(data_url(png()), text="four"), {"content": [7, {"text": None}]}, {"content": None}]
    assert characters_of(GenerateRequest(model="m", messages=messages, prompt="abc")) == 8
