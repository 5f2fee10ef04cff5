"""A model of two workers, of which one has no room for it: where requests go, and what the gateway shows."""

from __future__ import annotations

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
