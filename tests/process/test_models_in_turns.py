"""Two real models in memory for one, in a service with a model host: who is in memory, and what clients see."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clients import chunks_of
from modelyard.models.catalog import Catalog
from running import Service, services, wait_until
from scraped import value_in

TABLES = """
[service]
memory_budget = "200MB"

[[models]]
name = "first"
model_path = "{weights}"
n_ctx = 512
limit_model_concurrency = 2

[[models]]
name = "second"
model_path = "{weights}"
n_ctx = 512
limit_model_concurrency = 2
keep_alive = 1.5
"""
"""Each model takes some 120 MB: the weights, and the context of two slots."""


@pytest.fixture
def service(models_dir: Path) -> Iterator[Service]:
    weights = Catalog.load().get("smollm2-135m").model_path
    with services(models_dir) as made:
        options: dict[str, Any] = {"placement": "hosted", "role": "standalone", "models_dirs": str(models_dir)}
        yield made.start(TABLES.format(weights=weights), **options)


def states(service: Service) -> tuple[str, str]:
    listed = {model["model"]: model["state"] for model in service.status()["models"]}
    return listed["first@llm"], listed["second@llm"]


def ask(service: Service, model: str) -> Any:
    messages = [{"role": "human", "content": "Count to three."}]
    body = {"model": model, "messages": messages, "max_new_tokens": 4, "temperature": 0}
    return service.post("generate_stream", body, stream=False)


def test_two_models_take_turns_in_memory_for_one(service: Service) -> None:
    assert states(service) == ("ready", "unloaded")
    assert service.status()["ready"]
    taken = service.model("first@llm")["memory_bytes"]
    assert 100e6 < taken < 150e6
    response = ask(service, "second")
    assert response.status_code == 200
    assert chunks_of(response.content)[-1]["usage"]["completion_tokens"] == 4
    assert states(service) == ("unloaded", "ready")
    assert response.headers["Modelyard-Queue-Ms"]

    answers: list[int] = []

    def client(model: str) -> None:
        answers.extend(ask(service, model).status_code for _ in range(2))

    clients = [threading.Thread(target=client, args=(name,)) for name in ("first", "second") * 3]
    for each in clients:
        each.start()
    for each in clients:
        each.join(60)
    assert answers == [200] * 12
    wait_until(lambda: states(service) in (("ready", "unloaded"), ("unloaded", "unloaded")), "the second rests again")

    def listed() -> str:
        return {model["id"]: model["status"]["value"] for model in service.get("/v1/models").json()["data"]}["second"]

    wait_until(lambda: listed() == "unloaded", "this process has heard of it")
    assert service.model("second@llm")["context_length"] == 512

    metrics = service.get("/metrics").text
    assert value_in(metrics, "model_loads_total", model="second", cause="request") >= 1
    assert value_in(metrics, "model_unloads_total", cause="room") >= 1
    assert value_in(metrics, "memory_budget_bytes") == 200e6
    assert value_in(metrics, "model_memory_bytes", model="second") == 0
    stopped = service.post("apply", {"model": "second", "apply_type": "stop"})
    assert stopped.json()["success"]
    assert "stopped" in ask(service, "second").text
