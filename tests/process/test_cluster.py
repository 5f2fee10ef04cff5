"""A cluster as it should be: who is registered when, what a gateway answers with, and what is done to whole hosts."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from clients import DELTA, Connection, outputs
from cluster_processes import MANAGER, SCRIPT, TABLES, Cluster, api, echo, port_of, wait_sees
from faulty_proxy import Proxy
from processes import children
from running import Service, Services, free_port, wait_until

from scripts import journal, script

PEERS_KEYS = {
    *("model_name", "host", "port", "weight", "check_healthy", "healthy", "enabled", "prompt_template"),
    "last_heartbeat",
}
VECTORS = """
[[models]]
name = "vectors"
worker_class = "scripted:Scripted"
worker_type = "text2vec"
limit_model_concurrency = 8
"""


class Yard:
    """A cluster with a gateway."""

    def __init__(self, run: Services, workers: int = 2, tables: str = TABLES, **settings: Any) -> None:
        self.cluster = Cluster(run, **settings)
        self.cluster.start_controller()
        self.workers = self.cluster.start_workers(workers, tables)
        self.gateway = self.cluster.start("gateway")


@pytest.fixture(scope="module")
def yard(run_module: Services) -> Yard:
    """Two workers and a gateway, for tests that leave them as they were."""
    return Yard(run_module, tables=TABLES + VECTORS)


def answer_of(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    response = service.post("generate", body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def together(call: Callable[[], object], count: int) -> None:
    """Call from ``count`` threads at once, and raise the first failure of any."""
    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(call) for _ in range(count)]:
            done.result(60)


def place(service: Service) -> tuple[str, int]:
    return "127.0.0.1", service.port


# Registration


def test_each_worker_registers_its_manager_and_its_models(yard: Yard) -> None:
    rows = yard.cluster.rows()
    keys = {MANAGER, SCRIPT, "echo@llm", "vectors@text2vec"}
    assert {(row["key"], row["url"]) for row in rows} == {(key, api(w)) for key in keys for w in yard.workers}
    assert all(row["healthy"] and row["generation"] > 0 and "delta" in row["capabilities"] for row in rows)
    assert {row["load"] for row in rows if row["key"] == SCRIPT} == {"slots=16;free=16;waiting=0"}
    assert {row["load"] for row in rows if row["key"] == MANAGER} == {None}


def test_dbgpts_list_is_a_view_of_the_same_rows(yard: Yard) -> None:
    assert yard.cluster.controller is not None
    url = f"{api(yard.cluster.controller)}/controller/models"
    every = requests.get(url, timeout=10).json()
    assert all(set(row) == PEERS_KEYS for row in every)
    assert {(row["model_name"], row["host"], row["port"]) for row in every} == {
        (row["key"], "127.0.0.1", port_of(row)) for row in yard.cluster.rows()
    }
    named = requests.get(url, params={"model_name": SCRIPT, "healthy_only": "true"}, timeout=10).json()
    assert sorted(row["port"] for row in named) == sorted(worker.port for worker in yard.workers)


def test_a_model_is_registered_when_it_is_ready_and_not_before(run: Services) -> None:
    cluster = Cluster(run)
    cluster.start_controller()
    go = run.folder() / "go"
    tables = TABLES.replace("journal =", f'start_when = "{go}"\njournal =')
    worker = cluster.start("worker", tables, wait="nothing")
    wait_until(lambda: worker.model(SCRIPT).get("state") == "starting", "it starts", 60)
    wait_until(lambda: (MANAGER, worker.port) in cluster.healthy(), "its manager is registered")
    assert {row["key"] for row in cluster.rows()} == {MANAGER}
    go.touch()
    wait_until(lambda: cluster.healthy() == cluster.whole([worker]), "all are registered")


def test_a_worker_that_is_ready_is_registered(run: Services) -> None:
    cluster = Cluster(run)
    cluster.start_controller()
    for _ in range(3):
        worker = cluster.start("worker", TABLES)
        assert cluster.whole([worker]) <= cluster.healthy()


def test_the_deregistration_is_the_last_word(run: Services) -> None:
    tables = TABLES.replace("journal =", "heartbeat_interval = 0.1\njournal =")
    yard = Yard(run, workers=1, tables=tables)
    worker = yard.workers[0]
    with Connection(worker.port) as stream:
        stream.send("POST", "generate_stream", script(name="held", each=0.05, pieces=40), DELTA)
        wait_until(lambda: journal(worker, "piece held"), "it streams")
        worker.signal(signal.SIGTERM)
        wait_until(lambda: yard.cluster.healthy() == set(), "it is deregistered", 5)
        assert worker.is_running(), "while the stream goes on"
        beats = {row["key"]: row["last_heartbeat"] for row in yard.cluster.rows()}
        while worker.is_running():
            assert yard.cluster.healthy() == set()
            time.sleep(0.05)
        head = stream.read_head()
        assert b'"finish_reason": "stop"' in stream.read_body(head)
    assert {row["key"]: row["last_heartbeat"] for row in yard.cluster.rows()} == beats
    refused = yard.gateway.post("generate", script(name="late"))
    assert refused.status_code == 503
    assert "it is not healthy" in refused.json()["text"]


def test_a_model_may_stay_unregistered_or_send_no_heartbeats(run: Services) -> None:
    tables = TABLES + (
        '[[models]]\nname = "hidden"\nengine = "echo"\nregister = false\nlimit_model_concurrency = 2\n'
        '[[models]]\nname = "still"\nengine = "echo"\nsend_heartbeat = false\nlimit_model_concurrency = 2\n'
    )
    cluster = Cluster(run, heartbeat_timeout=0.6)
    cluster.start_controller()
    worker = cluster.start("worker", tables)
    first = {row["key"]: row for row in cluster.rows()}
    assert set(first) == {MANAGER, SCRIPT, "echo@llm", "still@llm"}
    assert {key for key, row in first.items() if not row["check_healthy"]} == {"still@llm"}

    def beaten_on() -> bool:
        rows = {row["key"]: row for row in cluster.rows()}
        assert rows["still@llm"]["last_heartbeat"] == first["still@llm"]["last_heartbeat"]
        return bool(rows[SCRIPT]["last_heartbeat"] > first[SCRIPT]["last_heartbeat"])

    for _ in range(5):
        wait_until(beaten_on, "the others beat")
        first[SCRIPT] = next(row for row in cluster.rows() if row["key"] == SCRIPT)
    worker.kill()
    wait_until(lambda: cluster.healthy() == {("still@llm", worker.port)}, "what needs heartbeats is unhealthy")


def test_it_beats_on_while_every_model_thread_computes(run: Services) -> None:
    cluster = Cluster(run, heartbeat_timeout=2, threads=24, reserve=8)
    cluster.start_controller()
    tables = '[[models]]\nname = "script"\nworker_class = "scripted:Scripted"\nlimit_model_concurrency = 8\n'
    worker = cluster.start("worker", tables + 'max_waiting = 8\njournal = "{folder}/journal"\n')
    clients = [Connection(worker.port) for _ in range(16)]
    try:
        for number, client in enumerate(clients):
            client.send("POST", "generate", script(name=f"busy{number}", burn=0.02, pieces=10_000))
        wait_until(lambda: len(journal(worker, "begin")) == 8, "all slots compute")
        until = time.monotonic() + 1.5 * cluster.settings["heartbeat_timeout"]
        while time.monotonic() < until:
            assert cluster.healthy() == {(MANAGER, worker.port), (SCRIPT, worker.port)}
            time.sleep(0.05)
        wait_until(lambda: cluster.rows(SCRIPT)[0]["load"] == "slots=8;free=0;waiting=8", "the load is said")
    finally:
        for client in clients:
            client.close()


def test_a_store_that_was_emptied_is_right_again_within_one_interval_and_traffic_goes_on(run: Services) -> None:
    yard = Yard(run)
    assert yard.cluster.controller is not None
    store = next(yard.cluster.controller.folder.glob("state/*/registry.db"))
    before = {(row["key"], row["url"]): row["generation"] for row in yard.cluster.rows()}
    store.unlink()
    # Beats come every heartbeat_timeout / 3.
    deadline = time.monotonic() + yard.cluster.settings["heartbeat_timeout"]
    while yard.cluster.healthy() != yard.cluster.whole():
        assert time.monotonic() < deadline
        assert answer_of(yard.gateway, echo())["error_code"] == 0
    rows = yard.cluster.rows()
    assert {(row["key"], row["url"]): row["generation"] for row in rows} == before


# Sessions


def test_all_gateways_send_a_session_to_the_same_worker_without_a_word_between_them(yard: Yard) -> None:
    gateways = [yard.cluster.start("gateway", wait="nothing", session_affinity=True) for _ in range(2)]
    for gateway in gateways:
        gateway.wait_ready()
        wait_sees(gateway, len(yard.workers))
    for session in range(8):
        name = f"session{session}"
        for gateway in gateways * 2:
            answered = gateway.post("generate", script(name=name), headers={"x-session-id": name})
            assert answered.json()["error_code"] == 0
        assert sorted(len(journal(worker, "begin", name)) for worker in yard.workers) == [0, 4]


# The address


def test_the_advertised_address_is_what_others_use(run: Services) -> None:
    cluster = Cluster(run)
    cluster.start_controller()
    port = free_port()
    with Proxy(port) as proxy:
        url = f"http://127.0.0.1:{proxy.port}/behind/a/proxy"
        settings = {"prefix": "/behind/a/proxy", "advertise": url}
        worker = cluster.start("worker", TABLES, port=port, **settings)
        assert {row["url"] for row in cluster.rows()} == {url}
        gateway = cluster.start("gateway")
        assert answer_of(gateway, echo(2))["text"] == " token token"
        assert proxy.posts() == ["/behind/a/proxy/worker/generate_stream"]
        assert worker.is_running()


def test_a_registration_that_is_refused_says_why(run: Services) -> None:
    cluster = Cluster(run)
    cluster.start_controller()
    worker = cluster.start("worker", TABLES, advertise="http://192.0.2.7:8000/api")
    assert cluster.rows() == []
    assert "192.0.2.7" in worker.status()["cluster"]["error"]
    assert "can't be registered" in worker.log()
    assert answer_of(worker, echo())["error_code"] == 0, "it serves those who know of it"


# What a gateway answers with


def test_a_gateway_answers_every_call_with_the_workers_models(yard: Yard) -> None:
    gateway = yard.gateway
    assert answer_of(gateway, echo(3))["text"] == " token token token"
    with gateway.post("generate_stream", script(name="a", pieces=3), headers=DELTA, stream=True) as response:
        pieces = list(outputs(response))
    assert [piece["text"] for piece in pieces if piece["text"]] == ["x", "x", "x"]
    assert pieces[-1]["finish_reason"] == "stop"
    with gateway.post("generate_stream", script(name="b", pieces=3), stream=True) as response:
        assert [chunk["text"] for chunk in outputs(response)][-1] == "xxx"
    assert gateway.post("embeddings", {"model": "vectors", "input": ["a", "b"]}).json() == [[1.0, 0.0]] * 2
    assert gateway.post("embeddings", {"model": "vectors", "input": ["a"], "query": "q"}).json() == [[1.0]]
    assert gateway.post("count_token", {"model": "script", "prompt": "four"}).json() == 4
    assert gateway.post("model_metadata", {"model": "script"}).json()["model"] == "script"
    described = gateway.get("parameter/descriptions?model=script").json()
    assert "flavour" in {one["param_name"] for one in described}
    unknown = gateway.post("generate", {"model": "nobody", "prompt": "x"}).json()
    assert unknown["error_code"] == 404
    assert "script@llm" in unknown["text"]


def test_two_workers_share_the_requests(yard: Yard) -> None:
    def ask() -> None:
        for _ in range(10):
            answer = requests.post(yard.gateway.url("generate"), json=script(name="share", each=0.01), timeout=30)
            assert answer.json()["error_code"] == 0

    together(ask, 6)
    begun = [len(journal(worker, "begin", "share")) for worker in yard.workers]
    assert sum(begun) == 60
    assert min(begun) >= 15


def test_who_hangs_up_at_a_gateway_ends_the_work_at_the_worker(yard: Yard) -> None:
    with Connection(yard.gateway.port) as client:
        client.send("POST", "generate_stream", script(name="left", each=0.05, pieces=10_000), DELTA)
        wait_until(lambda: sum(len(journal(w, "piece left")) for w in yard.workers) > 2, "it streams")
    wait_until(lambda: sum(len(journal(w, "end left")) for w in yard.workers) == 1, "the engine has ended", 5)


def test_apply_reaches_all_instances_and_its_outcomes_are_merged(yard: Yard) -> None:
    def applied(apply_type: str, model: str = "script", **params: Any) -> dict[str, Any]:
        response = yard.gateway.post("apply", {"model": model, "apply_type": apply_type, "params": params})
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    stopped = applied("stop")
    assert stopped["success"]
    assert all(f"127.0.0.1:{worker.port}" in stopped["message"] for worker in yard.workers)
    wait_until(lambda: not any(key == SCRIPT for key, _ in yard.cluster.healthy()), "both are deregistered")
    refused = yard.gateway.post("generate", script(name="stopped"))
    assert (refused.status_code, refused.json()["error_code"]) == (503, 503)
    started = applied("start")
    assert started["success"]
    wait_until(lambda: sum(key == SCRIPT for key, _ in yard.cluster.healthy()) == 2, "both are registered")
    assert answer_of(yard.gateway, script(name="again"))["error_code"] == 0

    # One of two fails: all must succeed, and the message says which did not.
    requests.post(yard.workers[0].url("apply"), json={"model": "script", "apply_type": "stop"}, timeout=10)
    wait_until(lambda: sum(key == SCRIPT for key, _ in yard.cluster.healthy()) == 1, "one is deregistered")
    assert applied("restart")["success"]
    wait_until(lambda: sum(key == SCRIPT for key, _ in yard.cluster.healthy()) == 2, "both are registered")
    changed = applied("update_params", flavour="strange")
    assert changed["success"] and changed["message"].count("flavour") == 2
    assert yard.gateway.post("apply", {"model": "nobody", "apply_type": "stop"}).status_code == 404
    assert applied("update_params", flavour="plain")["success"]


def test_models_are_started_and_shut_down_on_a_chosen_host(yard: Yard) -> None:
    there = yard.workers[1]
    body = {"model": "extra", "worker_type": "llm", "params": {"limit_model_concurrency": 2}}
    missing = yard.gateway.post("models/startup", {**body, "model": "echo"})
    assert missing.status_code == 422
    assert all(str(worker.port) in missing.text for worker in yard.workers)
    wrong = yard.gateway.post("models/startup", {**body, "host": "127.0.0.1", "port": 1})
    assert wrong.status_code == 422
    host, port = place(there)
    shut = yard.gateway.post("models/shutdown", {"model": "echo", "worker_type": "llm", "host": host, "port": port})
    assert (shut.status_code, shut.json()) == (200, None)
    # The worker tells the registry after it has answered.
    wait_until(
        lambda: ("echo@llm", there.port) not in {(row["key"], port_of(row)) for row in yard.cluster.rows()}, "forgotten"
    )
    assert answer_of(yard.gateway, echo())["error_code"] == 0, "the other has it"
    begun = yard.gateway.post("models/startup", {"model": "echo", "worker_type": "llm", "host": host, "port": port})
    assert (begun.status_code, begun.json()) == (200, None)
    wait_until(lambda: ("echo@llm", there.port) in yard.cluster.healthy(), "it is registered again")
    twice = yard.gateway.post("models/startup", {"model": "echo", "worker_type": "llm", "host": host, "port": port})
    assert twice.status_code == 409


# Other shapes


def test_a_controller_stands_in_front_of_another(run: Services) -> None:
    cluster = Cluster(run)
    back = cluster.start("controller")
    front = cluster.start("controller", registry=api(back))
    cluster.controller = front
    worker = cluster.start_workers(1)[0]
    assert cluster.healthy(at=front) == cluster.healthy(at=back) == cluster.whole()
    gateway = cluster.start("gateway", registry=api(front))
    assert answer_of(gateway, script(name="far"))["error_code"] == 0
    worker.signal(signal.SIGTERM)
    assert worker.wait_ended(20) == 0
    assert cluster.healthy(at=back) == set()
    back.kill()
    away = requests.get(f"{api(front)}/controller/instances", timeout=10)
    assert away.status_code == 503
    assert str(back.port) in away.text


def test_of_several_controllers_the_first_that_answers_serves(run: Services) -> None:
    store = run.folder() / "shared.db"
    cluster = Cluster(run, heartbeat_timeout=1.5)
    dead = f"http://127.0.0.1:{free_port()}/api"
    one, two = (cluster.start("controller", registry=f"sqlite:///{store}") for _ in range(2))
    cluster.controller = two
    both = f"{dead},{api(one)},{api(two)}"
    cluster.workers = [cluster.start("worker", TABLES, registry=both)]
    gateway = cluster.start("gateway", registry=both)
    assert cluster.healthy(at=one) == cluster.healthy(at=two) == cluster.whole()
    one.kill()
    # Long after the last beat that the first one took.
    beat = max(row["last_heartbeat"] for row in cluster.rows())
    wait_until(lambda: min(row["last_heartbeat"] for row in cluster.rows()) > beat, "it beats at the second")
    assert answer_of(gateway, echo())["error_code"] == 0


@pytest.mark.parametrize("http_threads", ["gthread", "gevent"])
def test_a_gateway_may_be_several_processes(run: Services, http_threads: str) -> None:
    cluster = Cluster(run)
    cluster.start_controller()
    workers = cluster.start_workers(2)
    gateway = cluster.start("gateway", workers=2, http_threads=http_threads)
    wait_until(lambda: len(children(gateway.pid)) == 2, "two processes")
    texts: list[str] = []

    def ask() -> None:
        body = script(name="many", each=0.01, pieces=10)
        with requests.post(gateway.url("generate_stream"), json=body, headers=DELTA, stream=True, timeout=30) as said:
            texts.append("".join(chunk["text"] for chunk in outputs(said)))

    together(ask, 16)
    assert texts == ["x" * 10] * 16
    with Connection(gateway.port) as client:
        client.send("POST", "generate_stream", script(name="left", each=0.05, pieces=10_000), DELTA)
        wait_until(lambda: sum(len(journal(w, "piece left")) for w in workers) > 2, "it streams")
    wait_until(lambda: sum(len(journal(w, "end left")) for w in workers) == 1, "the engine has ended", 5)
    workers[0].kill()
    for _ in range(20):
        answer = requests.post(gateway.url("generate"), json=script(name="after"), timeout=30)
        assert (answer.status_code, answer.json()["error_code"]) == (200, 0), answer.text
    gateway.signal(signal.SIGTERM)
    assert gateway.wait_ended(20) == 0


def test_a_gateway_ends_its_streams_within_its_drain_timeout(yard: Yard, run: Services) -> None:
    gateway = yard.cluster.start("gateway", drain_timeout=0.5)
    with Connection(gateway.port) as stream:
        stream.send("POST", "generate_stream", script(name="cut", each=0.05, pieces=10_000), DELTA)
        wait_until(lambda: sum(len(journal(w, "piece cut")) for w in yard.workers) > 2, "it streams")
        gateway.signal(signal.SIGTERM)
        body = stream.read_body(stream.read_head())
    assert b"drain_timeout" in body.split(b"\0")[-2]
    assert gateway.wait_ended(20) == 0
    wait_until(lambda: sum(len(journal(w, "end cut")) for w in yard.workers) == 1, "the engine has ended", 5)
