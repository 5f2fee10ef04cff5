"""A manager over several hosts, each a service of this process over real HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
import steered
from faulty import Peer, Request, faulty, says, streamed, whole
from in_process import service, url_of
from modelyard.cluster import view
from modelyard.cluster.manager import RemoteWorkerManager
from modelyard.cluster.registry.base import MANAGER_KEY, Instance
from modelyard.cluster.registry.memory import MemoryRegistry
from modelyard.cluster.view import RegistryView
from modelyard.errors import (
    InvalidRequest,
    ModelyardError,
    NotReady,
    Overloaded,
    RegistryUnavailable,
    Unavailable,
    UnknownModel,
    Unsupported,
    WorkerLost,
    WorkerUnreachable,
)
from modelyard.server.runtime import Runtime
from modelyard.sessions.response import Response
from modelyard.sessions.session import Session
from modelyard.streams import Cancel
from modelyard.types import DEFAULT_TERMS, GenerateRequest, Terms, WorkerType
from modelyard.worker.protocol import EVERY_MODEL
from running import free_port, wait_until
from steered import Steered

TABLES = [
    {"name": "a", "worker_class": steered.PATH, "limit_model_concurrency": 1, "max_waiting": 1},
    {"name": "spare", "worker_class": steered.PATH, "start": False},
]


class Yard:
    """Two workers at one controller, and a gateway."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.stack = stack
        self.folder = folder
        self.controller = stack.enter_context(service(folder / "c", role="controller", registry="memory:"))
        self.registry = url_of(self.controller)
        self.one = self.add_worker("one")
        self.two = self.add_worker("two")
        self.gateway = stack.enter_context(service(folder / "g", role="gateway", registry=self.registry))
        assert isinstance(self.gateway.manager, RemoteWorkerManager)
        self.manager = self.gateway.manager
        wait_until(lambda: len(self.healthy("a@llm")) == 2, "both are in view")

    def add_worker(self, name: str) -> Runtime:
        return self.stack.enter_context(service(self.folder / name, TABLES, role="worker", registry=self.registry))

    def healthy(self, key: str) -> list[str]:
        self.manager.view.refresh()
        return [one.url for one in self.manager.view.instances(key) if one.healthy]

    def asked(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        """Return what the gateway answers over HTTP."""
        with closing(Session()) as session:
            answer = session.request(method, f"{url_of(self.gateway)}/worker/{path}", body=body, headers=headers)
            answer.read_whole()
        return answer

    def hold_both(self) -> list[object]:
        """Take the only slot of each worker."""
        held = [self.manager.generate_stream(prompt("hold")) for _ in range(2)]
        for stream in held:
            next(burst for burst in stream if burst)
        return held


def prompt(text: str, model: str = "a", terms: Terms = DEFAULT_TERMS) -> GenerateRequest:
    return GenerateRequest(model, prompt=text, terms=terms)


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    Steered.reset()
    with ExitStack() as stack:
        yield Yard(stack, tmp_path)
    assert Steered.running() == []


def starts(name: str) -> int:
    return sum(engine.starts for engine in Steered.made if engine.params.registered_name == name)


def test_the_work_goes_to_both(yard):
    held = yard.hold_both()
    assert [one.local.load_of("a", WorkerType.LLM) for one in (yard.one, yard.two)] == ["slots=1;free=0;waiting=0"] * 2
    for stream in held:
        stream.close()


def test_where_all_are_full_it_says_so_with_the_load_of_all(yard):
    held = yard.hold_both()
    with pytest.raises(Overloaded, match="no instance of a@llm has room") as refused:
        yard.manager.generate(prompt("x", terms=Terms(wait=False)))
    assert refused.value.load == "slots=2;free=0;waiting=0"
    assert all(url_of(one) in str(refused.value) for one in (yard.one, yard.two))
    answer = yard.asked("POST", "generate", b'{"model": "a", "prompt": "x"}', {"Prefer": "wait=0"})
    assert (answer.status_code, answer.headers["Modelyard-Load"]) == (503, "slots=2;free=0;waiting=0")
    for stream in held:
        stream.close()


def test_one_that_is_full_everywhere_waits_in_a_line_and_is_answered(yard):
    held = yard.hold_both()
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(yard.manager.generate(prompt("x")).text))
    waiting.start()
    wait_until(
        lambda: sum(one.local.models.find("a@llm").gate.waiting for one in (yard.one, yard.two)) == 1, "it waits"
    )
    for stream in held:
        stream.close()
    waiting.join(20)
    assert answers == [" x"]


