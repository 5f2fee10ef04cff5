"""The official client of OpenAI against real gunicorn workers: every answer is validated by the client itself."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import anthropic
import openai
import pytest
from clients import Connection
from openai import OpenAI
from running import WORKER_CLASSES, Service, Services, wait_until

MODELS = """
[[models]]
name = "echo"

[[models]]
name = "slow"
engine = "echo"
delay = 0.02

[[models]]
name = "emb"
engine = "echo"
worker_type = "text2vec"
"""
HELLO = [{"role": "user", "content": "Hello"}]


def client_of(service: Service, *, strict: bool = True) -> OpenAI:
    url = service.url("/v1")
    return OpenAI(base_url=url, api_key="none", max_retries=0, timeout=30, _strict_response_validation=strict)


@pytest.fixture(scope="module", params=WORKER_CLASSES)
def service(request: pytest.FixtureRequest, run_module: Services) -> Iterator[Service]:
    service = run_module.start(
        MODELS, role="standalone", worker_class=request.param, first_output_timeout=0.3, silence_timeout=0.3
    )
    yield service
    service.kill()


@pytest.fixture
def client(service: Service) -> Iterator[OpenAI]:
    with client_of(service) as client:
        yield client


def test_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="echo", messages=HELLO, max_completion_tokens=3, n=2)
    assert [choice.message.content for choice in answer.choices] == [" token token token"] * 2
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (1, 6)
    assert answer._request_id is not None


def test_a_stream_adds_up_in_the_clients_own_accumulator(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model="slow", messages=HELLO, max_completion_tokens=4, n=2, stream_options={"include_usage": True}
    ) as stream:
        stream.until_done()
        whole = stream.current_completion_snapshot
    assert [choice.message.content for choice in whole.choices] == [" token" * 4] * 2
    assert [choice.message.role for choice in whole.choices] == ["assistant"] * 2
    assert [choice.finish_reason for choice in whole.choices] == ["length"] * 2
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 8


def test_a_client_that_closes_at_the_end_of_a_stream_is_a_success(service: Service, client: OpenAI) -> None:
    before = len(service.access_lines())
    for _ in range(5):
        chunks = list(client.chat.completions.create(model="slow", messages=HELLO, max_tokens=2, stream=True))
        assert chunks[-1].choices[0].finish_reason == "length"
    lines = wait_until(lambda: service.access_lines()[before + 4 :] and service.access_lines()[before:], "five lines")
    assert [line.get("error") for line in lines] == [None] * 5
    assert "Traceback" not in service.log()


def test_a_client_that_goes_before_the_end_frees_its_slot(service: Service, client: OpenAI) -> None:
    stream = client.chat.completions.create(model="slow", messages=HELLO, max_tokens=3000, stream=True)
    next(iter(stream))
    stream.close()
    # A model host counts the request that asks for the load.
    wait_until(lambda: service.load("slow")["free"] >= 7, "the slot is free", timeout=5)


def test_silence_is_no_event_for_the_client(service: Service) -> None:
    changed = service.post("apply", {"model": "slow", "apply_type": "update_params", "params": {"delay": 0.8}})
    assert changed.json()["success"]
    try:
        with client_of(service) as client:
            chunks = list(client.chat.completions.create(model="slow", messages=HELLO, max_tokens=1, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == " token"
    finally:
        service.post("apply", {"model": "slow", "apply_type": "update_params", "params": {"delay": 0.02}})


def test_completions(service: Service, client: OpenAI) -> None:
    text = client.completions.create(model="echo", prompt=["a", "b"], max_tokens=1, echo=False)
    assert [choice.text for choice in text.choices] == [" token", " token"]
    # The type of the client has no null finish_reason, which OpenAI sends in each event but the last.
    with client_of(service, strict=False) as lenient:
        streamed = lenient.completions.create(model="echo", prompt="a", max_tokens=2, stream=True)
        assert "".join(chunk.choices[0].text for chunk in streamed) == " token token"


def test_embeddings_and_models(service: Service, client: OpenAI) -> None:
    # The client asks for base64 by itself, which its type does not have.
    with client_of(service, strict=False) as lenient:
        packed = lenient.embeddings.create(model="emb", input=["one", "two"])
    floats = client.embeddings.create(model="emb", input=["one", "two"], encoding_format="float")
    assert packed.data[1].embedding == pytest.approx(floats.data[1].embedding, abs=1e-6)
    assert [model.id for model in client.models.list()] == ["echo", "emb", "slow"]
    assert client.models.retrieve("echo").owned_by == "modelyard"


def test_errors_are_those_that_the_client_knows(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nowhere", messages=HELLO)
    assert unknown.value.code == "model_not_found"
    assert unknown.value.request_id
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="echo", messages=HELLO, logprobs=True)
    assert refused.value.param == "logprobs"


# OpenAI's responses and Anthropic's messages


def test_responses(client: OpenAI) -> None:
    whole = client.responses.create(model="echo", input="Hello", max_output_tokens=3, instructions="Be short.")
    assert whole.output_text == " token token token"
    assert (whole.status, whole.incomplete_details and whole.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    assert whole.usage is not None
    assert whole.usage.output_tokens == 3
    with client.responses.stream(model="slow", input=HELLO, max_output_tokens=3) as stream:
        kinds = [event.type for event in stream]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds.count("response.output_text.delta") == 3
    assert kinds[-1] == "response.incomplete"
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="echo", input="Hello", previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"
    counted = client.responses.input_tokens.count(model="echo", input="one two three")
    assert counted.input_tokens == 3


@pytest.fixture
def claude(service: Service) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=service.url("/"), api_key="none", max_retries=0, timeout=30, _strict_response_validation=True
    ) as client:
        yield client


def test_messages(claude: anthropic.Anthropic) -> None:
    whole = claude.messages.create(model="echo", max_tokens=3, system="Be short.", messages=HELLO)
    assert [block.text for block in whole.content] == [" token token token"]
    assert (whole.stop_reason, whole.usage.output_tokens) == ("max_tokens", 3)
    with claude.messages.stream(model="slow", max_tokens=3, messages=HELLO) as stream:
        assert list(stream.text_stream) == [" token"] * 3
        message = stream.get_final_message()
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 3)
    assert claude.messages.count_tokens(model="echo", messages=HELLO).input_tokens == 1
    with pytest.raises(anthropic.NotFoundError) as unknown:
        claude.messages.create(model="nowhere", max_tokens=3, messages=HELLO)
    assert "nowhere" in str(unknown.value)


HEAD = b"POST /chat/completions HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize(
    ("raw", "status", "words"),
    [
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "can't be read"),
        (HEAD + b'Content-Length: 1000\r\n\r\n{"model": "echo"', 400, "ended before its Content-Length"),
        (HEAD + b"Content-Length: 999999999\r\n\r\n", 413, "max_body_bytes"),
        (HEAD + b"Content-Length: 0\r\nContent-Type: text/plain\r\n\r\n", 400, "the body is empty"),
        (b"TRACE /chat/completions HTTP/1.1\r\nHost: a\r\n\r\n", 405, "use POST"),
        (b"BREW /v1/models HTTP/1.1\r\nHost: a\r\n\r\n", 405, "use GET"),
    ],
    ids=["a bad chunk", "a body that ends early", "a large body", "no body", "TRACE", "a made-up method"],
)
def test_a_request_that_can_not_be_read_is_refused_in_the_shape(
    service: Service, raw: bytes, status: int, words: str
) -> None:
    with Connection(service.port) as connection:
        connection.sock.sendall(raw)
        connection.sock.shutdown(socket.SHUT_WR)
        head, body = connection.read_answer()
    assert (head.status, head.headers["content-type"]) == (status, "application/json")
    error = json.loads(body)["error"]
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
