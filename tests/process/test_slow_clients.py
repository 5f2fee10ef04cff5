"""Clients that send slowly, or nothing, or do not read: they hold nothing for long, and nobody else is hurt."""

from __future__ import annotations

import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import requests
from clients import DELTA, Connection, chunks_of
from processes import is_alive
from running import WORKER_CLASSES, Service, Services, console_script, wait_until

from scripts import journal, script

TABLES = """
[[models]]
name = "script"
worker_class = "scripted:Scripted"
limit_model_concurrency = 4
journal = "{journal}"
"""
THREADS = 16
HALF_A_HEAD = b"POST /api/worker/generate HTTP/1.1\r\nHost: x\r\n"
HALF_A_BODY = HALF_A_HEAD + b"Content-Length: 100\r\n\r\n{"
PARTS = {"nothing": b"", "half a head": HALF_A_HEAD, "half a body": HALF_A_BODY}
each_class = pytest.mark.parametrize("worker_class", WORKER_CLASSES)


def start(run: Services, **settings: object) -> Service:
    folder = run.folder()
    return run.start(TABLES.format(journal=folder / "journal"), folder=folder, threads=THREADS, **settings)


@contextmanager
def connections(port: int, count: int, part: bytes) -> Iterator[list[socket.socket]]:
    """Open ``count`` connections, each of which has sent ``part`` of a request."""
    with ExitStack() as stack:
        opened = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 20)) for _ in range(count)]
        for sock in opened:
            sock.sendall(part)
        yield opened


def is_up(service: Service, timeout: float) -> bool:
    return service.get("/healthz", timeout=timeout).status_code == 200


def test_health_answers_soon_after_the_time_limit_of_requests_that_do_not_come(run: Services) -> None:
    service = start(run, receive_timeout=0.5)
    for name, part in PARTS.items():
        with connections(service.port, 5 * THREADS, part) as opened:
            # Without a limit, idle connections take 25 s here, the others for ever.
            assert is_up(service, timeout=10), name
            assert service.status()["ready"]
            if name == "half a body":
                answers = [sock.recv(10_000) for sock in opened]
                # Those that waited for a thread for longer than the limit may be closed without one.
                assert any(b" 422 " in answer and b"within 0.5 s (receive_timeout)" in answer for answer in answers)
            else:
                assert opened[-1].recv(10_000) == b""


@each_class
def test_the_time_limit_hits_neither_a_pause_between_requests_nor_an_answer(run: Services, worker_class: str) -> None:
    service = start(run, receive_timeout=0.5, worker_class=worker_class)
    with Connection(service.port) as kept, Connection(service.port) as computing, Connection(service.port) as stream:
        computing.send("POST", "generate", script(before=1.5))
        stream.send("POST", "generate_stream", script(each=0.3, pieces=5), DELTA)
        for _ in range(2):
            kept.send("GET", "/healthz")
            assert kept.read_answer()[0].status == 200
            # What gunicorn itself waits for is shown by a client that pauses for longer than the limit.
            time.sleep(1.2)
        assert computing.read_answer()[0].status == 200
        assert chunks_of(stream.read_body(stream.read_head()))[-1]["finish_reason"] == "stop"
        # A second request that stays half sent is late as well.
        kept.sock.sendall(HALF_A_HEAD)
        assert kept.ends()


def test_the_limit_of_open_files_is_raised(run: Services) -> None:
    # The tests themselves have more files open than that.
    service = start(run, command=["sh", "-c", f"ulimit -Sn 256; exec {console_script('modelyard')} serve"])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert resource.prlimit(service.worker_pid(), resource.RLIMIT_NOFILE) == (hard, hard)


def test_more_connections_than_open_files_end_no_stream(run: Services) -> None:
    files = 128 + 2 * THREADS + 100
    command = ["sh", "-c", f"ulimit -n {files}; exec {console_script('modelyard')} serve"]
    service = start(run, command=command)
    worker = service.worker_pid()
    with Connection(service.port) as stream:
        stream.send("POST", "generate_stream", script(pieces=10, until=str(service.folder / "go")), DELTA)
        head = stream.read_head()
        with connections(service.port, files + 20, b""):
            wait_until(lambda: "no more are accepted" in service.log(), "the warning")
        assert is_up(service, timeout=20)
        (service.folder / "go").touch()
        assert chunks_of(stream.read_body(head))[-1]["finish_reason"] == "stop"
    assert service.worker_pid() == worker
    assert service.log().count("no more are accepted") == 1
    assert service.log().count("open files are allowed") == 1


@contextmanager
def bad_clients(service: Service) -> Iterator[Connection]:
    """Connect clients that send nothing, half a head, half a body, and one that does not read; give a kept one."""
    with ExitStack() as stack:
        for part in PARTS.values():
            stack.enter_context(Connection(service.port)).sock.sendall(part)
        deaf = stack.enter_context(Connection(service.port, receive_buffer=4096))
        deaf.send("POST", "generate_stream", script(name="deaf", pieces=1000, size=100_000))
        kept = stack.enter_context(Connection(service.port))
        kept.send("GET", "/healthz")
        kept.read_answer()
        wait_until(lambda: journal(service, "begin"), "the begin")
        yield kept


@each_class
def test_bad_clients_do_not_delay_a_term(run: Services, worker_class: str) -> None:
    service = start(run, drain_timeout=1, worker_class=worker_class)
    with bad_clients(service):
        service.signal(signal.SIGTERM)
        # It takes three seconds; with gunicorn alone, sixteen.
        assert service.wait_ended(8) == 0


@each_class
def test_bad_clients_do_not_delay_an_interrupt(run: Services, worker_class: str) -> None:
    service = start(run, worker_class=worker_class)
    with bad_clients(service):
        service.signal(signal.SIGINT)
        assert service.wait_ended(8) == 0


def test_an_interrupt_cuts_a_drain_short(run: Services) -> None:
    service = start(run)
    with bad_clients(service):
        service.signal(signal.SIGTERM)
        wait_until(lambda: service.status().get("state") == "draining", "draining")
        service.signal(signal.SIGINT)
        assert service.wait_ended(8) == 0


def test_bad_clients_do_not_delay_a_reload(run: Services) -> None:
    service = start(run, drain_timeout=1)
    before = service.worker_pid()
    with bad_clients(service):
        service.signal(signal.SIGHUP)
        wait_until(lambda: len(journal(service, "start")) == 2, "the models of the newcomer", 8)
        wait_until(lambda: service.worker_pid() not in (0, before), "the newcomer alone")
        assert service.wait_ready()


@each_class
def test_a_worker_ends_with_its_master_whatever_its_clients_do(run: Services, worker_class: str) -> None:
    service = start(run, worker_class=worker_class)
    worker = service.worker_pid()
    with bad_clients(service):
        service.signal(signal.SIGKILL)
        service.wait_ended(5)
        wait_until(lambda: not is_alive(worker), "the worker's end", 8)
    with pytest.raises(requests.ConnectionError):
        service.get("/healthz")
