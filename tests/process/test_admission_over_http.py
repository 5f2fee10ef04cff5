"""More requests than fit: refused at once, in order of arrival else, and health answers all the while."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import requests
from clients import NO_WAIT, Connection, chunks_of
from running import INLINE, Service, Services, wait_until

from scripts import journal, script

MODELS = """
[[models]]
name = "one"
worker_class = "scripted:Scripted"
limit_model_concurrency = 1
max_waiting = 1
queue_timeout = 60
journal = "{journal}"

[[models]]
name = "queue"
worker_class = "scripted:Scripted"
limit_model_concurrency = 1
max_waiting = 4
journal = "{journal}"

[[models]]
name = "impatient"
worker_class = "scripted:Scripted"
limit_model_concurrency = 1
queue_timeout = 1.5

[[models]]
name = "vectors"
worker_class = "scripted:Scripted"
worker_type = "text2vec"
limit_model_concurrency = 1
max_waiting = 0

[[models]]
name = "wide"
worker_class = "scripted:Scripted"
limit_model_concurrency = 8
max_waiting = 100

[[models]]
name = "echo"
"""

HOLD = 120.0
"""Seconds that a request would hold its slot, if its client did not end it."""


class Stage:
    """A service, its journal, and clients that hold slots or stand in line until the test ends."""

    def __init__(self, service: Service, clients: ExitStack) -> None:
        self.service = service
        self._clients = clients
        self._numbers = iter(range(1000))

    def new_name(self) -> str:
        return f"{id(self)}-{next(self._numbers)}"

    def stream(self, model: str, **plan: Any) -> Connection:
        """Send a stream request and return its connection."""
        client = self._clients.enter_context(Connection(self.service.port))
        client.send("POST", "generate_stream", script(model, **plan))
        return client

    def hold(self, model: str, slots: int = 1) -> list[Connection]:
        """Take slots of a model, which are held until the clients hang up."""
        held = []
        for number in range(slots):
            client = self.stream(model, before=HOLD)
            load = client.read_head().headers["modelyard-load"]
            assert f"free={slots - number - 1};waiting=0" in load, load
            held.append(client)
        return held

    def stand_in_line(self, model: str, place: int = 1, **plan: Any) -> Connection:
        """Send a request, and return its connection once it stands in line."""
        client = self.stream(model, **plan)
        wait_until(lambda: f"free=0;waiting={place}" in self.load_of_full(model), f"place {place} in line")
        return client

    def load_of_full(self, model: str) -> str:
        """Return the load that the refusal of a request carries."""
        refused = self.service.post("generate", script(model), headers=NO_WAIT)
        assert refused.status_code == 503, "a slot is free"
        return refused.headers["Modelyard-Load"]

    def fill(self, model: str, slots: int, line: int) -> list[Connection]:
        """Take all slots and as many places in line, in whatever order; until the clients hang up."""
        clients = [self.stream(model, before=HOLD) for _ in range(slots + line)]
        loads = {client.read_head().headers["modelyard-load"] for client in clients}
        assert loads == {f"slots={slots};free={free};waiting=0" for free in range(slots)} | {
            f"slots={slots};free=0;waiting={place}" for place in range(1, line + 1)
        }
        return clients


def is_idle(service: Service, model: str, slots: int) -> bool:
    return service.load(model) == {"slots": slots, "free": slots, "waiting": 0}


@pytest.fixture(scope="module", params=INLINE)
def service(request: pytest.FixtureRequest, run_module: Services) -> Iterator[Service]:
    folder = run_module.folder()
    service = run_module.start(
        MODELS.format(journal=folder / "journal"),
        folder=folder,
        worker_class=request.param,
        first_output_timeout=0.2,
        threads=40,
        reserve=8,
    )
    yield service
    service.kill()


@pytest.fixture
def stage(service: Service) -> Iterator[Stage]:
    for model, slots in (("one", 1), ("queue", 1), ("impatient", 1), ("wide", 8)):
        wait_until(lambda model=model, slots=slots: is_idle(service, model, slots), f"{model} to be idle")
    with ExitStack() as clients:
        yield Stage(service, clients)


def test_who_finds_slots_and_line_full_is_refused_at_once(stage: Stage) -> None:
    stage.hold("one")
    in_line = stage.stand_in_line("one")
    name = stage.new_name()
    # Its queue_timeout is a minute: one that stood in line would not be answered in time.
    refused = stage.service.post("generate", script("one", name=name), timeout=30)
    streamed = stage.service.post("generate_stream", script("one", name=name), timeout=30)
    for answer in (refused, streamed):
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) >= 1
    told = refused.json()
    assert told["error_code"] == 503
    assert "'one'" in told["text"]
    assert "max_waiting" in told["text"]
    assert chunks_of(streamed.content)[0]["error_code"] == 503
    assert not any(name in line for line in journal(stage.service)), "something was computed for it"
    assert in_line.read_head().headers["modelyard-load"] == "slots=1;free=0;waiting=1"


def test_a_caller_may_refuse_to_wait(stage: Stage) -> None:
    [holder] = stage.hold("one")
    assert stage.service.post("generate", script("one"), headers=NO_WAIT).status_code == 503
    assert stage.service.post("generate_stream", script("one"), headers=NO_WAIT).status_code == 503
    holder.close()
    wait_until(lambda: stage.service.post("generate", script("one"), headers=NO_WAIT).status_code == 200, "a free slot")


def test_a_wait_ends_with_the_queue_timeout(stage: Stage) -> None:
    stage.hold("impatient")
    began = time.monotonic()
    refused = stage.service.post("generate", script("impatient"))
    assert time.monotonic() - began >= 1.5
    assert refused.status_code == 503
    assert "queue_timeout" in refused.json()["text"]
    # The stream's headers have left when its time is up: it says so in its last chunk.
    streamed = stage.service.post("generate_stream", script("impatient"))
    assert streamed.status_code == 200
    assert [chunk["error_code"] for chunk in chunks_of(streamed.content)] == [503]


def test_those_in_line_are_served_in_the_order_they_came(stage: Stage) -> None:
    [holder] = stage.hold("queue")
    names = [stage.new_name() for _ in range(4)]
    waiting = [stage.stand_in_line("queue", place, name=name) for place, name in enumerate(names, 1)]
    holder.close()
    for client in waiting:
        client.read_answer()
    assert [
        line.split()[1] for line in journal(stage.service) if line.startswith("begin") and line.split()[1] in names
    ] == names


def test_embeddings_are_refused_with_a_problem_document(stage: Stage) -> None:
    # Without a stream nothing says that the slot is taken, but the refusal of the next request.
    with Connection(stage.service.port) as holder:
        holder.send("POST", "embeddings", {"model": "vectors", "input": [json.dumps({"before": HOLD})]})

        def refused() -> list[requests.Response]:
            answer = stage.service.post("embeddings", {"model": "vectors", "input": ["x"]})
            return [answer] if answer.status_code == 503 else []

        [answer] = wait_until(refused, "a refusal")
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.json()["type"] == "urn:modelyard:error:overloaded"
    wait_until(
        lambda: stage.service.post("embeddings", {"model": "vectors", "input": ["x"]}).status_code == 200, "a free slot"
    )


def test_cheap_calls_never_stand_in_line(stage: Stage) -> None:
    stage.hold("one")
    stage.stand_in_line("one")
    assert stage.service.post("count_token", {"model": "one", "prompt": "abc"}, timeout=5).json() == 3
    assert stage.service.post("model_metadata", {"model": "one"}, timeout=5).json()["model"] == "one"
    assert stage.service.get("parameter/descriptions?model=one", timeout=5).status_code == 200
    assert stage.service.get("models/supports", timeout=5).status_code == 200


def test_health_and_cheap_calls_answer_while_the_whole_budget_is_held(stage: Stage) -> None:
    stage.fill("wide", 8, 24)
    refused = stage.service.post("generate", {"model": "echo", "prompt": "x"})
    assert refused.status_code == 503, "32 of 40 threads are held, 8 are in reserve"
    assert "--threads" in refused.json()["text"]
    for path in ("/healthz", "/readyz", "/api/health"):
        answer = stage.service.answers(path)
        assert answer is not None, path
        assert answer.status_code == 200
    assert stage.service.post("count_token", {"model": "echo", "prompt": "a b"}, timeout=5).json() == 2
    outcome = stage.service.post("apply", {"model": "echo", "apply_type": "start"}, timeout=5)
    assert outcome.json()["success"] is True


def test_the_budget_is_whole_again_when_the_requests_have_ended(stage: Stage) -> None:
    for _ in range(2):
        clients = stage.fill("wide", 8, 24)
        assert stage.service.post("generate", {"model": "echo", "prompt": "x"}).status_code == 503
        for client in clients:
            client.close()
        wait_until(lambda: is_idle(stage.service, "wide", 8), "free slots")


def test_a_crowd_gets_answers_or_refusals_and_nothing_else(stage: Stage) -> None:
    service = stage.service
    counts: Counter[int] = Counter()
    name = stage.new_name()

    def client() -> None:
        for _ in range(10):
            answer = requests.post(service.url("generate"), json=script("queue", name=name, each=0.01), timeout=60)
            counts[answer.status_code] += 1
            assert answer.json()["error_code"] == (0 if answer.status_code == 200 else 503)

    crowd = [threading.Thread(target=client) for _ in range(12)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert set(counts) == {200, 503}
    assert sum(counts.values()) == 120
    assert sum(line == f"begin {name}" for line in journal(stage.service)) == counts[200]
    assert is_idle(service, "queue", 1)


def test_more_slots_than_the_budget_holds_are_refused_with_the_numbers(stage: Stage) -> None:
    wanted = {"limit_model_concurrency": 33}
    answer = stage.service.post("apply", {"model": "echo", "apply_type": "update_params", "params": wanted})
    assert answer.status_code == 200
    assert answer.json()["success"] is False
    assert all(number in answer.json()["message"] for number in ("33", "32", "40"))
    assert stage.service.load("echo")["slots"] == 8
    body = {"model": "echo-embed", "worker_type": "text2vec", "params": wanted}
    started = stage.service.post("models/startup", body)
    assert started.status_code == 409
    assert all(number in started.json()["detail"] for number in ("33", "32", "40"))


@pytest.mark.parametrize("worker_class", INLINE)
def test_the_default_budget_leaves_threads_for_health(run: Services, worker_class: str) -> None:
    tables = """
    [[models]]
    name = "wide"
    worker_class = "scripted:Scripted"
    limit_model_concurrency = 200
    max_waiting = 1000
    """
    service = run.start(tables, worker_class=worker_class, first_output_timeout=0.2)
    with ExitStack() as clients:
        held = [clients.enter_context(Connection(service.port, timeout=60)) for _ in range(248)]
        for client in held:
            client.send("POST", "generate_stream", script("wide", before=HOLD))
        for client in held:
            assert client.read_head().status == 200
        refused = service.post("generate", script("wide"))
        assert refused.status_code == 503
        assert "248" in refused.json()["text"]
        answer = service.answers("/healthz")
        assert answer is not None
        assert service.post("count_token", {"model": "wide", "prompt": "ab"}, timeout=5).json() == 2
    wait_until(lambda: is_idle(service, "wide", 200), "all slots free")