def test_what_one_refuses_the_other_answers(yard):
    yard.one.drain(0)
    for _ in range(10):
        assert yard.manager.generate(prompt("x")).text == " x"
        assert yard.manager.count_token("a", "x y") == 2


def test_a_model_that_its_worker_no_longer_has_is_asked_of_another(yard):
    yard.manager.model_startup("spare", None, {}, host="127.0.0.1", port=yard.two.settings.port)
    yard.controller.cluster.registry.beat([Instance("spare@llm", url_of(yard.one))])
    wait_until(lambda: len(yard.healthy("spare@llm")) == 2, "the stale row is in view")
    stale = Instance("spare@llm", url_of(yard.one), healthy=True)

    def was_asked() -> bool:
        assert yard.manager.generate(prompt("x", "spare")).text == " x"
        assert yard.manager.count_token("spare", "x y") == 2
        return "no model 'spare'" in yard.manager.routes.why_not(stale)

    wait_until(was_asked, "the stale row was tried")
    assert yard.manager.routes.why_not(Instance("a@llm", url_of(yard.one), healthy=True)) == "", "its neighbour serves"


def test_after_a_model_was_not_found_at_its_only_address_the_registry_is_read_anew(yard):
    registry = yard.controller.cluster.registry
    registry.beat([Instance("spare@llm", url_of(yard.one))])
    wait_until(lambda: yard.healthy("spare@llm"), "the stale row is in view")
    yard.manager.view.stop()
    yard.two.local.model_startup("spare", None, {})
    wait_until(lambda: len(registry.instances("spare@llm")) == 2, "the other has registered")
    assert yard.manager.generate(prompt("x", "spare")).text == " x"


@pytest.mark.parametrize("call", ["generate", "count_token"])
def test_an_engine_that_breaks_is_no_worker_that_died(yard, call):
    calls = {
        "generate": lambda: yard.manager.generate(prompt("crash")),
        "count_token": lambda: yard.manager.count_token("a", "break"),
    }
    for _ in range(6):
        with pytest.raises(ModelyardError) as broke:
            calls[call]()
        assert not isinstance(broke.value, Unavailable | WorkerLost)
    known = [Instance("a@llm", url_of(one), healthy=True) for one in (yard.one, yard.two)]
    assert [yard.manager.routes.why_not(one) for one in known] == ["", ""]


def test_apply_reaches_all_instances_and_merges_what_came_of_it(yard):
    before = starts("a")
    outcome = yard.manager.worker_apply("a", "restart", None, {})
    assert outcome.success
    assert starts("a") == before + 2
    assert all(f"{url_of(one)}: model a@llm restarted" in outcome.message for one in (yard.one, yard.two))


def test_one_host_that_fails_fails_the_outcome_and_the_other_has_done_it(yard):
    yard.one.local.worker_apply("a", "update_params", None, {"serial": "s1", "size": 2})
    yard.one.local.model_startup("spare", None, {"limit_model_concurrency": 50})
    outcome = yard.manager.worker_apply("a", "update_params", None, {"limit_model_concurrency": 20})
    assert not outcome.success
    assert f"{url_of(yard.one)}: no room for model 'a'" in outcome.message
    assert f"{url_of(yard.two)}: model a@llm: changed limit_model_concurrency and restarted" in outcome.message


def test_a_stopped_model_is_started_again_everywhere(yard):
    assert yard.manager.worker_apply("a", "stop", None, {}).success
    wait_until(lambda: yard.healthy("a@llm") == [], "both have left the registry")
    with pytest.raises(NotReady, match="it is not healthy"):
        yard.manager.generate(prompt("x"))
    assert yard.manager.worker_apply("a", "start", None, {}).success
    wait_until(lambda: len(yard.healthy("a@llm")) == 2, "both are back")
    assert yard.manager.generate(prompt("x")).text == " x"


