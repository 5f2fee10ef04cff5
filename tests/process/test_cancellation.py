"""A client that has gone frees its slot within a second, wherever its request was; what is left is not computed."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import pytest
from clients import DELTA, NO_WAIT, Connection, request_bytes
from processes import resident_bytes
from running import INLINE, WORKER_CLASSES, Service, Services, seconds_until, wait_until

from scripts import journal, script

MODELS = """
[[models]]
name = "script"
worker_class = "scripted:Scripted"
limit_model_concurrency = 1
max_waiting = 8
journal = "{journal}"

[[models]]
name = "blocking"
worker_class = "scripted:Blocking"
limit_model_concurrency = 1
max_waiting = 8
journal = "{journal}"

[[models]]
name = "vectors"
worker_class = "scripted:Scripted"
worker_type = "text2vec"
limit_model_concurrency = 1
max_waiting = 8
journal = "{journal}"
"""

LIMIT = 1.0
"""Seconds in which a hang-up must have freed the slot."""

HOLD = 120.0

HangUp = Callable[[Connection], None]


def fin(client: Connection) -> None:
    client.close()


def rst(client: Connection) -> None:
    client.reset()


def half_close(client: Connection) -> None:
    client.sock.shutdown(socket.SHUT_WR)


HANG_UPS = [fin, rst]
each_hang_up = pytest.mark.parametrize("hang_up", HANG_UPS)
each_engine = pytest.mark.parametrize("model", ["script", "blocking"])


class Stage:
    """A service and its journal; what a test starts has a name that is its own."""

    def __init__(self, service: Service, clients: ExitStack) -> None:
        self.service = service
        self.name = uuid4().hex
        self._clients = clients

    def connect(self, **options: Any) -> Connection:
        return self._clients.enter_context(Connection(self.service.port, **options))

    def send(self, call: str, model: str = "script", name: str = "", **plan: Any) -> Connection:
        """Send a request and return its connection."""
        client = self.connect()
        client.send("POST", call, self.body(model, name, **plan))
        return client

    def body(self, model: str, name: str = "", **plan: Any) -> dict[str, Any]:
        return script(model, name=name or self.name, **plan)

    def journal(self, name: str = "") -> list[str]:
        """Return what the engine did for this test: the words of its lines but the name."""
        lines = [line.split() for line in journal(self.service)]
        return [" ".join([first, *rest]) for first, its, *rest in lines if its == (name or self.name)]

    def began(self, name: str = "") -> None:
        wait_until(lambda: "begin" in self.journal(name), "the engine's begin")

    def pieces(self) -> int:
        return self.journal().count("piece")

    def is_free(self, model: str) -> bool:
        """Whether a request that does not wait gets a slot."""
        call = "embeddings" if model == "vectors" else "generate"
        return self.service.post(call, self.body(model, "probe"), headers=NO_WAIT).status_code == 200

    def assert_free_in_time(self, model: str) -> None:
        assert seconds_until(lambda: self.is_free(model)) < LIMIT


@pytest.fixture(scope="module", params=WORKER_CLASSES)
def service(request: pytest.FixtureRequest, run_module: Services) -> Iterator[Service]:
    folder = run_module.folder()
    service = run_module.start(
        MODELS.format(journal=folder / "journal"),
        folder=folder,
        worker_class=request.param,
        first_output_timeout=0.2,
        silence_timeout=60,
        write_timeout=1,
    )
    yield service
    service.kill()


@pytest.fixture
def stage(service: Service) -> Iterator[Stage]:
    with ExitStack() as clients:
        made = Stage(service, clients)
        for model in ("script", "blocking", "vectors"):
            wait_until(lambda model=model: made.is_free(model), f"a free slot of {model}")
        yield made


@each_hang_up
@each_engine
def test_while_streaming(stage: Stage, model: str, hang_up: HangUp) -> None:
    client = stage.send("generate_stream", model, each=0.05, pieces=2000)
    client.read_head()
    client.read_http_chunk()
    hang_up(client)
    stage.assert_free_in_time(model)
    computed = wait_until(lambda: [line for line in stage.journal() if line.startswith("end")], "the engine's end")
    assert computed == [f"end {stage.pieces()}"]
    assert stage.pieces() < 60


@each_hang_up
@each_engine
def test_before_the_first_piece(stage: Stage, model: str, hang_up: HangUp) -> None:
    client = stage.send("generate_stream", model, before=HOLD)
    client.read_head()
    client.read_http_chunk()  # the empty one: from here on nothing is written for a minute
    hang_up(client)
    stage.assert_free_in_time(model)
    assert stage.pieces() == 0


@each_hang_up
@each_engine
def test_while_it_waits_for_a_whole_answer(stage: Stage, model: str, hang_up: HangUp) -> None:
    client = stage.send("generate", model, each=0.05, pieces=2000)
    stage.began()
    hang_up(client)
    stage.assert_free_in_time(model)
    wait_until(lambda: f"end {stage.pieces()}" in stage.journal(), "the engine's end")
    assert stage.pieces() < 60


@each_hang_up
def test_while_its_texts_are_embedded(stage: Stage, hang_up: HangUp) -> None:
    client = stage.send("embeddings", "vectors", before=HOLD)
    stage.began()
    hang_up(client)
    stage.assert_free_in_time("vectors")
    assert stage.journal() == ["begin", "cancelled"]


@pytest.mark.parametrize(("call", "hang_up"), [("generate_stream", rst), ("generate", fin)])
def test_in_line_it_never_reaches_the_engine(stage: Stage, call: str, hang_up: HangUp) -> None:
    holder = stage.send("generate_stream", name=f"holder-{stage.name}", before=HOLD)
    stage.began(f"holder-{stage.name}")
    client = stage.send(call)
    behind = in_line_behind(stage, 1)
    before = cancelled(stage, call)
    hang_up(client)
    assert seconds_until(lambda: cancelled(stage, call) > before) < LIMIT
    in_line_behind(stage, 1).close()  # behind the other one only: the place is free
    behind.close()
    holder.close()
    stage.assert_free_in_time("script")
    assert stage.journal() == []


def in_line_behind(stage: Stage, others: int) -> Connection:
    """Return a stream that stands in line behind ``others``."""

    def stand() -> Connection | None:
        client = stage.send("generate_stream", name="last")
        if client.read_head().headers["modelyard-load"].endswith(f"waiting={others + 1}"):
            return client
        client.close()
        return None

    return wait_until(stand, f"a place behind {others}")


@each_hang_up
def test_in_the_line_of_embeddings_it_never_reaches_the_engine(stage: Stage, hang_up: HangUp) -> None:
    before = cancelled(stage, "embeddings")
    holder = stage.send("embeddings", "vectors", name=f"holder-{stage.name}", before=HOLD)
    stage.began(f"holder-{stage.name}")
    client = stage.send("embeddings", "vectors")
    # Nothing says that it stands in line; that it is cancelled while the slot is held says that it did.
    hang_up(client)
    assert seconds_until(lambda: cancelled(stage, "embeddings") > before) < LIMIT
    holder.close()
    stage.assert_free_in_time("vectors")
    assert stage.journal() == []


def cancelled(stage: Stage, call: str) -> int:
    path = f"/api/worker/{call}"
    return sum(line["path"] == path and line.get("error") == "cancelled" for line in stage.service.access_lines())


@pytest.mark.parametrize("call", ["generate_stream", "generate"])
def test_the_access_line_says_that_the_client_has_gone(stage: Stage, call: str) -> None:
    before = cancelled(stage, call)
    client = stage.send(call, each=0.05, pieces=2000)
    stage.began()
    client.close()
    wait_until(lambda: cancelled(stage, call) > before, "the access line")


def test_a_client_that_closes_only_its_own_side_counts_as_gone(stage: Stage) -> None:
    client = stage.send("generate", before=HOLD)
    stage.began()
    half_close(client)
    stage.assert_free_in_time("script")


@each_hang_up
def test_behind_a_pipelined_request(stage: Stage, hang_up: HangUp) -> None:
    client = stage.send("generate", before=HOLD)
    stage.began()
    client.sock.sendall(request_bytes("GET", "/healthz"))
    hang_up(client)
    stage.assert_free_in_time("script")


def test_on_a_connection_that_has_served_before(stage: Stage) -> None:
    client = stage.connect()
    for call in ("generate_stream", "generate"):
        client.send("POST", call, stage.body("script"))
        assert client.read_answer()[0].status == 200
    client.send("POST", "generate", stage.body("script", before=HOLD))
    wait_until(lambda: stage.journal().count("begin") == 3, "the engine's begin")
    client.close()
    stage.assert_free_in_time("script")


@pytest.mark.parametrize("service", INLINE, indirect=True)
def test_many_at_once(stage: Stage) -> None:
    holder = stage.send("generate_stream", name=f"holder-{stage.name}", before=HOLD)
    stage.began(f"holder-{stage.name}")
    crowd = [stage.send("generate") for _ in range(6)]
    in_line_behind(stage, 6).close()
    for client in [*crowd, holder]:
        client.close()
    stage.assert_free_in_time("script")
    assert stage.journal() == []


def test_a_client_that_stays_is_not_taken_for_one_that_has_gone(stage: Stage) -> None:
    client = stage.send("generate", each=0.3, pieces=6)
    stage.began()
    for _ in range(3):
        client.sock.sendall(request_bytes("GET", "/healthz"))
    head, body = client.read_answer()
    assert (head.status, json.loads(body)["text"]) == (200, "x" * 6)
    for _ in range(3):
        assert client.read_answer()[0].status == 200


@each_engine
def test_a_reader_that_never_reads_is_cut_off(stage: Stage, model: str) -> None:
    stage.service.may_show_tracebacks = True  # gunicorn's: it knows no write that takes too long
    client = stage.connect(receive_buffer=4096)
    client.send("POST", "generate_stream", stage.body(model, pieces=10_000, size=20_000), DELTA)
    stage.began()
    # write_timeout is a second here; the kernel's buffers take some seconds to fill on a busy machine.
    assert seconds_until(lambda: stage.is_free(model), timeout=30) < 20
    assert stage.pieces() < 10_000


@each_engine
def test_a_slow_reader_costs_no_memory_that_grows_with_the_square_of_the_answer(stage: Stage, model: str) -> None:
    pid = stage.service.worker_pid()
    before = resident_bytes(pid)
    client = stage.connect(receive_buffer=65536)
    # As DB-GPT's clients take it, the whole text in each chunk, this answer has 400 MB.
    client.send("POST", "generate_stream", stage.body(model, pieces=4000, size=50))
    client.read_head()
    received = 0
    while received < 20_000_000:
        time.sleep(0.001)
        received += len(client.sock.recv(65536))
        assert resident_bytes(pid) - before < 50_000_000


def test_a_slow_reader_that_reads_gets_everything(stage: Stage) -> None:
    client = stage.connect(receive_buffer=4096)
    client.send("POST", "generate_stream", stage.body("script", pieces=40, size=20_000), DELTA)
    head = client.read_head()
    received = b""
    while data := client.read_http_chunk():
        received += data
        time.sleep(0.01)
    assert head.status == 200
    assert received.count(b"x") >= 40 * 20_000


@pytest.mark.parametrize("call", ["generate_stream", "generate"])
@pytest.mark.parametrize("fail_at", [0, 3])
@each_engine
def test_an_engine_that_fails_frees_the_slot(stage: Stage, model: str, call: str, fail_at: int) -> None:
    stage.service.may_show_tracebacks = True
    answer = stage.service.post(call, stage.body(model, pieces=10, fail_at=fail_at))
    assert b'"error_code":500' in answer.content.replace(b" ", b"")
    assert b"Traceback" not in answer.content
    assert stage.is_free(model)


def test_an_engine_that_fails_to_embed_frees_the_slot(stage: Stage) -> None:
    stage.service.may_show_tracebacks = True
    answer = stage.service.post("embeddings", stage.body("vectors", fail_at=0))
    assert (answer.status_code, answer.json()["type"]) == (500, "urn:modelyard:error:engine_error")
    assert stage.is_free("vectors")
