"""RegistryClient over real HTTP: the contract suite says what a registry does; here is what a network does to it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from faulty import Faulty, Peer, breaks_off, faulty, head, in_turn, resets, says, stalls, whole
from flask import Flask, request
from in_process import serving
from modelyard.access.tokens import INFER, WORKER, Token, digest_of
from modelyard.blueprints.controller import controller_blueprint
from modelyard.cluster.registry.base import ANY_GENERATION, Instance
from modelyard.cluster.registry.client import RegistryClient
from modelyard.cluster.registry.memory import MemoryRegistry
from modelyard.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    ModelyardError,
    RegistryUnavailable,
    RequestTooLarge,
    Unauthorized,
)
from modelyard.sessions.session import Session
from modelyard.settings.settings import Settings
from peer_controller import ModelInstance, PeerController
from running import free_port
from werkzeug.serving import WSGIRequestHandler, make_server

HERE = "http://127.0.0.1:9001/api"
PROBLEM = "application/problem+json"


class Controller:
    """A controller over a registry, on a port of its own, that counts its calls and can be stopped and started."""

    def __init__(self, registry: Any, port: int | None = None, prefix: str = "/api", **settings: Any) -> None:
        self.registry = registry
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}{prefix}"
        self.calls: list[str] = []
        self.app = Flask("controller")
        given = Settings(role="controller", access_log=False, prefix=prefix, **settings)
        self.app.register_blueprint(controller_blueprint(lambda: self.registry, given, prefix))
        self.app.before_request(lambda: self.calls.append(f"{request.method} {request.path}"))
        self._served: AbstractContextManager[None] | None = None
        self.start()

    def start(self) -> None:
        self._served = serving(self.app, self.port)
        self._served.__enter__()

    def stop(self) -> None:
        if self._served is not None:
            self._served.__exit__(None, None, None)
            self._served = None


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session(connect_timeout=2.0)
    yield made
    made.close()


@pytest.fixture
def registry() -> MemoryRegistry:
    return MemoryRegistry()


@pytest.fixture
def controller(stack) -> Callable[..., Controller]:
    """Makes controllers that end with the test."""

    def make(*arguments: Any, **options: Any) -> Controller:
        made = Controller(*arguments, **options)
        stack.callback(made.stop)
        return made

    return make


@pytest.fixture
def client_of(session) -> Callable[..., RegistryClient]:
    return lambda *urls, timeout=10.0: RegistryClient(urls, session, timeout)


def nobody() -> str:
    """Return an address where nothing listens."""
    return f"http://127.0.0.1:{free_port()}/api"


def one(key: str = "chat@llm", url: str = HERE, **fields: Any) -> Instance:
    return Instance(key, url, **fields)


# Several controllers


def test_the_first_that_answers_serves(controller, registry, client_of):
    first, second = controller(registry), controller(registry)
    client = client_of(first.url, second.url)
    client.beat([one()])
    assert [row.key for row in client.instances()] == ["chat@llm"]
    assert (len(first.calls), len(second.calls)) == (2, 0)


def test_one_that_does_not_answer_is_left_for_the_next_which_then_is_kept(controller, registry, client_of, caplog):
    first, second = controller(registry), controller(registry)
    client = client_of(first.url, second.url)
    client.beat([one()])
    first.stop()
    with caplog.at_level(logging.INFO, "modelyard.cluster.registry.client"):
        assert len(client.instances()) == 1
        assert len(client.instances()) == 1
    assert [record.message for record in caplog.records] == [f"the registry at {second.url} is used from now on"]
    first.start()
    asked = len(first.calls)
    assert len(client.instances()) == 1
    assert len(first.calls) == asked, "the one that answers is kept, although the first is back"
    second.stop()
    assert len(client.instances()) == 1
    assert len(first.calls) == asked + 1, "the next after the last is the first"


def test_where_none_answers_each_is_named_with_its_cause(client_of, stack):
    odd = stack.enter_context(faulty(says(whole(502, b"<html>Bad Gateway</html>", content_type="text/html"))))
    first = nobody()
    with pytest.raises(RegistryUnavailable) as caught:
        client_of(first, odd.url).instances()
    text = str(caught.value)
    assert f"{first.removesuffix('/api')} refused the connection" in text
    assert f"{odd.url}: it answers with status 502" in text


def test_every_call_goes_to_the_next(controller, registry, client_of):
    good = controller(registry)
    for call in (
        lambda client: client.beat([one()]),
        lambda client: client.deregister([one()]),
        lambda client: client.instances(),
    ):
        call(client_of(nobody(), good.url))
    assert len(good.calls) == 3


FAULTS = {
    "stalls": stalls(),
    "stalls in its headers": stalls(b"HTTP/1.1 200 OK\r\nContent-"),
    "stalls in its body": stalls(head(200, "Content-Length: 100"), b"["),
    "hangs up": breaks_off(),
    "resets": resets(),
    "breaks off": breaks_off(head(200, "Content-Length: 100"), b"["),
    "speaks no HTTP": breaks_off(b"SSH-2.0-OpenSSH_9.9\r\n"),
    "500": says(whole(500, {"detail": "Internal Server Error"})),
    "503": says(whole(503, {"type": "urn:modelyard:error:registry_unavailable", "detail": "no store"})),
    "504": says(whole(504, b"<html>", content_type="text/html")),
    "429": says(whole(429, b"slow down", content_type="text/plain")),
    "302": says(whole(302, b"", "Location: http://127.0.0.1:1/api")),
    "304": says(head(304)),
    "204": says(head(204)),
    "a page": says(whole(200, b"<html>Welcome</html>", content_type="text/html")),
    "null": says(whole(200, None)),
    "true": says(whole(200, True)),
    "another object": says(whole(200, {"status": "ok"})),
    "other rows": says(whole(200, [{"name": "x"}])),
    "rows of text": says(whole(200, ["x"])),
    "other receipts": says(whole(200, {"instances": [{"key": "x@llm", "url": HERE, "generation": 1}], "interval": 1})),
    "no receipts": says(whole(200, {"instances": [], "interval": 1})),
    "half a receipt": says(whole(200, {"instances": [{"key": "chat@llm", "url": HERE}], "interval": 1})),
    "no controller": says(whole(404, {"detail": "Not Found"})),
    "another service": says(whole(405, b"no", content_type="text/plain")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_is_wrong_with_one_the_next_is_asked_in_time(controller, registry, client_of, stack, fault):
    good = controller(registry)
    registry.beat([one()])
    for call in (
        lambda client: client.beat([one(generation=ANY_GENERATION)]).receipts,
        lambda client: client.instances(),
        lambda client: client.deregister([one()]),
    ):
        odd = stack.enter_context(faulty(FAULTS[fault]))
        began = time.monotonic()
        (answer,) = call(client_of(odd.url, good.url, timeout=1.0))
        assert (answer.key, answer.url) == ("chat@llm", HERE)
        assert time.monotonic() - began < 10
        assert odd.requests, "it was asked"


@pytest.mark.parametrize("fault", FAULTS)
def test_alone_it_is_unavailable_and_says_who_does_what(client_of, stack, fault):
    odd = stack.enter_context(faulty(FAULTS[fault]))
    with pytest.raises(RegistryUnavailable) as caught:
        client_of(odd.url, timeout=0.5).beat([one()])
    assert odd.url.removesuffix("/api") in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_controller_that_says_why_it_is_unavailable_is_quoted(client_of, stack):
    odd = stack.enter_context(faulty(FAULTS["503"]))
    with pytest.raises(RegistryUnavailable, match=f"{odd.url}: no store"):
        client_of(odd.url).instances()


def test_an_answer_without_end_is_given_up(client_of, stack):
    def trickles(peer: Peer) -> None:
        peer.send(head(200, "Content-Length: 100000000"))
        while True:
            peer.send(b" ")
            time.sleep(0.01)

    odd = stack.enter_context(faulty(trickles))
    began = time.monotonic()
    with pytest.raises(RegistryUnavailable, match="in time"):
        client_of(odd.url, timeout=0.5).instances()
    assert time.monotonic() - began < 10


def test_the_time_is_shared_by_all_that_hang(client_of, stack):
    hanging = [stack.enter_context(faulty(stalls())) for _ in range(4)]
    began = time.monotonic()
    with pytest.raises(RegistryUnavailable) as caught:
        client_of(*(server.url for server in hanging), timeout=2.0).instances()
    assert time.monotonic() - began < 8
    assert all(server.url.removesuffix("/api") in str(caught.value) for server in hanging)


def test_many_threads_may_ask_while_a_controller_goes(controller, registry, client_of):
    first, second = controller(registry), controller(registry)
    client = client_of(first.url, second.url)
    errors: list[Exception] = []

    def live(number: int) -> None:
        try:
            for _ in range(20):
                client.beat([one(f"m{number}@llm")])
                assert client.instances(f"m{number}@llm")
        except Exception as error:  # noqa: BLE001 - whatever it is, the test fails with it
            errors.append(error)

    threads = [threading.Thread(target=live, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    first.stop()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert len(registry.instances()) == 6


# Refusals


def refusal(status: int, code: str, **more: Any) -> bytes:
    document = {"type": f"urn:modelyard:error:{code}", "title": "t", "status": status, "detail": "the reason", **more}
    return whole(status, document, content_type=PROBLEM)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (refusal(401, "unauthorized"), Unauthorized),
        (refusal(403, "forbidden"), Forbidden),
        (refusal(409, "conflict"), Conflict),
        (refusal(413, "request_too_large"), RequestTooLarge),
        (refusal(422, "invalid_request", errors=[{"field": "[0].url", "message": "m"}]), InvalidRequest),
        (whole(401, b"the reason", content_type="text/plain"), Unauthorized),
        (whole(403, {"detail": "the reason"}), Forbidden),
        (whole(413, b"the reason", content_type="text/html"), RequestTooLarge),
        (whole(422, {"detail": [{"loc": ["body", "port"], "msg": "the reason"}]}), InvalidRequest),
    ],
)
def test_a_refusal_is_the_error_that_it_was_there_and_nobody_else_is_asked(
    controller, registry, client_of, stack, answer, kind
):
    refuses, good = stack.enter_context(faulty(says(answer))), controller(registry)
    client = client_of(refuses.url, good.url)
    for call in (
        lambda: client.beat([one()]),
        lambda: client.deregister([one()]),
        lambda: client.instances(),
    ):
        with pytest.raises(ModelyardError, match="the reason") as caught:
            call()
        assert type(caught.value) is kind
    assert good.calls == []


def test_a_refusal_of_a_real_controller_names_the_fields(controller, registry, client_of):
    client = client_of(controller(registry).url)
    with pytest.raises(InvalidRequest) as caught:
        client.beat([one(), one(key="chat")])
    assert [error["field"] for error in caught.value.errors] == ["[1].key"]
    assert registry.instances() == []


def test_an_address_that_may_not_be_named_is_refused_with_the_reason(controller, registry, client_of):
    client = client_of(controller(registry).url)
    with pytest.raises(Forbidden, match=r"http://192\.0\.2\.7:9001/api can't be registered"):
        client.beat([one(url="http://192.0.2.7:9001/api")])


def test_its_token_is_sent(controller, registry, stack):
    secret = "modelyard_this-one"
    tokens = [Token("w", frozenset({WORKER}), digest_of(secret)), Token("i", frozenset({INFER}), digest_of("other"))]
    url = controller(registry, tokens=[token.line for token in tokens]).url

    def client(token: str | None) -> RegistryClient:
        made = Session(token=token)
        stack.callback(made.close)
        return RegistryClient([url], made)

    client(secret).beat([one()])
    assert len(client(secret).instances()) == len(client("other").instances()) == 1
    with pytest.raises(Unauthorized, match="scope worker"):
        client(None).beat([one()])
    with pytest.raises(Forbidden, match="scope worker"):
        client("other").beat([one()])


# One controller


def test_everything_of_an_instance_goes_there_and_back(controller, registry, client_of):
    told = one(
        "a b&c=ü?#%@llm",
        weight=2.5,
        enabled=False,
        check_healthy=False,
        capabilities=["delta"],
        load="slots=8;free=3;waiting=0",
        prompt_template="{x}\n",
    )
    client = client_of(controller(registry).url)
    (receipt,) = client.beat([told]).receipts
    (read,) = client.instances(told.key)
    (kept,) = registry.instances()
    assert read.last_heartbeat == pytest.approx(kept.last_heartbeat, abs=1e-5)
    kept.last_heartbeat = read.last_heartbeat
    assert read == kept
    assert read.generation == receipt.generation


def test_more_than_a_body_takes_go_in_several(controller, registry, client_of):
    server = controller(registry)
    client = client_of(server.url)
    told = [one(f"m{number}@llm") for number in range(2001)]
    assert [receipt.key for receipt in client.beat(told).receipts] == [instance.key for instance in told]
    assert server.calls == ["POST /api/controller/instances"] * 3
    assert len(client.deregister(told, forget=True)) == 2001
    assert client.instances() == []


def test_a_prefix_and_a_slash_behind_it_are_fine(controller, registry, client_of):
    server = controller(registry, prefix="/ml/v1")
    client_of(f"{server.url}/").beat([one()])
    assert server.calls == ["POST /ml/v1/controller/instances"]


def test_keys_that_a_newer_controller_adds_are_ignored(client_of, stack):
    row = {"key": "chat@llm", "url": HERE, "healthy": True, "last_heartbeat": "2026-11-21T06:46:05Z", "colour": "red"}
    newer = stack.enter_context(faulty(says(whole(200, [row]))))
    (read,) = client_of(newer.url).instances()
    assert (read.key, read.healthy, read.last_heartbeat) == ("chat@llm", True, 1795243565.0)


def test_a_controller_on_a_unix_socket_is_reached(registry, client_of, tmp_path):
    path = tmp_path / "controller.sock"
    app = Flask("controller")
    app.register_blueprint(
        controller_blueprint(lambda: registry, Settings(role="controller", access_log=False), "/api")
    )
    server = make_server(f"unix://{path}", 0, app, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        client = client_of(f"http+unix://{quote(str(path), safe='')}/api")
        client.beat([one(url="http+unix://%2Frun%2Fworker.sock/api")])
        assert [row.url for row in client.instances()] == ["http+unix://%2Frun%2Fworker.sock/api"]
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass

    def address_string(self) -> str:
        return "<local>"


def test_closing_leaves_the_session_to_its_owner(controller, registry, client_of):
    client = client_of(controller(registry).url)
    client.beat([one()])
    client.close()
    client.close()
    assert client_of(controller(registry).url).instances()


def test_a_controller_may_stand_in_front_of_another(controller, registry, client_of):
    back = controller(registry)
    front = controller(client_of(back.url))
    client = client_of(front.url)
    (mine,) = client.beat([one(weight=2)]).receipts
    assert registry.instances()[0].generation == mine.generation
    (newer,) = client.beat([one(weight=3)]).receipts
    (old,) = client.beat([one(generation=mine.generation)]).receipts
    assert (old.superseded, old.generation) == (True, newer.generation)
    client.beat([one(generation=ANY_GENERATION)])
    assert [row.weight for row in client.instances("chat@llm", healthy_only=True)] == [3]
    with pytest.raises(InvalidRequest) as caught:
        client.beat([one(key="chat")])
    assert [error["field"] for error in caught.value.errors] == ["[0].key"]
    back.stop()
    with pytest.raises(RegistryUnavailable) as gone:
        client.instances()
    for url in (front.url, back.url):
        assert url.removesuffix("/api") in str(gone.value)


# Controllers of DB-GPT


@pytest.fixture
def peer(stack) -> PeerController:
    made = PeerController()
    made.port = free_port()
    made.url = f"http://127.0.0.1:{made.port}/api"
    stack.enter_context(serving(made.app, made.port))
    return made


def test_at_a_peers_controller_instances_are_registered_in_its_way(peer, client_of, caplog):
    client = client_of(peer.url)
    with caplog.at_level(logging.INFO, "modelyard.cluster.registry"):
        beaten = client.beat([one(weight=2, capabilities=["delta"], load="x"), one("WorkerManager@service")])
    assert [(receipt.key, receipt.url, receipt.superseded) for receipt in beaten.receipts] == [
        ("chat@llm", HERE, False),
        ("WorkerManager@service", HERE, False),
    ]
    assert beaten.interval == 20
    assert set(peer.rows) == {("chat@llm", "127.0.0.1", 9001), ("WorkerManager@service", "127.0.0.1", 9001)}
    assert peer.rows["chat@llm", "127.0.0.1", 9001].weight == 2
    assert [record.message for record in caplog.records] == [f"{peer.url} is a controller of DB-GPT"]


def test_it_is_remembered_what_a_controller_is(peer, client_of):
    client = client_of(peer.url)
    client.beat([one()])
    client.instances()
    assert peer.calls == [
        "POST /api/controller/instances",
        "POST /api/controller/models",
        "GET /api/controller/models",
    ]


def test_with_its_generation_an_instance_is_refreshed(peer, client_of):
    client = client_of(peer.url)
    (first,) = client.beat([one()]).receipts
    (second,) = client.beat([one(generation=first.generation)]).receipts
    assert second == first
    assert peer.calls[-1] == "POST /api/controller/heartbeat"
    (third,) = client.beat([one()]).receipts
    assert third.generation > first.generation > 0
    client.beat([one(generation=ANY_GENERATION)])
    assert peer.calls[-1] == "POST /api/controller/heartbeat"


def test_a_peers_controller_that_forgot_everything_learns_it_from_the_heartbeat(peer, client_of):
    client = client_of(peer.url)
    (mine,) = client.beat([one()]).receipts
    peer.rows.clear()
    client.beat([one(generation=mine.generation)])
    assert [row.key for row in client.instances(healthy_only=True)] == ["chat@llm"]


def test_a_peers_rows_are_read_as_ours(peer, client_of):
    client = client_of(peer.url)
    client.beat([one("b@llm"), one("a@llm", prompt_template="vicuna", weight=2), one("a@llm", "http://[::1]:1/api")])
    rows = client.instances()
    assert [(row.key, row.url) for row in rows] == [
        ("a@llm", HERE),
        ("a@llm", "http://[::1]:1/api"),
        ("b@llm", HERE),
    ]
    assert rows[0] == one("a@llm", prompt_template="vicuna", weight=2, healthy=True, last_heartbeat=1795243565.070425)
    assert [row.key for row in client.instances("b@llm")] == ["b@llm"]
    peer.rows["b@llm", "127.0.0.1", 9001].healthy = False
    assert client.instances("b@llm", healthy_only=True) == []


def test_rows_of_a_peer_that_make_no_sense_are_left_out(client_of, stack):
    fine = {"model_name": "a@llm", "host": "127.0.0.1", "port": 1, "healthy": True, "last_heartbeat": None, "new": 1}
    odd = [
        5,
        {},
        {**fine, "port": None},
        {**fine, "port": "x"},
        {**fine, "host": "a b"},
        {**fine, "last_heartbeat": "?"},
    ]
    answers = in_turn(says(whole(404, {"detail": "Not Found"})), says(whole(200, [*odd, fine])))
    server: Faulty = stack.enter_context(faulty(answers))
    assert [(row.key, row.url) for row in client_of(server.url).instances()] == [("a@llm", "http://127.0.0.1:1/api")]


@pytest.mark.parametrize("forget", [False, True])
def test_at_a_peers_controller_an_instance_is_deregistered_in_its_way(peer, client_of, forget):
    client = client_of(peer.url)
    (mine,) = client.beat([one()]).receipts
    (receipt,) = client.deregister([one(generation=mine.generation)], forget=forget)
    assert receipt == mine
    assert [row.healthy for row in client.instances()] == ([] if forget else [False])


RANKER = one("rank@reranker")


def test_at_a_controller_of_0_5_a_reranker_is_also_the_embedder_that_its_clients_look_for(peer, client_of):
    client = client_of(peer.url)
    (first, _) = client.beat([RANKER, one()]).receipts
    both = {("rank@reranker", "127.0.0.1", 9001), ("rank@text2vec", "127.0.0.1", 9001)}
    assert set(peer.rows) == both | {("chat@llm", "127.0.0.1", 9001)}
    assert [row.key for row in client.instances()] == ["chat@llm", "rank@reranker"]
    assert client.instances("rank@text2vec") == []
    assert [row.key for row in client.instances("rank@reranker")] == ["rank@reranker"]
    peer.rows.clear()
    client.beat([replace(RANKER, generation=first.generation)])
    assert set(peer.rows) == both
    client.deregister([replace(RANKER, generation=first.generation)])
    assert [row.healthy for row in peer.rows.values()] == [False, False]
    client.deregister([replace(RANKER, generation=first.generation)], forget=True)
    assert peer.rows == {}


def test_at_a_controller_of_0_8_a_reranker_is_a_reranker_alone(client_of, stack):
    @dataclass
    class Row(ModelInstance):
        remove_from_registry: bool | None = False

    peer, port = PeerController(Row), free_port()
    stack.enter_context(serving(peer.app, port))
    client_of(f"http://127.0.0.1:{port}/api").beat([RANKER])
    assert [row.model_name for row in peer.rows.values()] == ["rank@reranker"]


def test_an_embedder_at_a_peers_controller_is_not_taken_for_a_reranker(peer, client_of):
    client = client_of(peer.url)
    client.beat([RANKER, one("rank@text2vec", "http://10.0.0.2:9001/api")])
    assert [(row.key, row.url) for row in client.instances("rank@text2vec")] == [
        ("rank@text2vec", "http://10.0.0.2:9001/api")
    ]


def test_what_a_peers_controller_cannot_know_is_said_once_and_hinders_nobody(peer, client_of, caplog):
    client = client_of(peer.url)
    strange = [one(url=url) for url in ("https://h:1/api", "http://h:1/ml", "http+unix://%2Frun%2Fw.sock/api")]
    for _ in range(2):
        beaten = client.beat([*strange, one()])
        client.deregister(strange)
        assert [receipt.url for receipt in beaten.receipts] == [*(instance.url for instance in strange), HERE]
    assert list(peer.rows) == [("chat@llm", "127.0.0.1", 9001)]
    said = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert len(said) == 3
    assert "chat@llm at https://h:1/api can't be registered" in said[0]
    assert peer.url in said[0]


def test_a_refusal_of_a_peer_is_told_with_its_reason(client_of, stack):
    detail = [{"loc": ["body", "port"], "msg": "value is not a valid integer", "type": "type_error.integer"}]
    answers = in_turn(says(whole(404, {"detail": "Not Found"})), says(whole(422, {"detail": detail})))
    server = stack.enter_context(faulty(answers))
    with pytest.raises(InvalidRequest, match=r"body\.port: value is not a valid integer"):
        client_of(server.url).beat([one()])


def test_a_peers_controller_that_was_replaced_by_ours_is_found_out(controller, registry, session):
    peer, port = PeerController(), free_port()
    client = RegistryClient([f"http://127.0.0.1:{port}/api"], session)
    with serving(peer.app, port):
        client.beat([one()])
    with pytest.raises(RegistryUnavailable):
        client.instances()
    controller(registry, port=port)
    client.beat([one(capabilities=["delta"])])
    assert registry.instances()[0].capabilities == ["delta"]
    assert client.instances()[0].capabilities == ["delta"]


def test_a_peer_and_ours_may_be_named_together(peer, controller, registry, client_of):
    ours = controller(registry)
    client = client_of(peer.url, ours.url)
    client.beat([one()])
    assert registry.instances() == []
    assert len(client.instances()) == 1
    other = client_of(nobody(), ours.url, peer.url)
    other.beat([one()])
    assert len(registry.instances()) == 1


def test_a_service_that_is_no_controller_is_named_as_that(client_of, stack, tmp_path: Path):
    app = Flask("another")
    port = free_port()
    stack.enter_context(serving(app, port))
    with pytest.raises(RegistryUnavailable, match=f"http://127.0.0.1:{port}/api has no controller"):
        client_of(f"http://127.0.0.1:{port}/api").instances()
