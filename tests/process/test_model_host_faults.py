"""Processes of a monolith, and its model host, are killed, hang, are reloaded: what is left goes on, with one host."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from clients import DELTA, NO_WAIT, Connection, chunks_of
from monoliths import (
    API,
    LOGIN,
    PREFIX,
    TABLES,
    ask,
    begin,
    host_pid,
    host_processes,
    kill,
    monolith,
    only,
    wait_gone,
    wait_host,
    wait_workers,
    web_pids,
)
from processes import children, is_alive, processes_of, state_of
from running import Service, Services, wait_until

from scripts import journal, script

QUARANTINED = """
[[models]]
name = "deadly"
worker_class = "scripted:Scripted"
die_while = "{folder}/deadly"
"""


@pytest.fixture
def shop(shop_of_four: Service) -> Service:
    """The monolith, whose next host is started without a pause however many were killed before."""
    host = wait_host(shop_of_four)
    (lock,) = (shop_of_four.folder / "state").rglob("host.lock")
    lock.write_text(json.dumps({"pid": host, "starts": 0}))
    return shop_of_four


@pytest.fixture(scope="module")
def shop_of_four(run_module: Services) -> Iterator[Service]:
    """A monolith of four processes; each test of it leaves it as it was, with a host."""
    service = monolith(run_module, "--preload", slots=16, first_output_timeout=0.2)
    wait_workers(service, 4)
    yield service
    service.kill()


def answers(service: Service) -> bool:
    return service.post(f"{API}generate", script(pieces=2)).json()["text"] == "xx"


# A web process


@pytest.mark.parametrize("which", ["the one that started the host", "another"])
def test_the_host_outlives_a_web_process_that_is_killed(shop: Service, which: str) -> None:
    host, starts, pids = wait_host(shop), len(journal(shop, "start")), wait_workers(shop, 4)
    starter = [pid for pid in pids if host in children(pid)]
    if which == "another":
        pids = [pid for pid in pids if pid not in starter]
    else:
        # Nobody else is told: so the next host has a starter among those that are alive.
        if not starter:
            kill_host(shop)
            host = wait_host(shop, other_than=host)
            starts = len(journal(shop, "start"))
            starter = [pid for pid in web_pids(shop) if host in children(pid)]
        pids = starter
    kill(pids[0])
    for pid in wait_workers(shop, 4, without={pids[0]}):
        assert json.loads(ask(shop, pid, "POST", f"{API}generate", script(pieces=2))[1])["text"] == "xx"
    assert host_pid(shop) == host
    assert len(journal(shop, "start")) == starts


def test_a_stream_of_a_web_process_that_is_killed_frees_its_slot(shop: Service) -> None:
    wait_host(shop)
    pid = web_pids(shop)[0]
    name = f"of {pid}"
    stream = begin(shop, pid, script(name=name, pieces=10_000, each=0.02))
    kill(pid)
    wait_until(lambda: journal(shop, f"end {name}"), "the engine lets go", 5)
    stream.close()
    wait_workers(shop, 4, without={pid})


def test_a_web_process_that_hangs_hinders_nobody_and_is_replaced(run: Services) -> None:
    service = monolith(run, "--timeout", "2", workers=2)
    host = wait_host(service)
    hung, other = wait_workers(service, 2)
    stream = begin(service, hung, script(name="hung", pieces=10_000, each=0.02))
    os.kill(hung, signal.SIGSTOP)
    wait_until(lambda: state_of(hung) == "T", "it hangs")
    answer = service.post(f"{API}generate", script(pieces=2))
    assert (answer.json()["text"], answer.headers["Shop-Pid"]) == ("xx", str(other))
    wait_workers(service, 2, without={hung})
    wait_until(lambda: journal(service, "end hung"), "its slot is free", 5)
    stream.close()
    assert answers(service)
    assert host_pid(service) == host
    assert len(journal(service, "start")) == 2


# The host


STARTED = "the model host is started"
NOTES_FORKS = """
import os

control_socket_disable = True


def note(path, text):
    with open(path, "a") as notes:
        notes.write(text + "\\n")


def post_fork(server, worker):
    os.register_at_fork(before=lambda: note("{folder}/forks", str(os.getpid())))


def pre_request(worker, request):
    note("{folder}/requests", request.query)
