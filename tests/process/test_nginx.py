"""nginx as docs/operations.md configures it, before two gateways over one registry: one on gthread, one on gevent."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from uuid import uuid4

import openai
import pytest
import requests
from clients import Connection
from nginx import Nginx, plain_configuration
from openai import OpenAI
from running import WORKER_CLASSES, Service, Services, free_port, seconds_until, wait_until

from scripts import journal, script

TABLES = """
[[models]]
name = "script"
worker_class = "scripted:Scripted"
limit_model_concurrency = 4
journal = "{folder}/journal"
"""
CHAT = "/v1/chat/completions"
LIMIT = 1.0
"""Seconds in which a hang-up must have reached the engine."""
ROUNDS = range(2)
"""As many as there are gateways: nginx gives the requests to them in turn."""


class Front(NamedTuple):
    """What nginx stands before."""

    port: int
    worker: Service
    gateways: Sequence[Service]


@contextmanager
def nginx(*upstreams: int, **options: Any) -> Iterator[int]:
    """Run nginx before the services on some ports, and give its own port."""
    server = Nginx(*upstreams, **options)
    try:
        server.start()
        yield server.port
    finally:
        server.close()


@pytest.fixture(scope="module")
def front(run_module: Services) -> Iterator[Front]:
    folder = run_module.folder()
    common = {"registry": f"sqlite:{folder}/registry.db", "registry_refresh": 0.1, "wait": "nothing"}
    worker = run_module.start(TABLES.format(folder=folder), "worker", folder=folder, **common)
    gateways = [run_module.start("", "gateway", worker_class=name, **common) for name in WORKER_CLASSES]
    for service in (worker, *gateways):
        service.wait_ready()
    for gateway in gateways:
        wait_until(lambda gateway=gateway: gateway.get("/v1/models").json()["data"], "the model is in view")
    with nginx(*(gateway.port for gateway in gateways)) as port:
        yield Front(port, worker, gateways)


@pytest.fixture
def client(front: Front) -> Iterator[OpenAI]:
    url = f"http://127.0.0.1:{front.port}/v1"
    with OpenAI(base_url=url, api_key="none", max_retries=0, timeout=30, _strict_response_validation=True) as made:
        yield made


def messages(**plan: Any) -> list[Any]:
    return [{"role": "user", "content": json.dumps(plan)}]


def answer(port: int, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
    with Connection(port) as connection:
        connection.send(method, path, body, headers)
        head, data = connection.read_answer()
        return head.status, head.headers, json.loads(data)


def test_whole_answers_come_from_both_gateways(front: Front, client: OpenAI) -> None:
    for _ in ROUNDS:
        whole = client.chat.completions.create(model="script", messages=messages(pieces=3))
        assert whole.choices[0].message.content == "xxx"
    for gateway in front.gateways:
        gateway.wait_for_line(path=CHAT, status=200)


def test_an_event_arrives_before_the_next_is_written(front: Front, client: OpenAI) -> None:
    for _ in ROUNDS:
        gate = front.worker.folder / uuid4().hex
        stream = client.chat.completions.create(
            model="script", messages=messages(pieces=2, until=str(gate)), stream=True
        )
        texts = (chunk.choices[0].delta.content for chunk in stream)
        assert [next(texts), next(texts)] == ["", "x"]
        gate.touch()
        assert list(texts) == ["x", None]


@pytest.mark.parametrize("stream", [True, False])
def test_a_hang_up_passes_through_it(front: Front, stream: bool) -> None:
    for _ in ROUNDS:
        name = uuid4().hex
        with Connection(front.port) as connection:
            body = {"model": "script", "messages": messages(name=name, before=60), "stream": stream}
            connection.send("POST", CHAT, body)
            wait_until(lambda name=name: journal(front.worker, "begin", name), "the engine's begin")
        assert seconds_until(lambda name=name: journal(front.worker, "end", name)) < LIMIT


def test_errors_stay_as_clients_know_them(front: Front, client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nowhere", messages=messages())
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        client.post("/nowhere", cast_to=object)
    status, headers, body = answer(front.port, "GET", CHAT)
    assert (status, headers["allow"], body["error"]["code"]) == (405, "POST", "method_not_allowed")


def test_a_client_of_it_may_not_change_models(front: Front) -> None:
    status, _, body = answer(front.port, "POST", "/api/worker/models/shutdown", {"model": "script", "params": {}})
    assert (status, body["type"]) == (403, "urn:modelyard:error:forbidden")


def test_the_forms_of_the_pages_pass_through_it(front: Front) -> None:
    # The pages refuse a form of which the Origin is not the Host that it was sent to.
    url = f"http://127.0.0.1:{front.port}"
    body = {"model": "script", "messages": messages(pieces=3)}
    statuses = {}
    for origin in (url, "http://elsewhere.example"):
        headers = {"Origin": origin, "Sec-Fetch-Site": "same-origin"}
        statuses[origin] = requests.post(
            f"{url}/ui/playground/chat", json=body, headers=headers, timeout=20
        ).status_code
    assert statuses == {url: 200, "http://elsewhere.example": 403}


def test_a_large_body_passes_and_one_that_is_too_large_is_refused_in_json(front: Front) -> None:
    padded = {"model": "script", "messages": messages(), "user": "u" * 2_000_000}
    assert answer(front.port, "POST", CHAT, padded)[0] == 200
    with Connection(front.port) as connection:
        connection.sock.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {17 * 2**20}\r\n\r\n".encode())
        head, data = connection.read_answer()
    assert (head.status, json.loads(data)["error"]["code"]) == (413, "request_too_large")


def test_it_streams_without_any_configuration_too(front: Front) -> None:
    """By HTTP/1.0 nginx gathers an answer, unless the header X-Accel-Buffering forbids it."""
    for gateway in front.gateways:
        gate = front.worker.folder / uuid4().hex
        body = {"model": "script", "messages": messages(pieces=2, until=str(gate)), "stream": True}
        with (
            nginx(gateway.port, configured=plain_configuration) as port,
            requests.post(f"http://127.0.0.1:{port}{CHAT}", json=body, stream=True, timeout=20) as response,
        ):
            events = response.iter_lines()
            assert b'"content":"x"' in next(line for line in events if b'"content":""' not in line and line)
            gate.touch()
            assert [line for line in events if line][-1] == b"data: [DONE]"


def test_a_gateway_that_has_gone_is_left_out(front: Front) -> None:
    with nginx(free_port(), front.gateways[0].port) as port:
        for _ in ROUNDS:
            assert answer(port, "POST", CHAT, {**script(), "messages": messages()})[0] == 200


def test_without_any_gateway_clients_read_when_to_try_again() -> None:
    with nginx(free_port(), free_port()) as port:
        status, headers, body = answer(port, "GET", "/v1/models")
    assert (status, headers["retry-after"], headers["content-type"]) == (502, "2", "application/json")
    assert set(body["error"]) == {"message", "type", "param", "code"}
