"""The remote side of a model over real gunicorn workers; and as a client under gevent."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty import faulty, stalls
from modelyard.cluster.remote_machine import RemoteMachine
from modelyard.cluster.remote_model import RemoteModelWorker
from modelyard.errors import (
    Cancelled,
    EngineError,
    InvalidRequest,
    ModelyardError,
    UnknownModel,
    WorkerLost,
    WorkerUnreachable,
)
from modelyard.sessions.connections import Connection
from modelyard.sessions.session import Session
from modelyard.streams import Cancel
from modelyard.types import GenerateRequest
from running import Service, Services, wait_until

MODELS = """
[[models]]
name = "echo"

[[models]]
name = "slow"
engine = "echo"
delay = 0.02

[[models]]
name = "script"
worker_class = "scripted:Scripted"
journal = "{journal}"

[[models]]
name = "echo-embed"
"""


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("journal") / "lines"


@pytest.fixture(scope="module")
def service(run_module: Services, journal: Path) -> Iterator[Service]:
    journal.unlink(missing_ok=True)
    tables = MODELS.format(journal=journal)
    quick = {"first_output_timeout": 0.3, "silence_timeout": 0.3, "drain_timeout": 2}
    service = run_module.start(tables, **quick)
    yield service
    service.kill()


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session(connect_timeout=2, read_timeout=20)
    yield made
    made.close()


def api(service: Service) -> str:
    return service.url("/api")


def worker(service: Service, session: Session, model: str, kind: str = "llm") -> RemoteModelWorker:
    return RemoteModelWorker(f"{model}@{kind}", api(service), session)


def script(model: str = "script", **plan: Any) -> GenerateRequest:
    return GenerateRequest(model, [{"role": "human", "content": json.dumps(plan)}])


def lines(journal: Path, *words: object) -> list[str]:
    text = " ".join(map(str, words))
    return [line for line in journal.read_text().splitlines() if line.startswith(text)] if journal.exists() else []


def test_pieces_come_one_by_one(service: Service, session: Session):
    request = GenerateRequest("slow", prompt="x", max_new_tokens=5)
    with worker(service, session, "slow").generate_stream(request, Cancel()) as stream:
        bursts = [burst for burst in stream if burst is not None]
    assert [burst.pieces for burst in bursts] == [[" token"]] * 5
    assert (bursts[0].finish_reason, bursts[-1].finish_reason) == (None, "length")
    assert stream.load == "slots=8;free=7;waiting=0"


def test_one_connection_serves_streams_and_calls(service: Service, session: Session, monkeypatch: pytest.MonkeyPatch):
    made: list[Connection] = []
    connect = Connection.connect

    def noted(connection: Connection) -> None:
        made.append(connection)
        connect(connection)

    monkeypatch.setattr(Connection, "connect", noted)
    remote = worker(service, session, "echo")
    for _ in range(3):
        remote.generate(GenerateRequest("echo", prompt="x"), Cancel())
        assert remote.count_token("a b c") == 3
    assert len(made) == 1


def test_silence_of_a_model_that_computes_is_no_failure(service: Service):
    hasty = Session(read_timeout=1)
    answer = worker(service, hasty, "script").generate(script(before=2.5, pieces=2), Cancel())
    hasty.close()
    assert answer.text == "xx"


def test_a_cancel_reaches_the_engine(service: Service, session: Session, journal: Path):
    cancel = Cancel()
    name = f"cancelled-{service.port}"
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            worker(service, session, "script").generate(script(name=name, pieces=1000, each=0.05), cancel)
        except ModelyardError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: len(lines(journal, "piece", name)) > 2, "the engine at work")
    cancel.set()
    thread.join(10)
    assert [type(error) for error in errors] == [Cancelled]
    [line] = wait_until(lambda: lines(journal, "end", name), "the engine's end")
    assert int(line.split()[-1]) < 1000


def test_closing_a_stream_that_waits_reaches_the_engine(service: Service, session: Session, journal: Path):
    name = f"closed-{service.port}"
    with worker(service, session, "script").generate_stream(script(name=name, before=60), Cancel()) as stream:
        assert next(stream) is None
        wait_until(lambda: lines(journal, "begin", name), "the engine at work")
    wait_until(lambda: lines(journal, "end", name, 0), "the engine's end")


def test_a_failure_comes_after_the_pieces_before_it(service: Service, session: Session):
    service.may_show_tracebacks = True
    pieces: list[str] = []
    plan = script(pieces=5, each=0.01, fail_at=2)
    with (
        worker(service, session, "script").generate_stream(plan, Cancel()) as stream,
        pytest.raises(EngineError, match="engine of model 'script' failed"),
    ):
        for burst in stream:
            pieces += burst.pieces if burst is not None else []
    assert pieces == ["x", "x"]


def test_errors_are_the_same_on_either_side(service: Service, session: Session):
    with pytest.raises(UnknownModel, match="there is no model 'nobody' here"):
        worker(service, session, "nobody").generate(GenerateRequest("nobody", prompt="x"), Cancel())
    with pytest.raises(UnknownModel, match="there is no model 'nobody' here"):
        worker(service, session, "nobody").metadata()
    with pytest.raises(InvalidRequest) as caught:
        worker(service, session, "echo").generate(GenerateRequest("echo", prompt="x", top_p=7), Cancel())
    assert [error["field"] for error in caught.value.errors] == ["top_p"]
    with pytest.raises(InvalidRequest) as caught:
        worker(service, session, "echo-embed", "text2vec").embeddings([5], Cancel())
    assert [error["field"] for error in caught.value.errors] == ["input[0]"]
    assert worker(service, session, "echo-embed", "text2vec").embeddings([], Cancel()) == []


def test_streams_of_a_worker_that_is_killed_end_with_an_error(run: Services, session: Session):
    service = run.start(MODELS.format(journal=run.folder() / "journal"))
    remote = worker(service, session, "slow")
    ends: list[tuple[int, BaseException | None]] = []
    began = threading.Barrier(11)

    def read() -> None:
        pieces, error = 0, None
        with remote.generate_stream(GenerateRequest("slow", prompt="x", max_new_tokens=4000), Cancel()) as stream:
            try:
                pieces += len(next(burst for burst in stream if burst is not None).pieces)
                began.wait(20)
                for burst in stream:
                    pieces += len(burst.pieces) if burst is not None else 0
            except ModelyardError as raised:
                error = raised
        ends.append((pieces, error))

    table = "limit_model_concurrency"
    RemoteMachine(api(service), session).worker_apply("slow", "update_params", None, {table: 16})
    threads = [threading.Thread(target=read) for _ in range(10)]
    for thread in threads:
        thread.start()
    began.wait(20)
    service.signal(signal.SIGSTOP)  # no new worker is started in the place of the old one
    subprocess.run(["kill", "-KILL", str(service.worker_pid())], check=True)
    for thread in threads:
        thread.join(20)
    assert [type(error) for _, error in ends] == [WorkerLost] * 10
    assert all(pieces for pieces, _ in ends)


GEVENT = """
from gevent import monkey
monkey.patch_all()
import json, sys, time
import gevent
from modelyard.streams import Cancel
from modelyard.errors import Cancelled, WorkerUnreachable
from modelyard.cluster.remote_model import RemoteModelWorker
from modelyard.sessions.session import Session
from modelyard.types import GenerateRequest