def test_every_model_of_every_host_is_meant_by_a_star(yard):
    outcome = yard.manager.worker_apply(EVERY_MODEL, "stop", None, {})
    assert outcome.message.count("model a@llm stopped") == 2


def test_of_several_hosts_one_must_be_named(yard):
    with pytest.raises(InvalidRequest, match="several hosts") as refused:
        yard.manager.model_startup("spare", None, {})
    assert all(f"127.0.0.1:{one.settings.port}" in str(refused.value) for one in (yard.one, yard.two))
    with pytest.raises(InvalidRequest, match="none of the hosts"):
        yard.manager.model_startup("spare", None, {}, host="127.0.0.1", port=1)
    assert starts("spare") == 0


def test_a_model_is_started_and_shut_down_on_the_host_that_is_named(yard):
    port = yard.two.settings.port
    yard.manager.model_startup("spare", None, {"size": 3}, host="127.0.0.1", port=port)
    assert [one.local.models.has("spare", None) for one in (yard.one, yard.two)] == [False, True]
    wait_until(lambda: yard.healthy("spare@llm") == [url_of(yard.two)], "it is in view")
    assert yard.manager.model_metadata("spare").metadata["size"] == 3
    # It runs on one host only, so that need not be said.
    yard.manager.model_shutdown("spare", None)
    wait_until(lambda: not yard.manager.view.instances("spare@llm"), "it is forgotten")
    with pytest.raises(UnknownModel, match="spare"):
        yard.manager.model_shutdown("spare", None)


def test_who_names_the_gateway_itself_leaves_the_host_open(yard):
    gateway = {"host": "127.0.0.1", "port": yard.gateway.settings.port}
    with pytest.raises(InvalidRequest, match="several hosts"):
        yard.manager.model_startup("spare", None, {}, **gateway)
    yard.manager.model_startup("spare", None, {}, host="127.0.0.1", port=yard.one.settings.port)
    wait_until(lambda: yard.healthy("spare@llm"), "it is in view")
    yard.manager.model_shutdown("spare", None, **gateway)
    assert yard.one.local.models.has("spare", None) is False


def test_a_host_that_does_not_answer_is_told_beside_what_the_others_say(yard):
    dead = f"http://127.0.0.1:{free_port()}/api"
    yard.controller.cluster.registry.beat([Instance(MANAGER_KEY, dead)])
    wait_until(lambda: dead in yard.healthy(MANAGER_KEY), "it is in view")
    found = {f"http://{one.host}:{one.port}/api": one for one in yard.manager.supported_models()}
    assert set(found) == {url_of(yard.one), url_of(yard.two), dead}
    assert {"a", "spare"} <= {model.model for model in found[url_of(yard.one)].models}
    assert found[url_of(yard.one)].error == ""
    assert found[dead].models == []
    assert "refused" in found[dead].error
    assert yard.asked("GET", "models/supports").headers["Modelyard-Missing"] == dead.split("/")[2]


def test_a_dead_instance_is_passed_over_probed_and_taken_again(yard):
    port = free_port()
    dead = f"http://127.0.0.1:{port}/api"
    yard.controller.cluster.registry.beat([Instance("a@llm", dead)])
    wait_until(lambda: len(yard.healthy("a@llm")) == 3, "it is in view")

    def asked() -> bool:
        assert yard.manager.generate(prompt("x")).text == " x"
        return bool(yard.manager.routes.why_not(Instance("a@llm", dead, healthy=True)))

    wait_until(asked, "it was tried, and failed")
    with_it = yard.stack.enter_context(service(yard.folder / "three", TABLES, role="worker", port=port))
    wait_until(lambda: not yard.manager.routes.why_not(Instance("a@llm", dead, healthy=True)), "a probe reached it")

    def reached() -> bool:
        yard.manager.generate(prompt("x"))
        return any(e.starts and e is with_it.local.models.find("a@llm").engine for e in Steered.made)

    assert reached()


def test_while_the_registry_is_away_what_was_seen_last_serves_on(yard):
    yard.controller.stop()
    yard.gateway.cluster.registry.instances = lambda *a, **k: (_ for _ in ()).throw(RegistryUnavailable("away"))
    wait_until(lambda: yard.manager.view.error, "it is noticed")
    assert yard.manager.generate(prompt("x")).text == " x"
    assert yard.gateway.status()["ready"] is True
    assert yard.gateway.status()["cluster"]["error"]


