"""How a service ends and reloads: running answers get their time, new work goes elsewhere, nobody waits for nothing."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import requests
from clients import DELTA, Connection, chunks_of
from processes import children, is_alive
from running import INLINE, WORKER_CLASSES, Service, Services, wait_until

from scripts import journal, script

TABLES = """
[[models]]
name = "echo"

[[models]]
name = "script"
worker_class = "scripted:Scripted"
limit_model_concurrency = 2
journal = "{journal}"
"""
PIECES = 10
each_class = pytest.mark.parametrize("worker_class", WORKER_CLASSES)


def start(run: Services, worker_class: str | None = None, **settings: Any) -> Service:
    folder = run.folder()
    options: dict[str, Any] = {"drain_timeout": 20, "first_output_timeout": 0.2, **settings}
    return run.start(TABLES.format(journal=folder / "journal"), folder=folder, worker_class=worker_class, **options)


def starts_and_stops(service: Service) -> list[str]:
    return [line for line in journal(service) if line.startswith(("start ", "stop "))]


def let_end(service: Service) -> None:
    """Let the answers end that wait for `held`."""
    (service.folder / "go").touch()


def held(service: Service, **plan: Any) -> dict[str, Any]:
    """Return a request whose last piece comes after `let_end`."""
    return script(pieces=PIECES, until=str(service.folder / "go"), **plan)


def is_draining(service: Service) -> bool:
    answer = service.answers("/readyz")
    return answer is not None and answer.status_code == 503 and answer.json()["reason"] == "draining"


def is_waiting(service: Service) -> bool:
    """Whether a process answers that waits until another has let go of the models."""
    return service.status().get("state") == "waiting"


def read_stream(client: Connection) -> list[dict[str, Any]]:
    return chunks_of(client.read_body(client.read_head()))


@each_class
def test_at_a_term_running_answers_complete_and_new_work_is_refused(run: Services, worker_class: str) -> None:
    service = start(run, worker_class)
    with Connection(service.port) as stream, Connection(service.port) as whole:
        stream.send("POST", "generate_stream", held(service, name="stream"), DELTA)
        whole.send("POST", "generate", held(service, name="whole"))
        wait_until(lambda: len(journal(service, "begin")) == 2, "both to begin")
        service.signal(signal.SIGTERM)
        wait_until(lambda: is_draining(service), "draining")
        for call, body in (
            ("generate", {"model": "echo", "prompt": "x"}),
            ("generate_stream", {"model": "echo", "prompt": "x"}),
            ("embeddings", {"model": "echo", "input": ["x"]}),
            ("count_token", {"model": "echo", "prompt": "x"}),
            ("apply", {"model": "echo", "apply_type": "stop"}),
        ):
            refused = requests.post(service.url(call), json=body, timeout=5)
            assert refused.status_code == 503, call
            assert int(refused.headers["Retry-After"]) >= 1
        assert requests.get(service.url("/healthz"), timeout=5).status_code == 200
        let_end(service)
        chunks = read_stream(stream)
        _, answer = whole.read_answer()
    assert "".join(chunk["text"] for chunk in chunks) == "x" * PIECES
    assert chunks[-1]["finish_reason"] == "stop"
    assert json.loads(answer)["text"] == "x" * PIECES
    assert service.wait_ended(20) == 0


@each_class
def test_those_over_the_drain_timeout_get_a_last_chunk_and_then_it_ends(run: Services, worker_class: str) -> None:
    service = start(run, worker_class, drain_timeout=1)
    with Connection(service.port) as talking, Connection(service.port) as silent, Connection(service.port) as whole:
        talking.send("POST", "generate_stream", script(name="talking", each=0.05, pieces=10_000), DELTA)
        silent.send("POST", "generate_stream", script(name="silent", before=600))
        wait_until(lambda: len(journal(service, "begin")) == 2, "both to begin")
        whole.send("POST", "generate", script(name="in line"))
        service.signal(signal.SIGTERM)
        said, unsaid = read_stream(talking), read_stream(silent)
        head, body = whole.read_answer()
    assert len(said) > 1
    for last in (said[-1], unsaid[-1]):
        assert last["error_code"] == 503
        assert "drain_timeout" in last["text"]
    assert (head.status, json.loads(body)["error_code"]) == (503, 503)
    assert service.wait_ended(20) == 0
    if worker_class in INLINE:  # a model host hears of each hang-up by itself, and a slot may be free before the last
        assert not journal(service, "begin in line")


@pytest.mark.parametrize("http_threads", ["gthread", "gevent"])
def test_idle_connections_do_not_delay_the_end(run: Services, http_threads: str) -> None:
    service = run.start("", "controller", http_threads=http_threads)
    # Their keep-alive is more than a minute, and gunicorn's graceful_timeout half of one.
    with Connection(service.port) as silent, Connection(service.port) as kept:
        kept.send("GET", "/healthz")
        assert kept.read_answer()[0].status == 200
        service.signal(signal.SIGTERM)
        assert service.wait_ended(20) == 0
        assert silent.ends()


def test_a_second_term_changes_nothing(run: Services) -> None:
    service = start(run)
    with Connection(service.port) as stream:
        stream.send("POST", "generate_stream", held(service, name="stream"), DELTA)
        wait_until(lambda: journal(service, "begin"), "the begin")
        service.signal(signal.SIGTERM)
        wait_until(lambda: is_draining(service), "draining")
        service.signal(signal.SIGTERM)
        os.kill(service.worker_pid(), signal.SIGTERM)
        let_end(service)
        assert read_stream(stream)[-1]["finish_reason"] == "stop"
    assert service.wait_ended(20) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_while_a_model_starts(run: Services, number: int) -> None:
    tables = '[[models]]\nname = "slow"\nworker_class = "scripted:Stubborn"\n'
    service = run.start(tables, wait="up", drain_timeout=0.2)
    wait_until(lambda: service.model("slow@llm").get("reason") == "thinking", "its progress")
    service.signal(number)
    assert service.wait_ended(30) == 0


@each_class
def test_an_interrupt_ends_it_soon_whatever_runs(run: Services, worker_class: str) -> None:
    service = start(run, worker_class)
    worker = service.worker_pid()
    with Connection(service.port) as stream:
        stream.send("POST", "generate_stream", script(name="stream", each=0.02, pieces=10_000))
        stream.read_head()
        stream.read_http_chunk()
        service.signal(signal.SIGINT)
        assert service.wait_ended(15) == 0
    assert not is_alive(worker)


def test_a_term_to_the_worker_alone_drains_it_and_another_takes_its_place(run: Services) -> None:
    service = start(run)
    first = service.worker_pid()
    with Connection(service.port) as stream:
        stream.send("POST", "generate_stream", held(service, name="stream"), DELTA)
        wait_until(lambda: journal(service, "begin"), "the begin")
        os.kill(first, signal.SIGTERM)
        wait_until(lambda: is_draining(service), "draining")
        let_end(service)
        assert read_stream(stream)[-1]["finish_reason"] == "stop"
    wait_until(lambda: service.worker_pid() not in (0, first), "another worker")
    service.wait_ready()
    assert starts_and_stops(service) == [f"start {first}", f"stop {first}", f"start {service.worker_pid()}"]


def test_a_reload_never_holds_two_copies_and_cuts_no_answer(run: Services) -> None:
    service = start(run)
    first = service.worker_pid()
    with Connection(service.port) as stream:
        stream.send("POST", "generate_stream", held(service, name="stream"), DELTA)
        wait_until(lambda: journal(service, "begin"), "the begin")
        service.signal(signal.SIGHUP)
        wait_until(lambda: is_waiting(service), "the newcomer waits for the models")
        assert len(children(service.pid)) == 2
        assert journal(service, "start") == [f"start {first}"], "the newcomer did not wait"
        let_end(service)
        assert read_stream(stream)[-1]["finish_reason"] == "stop"
    wait_until(lambda: service.worker_pid() not in (0, first), "the newcomer alone")
    service.wait_ready()
    assert service.post("generate", script(name="after")).status_code == 200
    assert starts_and_stops(service) == [f"start {first}", f"stop {first}", f"start {service.worker_pid()}"]


def test_reloads_one_after_the_other_leave_one_worker(run: Services) -> None:
    service = start(run)
    for _ in range(3):
        before = service.worker_pid()
        service.signal(signal.SIGHUP)
        wait_until(lambda before=before: service.worker_pid() not in (0, before), "the newcomer alone")
        service.wait_ready()
    starts, stops = journal(service, "start"), journal(service, "stop")
    assert (len(starts), len(stops)) == (4, 3)


def test_without_its_master_a_worker_ends_and_lets_go(run: Services) -> None:
    service = start(run)
    worker = service.worker_pid()
    service.signal(signal.SIGKILL)
    service.wait_ended(5)
    wait_until(lambda: not is_alive(worker), "the worker's end")
    again = run.start(TABLES.format(journal=service.folder / "journal"), folder=service.folder, port=service.port)
    assert again.post("generate", script(name="after")).status_code == 200


def _drain(service: Service) -> None:
    service.signal(signal.SIGTERM)


def _interrupt(service: Service) -> None:
    service.signal(signal.SIGINT)


@pytest.mark.parametrize("end", [_drain, _interrupt])
def test_an_end_leaves_nothing_running_and_no_sockets_behind(run: Services, end: Callable[[Service], None]) -> None:
    service = start(run)
    worker = service.worker_pid()
    end(service)
    assert service.wait_ended(15) == 0
    assert not is_alive(worker)
    assert list((service.folder / "tmp").iterdir()) == []
