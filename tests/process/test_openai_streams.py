"""The streams of OpenAI's API over real connections, at the service that has the model and at gateways before it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any
from uuid import uuid4

import pytest
from clients import NO_WAIT, Connection, Head
from running import WORKER_CLASSES, Service, Services, console_script, seconds_until, wait_until

from scripts import journal, script

TABLES = """
[[models]]
name = "script"
worker_class = "scripted:Scripted"
limit_model_concurrency = 1
max_waiting = 2
journal = "{folder}/journal"
"""
CHAT = "/v1/chat/completions"
END = "data: [DONE]"
LIMIT = 1.0
"""Seconds in which a hang-up must have freed the slot on the worker."""
GATEWAYS = [f"gateway on {name}" for name in WORKER_CLASSES]


class Places:
    """A service with the model, and gateways before it."""

    def __init__(self, services: dict[str, Service]) -> None:
        self.worker = services["service"]
        self._services = services

    def __getitem__(self, name: str) -> Service:
        return self._services[name]


@pytest.fixture(scope="module")
def places(run_module: Services) -> Places:
    folder = run_module.folder()
    quick = {"registry": f"sqlite:{folder}/registry.db", "registry_refresh": 0.1, "silence_timeout": 0.3}
    quick |= {"first_output_timeout": 0.2, "wait": "nothing"}
    services = {"service": run_module.start(TABLES.format(folder=folder), "standalone", folder=folder, **quick)}
    for name in WORKER_CLASSES:
        services[f"gateway on {name}"] = run_module.start("", "gateway", worker_class=name, **quick)
    for service in services.values():
        service.wait_ready()
    for name in GATEWAYS:
        gateway = services[name]
        wait_until(lambda gateway=gateway: gateway.get("/v1/models").json()["data"], "the model is in view")
    return Places(services)


class Stage:
    """One place, and what a test sends there: its requests have a name of their own."""

    def __init__(self, service: Service, worker: Service, clients: ExitStack) -> None:
        self.service = service
        self.worker = worker
        self.name = uuid4().hex
        self._clients = clients

    def send(self, name: str = "", *, stream: bool = True, **plan: Any) -> Connection:
        client = self._clients.enter_context(Connection(self.service.port))
        messages = [{"role": "user", "content": json.dumps({"name": name or self.name, **plan})}]
        client.send("POST", CHAT, {"model": "script", "messages": messages, "stream": stream})
        return client

    def begun(self) -> None:
        wait_until(lambda: journal(self.worker, "begin", self.name), "the engine's begin")

    def waiting(self) -> int:
        """Return how many requests stand in line on the worker, whose slot is taken."""
        body = script(name="probe")
        refused = self.worker.post("generate", body, headers=NO_WAIT)
        return int(refused.headers["Modelyard-Load"].rpartition("=")[2])

    def is_free(self) -> bool:
        return self.worker.post("generate", script(name="probe"), headers=NO_WAIT).status_code == 200


@pytest.fixture
def stage(places: Places, request: pytest.FixtureRequest) -> Iterator[Stage]:
    with ExitStack() as clients:
        made = Stage(places[request.param], places.worker, clients)
        wait_until(made.is_free, "a free slot")
        yield made


everywhere = pytest.mark.parametrize("stage", ["service", *GATEWAYS], indirect=True)
at_gateways = pytest.mark.parametrize("stage", GATEWAYS, indirect=True)


def fin(client: Connection) -> None:
    client.close()


def rst(client: Connection) -> None:
    client.reset()


HangUp = Callable[[Connection], None]
each_hang_up = pytest.mark.parametrize("hang_up", [fin, rst])


def chunks(client: Connection) -> Iterator[bytes]:
    """Yield the chunks of HTTP of a stream: each is one write of the server."""
    while data := client.read_http_chunk():
        yield data


def events(body: bytes) -> list[Any]:
    """Return the events of a stream as objects, ``[DONE]`` and comments as text."""
    lines = body.decode().split("\n\n")
    assert lines.pop() == ""
    return [line if line.startswith(":") or line.endswith("[DONE]") else json.loads(line[6:]) for line in lines]


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_what_is_written_leaves_at_once(run: Services, worker_class: str) -> None:
    """Nagle's algorithm holds a small segment until the one before is acknowledged, 40 ms later."""
    server = [console_script("gunicorn"), "-c", "python:modelyard.server.gunicorn", "socket_options:app"]
    service = run.start(command=server, worker_class=worker_class, wait="nothing")
    answer = wait_until(lambda: service.answers("/"), "an answer")
    assert answer.text == "1", "TCP_NODELAY of the client's connection"


