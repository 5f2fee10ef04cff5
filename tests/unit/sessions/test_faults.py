"""What a peer's faults mean to each of those that call one: the remote worker, the registry's client, `Client`.

What happens on the wire itself is in test_session.py, on real sockets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
import responses
from modelyard import Client
from modelyard.cluster.registry.client import RegistryClient
from modelyard.cluster.remote_machine import RemoteMachine
from modelyard.cluster.remote_model import RemoteModelWorker
from modelyard.errors import (
    ModelyardError,
    NotConnected,
    Overloaded,
    RegistryUnavailable,
    WorkerSilent,
    WorkerUnreachable,
)
from modelyard.sessions.session import Session

PEER = "http://peer.example/api"


@pytest.fixture
def peer() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock(assert_all_requests_are_fired=True) as mock:
        yield mock


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session()
    yield made
    made.close()


FAULTS: dict[str, tuple[dict[str, Any], type[ModelyardError]]] = {
    "no connection": ({"body": requests.ConnectTimeout()}, NotConnected),
    "silence": ({"body": requests.ReadTimeout()}, WorkerSilent),
    "broken off": ({"body": requests.ConnectionError("reset")}, WorkerUnreachable),
    "an odd redirect": ({"status": 302, "headers": {"Location": "http://[odd"}}, WorkerUnreachable),
    "another service": ({"status": 404, "body": "<h1>Not Found</h1>"}, WorkerUnreachable),
    "a proxy without a worker": ({"status": 502, "body": "Bad Gateway"}, WorkerUnreachable),
    "a full line": ({"status": 503, "json": {"type": "urn:modelyard:error:overloaded"}}, Overloaded),
    "a page": ({"status": 200, "body": "<h1>Log in</h1>"}, WorkerUnreachable),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_remote_worker_and_a_machine_raise_what_a_fault_means(
    peer: responses.RequestsMock, session: Session, fault: str
):
    answer, kind = FAULTS[fault]
    peer.add("POST", f"{PEER}/worker/count_token", **answer)
    with pytest.raises(ModelyardError) as caught:
        RemoteModelWorker("m@llm", PEER, session).count_token("x")
    assert type(caught.value) is kind
    peer.add("POST", f"{PEER}/worker/models/startup", **answer)
    with pytest.raises(ModelyardError) as caught:
        RemoteMachine(PEER, session).model_startup("m", None, {})
    assert type(caught.value) is kind
    assert len(peer.calls) == 2, "neither is sent twice"


@pytest.mark.parametrize("fault", FAULTS)
def test_the_registrys_client_asks_the_next_controller(peer: responses.RequestsMock, session: Session, fault: str):
    answer, _ = FAULTS[fault]
    peer.add("GET", f"{PEER}/controller/instances", **answer)
    if fault == "another service":  # perhaps a controller of DB-GPT
        peer.add("GET", f"{PEER}/controller/models", **answer)
    good = "http://good.example/api"
    peer.add("GET", f"{good}/controller/instances", json=[])
    assert RegistryClient([PEER, good], session).instances() == []
    with pytest.raises(RegistryUnavailable, match="no controller answers"):
        RegistryClient([PEER], session).instances()


CLIENT_SAYS = {
    "no connection": r"did not accept|no service answers",
    "silence": "did not answer within",
    "broken off": "no service answers",
    "an odd redirect": "redirects to",
    "another service": "not like a worker",
    "a proxy without a worker": "502",
    "a full line": "Too many requests",
    "a page": "not like a worker",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_client_says_what_is_wrong(peer: responses.RequestsMock, fault: str):
    answer, _ = FAULTS[fault]
    peer.add("POST", f"{PEER}/worker/count_token", **answer)
    with Client(PEER, retries=0) as client, pytest.raises(ModelyardError, match=CLIENT_SAYS[fault]):
        client.count_token("x", model="m")


@pytest.mark.parametrize(
    ("fault", "sent"), [("no connection", 3), ("broken off", 3), ("a full line", 3), ("silence", 1), ("a page", 1)]
)
def test_the_client_repeats_what_was_not_computed(
    peer: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch, fault: str, sent: int
):
    monkeypatch.setattr("modelyard.client.calls._jittered", lambda pause: 0.0)
    answer, _ = FAULTS[fault]
    peer.add("POST", f"{PEER}/worker/count_token", **{**answer, "headers": {"Retry-After": "0"}})
    with Client(PEER, retries=2) as client, pytest.raises(ModelyardError):
        client.count_token("x", model="m")
    assert len(peer.calls) == sent
