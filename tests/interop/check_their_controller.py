"""Our worker and gateway at DB-GPT's own controller, and DB-GPT's manager that finds them there."""

from __future__ import annotations

import signal

import pytest
from both import HUMAN, MANAGER_KEY, SECOND, Both, TheirClient, TheirError, keys_at, register, url
from modelyard.cluster.remote_machine import RemoteMachine
from modelyard.errors import EngineError
from modelyard.sessions.session import Session
from modelyard.types import WorkerType
from running import Service, wait_until

TIMEOUT = 3
OURS = {MANAGER_KEY, "echo@llm", "emb@text2vec"}
TABLES = f"{SECOND}heartbeat_interval = 0.5\n"


class Theirs:
    """DB-GPT's controller, a worker and a gateway of ours."""

    def __init__(self, sides: Both) -> None:
        self.controller = sides.their_controller(TIMEOUT)
        self.worker = sides.worker(TABLES, url(self.controller))
        wait_until(lambda: keys_at(self.controller, self.worker) == OURS, "our worker is registered")
        self.gateway = sides.gateway(url(self.controller))


@pytest.fixture(scope="module")
def theirs(sides: Both) -> Theirs:
    return Theirs(sides)


@pytest.fixture(scope="module")
def client(sides: Both, theirs: Theirs) -> TheirClient:
    return sides.client(theirs.controller)


def check_heartbeats_keep_our_worker_healthy(theirs, client):
    """One that says nothing gets unhealthy meanwhile."""
    client.register_instance(model_name="silent@llm", host="127.0.0.1", port=18001)

    def silent() -> bool:
        assert keys_at(theirs.controller, theirs.worker) == OURS
        return bool(client.get_all_instances(model_name="silent@llm", healthy_only=True))

    wait_until(lambda: not silent(), "the silent one is unhealthy", TIMEOUT + 10)
    client.deregister_instance(model_name="silent@llm", host="127.0.0.1", port=18001, remove_from_registry=True)


def check_its_manager_finds_and_uses_our_worker(client, theirs):
    assert client.models(worker_type="llm") == [f"echo@llm 127.0.0.1:{theirs.worker.port}"]
    chunks = client.generate_stream(model="echo", messages=HUMAN, max_new_tokens=2)
    assert [chunk["text"] for chunk in chunks] == [" token", " token token"]
    assert client.generate(model="echo", messages=HUMAN, max_new_tokens=1)["text"] == " token"
    assert len(client.embeddings(model="emb", input=["a", "b"])) == 2
    assert client.count_token(model="echo", prompt="a b") == 2


def check_our_gateway_finds_and_uses_our_worker(theirs):
    ask = theirs.gateway.post
    assert ask("generate", {"model": "echo", "prompt": "a", "max_new_tokens": 2}).json()["text"] == " token token"
    assert len(ask("embeddings", {"model": "emb", "input": ["a"]}).json()[0]) == 384
    (host,) = theirs.gateway.get("models/supports").json()
    assert host["port"] == theirs.worker.port


def check_what_is_stopped_and_started_is_told(theirs):
    stop = {"model": "emb", "worker_type": "text2vec", "apply_type": "stop"}
    assert theirs.gateway.post("apply", stop).json()["success"] is True
    wait_until(lambda: keys_at(theirs.controller, theirs.worker) == OURS - {"emb@text2vec"}, "it is deregistered")
    assert theirs.gateway.post("apply", {**stop, "apply_type": "start"}).json()["success"] is True
    wait_until(lambda: keys_at(theirs.controller, theirs.worker) == OURS, "it is registered again")


def check_a_controller_that_lost_everything_is_right_again_after_an_interval(own_sides):
    theirs = Theirs(own_sides)
    theirs.controller.kill()
    again = _restarted(own_sides, theirs.controller)
    wait_until(lambda: keys_at(again, theirs.worker) == OURS, "all keys are there again", 40)


def _restarted(sides: Both, controller: Service) -> Service:
    return sides.their_controller(TIMEOUT, port=controller.port)


def check_the_last_word_is_the_deregistration(own_sides):
    theirs = Theirs(own_sides)
    theirs.worker.signal(signal.SIGTERM)
    theirs.worker.wait_ended(30)
    assert keys_at(theirs.controller, theirs.worker) == set()


def check_a_shutdown_of_their_worker_fails_at_their_controller(own_sides):
    """Its deregistration sends an empty flag, which its own controller refuses; ours takes it as absent."""
    worker = own_sides.their_worker(own_sides.their_controller())
    session = Session(connect_timeout=2, read_timeout=20)
    with pytest.raises(EngineError, match="answers with status 500"):
        RemoteMachine(url(worker), session).model_shutdown("theirs", WorkerType.LLM)
    session.close()


def check_our_gateway_serves_as_a_worker(sides, client, theirs):
    """Registered by hand: DB-GPT's manager asks the gateway, which asks whoever has the model."""
    ours = sides.controller()
    worker = sides.worker('[[models]]\nname = "ours"\nengine = "echo"\n', url(ours))
    wait_until(lambda: "ours@llm" in keys_at(ours, worker), "the model behind the gateway is there")
    gateway = sides.gateway(url(ours))
    for key in ("ours@llm", MANAGER_KEY):
        register(theirs.controller, key, gateway)
    chunks = client.generate_stream(model="ours", messages=HUMAN, max_new_tokens=2)
    assert [chunk["text"] for chunk in chunks] == [" token", " token token"]
    assert client.generate(model="ours", messages=HUMAN, max_new_tokens=1)["error_code"] == 0
    assert client.metadata(model="ours")["model"] == "ours"
    assert client.count_token(model="ours", prompt="a b c") == 3
    outcome = client.worker_apply(model="ours", apply_type="restart", worker_type="llm")
    assert outcome["success"] is True
    wait_until(lambda: "ours@llm" in keys_at(ours, worker), "it is back")
    assert {host["port"] for host in client.supported_models()} == {theirs.worker.port, worker.port}
    place = {"host": "127.0.0.1", "port": gateway.port, "worker_type": "llm", "params": {}}
    assert client.model_shutdown(model="ours", **place) is None
    wait_until(lambda: "ours@llm" not in keys_at(ours, worker), "it is shut down")
    assert client.model_startup(model="ours", **place) is None
    wait_until(lambda: "ours@llm" in keys_at(ours, worker), "it is started")
    with pytest.raises(TheirError, match=r"there is no model 'nope'|model 'nope' is neither"):
        client.model_startup(model="nope", **place)
