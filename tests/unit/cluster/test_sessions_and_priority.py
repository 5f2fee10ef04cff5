"""A gateway over four workers, all in this process: an agent's turns go to one, and batch stands behind interactive."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from in_process import SCRIPTED, service, url_of
from modelyard.cluster.manager import RemoteWorkerManager
from modelyard.cluster.routing import LOAD_AGE
from modelyard.engines.scripted import Answers
from modelyard.worker.admission import Gate
from running import wait_until

WORKERS = 4
TURNS = 20


class Yard:
    """Workers with the models ``m`` (and ``v``, of vectors), whose calls are recorded, and a gateway."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.answers = [Answers() for _ in range(WORKERS)]
        controller = stack.enter_context(service(folder / "c", role="controller", registry="memory:"))
        registry = url_of(controller)
        self.workers = [
            stack.enter_context(service(folder / f"w{number}", self._tables(answers), role="worker", registry=registry))
            for number, answers in enumerate(self.answers)
        ]
        self.gateway = stack.enter_context(service(folder / "g", role="gateway", registry=registry))
        assert isinstance(self.gateway.manager, RemoteWorkerManager)
        self.manager = self.gateway.manager
        view = self.manager.view
        wait_until(lambda: sum(row.healthy for row in view.instances("m@llm")) == WORKERS, "all are in view")

    @staticmethod
    def _tables(answers: Answers) -> list[dict[str, Any]]:
        table = {"worker_class": SCRIPTED, "script": answers.key, "limit_model_concurrency": 2, "max_waiting": 4}
        return [{"name": "m", **table}, {"name": "v", "worker_type": "text2vec", **table, "limit_model_concurrency": 1}]

    def forget(self) -> None:
        for answers in self.answers:
            answers.asked.clear()

    def asked(self) -> list[int]:
        """Return how many calls reached each worker since `forget`."""
        return [len(answers.asked) for answers in self.answers]

    def gate(self, number: int, key: str) -> Gate:
        worker = self.workers[number].local.models.find(key)
        assert worker is not None
        return worker.gate

    def post(self, path: str, body: dict[str, Any], **headers: str) -> requests.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        url = url_of(self.gateway).removesuffix("/api") + path
        response = requests.post(url, json=body, headers=named, timeout=30)
        assert response.status_code == 200, response.text
        return response


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    with ExitStack() as stack:
        yield Yard(stack, tmp_path_factory.mktemp("yard"))


@pytest.fixture(autouse=True)
def new_record(yard: Yard) -> None:
    yard.forget()


def conversation(task: str) -> Iterator[list[dict[str, str]]]:
    """Yield the messages of each turn: those of the one before, the answer, and a result."""
    messages = [{"role": "system", "content": "You are an agent."}, {"role": "user", "content": task}]
    for turn in range(TURNS):
        yield messages
        messages += [{"role": "assistant", "content": "ok"}, {"role": "user", "content": f"result {turn}"}]


def test_the_turns_of_an_agent_go_to_one_worker_and_agents_are_spread(yard: Yard) -> None:
    homes: Counter[int] = Counter()
    for agent in range(12):
        yard.forget()
        for messages in conversation(f"task {agent}"):
            yard.post("/v1/chat/completions", {"model": "m", "messages": messages})
        assert max(yard.asked()) == sum(yard.asked()) == TURNS
        homes[yard.asked().index(TURNS)] += 1
    assert len(homes) > 1, "by chance in one of four million runs"


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/v1/completions", {}, {"x_session_id": "agent-7"}),
        ("/v1/completions", {"prompt_cache_key": "agent-7"}, {}),
        ("/v1/messages", {"max_tokens": 9, "metadata": {"user_id": "agent-7"}}, {}),
        ("/v1/responses", {"user": "agent-7"}, {}),
        ("/api/worker/generate", {"context": {"conv_uid": "agent-7"}}, {}),
        ("/api/worker/generate_stream", {"context": {"conv_uid": "agent-7"}}, {}),
    ],
)
def test_a_session_with_a_name_is_the_same_in_every_call(
    yard: Yard, path: str, body: dict[str, Any], headers: dict[str, str]
) -> None:
    for number in range(4):
        messages = [{"role": "user", "content": f"question {number}"}]
        text = {"input": "x"} if "responses" in path else {"prompt": "x"} if "completions" in path else {}
        yard.post(path, {"model": "m", **(text or {"messages": messages}), **body}, **headers)
    first = yard.asked()
    assert sorted(first) == [0, 0, 0, 4]
    yard.post("/v1/completions", {"model": "m", "prompt": "y"}, x_session_id="agent-7")
    assert max(yard.asked()) == 5


def test_raw_prompts_without_a_session_go_to_any(yard: Yard) -> None:
    for _ in range(60):
        yard.post("/v1/completions", {"model": "m", "prompt": "x"})
    assert min(yard.asked()) > 0


@contextmanager
def taken(gates: Iterable[Gate]) -> Iterator[None]:
    """Hold all slots of some gates."""
    tickets = [gate.request(wait=False) for gate in gates for _ in range(gate.slots)]
    try:
        yield
    finally:
        for ticket in tickets:
            ticket.release()


def test_a_full_worker_is_gone_past_and_the_session_comes_back(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "a long task"}]}
    yard.post("/v1/chat/completions", body)
    home = yard.asked().index(1)
    with taken([yard.gate(home, "m@llm")]):
        yard.post("/v1/chat/completions", body)
        assert (yard.asked()[home], sum(yard.asked())) == (1, 2)
    routes = yard.manager.routes
    monkeypatch.setattr(routes, "clock", lambda: time.monotonic() + LOAD_AGE)  # what the refusal has told is old
    yard.post("/v1/chat/completions", body)
    assert (yard.asked()[home], sum(yard.asked())) == (2, 3)


@pytest.mark.parametrize(
    ("path", "way"),
    [
        ("/v1/embeddings", "field"),
        ("/v1/chat/completions", "field"),
        ("/api/worker/embeddings", "header"),
        ("/api/worker/generate_stream", "header"),
    ],
)
def test_batch_crosses_to_the_workers_line_and_an_answer_says_how_long_it_stood_there(
    yard: Yard, path: str, way: str
) -> None:
    key = "v@text2vec" if "embeddings" in path else "m@llm"
    gates = [yard.gate(number, key) for number in range(WORKERS)]
    body: dict[str, Any] = {"model": key[0], "input": ["x"], "messages": [{"role": "user", "content": "x"}]}
    body |= {"priority": "batch"} if way == "field" else {}
    headers = {"Modelyard_Priority": "batch"} if way == "header" else {}
    with ThreadPoolExecutor(1) as pool:
        with taken(gates):
            waiting = pool.submit(yard.post, path, body, **headers)
            wait_until(lambda: sum(gate.waiting for gate in gates) == 1, "it stands in line")
            assert {"interactive": 0, "batch": 1} in [gate.status()["waiting"] for gate in gates]
        response = waiting.result(30)
    assert 0 < int(response.headers["Modelyard-Queue-Ms"]) < 30_000
    assert "Modelyard-Queue-Ms" not in yard.post(path, body, **headers).headers
