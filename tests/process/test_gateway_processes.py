"""A gateway of two gevent processes over a store, each of which calls a backend by itself, without a model host."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import pytest
from clients import Connection
from processes import children, processes_of
from running import Service, Services, seconds_until, wait_until
from scraped import value_in

from scripts import journal

BACKEND = """
[[models]]
name = "script"
worker_class = "scripted:Scripted"
limit_model_concurrency = 64
journal = "{folder}/journal"
"""
TABLES = """
[[models]]
name = "large"
engine = "openai"
base_url = "http://127.0.0.1:{port}/v1"
backend_model = "script"
limit_model_concurrency = {slots}
"""
SLOTS = 4
"""Of the model in each process."""
CHAT = "/v1/chat/completions"
LIMIT = 1.0
"""Seconds in which a hang-up must have reached the engine of the backend."""


@pytest.fixture(scope="module")
def backend(run_module: Services) -> Service:
    folder = run_module.folder()
    registry = f"sqlite:{folder}/registry.db"
    return run_module.start(BACKEND.format(folder=folder), "standalone", folder=folder, registry=registry)


@pytest.fixture(scope="module")
def gateway(run_module: Services, backend: Service) -> Iterator[Service]:
    tables = TABLES.format(port=backend.port, slots=SLOTS)
    settings = {"registry": f"sqlite:{backend.folder}/registry.db", "registry_refresh": 0.1}
    service = run_module.start(tables, "gateway", workers=2, http_threads="gevent", **settings)
    yield service
    assert "Traceback" not in service.log()


def chat(**plan: Any) -> dict[str, Any]:
    return {"model": "large", "messages": [{"role": "user", "content": json.dumps(plan)}]}


def test_each_process_has_the_model_and_no_other_process_does(gateway: Service) -> None:
    wait_until(lambda: gateway.log().count("model large@llm is ready") == 2, "both processes have it")
    workers = set(children(gateway.pid))
    assert len(workers) == 2
    assert set(processes_of(gateway.folder)) == {gateway.pid, *workers}, "there is no model host"


def test_both_processes_answer_with_slots_of_their_own(gateway: Service, backend: Service) -> None:
    wait_until(lambda: gateway.log().count("model large@llm is ready") == 2, "both processes have it")
    name = uuid4().hex
    with ExitStack() as clients:

        def run_more_than_one_process_may() -> bool:
            client = clients.enter_context(Connection(gateway.port))
            client.send("POST", CHAT, chat(name=name, before=60))
            return len(journal(backend, "begin", name)) > SLOTS

        wait_until(run_more_than_one_process_may, f"more than {SLOTS} requests run", interval=0.05)
    wait_until(lambda: len(journal(backend, "end", name)) == len(journal(backend, "begin", name)), "all have ended")


def test_it_answers_with_its_own_models_and_with_those_of_the_registry(gateway: Service, backend: Service) -> None:
    listed = gateway.get("/v1/models").json()["data"]
    assert [(model["id"], model["status"]["value"]) for model in listed] == [("large", "loaded"), ("script", "loaded")]
    for model in ("large", "script"):
        answer = gateway.post(CHAT, {**chat(pieces=2), "model": model}).json()
        assert (answer["model"], answer["choices"][0]["message"]["content"]) == (model, "xx")
    lines = [json.loads(line) for line in gateway.log().splitlines() if line.startswith("{")]
    instances = [line.get("instance") for line in lines if line["path"] == CHAT and line["status"] == 200]
    assert instances[-2:] == [None, f"http://127.0.0.1:{backend.port}/api"], "where the gateway sent them"


@pytest.mark.parametrize("stream", [True, False])
def test_a_hang_up_reaches_the_backend(gateway: Service, backend: Service, stream: bool) -> None:
    for _ in range(2):
        name = uuid4().hex
        with Connection(gateway.port) as client:
            client.send("POST", CHAT, {**chat(name=name, before=60), "stream": stream})
            wait_until(lambda name=name: journal(backend, "begin", name), "the engine's begin")
        assert seconds_until(lambda name=name: journal(backend, "end", name)) < LIMIT


def test_what_the_backend_has_ready_together_leaves_in_one_write(gateway: Service) -> None:
    with Connection(gateway.port) as client:
        client.send("POST", CHAT, {**chat(at_once=40), "stream": True})
        assert client.read_head().status == 200
        assert client.read_http_chunk().count(b'"content":"x"') == 40


def test_a_scrape_of_either_process_shows_the_sum(gateway: Service) -> None:
    def counted() -> float:
        return value_in(gateway.get("/metrics").text, "request_success_total", model="large")

    wait_until(lambda: gateway.log().count("model large@llm is ready") == 2, "both processes have it")
    text = gateway.get("/metrics").text
    assert value_in(text, "processes") == 2
    assert value_in(text, "registry_up") == value_in(text, "instances", model="script", state="usable") == 1
    before = counted()
    for _ in range(8):
        assert gateway.post(CHAT, chat(pieces=1)).status_code == 200

    def is_everywhere() -> bool:
        # Each connection reaches one of the two; what earlier tests have brought may come late too.
        values = {counted() for _ in range(8)}
        return len(values) == 1 and values.pop() >= before + 8

    wait_until(is_everywhere, "both have written", interval=0.05)
