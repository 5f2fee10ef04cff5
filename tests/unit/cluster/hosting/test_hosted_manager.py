"""What stands before a model host waits for one that is being started, and tells what else is wrong with it."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import steered
from faulty import Peer, faulty, http_chunk, output, stream_head, streamed, whole
from in_process import service, url_of
from modelyard.cluster.hosting.manager import HostedWorkerManager, HostEndpoint
from modelyard.errors import (
    Cancelled,
    Draining,
    ModelyardError,
    NotReady,
    UnknownModel,
    Unsupported,
    WorkerLost,
)
from modelyard.server.runtime import Runtime
from modelyard.sessions.session import Session
from modelyard.streams import Cancel
from modelyard.types import GenerateRequest, Terms, WorkerType
from running import free_port, wait_until
from steered import Steered

TABLES = [
    {"name": "a", "worker_class": steered.PATH},
    {"name": "vec", "worker_class": steered.PATH, "worker_type": "text2vec"},
    {"name": "slow", "worker_class": steered.PATH, "worker_type": "text2vec", "hold_start": True, "start": False},
]
for table in TABLES:
    table["limit_model_concurrency"] = 4
FEW = {"limit_model_concurrency": 4}
HELLO = GenerateRequest("a", prompt="hello")


_sessions: list[Session] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while _sessions:
        _sessions.pop().close()


def manager_at(url: str, timeout: float = 20.0) -> HostedWorkerManager:
    """Return a manager over the host at ``url``; its connections end with the test."""
    _sessions.append(Session())
    return HostedWorkerManager(HostEndpoint(url), _sessions[-1], timeout, lambda: ("web.example", 8000))


@pytest.fixture
def nobody() -> str:
    """An address at which nobody listens."""
    return f"http://127.0.0.1:{free_port()}/api"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Runtime]:
    Steered.reset()
    with service(tmp_path, TABLES, role="worker") as runtime:
        yield runtime


class Later:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.came: Any = None
        self.raised: ModelyardError | None = None
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self.came = call()
        except ModelyardError as error:
            self.raised = error

    def result(self) -> Any:
        self._thread.join(20)
        assert not self._thread.is_alive(), "it does not end"
        if self.raised is not None:
            raise self.raised
        return self.came


CALLS: dict[str, Callable[[HostedWorkerManager, Cancel, bool], Any]] = {
    "generate": lambda manager, cancel, wait: manager.generate(replace(HELLO, terms=Terms(wait=wait)), cancel).text,
    "embeddings": lambda manager, cancel, wait: manager.embeddings("vec", ["xyz"], cancel, Terms(wait=wait)),
    "rerank": lambda manager, cancel, wait: manager.rerank("vec", "x", ["xyz"], cancel, Terms(wait=wait)),
    "tokens": lambda manager, cancel, wait: manager.count_token(None, "one two", cancel, Terms(wait=wait)),
}
OTHERS: dict[str, Callable[[HostedWorkerManager], Any]] = {
    "count_token": lambda manager: manager.count_token("a", "one two"),
    "metadata": lambda manager: manager.model_metadata("a"),
    "instances": lambda manager: manager.get_all_model_instances(),
    "descriptions": lambda manager: manager.parameter_descriptions("a", None),
    "supported": lambda manager: manager.supported_models(),
    "startup": lambda manager: manager.model_startup("a", WorkerType.RERANKER, FEW),
    "shutdown": lambda manager: manager.model_shutdown("a", None),
    "apply": lambda manager: manager.worker_apply("a", "restart", None, {}),
}


def test_it_is_made_without_a_connection(nobody: str) -> None:
    assert manager_at(nobody).load_of("a", WorkerType.LLM) is None


@pytest.mark.parametrize("call", [*CALLS, "count_token", "startup"])
def test_a_call_waits_for_a_host_that_is_being_started(tmp_path: Path, call: str) -> None:
    Steered.reset()
    port = free_port()
    manager = manager_at(f"http://127.0.0.1:{port}/api")
    asked = threading.Event()
    original = manager._session.request

    def request(*args: Any, **options: Any) -> Any:
        asked.set()
        return original(*args, **options)

    manager._session.request = request  # type: ignore[method-assign]
    if call in CALLS:
        later = Later(lambda: CALLS[call](manager, Cancel(), True))
    else:
        later = Later(lambda: OTHERS[call](manager))
    assert asked.wait(10), "it looks for the host"
    with service(tmp_path, TABLES, role="worker", port=port):
        came = later.result()
    vectors = {"embeddings": [[3.0, 1.0]], "rerank": pytest.approx([4 / 20**0.5])}
    assert came == {"generate": " hello", **vectors, "tokens": 2, "count_token": 2, "startup": ""}[call]


@pytest.mark.parametrize("call", CALLS)
def test_a_host_is_asked_where_it_is_once_that_is_known(host: Runtime, call: str) -> None:
    manager = manager_at("")

    class Told(Cancel):
        def wait(self, timeout: float | None = None) -> bool:
            manager.endpoint.url = url_of(host)
            return super().wait(timeout)

    assert CALLS[call](manager, Told(), True)


@pytest.mark.parametrize("call", [*CALLS, *OTHERS])
def test_whoever_waited_in_vain_is_told_when_to_come_again(nobody: str, call: str) -> None:
    manager = manager_at(nobody, timeout=0)
    with pytest.raises(NotReady, match="the model host is being started") as caught:
        CALLS[call](manager, Cancel(), True) if call in CALLS else OTHERS[call](manager)
    assert caught.value.retry_after == 2


@pytest.mark.parametrize("call", CALLS)
def test_who_does_not_wait_in_line_does_not_wait_for_a_host(nobody: str, call: str) -> None:
    began = time.monotonic()
    with pytest.raises(NotReady):
        CALLS[call](manager_at(nobody), Cancel(), False)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("call", ["generate", "count_token"])
def test_what_keeps_the_host_from_being_there_is_told(call: str) -> None:
    manager = manager_at("", timeout=0)
    manager.endpoint.trouble = "no folder can be written"
    with pytest.raises(NotReady, match="no folder can be written"):
        CALLS[call](manager, Cancel(), True) if call in CALLS else OTHERS[call](manager)


@pytest.mark.parametrize("call", CALLS)
def test_a_request_that_is_cancelled_waits_no_longer(nobody: str, call: str) -> None:
    cancel = Cancel()
    later = Later(lambda: CALLS[call](manager_at(nobody), cancel, True))
    cancel.set(Cancelled("the client has gone"))
    with pytest.raises(Cancelled):
        later.result()


def test_a_stream_says_that_it_waits_so_that_a_silence_can_be_broken(nobody: str) -> None:
    with manager_at(nobody).generate_stream(HELLO) as stream:
        assert next(stream) is None
        assert next(stream) is None


def test_what_is_wrong_with_a_request_is_told_before_its_stream_begins(host: Runtime) -> None:
    manager = manager_at(url_of(host))
    with pytest.raises(UnknownModel, match="there are a@llm, vec@text2vec"):
        manager.generate_stream(GenerateRequest("nobody", prompt="x"))
    with pytest.raises(Unsupported, match="text2vec"):
        manager.generate_stream(GenerateRequest("vec", prompt="x"))


def test_a_model_that_another_process_has_started_is_found(host: Runtime) -> None:
    one, other = manager_at(url_of(host)), manager_at(url_of(host))
    assert one.generate(HELLO).text == " hello"
    other.model_startup("a", WorkerType.RERANKER, FEW)
    assert one.rerank("a", "x", ["x"]) == [1.0]
    other.model_shutdown("a", WorkerType.LLM)
    with pytest.raises(Unsupported):
        one.generate(HELLO)
    other.model_startup("a", WorkerType.LLM, FEW)
    assert one.generate(HELLO).text == " hello"


def test_a_model_that_was_stopped_is_not_waited_for(host: Runtime) -> None:
    manager = manager_at(url_of(host))
    assert manager.worker_apply("a", "stop", None, {}).success
    with pytest.raises(NotReady, match="stopped"):
        manager.generate(HELLO)


def test_a_model_that_is_just_starting_is_waited_for(host: Runtime) -> None:
    one, other = manager_at(url_of(host)), manager_at(url_of(host))
    start = Later(lambda: other.model_startup("slow", None, {}))
    wait_until(lambda: Steered.holding, "it starts")
    call = Later(lambda: one.embeddings("slow", ["xyz"]))
    wait_until(lambda: one.is_coming("slow"), "it is coming")
    Steered.go.set()
    assert call.result() == [[3.0, 1.0]]
    assert start.result() == ""


def test_a_model_of_the_host_that_can_not_answer_has_the_error_of_the_host(host: Runtime, nobody: str) -> None:
    manager = manager_at(url_of(host))
    host.manager.worker_apply("vec", "stop", None, {})
    with pytest.raises(NotReady, match="'vec' is stopped"):
        manager.check_available("vec", WorkerType.LLM, WorkerType.TEXT2VEC)
    for model, worker_type in (("a", WorkerType.LLM), ("vec", WorkerType.LLM), ("other", WorkerType.LLM)):
        manager.check_available(model, worker_type)
    manager_at(nobody).check_available("vec", WorkerType.TEXT2VEC)


def test_instances_and_hosts_are_those_of_the_web_side(host: Runtime) -> None:
    manager = manager_at(url_of(host))
    instances = manager.get_all_model_instances()
    assert {(one.model_name, one.host, one.port) for one in instances} == {
        ("a@llm", "web.example", 8000),
        ("vec@text2vec", "web.example", 8000),
    }
    assert {(one.host, one.port) for one in manager.supported_models()} == {("web.example", 8000)}


# A host that ends


PIECE = output("Once")


def failing(code: str) -> bytes:
    return output("it ended", error_code=503, model_context={"error": code})


def of_host(*answers: bytes) -> Callable[[Peer], bool]:
    """Return a script: ready with ``a``, and one of ``answers`` after the other, each a whole stream."""
    left = list(answers)
    ready = {"ready": True, "state": "ready", "reason": None, "models": [{"model": "a@llm", "state": "ready"}]}

    def script(peer: Peer) -> bool:
        peer.send(whole(200, ready) if peer.request.path.endswith("/readyz") else left.pop(0))
        return False

    return script


@pytest.mark.parametrize(("code", "error"), [("draining", Draining), ("not_ready", NotReady)])
def test_an_answer_that_has_begun_is_never_begun_anew(code: str, error: type[ModelyardError]) -> None:
    with faulty(of_host(streamed(PIECE, failing(code)), streamed(PIECE))) as server:
        manager = manager_at(server.url)
        with manager.generate_stream(HELLO) as stream:
            pieces = []
            with pytest.raises(error, match="it ended"):
                for burst in stream:
                    pieces += burst.pieces if burst is not None else []
        assert pieces == ["Once"]
        assert len([one for one in server.requests if one.path.endswith("/generate_stream")]) == 1


def test_an_answer_that_has_not_begun_is_asked_of_the_next_host() -> None:
    with faulty(of_host(streamed(failing("draining")), streamed(PIECE))) as server:
        assert manager_at(server.url).generate(HELLO).text == "Once"


def test_an_answer_that_breaks_off_says_so() -> None:
    with faulty(of_host(stream_head() + http_chunk(PIECE))) as server:
        manager = manager_at(server.url)
        with manager.generate_stream(HELLO) as stream, pytest.raises(WorkerLost):
            for _ in stream:
                pass


def test_a_model_that_a_starting_host_has_not_declared_yet_is_not_unknown(
    nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = manager_at(nobody)
    status = {"ready": False, "state": "starting", "models": [{"model": "vec@text2vec", "state": "starting"}]}
    monkeypatch.setattr(manager, "status", lambda: status)
    manager.generate_stream(HELLO).close()
    status |= {"ready": True, "state": "ready"}
    with pytest.raises(UnknownModel):
        manager.generate_stream(HELLO)


def test_a_host_says_that_it_can_not_keep_what_is_changed(host: Runtime, tmp_path: Path) -> None:
    manager = manager_at(url_of(host))
    assert manager.status()["unsaved"] is None
    shutil.rmtree(tmp_path / "state")
    assert "was removed" in manager.status()["unsaved"]
    assert "will not be remembered" in manager.worker_apply("a", "update_params", None, {"size": 2}).message