def test_a_gateway_without_a_registry_says_that_and_not_that_the_model_is_unknown(tmp_path):
    nobody = f"http://127.0.0.1:{free_port()}/api"
    with service(tmp_path, role="gateway", registry=nobody) as gateway:
        with pytest.raises(NotReady, match=r"the registry can't be read: .*refused"):
            gateway.manager.generate(prompt("x"))
        status = gateway.status()
        assert status["ready"] is False
        assert nobody.removesuffix("/api") in status["reason"]


def test_a_standalone_service_answers_with_its_own_models_and_with_those_of_workers(tmp_path):
    Steered.reset()
    with service(tmp_path / "s", TABLES, role="standalone") as alone:
        assert alone.manager.generate(prompt("x")).text == " x"
        tables = [{"name": "far", "worker_class": steered.PATH}, TABLES[0]]
        with service(tmp_path / "w", tables, role="worker", registry=url_of(alone)) as worker:
            wait_until(lambda: alone.manager.get_model_instances("far@llm"), "the worker is in view")
            assert alone.manager.generate(prompt("x", "far")).text == " x"
            wait_until(lambda: len(alone.manager.get_model_instances("a@llm")) == 2, "both have a")
            held = [alone.manager.generate_stream(prompt("hold")) for _ in range(2)]
            for stream in held:
                next(burst for burst in stream if burst)
            assert [r.local.models.find("a@llm").gate.free for r in (alone, worker)] == [0, 0]
            assert (len(alone.requests), len(worker.requests)) == (0, 1), "its own model is not called over HTTP"
            for stream in held:
                stream.close()
            assert alone.manager.model_startup("spare", None, {}) == ""
            assert alone.local.models.has("spare", None)
        wait_until(lambda: not alone.manager.get_model_instances("far@llm"), "the worker has left")
        with pytest.raises(NotReady, match="deregistered"):
            alone.manager.generate(prompt("x", "far"))


def test_a_request_that_was_routed_here_is_never_sent_on(yard, tmp_path):
    # Two standalone services that know each other: one that is full does not pass on what it was sent.
    with (
        service(tmp_path / "s1", TABLES, role="standalone", registry=yard.registry) as first,
        closing(Session()) as session,
    ):
        first.local.worker_apply("a", "stop", None, {})
        answer = session.request(
            "POST",
            f"{url_of(first)}/worker/generate",
            body=b'{"model": "a", "prompt": "x"}',
            headers={"Modelyard-Route": "local"},
        )
        assert answer.status_code == 503
        answer = session.request("POST", f"{url_of(first)}/worker/generate", body=b'{"model": "a", "prompt": "x"}')
        assert (answer.status_code, answer.json()["text"]) == (200, " x")


@pytest.mark.parametrize(
    ("answer", "call", "result"),
    [
        (streamed(b'{"text": 5}\0'), lambda m: m.generate(prompt("x")).text, " x"),
        (whole(200, b"<html>"), lambda m: m.count_token("a", "x y"), 2),
        (whole(200, {"ext_metadata": [1]}), lambda m: m.model_metadata("a").model, "a"),
    ],
)
def test_an_instance_that_answers_nonsense_is_passed_over(tmp_path, answer, call, result):
    Steered.reset()
    with faulty(says(answer)) as server, service(tmp_path, TABLES, role="worker", models=["a"]) as worker:
        registry = MemoryRegistry(heartbeat_timeout=60)
        registry.beat(
            [
                Instance("a@llm", server.url, weight=1000),
                Instance("a@llm", f"http://127.0.0.1:{worker.settings.port}/api"),
            ]
        )
        view, session = RegistryView(registry, 60), Session()
        manager = RemoteWorkerManager(view, session)
        try:
            assert [call(manager) for _ in range(5)] == [result] * 5
            assert server.requests
        finally:
            manager.stop()
            view.stop()
            session.close()