@everywhere
def test_what_is_ready_together_leaves_in_one_write(stage: Stage) -> None:
    client = stage.send(at_once=40, pieces=2)
    assert client.read_head().status == 200
    parts = [events(data) for data in chunks(client)]
    texts = [[event["choices"][0]["delta"].get("content") for event in part if event != END] for part in parts]
    assert next(part for part in texts if "x" in part)[:41] == ["", *["x"] * 40], "the role and the first burst"
    assert sum(part.count("x") for part in texts) == 80
    # The second burst, the finish and the end may or may not be ready together.
    assert len(parts) <= 4
    assert parts[-1][-1] == END


@everywhere
def test_a_silence_is_broken_by_comments_alone(stage: Stage) -> None:
    gate = stage.worker.folder / stage.name
    client = stage.send(pieces=2, until=str(gate))
    assert client.read_head().status == 200
    received = []
    for data in chunks(client):
        received += events(data)
        if received.count(": keep-alive") == 2:
            gate.touch()
    assert set(map(str, received)) >= {": keep-alive", END}
    assert {event["object"] for event in received if isinstance(event, dict)} == {"chat.completion.chunk"}
    assert sum(event["choices"][0]["delta"].get("content") == "x" for event in received if isinstance(event, dict)) == 2


@everywhere
def test_an_error_in_the_middle_is_an_event_and_the_end(stage: Stage) -> None:
    stage.worker.may_show_tracebacks = True
    client = stage.send(pieces=9, fail_at=3)
    head = client.read_head()
    body = b"".join(chunks(client))
    *before, last = events(body)
    assert head.status == 200
    assert sum(event["choices"][0]["delta"].get("content") == "x" for event in before) == 3
    assert list(last) == ["error"]
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert last["error"]["type"] == "server_error"
    assert b"[DONE]" not in body


@everywhere
def test_an_error_tells_clients_whether_to_try_again(stage: Stage) -> None:
    stage.worker.may_show_tracebacks = True
    failed, _ = stage.send("fails", fail_at=0).read_answer()
    assert (failed.status, failed.headers["x-should-retry"]) == (500, "false"), "work has begun"
    stage.send(until="never")
    stage.begun()
    for place in (1, 2):
        stage.send("in line")
        wait_until(lambda place=place: stage.waiting() == place, "a place in line")
    refused, body = stage.send("refused").read_answer()
    assert refused.status == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert "x-should-retry" not in refused.headers
    assert json.loads(body)["error"]["code"] == "overloaded"


@everywhere
@each_hang_up
def test_a_client_that_closes_at_done_has_its_whole_answer(stage: Stage, hang_up: HangUp) -> None:
    name, logged = f"req-{stage.name}", len(stage.service.log())
    client = Connection(stage.service.port)
    messages = [{"role": "user", "content": json.dumps({"name": stage.name, "pieces": 7})}]
    client.send("POST", CHAT, {"model": "script", "messages": messages, "stream": True}, {"x-request-id": name})
    head: Head = client.read_head()
    while b"[DONE]" not in client.read_http_chunk():
        pass
    hang_up(client)
    assert head.headers["x-request-id"] == name
    line = wait_until(lambda: [row for row in stage.service.access_lines() if row.get("request_id") == name], "a line")
    assert [(row["status"], row.get("error")) for row in line] == [(200, None)]
    at_worker = [row for row in stage.worker.access_lines() if row.get("request_id") == name]
    assert [(row["pieces"], row.get("error")) for row in at_worker] == [(7, None)], "the worker's line comes first"
    assert "[ERROR]" not in stage.service.log()[logged:]


@at_gateways
@each_hang_up
def test_a_client_that_goes_frees_its_slot_on_the_worker(stage: Stage, hang_up: HangUp) -> None:
    client = stage.send(each=0.05, pieces=2000)
    client.read_head()
    client.read_http_chunk()
    hang_up(client)
    assert seconds_until(lambda: journal(stage.worker, "end", stage.name)) < LIMIT
    assert seconds_until(stage.is_free) < LIMIT


@at_gateways
@each_hang_up
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_before_the_first_piece_frees_its_slot(stage: Stage, hang_up: HangUp, stream: bool) -> None:
    client = stage.send(before=60, stream=stream)
    stage.begun()
    hang_up(client)
    assert seconds_until(lambda: journal(stage.worker, "end", stage.name)) < LIMIT
    assert seconds_until(stage.is_free) < LIMIT


@at_gateways
@each_hang_up
def test_a_client_that_goes_while_it_waits_leaves_the_line_on_the_worker(stage: Stage, hang_up: HangUp) -> None:
    holder = stage.send(before=60)
    stage.begun()
    client = stage.send(f"in line of {stage.name}")
    wait_until(lambda: stage.waiting() == 1, "a place in line")
    hang_up(client)
    assert seconds_until(lambda: stage.waiting() == 0) < LIMIT
    with suppress(OSError):
        holder.close()
    assert seconds_until(stage.is_free) < LIMIT
    assert journal(stage.worker, "begin", f"in line of {stage.name}") == []
