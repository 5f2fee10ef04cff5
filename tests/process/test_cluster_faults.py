"""What dies, hangs, stalls or is restarted in a cluster, and what clients see of it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from clients import DELTA, outputs
from cluster_processes import SCRIPT, TABLES, Cluster, api, echo, wait_sees, wait_takes_part
from faulty_proxy import Proxy
from running import ENGINES, Service, Services, free_port, wait_until
from stores import StoreServers
from urllib3.exceptions import HTTPError

from scripts import journal, script

each_store = pytest.mark.parametrize("store", ["postgresql", "mariadb", "redis"])

SHIFTED = """
import time
_time, _time_ns, _gmtime = time.time, time.time_ns, time.gmtime
time.time = lambda: _time() + {hours} * 3600
time.time_ns = lambda: _time_ns() + {hours} * 3600 * 10**9
time.gmtime = lambda *said: _gmtime(*(said or (time.time(),)))
"""
"""A sitecustomize of a process whose clock is some hours off."""


class Request(threading.Thread):
    """One request in a thread of its own, until it is over or told to `end`."""

    def __init__(self, gateway: Service, body: dict[str, Any], *, stream: bool) -> None:
        super().__init__(daemon=True)
        self.url = gateway.url("generate_stream" if stream else "generate")
        self.body = body
        self.stream = stream
        self.pieces = 0
        self.last: dict[str, Any] = {}
        """What it came to."""
        self._ending = False
        self.start()

    def run(self) -> None:
        # What is still under way when the test ends breaks off.
        with suppress(requests.RequestException, HTTPError, AssertionError):
            self._ask()

    def _ask(self) -> None:
        with requests.post(self.url, json=self.body, headers=DELTA, stream=True, timeout=60) as response:
            if not self.stream:
                self.last = response.json()
                return
            for output in outputs(response):
                self.pieces += bool(output["text"]) and not output["error_code"]
                self.last = output
                if self._ending:
                    return

    def end(self) -> None:
        """Hang up, at the next piece."""
        self._ending = True
        self.join(10)

    @property
    def failed(self) -> bool:
        return bool(self.last.get("error_code"))


class Traffic:
    """Short answers and streams, asked for without a pause from several threads in a ``with``; none may fail."""

    def __init__(self, gateway: Service) -> None:
        self._gateway = gateway
        self._ended = threading.Event()
        self._failures: list[str] = []
        kinds = [self._short] * 2 + [self._stream] * 3
        self._counts = [0] * len(kinds)
        self._threads = [
            threading.Thread(target=self._ask_on, args=(ask, number), daemon=True) for number, ask in enumerate(kinds)
        ]

    def _ask_on(self, ask: Callable[[requests.Session], str], number: int) -> None:
        with requests.Session() as session:
            session.trust_env = False
            while not self._ended.is_set():
                try:
                    failure = ask(session)
                except (requests.RequestException, HTTPError, AssertionError, ValueError) as error:
                    failure = repr(error)
                if failure:
                    self._failures.append(failure)
                    return
                self._counts[number] += 1
                # Leaves the services some of the machine: what is told to start must come to it.
                self._ended.wait(0.005)

    def _short(self, session: requests.Session) -> str:
        answer = session.post(self._gateway.url("generate"), json=echo(), timeout=30)
        return answer.text if answer.status_code != 200 or answer.json()["error_code"] else ""

    def _stream(self, session: requests.Session) -> str:
        body = script(name="flow", each=0.01, pieces=20)
        with session.post(
            self._gateway.url("generate_stream"), json=body, headers=DELTA, stream=True, timeout=30
        ) as said:
            chunks = list(outputs(said))
        return "" if "".join(chunk["text"] for chunk in chunks) == "x" * 20 else f"{said.status_code} {chunks[-1:]}"

    def count(self) -> int:
        """Return how many were answered, as all must have been."""
        assert self._failures == []
        return sum(self._counts)

    def wait_more(self, count: int) -> None:
        """Wait until ``count`` more are answered."""
        wanted = self.count() + count
        wait_until(lambda: self.count() >= wanted, "traffic goes on", 60)

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(30)
        if kind is None:
            self.count()


def running(worker: Service, word: str) -> set[str]:
    """Return the names that begin with ``word`` of the requests that an engine there works on."""
    begun = {line.split()[1] for line in journal(worker, "begin")}
    ended = {line.split()[1] for line in journal(worker, "end")}
    return {name for name in begun - ended if name.startswith(word)}


def yard(run: Services, gateway: str = "gthread", **settings: Any) -> tuple[Cluster, Service]:
    """Return a cluster of a controller and two workers, and a gateway that sees them."""
    cluster = Cluster(run, **settings)
    cluster.start_controller()
    started = cluster.start("gateway", wait="nothing", http_threads=gateway)
    cluster.start_workers(2)
    wait_sees(started, 2)
    return cluster, started


def ask(gateway: Service, times: int = 1) -> None:
    """Ask something short, and fail unless it is answered."""
    for _ in range(times):
        answer = gateway.post("generate", script(name="short"))
        assert (answer.status_code, answer.json()["error_code"]) == (200, 0), answer.text


# A worker that dies


@pytest.mark.parametrize(
    ("kind", "threads"),
    [("for good", "gevent"), ("and its master starts it again", "gthread")],
    ids=["alone", "master"],
)
def test_when_a_worker_is_killed_its_streams_end_with_an_error_and_nothing_else_fails(
    run: Services, kind: str, threads: str
) -> None:
    cluster, gateway = yard(run, threads, heartbeat_timeout=60)
    victim, other = cluster.workers
    streams = [Request(gateway, script(name=f"s{n}", each=0.05, pieces=100_000), stream=True) for n in range(10)]
    wait_until(lambda: all(stream.pieces for stream in streams), "all stream")
    go = run.folder() / "go"
    silent = [Request(gateway, script(name=f"w{n}", pieces=1, until=str(go)), stream=n % 2 > 0) for n in range(6)]
    wait_until(lambda: len(running(victim, "w")) + len(running(other, "w")) == 6, "all wait")
    there, waiting = running(victim, "s"), running(victim, "w")
    assert there and waiting, "both have some"

    if kind == "for good":
        victim.kill()
    else:
        os.kill(victim.worker_pid(), signal.SIGKILL)
    lost = [stream for number, stream in enumerate(streams) if f"s{number}" in there]
    wait_until(lambda: all(stream.failed and not stream.is_alive() for stream in lost), "its streams have ended")
    for stream in lost:
        assert stream.pieces > 0
        assert stream.last["error_code"] == 502, stream.last
        assert str(victim.port) in stream.last["text"]
    go.touch()
    for request in silent:
        request.join(30)
        assert request.last and not request.failed, request.last
    assert waiting <= {line.split()[1] for line in journal(other, "begin")}, "they were sent to the other"

    if kind == "for good":
        with Proxy(port=victim.port) as listener:
            ask(gateway, 40)
            wait_until(lambda: listener.requests, "somebody looks whether it is back")
            assert listener.posts() == []
        victim = cluster.restart(victim)
    kept = [stream for stream in streams if stream not in lost]
    assert kept and all(stream.is_alive() for stream in kept), "the other's streams go on"
    wait_takes_part(gateway, victim)


def test_the_registry_alone_forgets_a_worker_that_is_dead(run: Services) -> None:
    cluster, _ = yard(run, heartbeat_timeout=1.5)
    victim, other = cluster.workers
    victim.kill()
    wait_until(lambda: cluster.healthy() == cluster.whole([other]), "it is unhealthy", 10)
    cluster.restart(victim)
    assert cluster.healthy() == cluster.whole()


# The controller, and the store


def test_while_controllers_are_away_traffic_does_not_notice_and_then_the_registry_is_whole(run: Services) -> None:
    """The gateway's controller is back first: then all that it knows is too old, until the workers reach theirs."""
    cluster = Cluster(run, heartbeat_timeout=1.5)
    store = f"sqlite:///{run.folder() / 'registry.db'}"
    cluster.controller = cluster.start("controller", registry=store, wait="nothing")
    workers_own = cluster.start("controller", registry=store)
    gateway = cluster.start("gateway", wait="nothing")
    cluster.start_workers(2, registry=api(workers_own))
    wait_sees(gateway, 2)
    with Traffic(gateway) as traffic:
        cluster.controller.kill()
        workers_own.kill()
        for service in (*cluster.workers, gateway):
            wait_until(lambda service=service: service.status()["cluster"]["error"], "it is missed")
        gone = time.monotonic()
        traffic.wait_more(100)
        wait_until(lambda: time.monotonic() - gone > 2, "their heartbeats are too old")
        cluster.restart(cluster.controller)
        wait_until(lambda: not gateway.status()["cluster"]["error"], "the gateway looks again")
        assert cluster.healthy() == set()
        traffic.wait_more(100)
        cluster.restart(workers_own)
        # They beat, and try again, at least every heartbeat_timeout / 3; and time for slow machines.
        cluster.wait_whole(0.5 + 1)
        traffic.wait_more(100)
    for worker in cluster.workers:
        assert worker.log().count("the registry was not reached") == 1, "said once, not at every beat"
        assert "the registry answers again" in worker.log()