"""


def test_under_gevent_a_host_is_started_without_a_fork_in_python_and_no_request_is_read_twice(run: Services) -> None:
    folder = run.folder()
    (folder / "notes.py").write_text(NOTES_FORKS.format(folder=folder))
    arguments, options = ["-c", str(folder / "notes.py")], {"host_timeout": 60, "tracing": f"file:{folder}/spans"}
    service = monolith(run, *arguments, workers=1, worker_class="gevent", models="script", folder=folder, **options)
    host = wait_host(service)
    worker = children(host)
    kill(host, *worker)
    wait_until(lambda: not any(map(is_alive, (host, *worker))), "the host has ended")
    with ThreadPoolExecutor(10) as pool:
        burst = list(pool.map(lambda number: service.post(f"{API}generate?{number}", script(pieces=2)), range(30)))
    assert [answer.json()["text"] for answer in burst] == ["xx"] * 30
    assert host_pid(service) != host
    read = [line for line in (folder / "requests").read_text().splitlines() if line]
    assert sorted(map(int, read)) == list(range(30))
    assert not (folder / "forks").exists(), "the child of a fork runs the greenlets of its parent"


@pytest.mark.parametrize("what", ["its two processes", "its master", "its worker"])
def test_streams_end_with_an_error_when_the_host_is_killed_and_the_next_requests_are_answered(
    shop: Service, what: str
) -> None:
    host = wait_host(shop)
    (worker,) = children(host)
    pids, starts, hosts = web_pids(shop), len(journal(shop, "start")), shop.log().count(STARTED)
    plan = {"pieces": 10_000, "each": 0.02, "name": f"before {what} of {host}"}
    streams = [begin(shop, pids[number % 4], script(**plan), DELTA) for number in range(10)]
    waiting = Connection(shop.port, 30)
    waiting.send("POST", f"{API}generate", script(before=60, name=f"waits for {host}"), LOGIN)
    wait_until(lambda: journal(shop, f"begin waits for {host}"), "all are under way")
    kill(*{"its two processes": [host, worker], "its master": [host], "its worker": [worker]}[what])
    killed = time.monotonic()
    for stream in streams:
        last = chunks_of(b"\0" + read_rest(stream))[-1]
        # A worker whose master was killed ends at once, but in order.
        told = (503, "draining") if what == "its master" else (502, "worker_lost")
        assert (last["error_code"], last["model_context"]["error"]) == told, last
        assert last["text"]
        stream.close()
    if what == "its master":
        # Nothing of it had come, so it waits for the next host, or it is refused where it met the one that ends.
        begun = f"begin waits for {host}"
        wait_until(
            lambda: len(journal(shop, begun)) == 2 or select.select([waiting.sock], [], [], 0)[0],
            "it begins again, or is refused",
        )
    else:
        head, body = waiting.read_answer()
        assert (head.status, "retry-after" in head.headers) == (503, True), body
        assert json.loads(body)["text"]
    waiting.close()
    assert time.monotonic() - killed < 20, "soon, and not when a time is up"
    # What comes while it is dying may still have reached it.
    wait_until(lambda: not is_alive(worker) and (what == "its worker" or not is_alive(host)), "it is dead")
    if what != "its worker":
        # While one process is asked the others stand still: the one that starts the host must have done it.
        wait_until(lambda: shop.log().count(STARTED) > hosts, "the next host is started")
    # Not one is refused: each waits for the host, which has begun to load.
    for pid in pids:
        assert json.loads(ask(shop, pid, "POST", f"{API}generate", script(pieces=2))[1])["text"] == "xx"
    vectors = shop.post(f"{API}embeddings", {"model": "vectors", "input": ["x"]})
    assert vectors.json() == [[1.0, 0.0]]
    assert (wait_host(shop) == host) == (what == "its worker")
    wait_until(lambda: len(host_processes(shop.folder)) == 2, "one host")
    assert len(journal(shop, "start")) == starts + 2
    assert web_pids(shop) == pids


def kill_host(service: Service) -> None:
    """Kill all processes of the host, and return when they are dead: whoever asks later asks the next."""
    pids = host_processes(service.folder)
    kill(*pids)
    wait_until(lambda: all(map(is_gone, pids)), "they are dead")


def is_gone(pid: int) -> bool:
    """Whether a process is dead with all of its threads: until then its sockets take connections."""
    try:
        threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
    except OSError:
        return True
    return threads <= 1 and not is_alive(pid)


def read_rest(stream: Connection) -> bytes:
    """Return what is left of a chunked body, without the framing."""
    whole = b""
    while data := stream.read_http_chunk():
        whole += data
    return whole


def test_who_may_not_wait_long_is_refused_while_the_host_is_started(run: Services) -> None:
    service = monolith(run, workers=2, host_timeout=0.1)
    host = wait_host(service)
    with Connection(service.port) as one, Connection(service.port) as other:
        # Both are accepted, and neither was sent.
        for client in (one, other):
            client.send("GET", f"{PREFIX}/healthz", headers=LOGIN)
            assert client.read_answer()[0].status == 200
        kill_host(service)
        one.send("POST", f"{API}generate", script(), LOGIN)
        head, body = one.read_answer()
        assert (head.status, "retry-after" in head.headers) == (503, True), body
        assert "model host" in json.loads(body)["text"]
        other.send("POST", f"{API}embeddings", {"model": "vectors", "input": ["x"]}, LOGIN)
        head, body = other.read_answer()
        assert (head.status, "retry-after" in head.headers) == (503, True), body
    assert wait_host(service) != host
    assert answers(service)


@pytest.mark.parametrize("what", ["socket", "lock", "life line", "folder"])
def test_when_what_they_share_is_deleted_there_is_one_host_again(shop: Service, what: str) -> None:
    host = wait_host(shop)
    old = host_processes(shop.folder)
    (socket,) = (shop.folder / "state").rglob("host.sock")
    if what == "folder":
        shutil.rmtree(shop.folder / "state")
    else:
        (socket.parent / {"socket": "host.sock", "lock": "host.lock", "life line": "host.life"}[what]).unlink()
    if what != "life line":
        new = wait_host(shop, other_than=host)
        wait_until(lambda: not any(map(is_alive, old)), "the old one is gone")
        wait_until(lambda: len(host_processes(shop.folder)) == 2, "there is one")
        host = new
    else:
        wait_until(lambda: (socket.parent / "host.life").exists(), "it is there again")
    for pid in web_pids(shop):
        assert json.loads(ask(shop, pid, "POST", f"{API}generate", script(pieces=2))[1])["text"] == "xx"
    assert socket.exists()
    assert host_pid(shop) == host


# Reloads


def test_a_reload_under_load_fails_no_request_and_keeps_the_host(run: Services) -> None:
    service = monolith(run, workers=4, slots=16)
    host, before = wait_host(service), set(wait_workers(service, 4))
    over, failures, done = threading.Event(), [], []

    def load() -> None:
        body = script(pieces=3, each=0.01)
        while not over.is_set():
            try:
                answer = requests.post(
                    service.url(f"{API}generate"), json=body, headers={**LOGIN, "Connection": "close"}, timeout=30
                )
                if answer.status_code != 200 or answer.json()["text"] != "xxx":
                    failures.append(answer.text)
            except requests.RequestException as error:
                failures.append(repr(error))
            done.append(1)

    threads = [threading.Thread(target=load) for _ in range(4)]
    stream = begin(service, min(before), script(pieces=100, each=0.03), DELTA)
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(done) > 20, "requests")
        service.signal(signal.SIGHUP)
        last = chunks_of(b"\0" + read_rest(stream))[-1]
        stream.close()
        wait_workers(service, 4, without=before)
        count = len(done)
        wait_until(lambda: len(done) > count + 20, "requests to the new ones")
    finally:
        over.set()
        for thread in threads:
            thread.join(30)
    assert failures == []
    assert last["finish_reason"] == "stop"
    assert host_pid(service) == host
    assert len(journal(service, "start")) == 2


def test_the_only_process_may_be_recycled_again_and_again(run: Services) -> None:
    service = monolith(run, "--max-requests", "4", workers=1)
    host, first = wait_host(service), web_pids(service)
    pids = {service.post(f"{API}generate", script(pieces=2)).headers["Shop-Pid"] for _ in range(20)}
    assert len(pids) >= 4
    assert web_pids(service) != first
    assert host_pid(service) == host
    assert len(journal(service, "start")) == 2


def test_between_two_processes_the_host_waits_as_long_as_their_master_is_there(run: Services) -> None:
    service = monolith(run, workers=1)
    host = wait_host(service)
    # Who comes next is not asked anything: nothing of it holds the host.
    (before,) = web_pids(service)
    kill(before)
    wait_workers(service, 1, without={before})
    with pytest.raises(AssertionError):
        wait_until(lambda: not is_alive(host), "it ends", 4.5)
    assert answers(service)
    assert host_pid(service) == host


# All of them


@pytest.mark.parametrize("server", [["--preload"], []], ids=["preloaded", "not"])
def test_when_all_are_killed_at_once_the_host_ends_within_seconds(run: Services, server: list[str]) -> None:
    service = monolith(run, *server)
    stream = begin(service, web_pids(service)[0], script(pieces=10_000, each=0.02))
    assert len(processes_of(service.folder)) == 7
    service.kill()
    wait_gone(service.folder, 8)
    stream.close()
    # It was told to: its engines ended as well.
    assert len(journal(service, "stop")) == 2


# What keeps it from starting


def test_a_host_that_can_not_boot_is_tried_again_after_growing_pauses(run: Services) -> None:
    folder = run.folder()
    (folder / "odd").mkdir()
    # What each interpreter reads first: the web server's is well, the host's is not.
    (folder / "odd" / "sitecustomize.py").write_text(
        "import os, sys\n"
        f"if 'modelyard.server.host_process' in sys.orig_argv and os.path.exists({str(folder / 'broken')!r}):\n"
        "    print('no host today', file=sys.stderr, flush=True)\n"
        "    os._exit(1)\n"
    )
    (folder / "broken").touch()
    surroundings = {"PYTHONPATH": f"{folder / 'odd'}:{Path(__file__).parent / 'engines'}"}
    service = monolith(run, workers=2, folder=folder, environ=surroundings, wait="nothing", host_timeout=0.1)

    noted: dict[int, float] = {}

    def has_third_start() -> bool:
        reason = service.status().get("reason") or ""
        for lock in (folder / "state").rglob("host.lock"):
            with suppress(ValueError):
                note = json.loads(lock.read_text())
                noted.setdefault(note.get("starts", 0), note.get("since", 0.0))
        return 3 in noted and "in a row" in reason

    wait_until(has_third_start, "three starts", 30)
    assert not service.status()["ready"]
    assert service.get("/").status_code == 200

    def refusal() -> str:
        refused = service.post(f"{API}generate", script())
        assert (refused.status_code, "Retry-After" in refused.headers) == (503, True)
        return str(refused.json()["text"])

    wait_until(lambda: "in a row" in refusal(), "the reason in a refusal")
    assert "no host today" in service.log()
    # Half a second after the first, a second after the second.
    assert all(noted[n + 1] - noted[n] >= 2.0 ** (n - 2) for n in (1, 2) if {n, n + 1} <= set(noted))
    (folder / "broken").unlink()
    wait_until(lambda: service.status()["ready"], "it starts by itself", 30)
    assert answers(service)


def test_a_model_that_kills_its_host_is_quarantined_and_the_others_live(run: Services) -> None:
    folder = run.folder()
    (folder / "deadly").touch()
    models = "script,vectors,deadly"
    service = monolith(run, workers=2, folder=folder, tables=TABLES + QUARANTINED, models=models, wait="nothing")
    wait_until(lambda: service.status().get("ready"), "the others", 40)
    states = {model["model"]: model["state"] for model in service.status()["models"]}
    assert states == {"script@llm": "ready", "vectors@text2vec": "ready", "deadly@llm": "failed"}
    assert service.model("deadly@llm")["reason"].startswith("quarantined")
    assert answers(service)
    refused = service.post(f"{API}generate", {"model": "deadly", "prompt": "x"})
    assert refused.status_code == 503
    assert "quarantine" in refused.json()["text"]
    (folder / "deadly").unlink()
    outcome = service.post(f"{API}apply", {"model": "deadly", "apply_type": "start"}).json()
    assert outcome["success"], outcome
    assert service.post(f"{API}generate", {"model": "deadly", "prompt": "x"}, headers=NO_WAIT).status_code == 200


def test_a_process_that_alone_was_left_starts_the_next_host(shop: Service) -> None:
    host = wait_host(shop)
    for pid in web_pids(shop)[:2]:
        with only(shop, pid):
            kill_host(shop)
            said: Any = requests.post(
                shop.url(f"{API}generate"), json=script(pieces=2), headers={**LOGIN, "Connection": "close"}, timeout=30
            )
            assert said.json()["text"] == "xx"
        host, before = wait_host(shop, other_than=host), host
        assert host != before