def test_an_address_where_nobody_listens_fails_for_the_only_instance_with_the_reason():
    registry = MemoryRegistry(heartbeat_timeout=60)
    registry.beat([Instance("a@llm", f"http://127.0.0.1:{free_port()}/api")])
    seen, session = RegistryView(registry, 60), Session()
    manager = RemoteWorkerManager(seen, session)
    try:
        with pytest.raises(WorkerUnreachable, match="refused"):
            manager.generate(prompt("x"), Cancel())
        with pytest.raises(NotReady, match=r"not used until a probe reaches it, because: .*refused"):
            manager.generate(prompt("x"), Cancel())
    finally:
        manager.stop()
        seen.stop()
        session.close()


def test_a_model_that_is_nowhere_has_the_error_of_the_model_host():
    def check_hosted(model: str, *types: WorkerType) -> None:
        if (model, types) == ("a", (WorkerType.LLM,)):
            raise NotReady("model 'a' is failed (no weights)")

    with closing(Session()) as session:
        view = RegistryView(MemoryRegistry(heartbeat_timeout=60), 60)
        manager = RemoteWorkerManager(view, session, check_hosted=check_hosted)
        with pytest.raises(NotReady, match="no weights"):
            manager.generate(prompt("x"), Cancel())
        with pytest.raises(UnknownModel):
            manager.generate(prompt("x", "other"), Cancel())
        view.stop()


def test_tokens_without_a_model_are_not_counted_by_what_is_of_no_known_type():
    registry = MemoryRegistry(heartbeat_timeout=60)
    registry.beat([Instance("odd@vision", "http://127.0.0.1:1/api")])
    with closing(Session()) as session:
        view = RegistryView(registry, 60)
        view.refresh()
        manager = RemoteWorkerManager(view, session)
        with pytest.raises(InvalidRequest, match="no LLM is hosted"):
            manager.count_token(None, "x")
        view.stop()


class CountedReads(MemoryRegistry):
    """A registry in memory that counts who reads it."""

    reads = 0

    def instances(self, key: str | None = None, *, healthy_only: bool = False) -> list[Instance]:
        self.reads += 1
        return super().instances(key, healthy_only=healthy_only)


def test_models_that_are_nowhere_share_a_read_of_the_registry(monkeypatch):
    registry = CountedReads(heartbeat_timeout=60)
    with closing(Session()) as session:
        manager = RemoteWorkerManager(RegistryView(registry, 60), session)

        def ask(number: int) -> None:
            for call in (
                lambda: manager.generate(prompt("x", f"nowhere-{number}")),
                lambda: manager.count_token(f"nowhere-{number}", "x"),
            ):
                with pytest.raises(UnknownModel):
                    call()

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        ask(0)
        assert registry.reads == 1
        # The answer holds for a time only.
        monkeypatch.setattr(view, "MISS_INTERVAL", 0.0)
        registry.beat([Instance("nowhere-0@text2vec", f"http://127.0.0.1:{free_port()}/api")])
        with pytest.raises(Unsupported):
            manager.generate(prompt("x", "nowhere-0"))


def test_a_model_that_runs_here_does_not_wait_for_the_registry(tmp_path, monkeypatch):
    Steered.reset()
    with service(tmp_path, [{**TABLES[0], "register": False}], role="standalone", registry_refresh=60) as alone:
        monkeypatch.setattr(view, "MISS_INTERVAL", 0.0)
        monkeypatch.setattr(alone.cluster.registry, "instances", lambda *a, **k: pytest.fail("it was read"))
        assert alone.manager.generate(prompt("x")).text == " x"


def test_a_model_is_found_at_once_by_the_gateway_that_it_was_started_through(yard):
    yard.manager.view.stop()
    yard.manager.view.refresh()
    yard.manager.model_startup("spare", None, {}, host="127.0.0.1", port=yard.two.settings.port)
    assert yard.manager.generate(prompt("x", "spare")).text == " x"