@each_store
def test_a_store_that_is_restarted_is_not_noticed_either(run: Services, store_server: StoreServers, store: str) -> None:
    server = store_server(store)
    cluster = Cluster(run, heartbeat_timeout=1.5, registry=server.url())
    cluster.controller = cluster.start("controller")
    gateway = cluster.start("gateway", registry=server.url(), wait="nothing")
    cluster.start_workers(2, registry=server.url())
    wait_sees(gateway, 2)
    with Traffic(gateway) as traffic:
        traffic.wait_more(20)  # the gateway knows that there are no keys
        server.stop()
        for worker in cluster.workers:
            wait_until(lambda worker=worker: worker.status()["cluster"]["error"], "it is missed")
        traffic.wait_more(100)
        server.start()
        cluster.wait_whole(10)
        traffic.wait_more(100)
    beat = max(row["last_heartbeat"] for row in cluster.rows())
    wait_until(lambda: min(row["last_heartbeat"] for row in cluster.rows()) > beat, "all beat on")


# What accepts connections and is not there


class Stretch:
    """A cluster with one worker behind a proxy and another that is not; its gateway gives up after 1.5 s of silence."""

    def __init__(self, run: Services, proxy: Proxy, port: int) -> None:
        """Let the worker at ``port`` be the one behind ``proxy``."""
        cluster = Cluster(run, heartbeat_timeout=60)
        cluster.start_controller()
        self.proxy = proxy
        self.gateway = cluster.start("gateway", wait="nothing", read_timeout=1.5)
        advertised = f"http://127.0.0.1:{proxy.port}/api"
        self.behind = cluster.start("worker", TABLES, port=port, advertise=advertised, wait="nothing")
        self.other = cluster.start("worker", TABLES)
        wait_sees(self.gateway, 2)