url = sys.argv[1]
session = Session(read_timeout=10)
slow = RemoteModelWorker("slow@llm", url, session)

def whole(_):
    return slow.generate(GenerateRequest("slow", prompt="x", max_new_tokens=20), Cancel()).text.count("token")

began = time.monotonic()
counts = [job.get() for job in [gevent.spawn(whole, number) for number in range(8)]]
together = time.monotonic() - began

cancel = Cancel()
gevent.spawn_later(0.2, cancel.set)
began = time.monotonic()
try:
    plan = json.dumps({"before": 60})
    RemoteModelWorker("script@llm", url, session).generate(GenerateRequest("script", prompt=plan), cancel)
except Cancelled:
    cancelled = time.monotonic() - began

with slow.generate_stream(GenerateRequest("slow", prompt="x", max_new_tokens=4000), Cancel()) as stream:
    first = next(burst for burst in stream if burst is not None).pieces

ticks = []
plan = json.dumps({"before": 2.5, "pieces": 1})
script = RemoteModelWorker("script@llm", url, session)
with script.generate_stream(GenerateRequest("script", prompt=plan), Cancel()) as stream:
    for burst in stream:
        ticks.append(burst is None)

try:
    Session(read_timeout=0.5).request("GET", sys.argv[2])
except WorkerUnreachable as error:
    silent = str(error)
again = slow.count_token("a b")
session.close()
print(json.dumps([counts, together, cancelled, first, any(ticks), silent, again]))
"""


def test_it_works_under_gevent(service: Service):
    with faulty(stalls()) as silent:
        done = subprocess.run(
            [sys.executable, "-c", GEVENT, api(service), silent.url], capture_output=True, text=True, timeout=100
        )
    assert done.returncode == 0, done.stderr
    counts, together, cancelled, first, ticked, told, again = json.loads(done.stdout)
    assert counts == [20] * 8
    assert together < 8 * 20 * 0.02, "greenlets wait at the same time"
    assert 0.1 < cancelled < 1.2
    assert set(first) == {" token"}
    assert ticked
    assert "was silent for 0.5 s" in told
    assert again == 2


def test_an_address_that_answers_again_is_used_again(run: Services, session: Session):
    service = run.start(MODELS.format(journal=run.folder() / "journal"))
    remote = worker(service, session, "echo")
    assert remote.count_token("a") == 1
    service.kill()
    for _ in range(2):
        # The port may be open for a moment after the process that listened has gone.
        with pytest.raises(WorkerUnreachable, match=r"refused the connection|closed the connection"):
            remote.count_token("a")
    back = run.start(MODELS.format(journal=run.folder() / "journal"), port=service.port)
    assert remote.count_token("a b") == 2
    back.kill()
