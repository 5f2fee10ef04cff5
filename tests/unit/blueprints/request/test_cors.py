"""Web pages of chosen origins may read OpenAI's answers, also errors and streams; all others, and all else, may not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from modelyard import Modelyard
from modelyard.access.tokens import INFER, digest_of, new_secret
from modelyard.errors import ConfigError
from modelyard.server.extension import create_app
from modelyard.settings.settings import INLINE, Settings

PAGE = "https://chat.example.com"
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
}
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}


@contextmanager
def client_of(folder: Path, **settings: Any) -> Iterator[FlaskClient]:
    app = create_app(
        Settings(state_dir=str(folder / "state"), models_dirs=[str(folder / "models")], models=["echo"], **settings)
    )
    runtime = app.extensions["modelyard"]
    runtime.start()
    assert runtime.wait_loaded(30)
    yield app.test_client()
    runtime.stop()


def chat(client: FlaskClient, origin: str | None = PAGE, **options: Any) -> Any:
    headers = {**({"Origin": origin} if origin else {}), **options.pop("headers", {})}
    return client.post("/v1/chat/completions", json={**CHAT, **options}, headers=headers, buffered=True)


def test_without_origins_no_page_may_read_anything(tmp_path: Path) -> None:
    with client_of(tmp_path) as client:
        for response in (chat(client), client.options("/v1/chat/completions", headers=PREFLIGHT)):
            assert response.status_code == 200
            assert not [name for name, _ in response.headers if name.startswith("Access-Control-")]
            assert "Vary" not in response.headers


def test_the_pages_of_an_origin_may_call_and_read_everything(tmp_path: Path) -> None:
    with client_of(tmp_path, cors_origins=[PAGE, "http://localhost:3000"]) as client:
        preflight = client.options("/v1/chat/completions", headers=PREFLIGHT)
        assert preflight.status_code == 200
        assert preflight.headers["Access-Control-Allow-Origin"] == PAGE
        assert preflight.headers["Access-Control-Allow-Methods"] == "POST, OPTIONS"
        assert preflight.headers["Access-Control-Allow-Headers"] == PREFLIGHT["Access-Control-Request-Headers"]
        answers = {
            "whole": chat(client),
            "stream": chat(client, stream=True),
            "error": chat(client, model="nowhere"),
            "unknown path": client.get("/v1/nowhere", headers={"Origin": PAGE}),
            "models": client.get("/v1/models", headers={"Origin": PAGE}),
        }
        for name, answer in answers.items():
            assert answer.headers["Access-Control-Allow-Origin"] == PAGE, name
            assert {"x-request-id", "Retry-After", "x-ratelimit-reset-tokens"} <= set(
                answer.headers["Access-Control-Expose-Headers"].split(", ")
            ), name
            assert "Access-Control-Allow-Credentials" not in answer.headers, name
            assert answer.headers["Vary"] == "Origin", name
        assert chat(client, "http://localhost:3000").headers["Access-Control-Allow-Origin"] == "http://localhost:3000"


@pytest.mark.parametrize("origin", [None, "https://chat.example.com.evil", "http://chat.example.com", "null"])
def test_other_origins_may_not(tmp_path: Path, origin: str | None) -> None:
    with client_of(tmp_path, cors_origins=[PAGE]) as client:
        answer = chat(client, origin)
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert answer.headers["Vary"] == "Origin", "a cache must not give this answer to the page"


def test_all_origins_are_a_star_and_never_credentials(tmp_path: Path) -> None:
    with client_of(tmp_path, cors_origins=["*"]) as client:
        answer = chat(client, "https://anywhere.example")
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert "Access-Control-Allow-Credentials" not in answer.headers
        assert "Vary" not in answer.headers


def test_a_page_needs_its_key_like_everybody_and_reads_that_it_does(tmp_path: Path) -> None:
    secret = new_secret()
    tokens = [f"page {INFER} {digest_of(secret).hex()}"]
    with client_of(tmp_path, cors_origins=[PAGE], tokens=tokens) as client:
        assert client.options("/v1/chat/completions", headers=PREFLIGHT).status_code == 200, (
            "browsers send no key with it"
        )
        refused = chat(client)
        assert refused.status_code == 401
        assert refused.headers["Access-Control-Allow-Origin"] == PAGE
        assert chat(client, headers={"Authorization": f"Bearer {secret}"}).status_code == 200


def test_only_openais_api_is_meant(tmp_path: Path) -> None:
    app = Flask("host")
    app.add_url_rule("/own", view_func=lambda: "own")
    options = {"models": ["echo"], "placement": INLINE, "openai": True, "cors_origins": [PAGE]}
    Modelyard(app, state_dir=str(tmp_path / "s"), models_dirs=[str(tmp_path / "m")], **options)
    client = app.test_client()
    try:
        assert "Access-Control-Allow-Origin" in client.get("/api/v1/models", headers={"Origin": PAGE}).headers
        for path in ("/own", "/api/health", "/api/worker/models/supports"):
            assert "Access-Control-Allow-Origin" not in client.get(path, headers={"Origin": PAGE}).headers, path
    finally:
        app.extensions["modelyard"].stop()


@pytest.mark.parametrize(
    "origins",
    [["https://chat.example.com/"], ["chat.example.com"], ["https://Chat.example.com"], ["null"], ["*", PAGE]],
)
def test_what_no_browser_sends_is_refused(origins: list[str]) -> None:
    with pytest.raises(ConfigError, match="cors_origins"):
        Settings(cors_origins=origins)