@pytest.fixture(scope="module")
def stretched(run_module: Services) -> Iterator[Stretch]:
    port = free_port()
    with Proxy(port) as proxy:
        yield Stretch(run_module, proxy, port)


@pytest.fixture
def stretch(stretched: Stretch) -> Iterator[Stretch]:
    """All is well there, before the test and after it."""
    wait_takes_part(stretched.gateway, stretched.behind)
    try:
        yield stretched
    finally:
        stretched.proxy.flow()


def test_a_worker_that_accepts_and_never_answers_costs_one_request_its_time_and_none_its_answer(
    stretch: Stretch,
) -> None:
    proxy, gateway = stretch.proxy, stretch.gateway
    proxy.stall()
    before = len(proxy.posts())
    wait_until(lambda: ask(gateway) or len(proxy.posts()) > before, "one is sent there")
    ask(gateway, 40)
    assert len(proxy.posts()) == before + 1, "no other is"
    proxy.flow()
    wait_takes_part(gateway, stretch.behind)


def test_one_whose_health_answers_and_whose_models_do_not_fails_nothing_either(stretch: Stretch) -> None:
    proxy, gateway = stretch.proxy, stretch.gateway
    proxy.stall("^POST")
    before = len(proxy.posts())
    wait_until(lambda: ask(gateway) or len(proxy.posts()) > before + 1, "it is tried again after a probe")
    proxy.flow()
    wait_takes_part(gateway, stretch.behind)


def test_a_stream_that_stalls_midway_ends_with_an_error_and_the_next_requests_go_elsewhere(stretch: Stretch) -> None:
    proxy, gateway, behind, other = stretch.proxy, stretch.gateway, stretch.behind, stretch.other
    streams = [Request(gateway, script(name=f"s{n}", each=0.05, pieces=100_000), stream=True) for n in range(4)]
    try:
        wait_until(lambda: all(stream.pieces for stream in streams), "all stream")
        there = running(behind, "s")
        stalled = [stream for number, stream in enumerate(streams) if f"s{number}" in there]
        kept = [stream for stream in streams if stream not in stalled]
        assert stalled and kept
        proxy.stall()
        wait_until(lambda: all(stream.failed and not stream.is_alive() for stream in stalled), "they have ended", 10)
        for stream in stalled:
            assert stream.pieces > 0
            assert stream.last["error_code"] == 502
            assert "silent" in stream.last["text"]
        before = len(proxy.posts())
        ask(gateway, 40)
        assert len(proxy.posts()) == before
        wait_until(lambda: not running(behind, "s"), "what nobody reads is not computed on", 10)
        assert all(stream.is_alive() for stream in kept)
        assert len(running(other, "s")) == len(kept)
        proxy.flow()
        wait_takes_part(gateway, behind)
    finally:
        for stream in streams:
            stream.end()


