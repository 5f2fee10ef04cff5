"""After hundreds of requests that ended in every way there is, threads, files, slots and budget are what they were."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
from clients import NO_WAIT, Connection
from processes import open_files, threads_of
from running import INLINE, Service, Services, wait_until

from scripts import script

TABLES = """
[[models]]
name = "script"
worker_class = "scripted:Scripted"
limit_model_concurrency = 4
max_waiting = 8

[[models]]
name = "impatient"
worker_class = "scripted:Scripted"
limit_model_concurrency = 1
max_waiting = 4
queue_timeout = 0.1

[[models]]
name = "blocking"
worker_class = "scripted:Blocking"
limit_model_concurrency = 4
max_waiting = 8

[[models]]
name = "vectors"
worker_class = "scripted:Scripted"
worker_type = "text2vec"
limit_model_concurrency = 4
max_waiting = 4
"""
CROWD = 12


@pytest.fixture(scope="module", params=INLINE)
def service(request: pytest.FixtureRequest, run_module: Services) -> Iterator[Service]:
    service = run_module.start(TABLES, worker_class=request.param, first_output_timeout=0.2, threads=32, reserve=8)
    service.may_show_tracebacks = True
    yield service
    service.kill()


def finished(service: Service, call: str, model: str) -> None:
    requests.post(service.url(call), json=script(model, pieces=3, each=0.001), timeout=60)


def failed(service: Service, call: str, model: str) -> None:
    requests.post(service.url(call), json=script(model, pieces=3, fail_at=1), timeout=60)


def invalid(service: Service, call: str, model: str) -> None:
    requests.post(service.url(call), json={**script(model), "model": 7}, timeout=60)


def refused(service: Service, call: str, model: str) -> None:
    requests.post(service.url(call), json=script(model, each=0.001), headers=NO_WAIT, timeout=60)


def hung_up_at_once(service: Service, call: str, model: str) -> None:
    with Connection(service.port) as client:
        client.send("POST", call, script(model, pieces=1000, each=0.01, before=0.02))


def hung_up_later(service: Service, call: str, model: str) -> None:
    with Connection(service.port) as client:
        client.send("POST", call, script(model, pieces=50, each=0.01))
        client.read_head()


def reset(service: Service, call: str, model: str) -> None:
    client = Connection(service.port)
    client.send("POST", call, script(model, pieces=1000, each=0.01))
    client.reset()


WAYS: list[Callable[[Service, str, str], None]] = [
    finished, failed, invalid, refused, hung_up_at_once, hung_up_later, reset
]  # fmt: skip
CALLS = [
    ("generate_stream", "script"),
    ("generate", "script"),
    ("generate_stream", "blocking"),
    ("generate", "impatient"),
    ("embeddings", "vectors"),
]


def crowd(service: Service) -> None:
    """Let a dozen clients end requests in every way, each in another order."""

    def client(number: int) -> None:
        cases = list(itertools.product(WAYS, CALLS))
        for way, (call, model) in cases[number:] + cases[:number]:
            way(service, call, model)

    threads = [threading.Thread(target=client, args=(number * 3,)) for number in range(CROWD)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def is_idle(service: Service) -> bool:
    vectors = service.post("embeddings", script("vectors"), headers=NO_WAIT)
    loads = [service.load("script"), service.load("blocking")]
    return (
        all(load == {"slots": 4, "free": 4, "waiting": 0} for load in loads)
        and service.load("impatient") == {"slots": 1, "free": 1, "waiting": 0}
        and vectors.headers.get("Modelyard-Load") == "slots=4;free=4;waiting=0"
    )


def test_nothing_is_left_behind(service: Service) -> None:
    pid = service.worker_pid()
    crowd(service)
    wait_until(lambda: is_idle(service), "all slots free")
    files, threads = wait_until(lambda: settled(pid), "the connections to close")
    for _ in range(2):
        crowd(service)
        wait_until(lambda: is_idle(service), "all slots free")
        # A slot is free when its answer is computed; the budget, when it has been sent, or nobody took it in time.
        wait_until(lambda: settled(pid), "the connections to close")
        wait_until(lambda: open_files(pid) <= files, f"{files} open files, as before")
        # A pool that has served its crowd may grow by one that was late, never by one a request.
        wait_until(lambda: threads_of(pid) <= threads + CROWD, f"about {threads} threads, as before")
    assert service.worker_pid() == pid
    with_full_budget(service)


def settled(pid: int) -> tuple[int, int] | None:
    """Return open files and threads, once no connection is open but those of the listener and the like."""
    connections = [line for line in tcp_lines(pid) if line.split()[3] != "0A"]
    return None if connections else (open_files(pid), threads_of(pid))


def tcp_lines(pid: int) -> list[str]:
    """Return the TCP sockets that the process itself holds."""
    own = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            own.add(str(fd.readlink()).removeprefix("socket:[").removesuffix("]"))
        except OSError:
            continue
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    return [line for line in lines if line.split()[9] in own]


def with_full_budget(service: Service) -> None:
    """Assert that the whole budget is there: 24 requests, 12 of each model, 4 of them in slots."""
    with ExitStack() as clients:
        streams = [clients.enter_context(Connection(service.port)) for _ in range(24)]
        for number, client in enumerate(streams):
            client.send("POST", "generate_stream", script(["script", "blocking"][number % 2], before=60))
        assert [client.read_head().status for client in streams] == [200] * 24
        assert "--threads" in service.post("generate", script("impatient")).json()["text"]