@pytest.mark.parametrize(
    ("registered", "params", "said"),
    [
        (["new@text2vec"], {}, "text2vec"),
        (["new@text2vec"], {"worker_type": "llm"}, "llm"),
        (["new@text2vec", "new@llm"], {}, None),
        ([], {"worker_type": "odd"}, None),
        ([], {"worker_type": ["llm"]}, None),
        ([], {}, None),
    ],
)
def test_a_host_of_dbgpt_is_told_a_type_that_nobody_said_where_it_is_clear(registered, params, said):
    registry = MemoryRegistry(heartbeat_timeout=60)
    with faulty(says(whole(200, b"null"))) as host, closing(Session()) as session:
        elsewhere = f"http://127.0.0.1:{free_port()}/api"
        registry.beat([Instance(MANAGER_KEY, host.url), *(Instance(key, elsewhere) for key in registered)])
        manager = RemoteWorkerManager(RegistryView(registry, 60), session)
        manager.model_startup("new", None, params)
        manager.model_startup("new", WorkerType.RERANKER, params)
        asked = [json.loads(request.body) for request in host.requests]
    assert [one.get("worker_type") for one in asked] == [said, "reranker"]


def test_a_model_is_shut_down_at_a_host_of_dbgpt_by_its_type():
    registry = MemoryRegistry(heartbeat_timeout=60)
    with faulty(says(whole(200, b"null"))) as host, closing(Session()) as session:
        registry.beat([Instance(MANAGER_KEY, host.url), Instance("new@text2vec", host.url)])
        RemoteWorkerManager(RegistryView(registry, 60), session).model_shutdown("new", None)
        (asked,) = host.requests
    assert json.loads(asked.body)["worker_type"] == "text2vec"


def asked_types(calls: list[Request]) -> list[tuple[str | None, str | None]]:
    """Return the model and type of each apply or description that was asked for, sorted."""
    fields = [dict(parse_qsl(urlsplit(call.path).query)) or json.loads(call.body) for call in calls]
    return sorted((one.get("model"), one.get("worker_type")) for one in fields)


@pytest.mark.parametrize(
    ("registered", "given", "types"),
    [
        (["m@text2vec"], None, ["text2vec"]),
        (["m@reranker"], None, ["reranker"]),
        (["m@llm", "m@reranker"], None, ["llm", "reranker"]),
        (["m@llm", "m@reranker"], WorkerType.RERANKER, ["reranker"]),
    ],
)
def test_a_host_is_told_the_types_that_it_has_registered(registered, given, types):
    """A host of DB-GPT takes a call without a type for an LLM."""
    registry = MemoryRegistry(heartbeat_timeout=60)
    outcome = {"message": "done", "success": True, "timecost": 0.1}
    with faulty(says(whole(200, outcome))) as host, closing(Session()) as session:
        registry.beat([Instance(key, host.url) for key in (MANAGER_KEY, *registered)])
        manager = RemoteWorkerManager(RegistryView(registry, 60), session)
        assert manager.worker_apply("m", "restart", given, {}).success
        assert asked_types(host.requests) == [("m", one) for one in types]
        del host.requests[:]
        host.script = says(whole(200, []))
        manager.parameter_descriptions("m", given)
        assert asked_types(host.requests) == [("m", types[0] if len(types) == 1 else None)]


def test_a_star_is_the_models_of_a_host_that_does_not_know_it():
    """A host of DB-GPT fails for a star; one of ours knows of models that the registry does not show."""
    registry = MemoryRegistry(heartbeat_timeout=60)
    outcome = {"message": "done", "success": True, "timecost": 0.1}

    def theirs(peer: Peer) -> bool:
        star = json.loads(peer.request.body)["model"] == EVERY_MODEL
        peer.send(whole(500, b"Internal Server Error", content_type="text/plain") if star else whole(200, outcome))
        return True

    with faulty(theirs) as host, faulty(says(whole(200, outcome))) as ours, closing(Session()) as session:
        keys = (MANAGER_KEY, "a@llm", "b@text2vec")
        registry.beat([Instance(key, server.url) for server in (host, ours) for key in keys])
        manager = RemoteWorkerManager(RegistryView(registry, 60), session)
        outcome_of_all = manager.worker_apply(EVERY_MODEL, "stop", None, {})
    assert asked_types(host.requests) == [("*", None), ("a", "llm"), ("b", "text2vec")]
    assert asked_types(ours.requests) == [("*", None)]
    assert outcome_of_all.success
    assert outcome_of_all.message.count("done") == 3
