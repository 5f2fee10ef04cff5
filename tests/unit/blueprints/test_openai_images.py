"""Images in OpenAI's and Anthropic's calls: they reach a model with a projector, and are refused by name elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tiny_gguf
from flask.testing import FlaskClient
from in_process import SCRIPTED
from modelyard.server.extension import create_app
from modelyard.server.runtime import Runtime
from modelyard.settings.settings import Settings
from official import CheckedClient
from pictures import BLUE, RED, data_url, png, question

pytest.importorskip("xllamacpp")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlaskClient]:
    folder = tmp_path_factory.mktemp("images")
    tiny_gguf.make(folder / "m.gguf")
    tiny_gguf.make_projector(folder / "mmproj.gguf")
    table = {"model_path": "m.gguf", "n_ctx": 512, "n_threads": 1, "limit_model_concurrency": 2}
    settings = Settings(state_dir=str(folder / "state"), models_dirs=[str(folder)])
    settings.model_tables = (
        {"name": "sees", "mmproj": "mmproj.gguf", **table},
        {"name": "blind", **table},
        {"name": "gpt", "worker_class": SCRIPTED},
    )
    app = create_app(settings)
    app.test_client_class = CheckedClient
    runtime: Runtime = app.extensions["modelyard"]
    runtime.start()
    assert runtime.wait_loaded(30)
    yield app.test_client()
    runtime.stop()


def post(client: FlaskClient, path: str, model: str = "sees", **fields: Any) -> Any:
    body = {"model": model, "max_tokens": 8, "temperature": 0, **fields}
    return client.post(path, json=body, buffered=True)


def text_in(answer: Any) -> str:
    """Return the text of an answer of any of the calls."""
    if "choices" in answer:
        return str(answer["choices"][0]["message"]["content"])
    content = answer["content"] if "content" in answer else answer["output"][-1]["content"]
    return str(content[0]["text"])


def in_chat(url: str) -> tuple[str, dict[str, Any]]:
    return "/v1/chat/completions", {"messages": [question(url)]}


def in_response(url: str) -> tuple[str, dict[str, Any]]:
    content = [{"type": "input_text", "text": "what is this"}, {"type": "input_image", "image_url": url}]
    return "/v1/responses", {"input": [{"role": "user", "content": content}], "max_output_tokens": 8}


def in_message(url: str) -> tuple[str, dict[str, Any]]:
    head, _, data = url.partition(";base64,")
    source = {"type": "base64", "media_type": head.removeprefix("data:"), "data": data}
    if not data:
        source = {"type": "url", "url": url}
    content = [{"type": "text", "text": "what is this"}, {"type": "image", "source": source}]
    return "/v1/messages", {"messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize("dialect", [in_chat, in_response, in_message])
def test_an_image_reaches_the_model_in_each_dialect(client, dialect):
    texts = []
    for color in (RED, BLUE, RED):
        path, fields = dialect(data_url(png(color)))
        response = post(client, path, **fields)
        assert response.status_code == 200, response.text
        texts.append(text_in(response.get_json()))
    assert texts[0] == texts[2] != texts[1]


@pytest.mark.parametrize("dialect", [in_chat, in_response, in_message])
@pytest.mark.parametrize("model", ["blind", "gpt"])
def test_a_model_without_images_is_named_with_the_field(client, dialect, model):
    path, fields = dialect(data_url(png()))
    response = post(client, path, model, **fields)
    assert response.status_code == 400
    message = response.get_json()["error"]["message"]
    assert f"content[1]: is an image, and model {model!r} takes text alone" in message


@pytest.mark.parametrize("dialect", [in_chat, in_response, in_message])
def test_an_address_is_refused_with_what_to_do(client, dialect):
    path, fields = dialect("https://example.com/a.png")
    response = post(client, path, **fields)
    assert response.status_code == 400
    message = response.get_json()["error"]["message"]
    assert "is an address, and images are never fetched from one here: send the image as data:image/png" in message


def test_the_list_of_models_shows_which_take_images(client):
    models = {model["id"]: model["capabilities"] for model in client.get("/v1/models").get_json()["data"]}
    assert models == {"sees": ["completion", "vision"], "blind": ["completion"], "gpt": ["completion"]}
    status = {model["model"]: model.get("takes_images") for model in client.get("/readyz").get_json()["models"]}
    assert status == {"sees@llm": True, "blind@llm": None, "gpt@llm": None}


def test_what_is_neither_text_nor_an_image_is_refused(client):
    part = {"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}
    response = post(client, "/v1/chat/completions", messages=[{"role": "user", "content": [part]}])
    assert response.status_code == 400
    assert "messages[0].content[0]: is of type 'input_audio'" in response.get_json()["error"]["message"]
    item = {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "image_url": "data:x"}]}
    response = post(client, "/v1/responses", input=[item])
    assert response.status_code == 400


def test_an_agents_image_does_not_count_as_text(client):
    counts = []
    for urls in ([], [data_url(png())]):
        body = {"model": "sees", "messages": [question(*urls)]}
        counts.append(client.post("/v1/chat/completions/input_tokens", json=body).get_json()["input_tokens"])
    assert counts[0] == counts[1]
