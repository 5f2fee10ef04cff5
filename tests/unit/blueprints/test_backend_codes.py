"""The code and the field of a backend's error: its client gets them as from the backend, also through a worker."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import openai
import pytest
import requests
from faulty import LAST, Faulty, Peer, faulty, http_chunk, stream_head, whole
from in_process import service, url_of
from modelyard.blueprints.openai import responses
from modelyard.blueprints.openai.answers import Header, Usage
from modelyard.blueprints.openai.response_events import ResponseEvents
from modelyard.engines.openai_answers import refusal
from modelyard.errors import EngineError, InvalidRequest, ModelyardError, PromptTooLong
from modelyard.server.runtime import Runtime
from modelyard.types import JSONObject
from running import wait_until

FILTERED = {
    "message": "no such words",
    "type": "invalid_request_error",
    "param": "messages[0]",
    "code": "content_filter",
}
PIECE = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}


class Place:
    """A backend that does what a test says, a worker with its models, and a gateway over the worker."""

    def __init__(self, stack: ExitStack, folder: Any) -> None:
        self.answer: bytes | Callable[[Peer], None] = b""
        self.backend: Faulty = stack.enter_context(faulty(self._script))
        base_url = self.backend.url.removesuffix("/api") + "/v1"
        tables: list[JSONObject] = [
            {"name": "gpt", "engine": "openai", "base_url": base_url, "limit_model_concurrency": 4},
            {"name": "emb", "engine": "openai", "base_url": base_url, "worker_type": "text2vec"},
        ]
        tables[1]["limit_model_concurrency"] = 4
        controller = stack.enter_context(service(folder / "c", role="controller", registry="memory:"))
        registry = {"registry": url_of(controller)}
        self.worker = stack.enter_context(service(folder / "w", tables, role="worker", **registry))
        gateways = {
            "beyond a worker": stack.enter_context(service(folder / "g", role="gateway", **registry)),
            "of the gateway": stack.enter_context(service(folder / "b", tables, role="gateway")),
        }
        self.clients = {which: stack.enter_context(client_of(gateway)) for which, gateway in gateways.items()}
        for gateway in gateways.values():
            wait_until(lambda: len(gateway.manager.model_states()) == 2, "both are in view")  # noqa: B023

    def _script(self, peer: Peer) -> bool:
        if peer.request.method == "GET":
            peer.send(whole(200, {"data": [{"id": "gpt"}, {"id": "emb"}]}))
            return True
        if isinstance(self.answer, bytes):
            peer.send(self.answer)
        else:
            self.answer(peer)
        return False


def event_of(value: JSONObject) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def client_of(runtime: Runtime) -> openai.OpenAI:
    url = f"{url_of(runtime).removesuffix('/api')}/v1"
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=30)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(stack, tmp_path_factory.mktemp("codes"))


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    message: Any = {"role": "user", "content": "hi"}
    return client.chat.completions.create(model="gpt", messages=[message], **fields)


@pytest.mark.parametrize("which", ["beyond a worker", "of the gateway"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_has_the_code_and_the_field_of_the_backend(place: Place, which: str, stream: bool) -> None:
    place.answer = whole(400, {"error": FILTERED})
    with pytest.raises(openai.BadRequestError) as caught:
        ask(place.clients[which], stream=stream)
    error = caught.value
    assert (error.code, error.param, error.type) == ("content_filter", "messages[0]", "invalid_request_error")
    assert "no such words" in error.message


@pytest.mark.parametrize("which", ["beyond a worker", "of the gateway"])
def test_so_has_an_error_after_a_piece(place: Place, which: str) -> None:
    has_come = threading.Event()

    def goes_on(peer: Peer) -> None:
        peer.send(stream_head(content_type="text/event-stream"), http_chunk(event_of(PIECE)))
        assert has_come.wait(20)
        peer.send(http_chunk(event_of({"error": FILTERED})), LAST)

    place.answer = goes_on
    stream = iter(ask(place.clients[which], stream=True))
    while not next(stream).choices[0].delta.content:
        pass
    has_come.set()
    with pytest.raises(openai.APIError) as caught:
        list(stream)
    assert (caught.value.code, caught.value.param) == ("content_filter", "messages[0]")


@pytest.mark.parametrize("which", ["beyond a worker", "of the gateway"])
def test_so_has_one_of_vectors(place: Place, which: str) -> None:
    place.answer = whole(400, {"error": {"message": "bad", "code": "too_many_inputs", "param": "input"}})
    with pytest.raises(openai.BadRequestError) as caught:
        place.clients[which].embeddings.create(model="emb", input="a")
    assert (caught.value.code, caught.value.param) == ("too_many_inputs", "input")


def test_clients_of_dbgpt_get_no_key_that_they_do_not_know(place: Place) -> None:
    place.answer = whole(400, {"error": FILTERED})
    url, body = f"{url_of(place.worker)}/worker", {"model": "gpt", "prompt": "hi"}
    for call in ("generate", "generate_stream"):
        output = requests.post(f"{url}/{call}", json=body, timeout=20).content.rstrip(b"\0")
        assert b"content_filter" not in output
        assert json.loads(output)["model_context"] is None
    answer = requests.post(f"{url}/embeddings", json={"model": "emb", "input": ["a"]}, timeout=20)
    assert answer.json().keys() == {"type", "title", "status", "detail", "errors"}


def test_a_response_that_fails_in_its_stream_has_the_code() -> None:
    def code_of(error: ModelyardError) -> Any:
        events = ResponseEvents(Header("x_1", "m", 5), Usage(1), responses.generation({"input": "a"}, "m"))
        return json.loads(events.failure(error).split(b"data: ")[1])["response"]["error"]["code"]

    assert code_of(EngineError("broke", backend_code="invalid_prompt")) == "invalid_prompt"
    assert code_of(PromptTooLong("9000 tokens")) == "context_length_exceeded"
    assert code_of(EngineError("broke")) == "server_error"
    # OpenAI's client has a list of codes, and refuses others.
    assert code_of(EngineError("broke", backend_code="engine_error")) == "server_error"


# What an error of a backend means


def refused(status: int, **error: Any) -> ModelyardError:
    return refusal(status, {}, json.dumps({"error": {"message": "words", **error}}).encode(), "it")


@pytest.mark.parametrize(
    "code", ["invalid_api_key", "insufficient_quota", "authentication_error", "account_deactivated"]
)
@pytest.mark.parametrize("status", [400, 401, 403, 500])
def test_what_is_wrong_with_the_account_of_the_service_is_not_the_clients(status: int, code: str) -> None:
    error = refused(status, code=code, param="api_key")
    assert (type(error), error.backend_code, error.errors) == (EngineError, None, [])
    assert "the key of this service (api_key)" in str(error)


@pytest.mark.parametrize("code", [400, "", "a b", "x" * 65, "caf\u00e9", "a\n", {"a": 1}, None, True])
def test_a_code_is_a_short_word(code: Any) -> None:
    assert refused(400, code=code).backend_code is None


@pytest.mark.parametrize("param", [5, "", "a b", "x" * 201, "a\x1b[31m", ["a"]])
def test_a_field_is_a_path_of_plain_characters(param: Any) -> None:
    assert refused(400, param=param).errors == []


@pytest.mark.parametrize("status", [400, 422, 500])
def test_code_and_field_are_kept(status: int) -> None:
    error = refused(status, code="model_crashed", param="tools[0].function.name")
    assert isinstance(error, InvalidRequest | EngineError)
    faults: list[JSONObject] = [dict(fault) for fault in error.errors]
    assert (error.backend_code, [fault["field"] for fault in faults]) == ("model_crashed", ["tools[0].function.name"])


def test_a_prompt_that_is_too_long_names_the_backends_field() -> None:
    error = refused(400, code="context_length_exceeded", param="prompt")
    assert (type(error), error.errors[0]["field"]) == (PromptTooLong, "prompt")
    assert refused(400, type="context_length_exceeded").errors[0]["field"] == "messages"
