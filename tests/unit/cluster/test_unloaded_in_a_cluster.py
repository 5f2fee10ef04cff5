"""A model of two workers, of which one has no room for it: where requests go, and what the gateway shows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
import steered
from in_process import service, url_of
from modelyard.server.runtime import Runtime
from modelyard.types import GenerateRequest, JSONObject
from modelyard.worker.states import State
from running import wait_until
from steered import Steered

MB = 10**6
TABLE: JSONObject = {"worker_class": steered.PATH, "memory": 60 * MB}


class Yard:
    """A gateway over two workers: both have ``m``, and in one of them ``other`` has the memory."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        controller = stack.enter_context(service(folder / "c", role="controller", registry="memory:"))
        options: JSONObject = {"role": "worker", "registry": url_of(controller), "memory_budget": 100 * MB}
        mine, other = {**TABLE, "name": "m"}, {**TABLE, "name": "other"}
        self.full = stack.enter_context(service(folder / "full", [other, mine], **options))
        self.free = stack.enter_context(service(folder / "free", [mine], **options))
        self.gateway = stack.enter_context(service(folder / "g", role="gateway", registry=url_of(controller)))
        wait_until(lambda: len(self.gateway.manager.get_all_model_instances()) == 3, "all are in view")

    def ask(self) -> str:
        return self.gateway.manager.generate(GenerateRequest("m", prompt="x")).text

    def shown(self, path: str) -> JSONObject:
        base = url_of(self.gateway).removesuffix("/api")
        answer: JSONObject = requests.get(f"{base}{path}", timeout=10).json()
        return answer


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    Steered.reset()
    with ExitStack() as stack:
        yield Yard(stack, tmp_path)


def state_at(runtime: Runtime, key: str) -> str:
    return str(runtime.local.model_states()[key].value)


def test_requests_go_where_the_model_is_loaded_and_elsewhere_when_it_is_no_more(yard: Yard) -> None:
    rows = yard.gateway.manager.get_model_instances("m@llm")
    assert [row.healthy for row in rows] == [True, True]
    for _ in range(8):
        assert yard.ask() == " x"
    assert (state_at(yard.full, "m@llm"), state_at(yard.free, "m@llm")) == ("unloaded", "ready")
    assert yard.free.local.worker_apply("m", "stop", None, {}).success

    def shown() -> tuple[str, str]:
        listed = {model["id"]: model["status"]["value"] for model in yard.shown("/v1/models")["data"]}
        states = {model["model"]: model["state"] for model in yard.shown("/readyz")["models"]}
        return listed["m"], states["m@llm"]

    wait_until(lambda: shown() == ("unloaded", "unloaded"), "the gateway shows that it is loaded nowhere")
    assert yard.ask() == " x"
    assert (state_at(yard.full, "m@llm"), state_at(yard.full, "other@llm")) == ("ready", "unloaded")
    wait_until(lambda: shown() == ("loaded", "ready"), "the gateway shows that it is loaded")
    assert yard.gateway.manager.model_states()["other@llm"] is State.UNLOADED


def test_an_instance_stays_registered_while_its_model_restarts_and_a_gateway_waits_for_it(yard: Yard) -> None:
    yard.full.local.model_shutdown("m", None)
    wait_until(lambda: len(yard.gateway.manager.get_model_instances("m@llm")) == 1, "one instance is left")
    changed = {"hold_start": True, "weight": 2.0}
    answers: list[str] = []
    restart = threading.Thread(target=lambda: yard.free.local.worker_apply("m", "restart", None, changed))
    asking = threading.Thread(target=lambda: answers.append(yard.ask()))
    restart.start()
    wait_until(lambda: Steered.holding == 1, "it is loaded")
    asking.start()
    wait_until(lambda: (model := yard.free.local.models.find("m@llm")) and model.gate.waiting == 1, "it waits there")
    Steered.go.set()
    for thread in (restart, asking):
        thread.join(20)
    assert answers == [" x"]

    def weights() -> list[float]:
        return [row["weight"] for row in yard.gateway.instances() if row["model"] == "m@llm"]

    wait_until(lambda: weights() == [2.0], "it is registered with what has changed")


def test_a_gateway_waits_for_a_count_by_a_model_that_is_not_loaded_with_a_thread_of_its_budget(yard: Yard) -> None:
    yard.free.local.model_shutdown("m", None)
    wait_until(lambda: len(yard.gateway.manager.get_model_instances("m@llm")) == 1, "one instance is left")

    def count() -> requests.Response:
        url = f"{url_of(yard.gateway)}/worker/count_token"
        return requests.post(url, json={"model": "m", "prompt": "a b"}, timeout=10)

    taken = yard.gateway.budget.total
    for _ in range(taken):
        yard.gateway.budget.enter()
    assert (count().status_code, state_at(yard.full, "m@llm")) == (503, "unloaded")
    for _ in range(taken):
        yard.gateway.budget.leave()
    assert (count().json(), state_at(yard.full, "m@llm")) == (2, "ready")