# Restarts on purpose


@pytest.mark.parametrize(("how", "threads"), [("TERM and start", "gthread"), ("HUP", "gevent")])
def test_a_rolling_restart_fails_no_request(run: Services, how: str, threads: str) -> None:
    cluster, gateway = yard(run, threads, heartbeat_timeout=60)

    def is_renewed(worker: Service, old: int) -> bool:
        return worker.worker_pid() not in (0, old) and bool(worker.status().get("ready"))

    with Traffic(gateway) as traffic:
        traffic.wait_more(100)
        for worker in list(cluster.workers):
            if how == "HUP":
                old = worker.worker_pid()
                worker.signal(signal.SIGHUP)
                wait_until(lambda worker=worker, old=old: is_renewed(worker, old), "a new process", 40)
            else:
                worker.signal(signal.SIGTERM)
                assert worker.wait_ended(40) == 0
                cluster.restart(worker)
        traffic.wait_more(100)
    for worker in cluster.workers:
        wait_takes_part(gateway, worker)


# Clocks


def shifted(run: Services, hours: int) -> dict[str, str]:
    """Return the environment of a process whose clock is off."""
    folder: Path = run.folder()
    (folder / "sitecustomize.py").write_text(SHIFTED.format(hours=hours))
    return {"PYTHONPATH": f"{folder}{os.pathsep}{ENGINES}"}


@pytest.mark.parametrize("store", ["sqlite", "postgresql", "redis"])
def test_clocks_an_hour_apart_make_nobody_unhealthy(run: Services, store_server: StoreServers, store: str) -> None:
    cluster = Cluster(run, heartbeat_timeout=1.5)
    if store == "sqlite":
        cluster.controller = cluster.start("controller", environ=shifted(run, 1))
        registry = api(cluster.controller)
    else:
        registry = store_server(store).url()
        cluster.controller = cluster.start("controller", registry=registry)
    cluster.workers = [
        cluster.start("worker", TABLES, registry=registry, environ=shifted(run, hours), wait="nothing")
        for hours in (-1, 2)
    ]
    gateway = cluster.start("gateway", registry=registry, environ=shifted(run, -2), wait="nothing")
    views = [cluster.controller]
    if store != "sqlite":
        views.append(cluster.start("controller", registry=registry, environ=shifted(run, 3)))
    for worker in cluster.workers:
        worker.wait_ready()
    wait_sees(gateway, 2)
    for _ in range(2):
        beats = min(row["last_heartbeat"] for row in cluster.rows())
        for view in views:
            assert cluster.healthy(at=view) == cluster.whole()
        ask(gateway, 2)
        wait_until(lambda beats=beats: min(row["last_heartbeat"] for row in cluster.rows()) > beats, "all beat")
    shown = time.mktime(time.strptime(gateway.wait_for_line(status=200)["time"], "%Y-%m-%dT%H:%M:%SZ"))
    assert abs(shown - time.mktime(time.gmtime()) + 2 * 3600) < 600, "its clock is off indeed"
    cluster.workers[0].kill()
    gone = cluster.workers.pop(0)
    for view in views:
        wait_until(lambda view=view: cluster.healthy(at=view) == cluster.whole(), f"{gone.port} is missed", 10)


# Neighbours


def test_two_workers_on_one_host_are_apart_in_state_locks_and_registry(run: Services) -> None:
    cluster = Cluster(run)
    cluster.start_controller()
    state = run.folder()
    one, two = cluster.start_workers(2, state_dir=state)
    assert sorted(path.parent.name for path in state.glob("*/lock")) == sorted(f"worker-{w.port}" for w in (one, two))
    stopped = one.post("apply", {"model": "script", "apply_type": "stop"})
    assert stopped.json()["success"]
    rest = cluster.whole() - {(SCRIPT, one.port)}
    wait_until(lambda: cluster.healthy() == rest, "one model is deregistered")
    one.signal(signal.SIGTERM)
    assert one.wait_ended(20) == 0
    assert cluster.healthy() == cluster.whole([two])
    one = cluster.restart(one)
    assert cluster.healthy() == rest, "what was stopped there stays stopped there"
    assert two.model(SCRIPT)["state"] == "ready"
