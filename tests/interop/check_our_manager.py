"""DB-GPT's worker, registered at our controller, used by our remote manager: in this process, and as a gateway."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from both import MANAGER_KEY, THEIR_KEYS, Both, keys_at, rows, url
from modelyard.cluster.manager import RemoteWorkerManager
from modelyard.cluster.registry import open_registry
from modelyard.cluster.view import RegistryView
from modelyard.errors import EngineError, InvalidRequest, ModelyardError, UnknownModel
from modelyard.sessions.session import Session
from modelyard.streams import Cancel
from modelyard.types import GenerateRequest, WorkerType
from running import Service, wait_until

STARTUP = {"name": "second", "provider": "echo"}


class Ours:
    """A controller and a gateway of ours, a worker of theirs."""

    def __init__(self, sides: Both) -> None:
        self.controller = sides.controller(heartbeat_timeout=4)
        self.worker = sides.their_worker(self.controller)
        self.gateway = sides.gateway(url(self.controller))
        wait_until(lambda: self.metadata().status_code == 200, "the gateway sees the worker")

    def metadata(self) -> requests.Response:
        return self.gateway.post("model_metadata", {"model": "theirs"})

    def stream(self, text: str, delta: bool = False, **options: Any) -> list[dict[str, Any]]:
        """Return the chunks that the gateway answers."""
        body = {"model": "theirs", "messages": [{"role": "user", "content": text}], **options}
        headers = {"Accept": "application/x-model-output-delta"} if delta else {}
        answer = self.gateway.post("generate_stream", body, headers=headers)
        return [json.loads(chunk) for chunk in answer.content.split(b"\0") if chunk]

    def texts(self, text: str, delta: bool = False, **options: Any) -> list[str]:
        return [chunk["text"] for chunk in self.stream(text, delta, **options)]

    def running(self) -> int:
        """Return how many answers their worker is giving."""
        count: int = self.worker.post("model_metadata", {"model": "theirs"}).json()["metadata"]["running"]
        return count


@pytest.fixture(scope="module")
def ours(sides: Both) -> Ours:
    return Ours(sides)


@pytest.fixture(scope="module")
def manager(ours: Ours) -> Iterator[RemoteWorkerManager]:
    session = Session(connect_timeout=2, read_timeout=30)
    view = RegistryView(open_registry(url(ours.controller), session=session), 0.2)
    made = RemoteWorkerManager(view, session)
    view.start()
    made.start()
    yield made
    made.stop()
    view.stop()
    session.close()


def pieces(manager: RemoteWorkerManager, text: str, **options: Any) -> tuple[list[str], ModelyardError | None]:
    found: list[str] = []
    request = GenerateRequest("theirs", [{"role": "user", "content": text}], **options)
    try:
        with manager.generate_stream(request, Cancel()) as stream:
            for burst in stream:
                found += burst.pieces if burst is not None else []
    except ModelyardError as error:
        return found, error
    return found, None


# Registered


def check_its_worker_is_registered_and_stays_healthy(ours):
    assert keys_at(ours.controller, ours.worker) == THEIR_KEYS
    beats = {row["last_heartbeat"] for row in rows(ours.controller) if row["model_name"] == "theirs@llm"}

    def beat() -> bool:
        return {row["last_heartbeat"] for row in rows(ours.controller) if row["model_name"] == "theirs@llm"} != beats

    wait_until(beat, "its heartbeat comes")


def check_all_its_models_are_instances(manager, ours):
    found = {one.model_name for one in manager.get_all_model_instances()}
    assert found == THEIR_KEYS - {MANAGER_KEY}
    assert manager.select_one_instance("theirs@llm").port == ours.worker.port


# Answers, by the manager in this process


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a b", [" token"] * 3),
        ("repeat grü😀", ["g", "r", "ü", "😀"]),
        ("think", ["It", " is so."]),
        ("trim", ["Hello ", "wo", "rld"]),
    ],
)
def check_a_stream_of_whole_texts_becomes_pieces(manager, text, wanted):
    assert pieces(manager, text, max_new_tokens=3) == (wanted, None)


def check_a_whole_answer(manager):
    output = manager.generate(GenerateRequest("theirs", [{"role": "human", "content": "a b"}], max_new_tokens=2))
    assert (output.text, output.finish_reason) == (" token token", "stop")
    assert output.usage == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}


def check_vectors_and_scores(manager):
    assert manager.embeddings("theirs-emb", ["a", "b c"]) == [[1.0, 1.0], [3.0, 2.0]]
    assert manager.rerank("theirs-rank", "a b", ["a", "b a", "c"]) == [0.5, 1.0, 0.0]


def check_tokens_and_metadata(manager):
    assert manager.count_token("theirs", "a b c") == 3
    assert manager.count_token(None, "a b") == 2
    assert manager.model_metadata("theirs").context_length == 2048


def check_what_a_request_says_arrives_in_its_words(manager):
    (said,) = pieces(manager, "show me", max_new_tokens=5, temperature=0.5, stop=["."], top_k=3)[0]
    params = json.loads(said)
    assert params["messages"] == [{"role": "human", "content": "show me", "round_index": 0}]
    assert params["echo"] is False
    assert {name: params[name] for name in ("max_new_tokens", "temperature", "stop", "top_k")} == {
        **{"max_new_tokens": 5, "temperature": 0.5},
        **{"stop": ".", "top_k": 3},
    }


def check_a_failure_of_its_engine_is_an_error_after_what_had_come(manager):
    found, error = pieces(manager, "fail")
    assert found == [" token"]
    assert isinstance(error, EngineError)
    assert str(error) == "**LLMServer Generate Error**: the engine broke"


def check_a_request_that_it_refuses_is_refused(manager):
    found, error = pieces(manager, "a", temperature="hot")
    assert found == []
    assert isinstance(error, InvalidRequest)
    assert "body.temperature: Input should be a valid number" in str(error)


def check_an_unknown_model_is_refused_here(manager):
    with pytest.raises(UnknownModel, match="there is no model 'nope'"):
        manager.embeddings("nope", ["a"])


# Administration, by the manager in this process


def check_supported_models_are_those_that_it_lists(manager, ours):
    (host,) = manager.supported_models()
    assert (host.host, host.port, host.error) == ("127.0.0.1", ours.worker.port, "")
    assert len(host.models) > 10


def check_descriptions(manager):
    found = {one["param_name"] for one in manager.parameter_descriptions("theirs", WorkerType.LLM)}
    assert {"name", "provider", "concurrency"} <= found


def check_a_model_is_started_used_and_shut_down_on_its_host(manager, ours):
    place = {"host": "127.0.0.1", "port": ours.worker.port}
    manager.model_startup("second", WorkerType.LLM, STARTUP, **place)
    assert "second@llm" in keys_at(ours.controller, ours.worker)
    manager.view.refresh()
    request = GenerateRequest("second", [{"role": "human", "content": "a"}], max_new_tokens=1)
    assert manager.generate(request).text == " token"
    outcome = manager.worker_apply("second", "start", WorkerType.LLM, {})
    assert (outcome.success, "start successfully" in outcome.message) == (True, True)
    manager.model_shutdown("second", WorkerType.LLM, **place)
    assert "second@llm" not in keys_at(ours.controller, ours.worker)


def check_a_restart_fails_as_it_does_there_and_says_where(manager, ours):
    """It stops the model, forgets it, and finds nothing to start."""
    manager.model_startup("third", WorkerType.LLM, {**STARTUP, "name": "third"})
    manager.view.refresh()
    outcome = manager.worker_apply("third", "restart", WorkerType.LLM, {})
    assert outcome.success is False
    assert f"http://127.0.0.1:{ours.worker.port}/api answers with status 500" in outcome.message


def check_a_startup_that_it_refuses_says_who_refused(manager, ours):
    with pytest.raises(EngineError, match=f"http://127.0.0.1:{ours.worker.port}/api answers with status 500"):
        manager.model_startup("nameless", WorkerType.LLM, {})
    with pytest.raises(InvalidRequest, match=r"body\.worker_type: Field required"):
        manager.model_startup("nameless", None, {})


# Through a gateway


def check_the_gateway_gives_whole_texts_or_pieces_as_asked(ours):
    assert ours.texts("repeat grün") == ["g", "gr", "grü", "grün"]
    assert ours.texts("repeat grün", delta=True) == ["g", "r", "ü", "n"]
    chunks = ours.stream("a b", max_new_tokens=2)
    assert chunks[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
    assert "stop" in [chunk["finish_reason"] for chunk in chunks]


def check_the_gateway_answers_every_call(ours):
    ask = ours.gateway.post
    said = ask("generate", {"model": "theirs", "messages": [{"role": "user", "content": "think"}]}).json()
    assert (said["text"], said["error_code"]) == ("It is so.", 0)
    assert ask("embeddings", {"model": "theirs-emb", "input": ["b c"]}).json() == [[3.0, 2.0]]
    body = {"model": "theirs-rank", "input": ["a", "c"], "query": "a"}
    assert ask("embeddings", body).json() == [[1.0, 0.0]]
    assert ask("count_token", {"model": "theirs", "prompt": "a b"}).json() == 2
    assert ours.metadata().json()["context_length"] == 2048
    (host,) = ours.gateway.get("models/supports").json()
    assert host["port"] == ours.worker.port
    described = ours.gateway.get("parameter/descriptions?model=theirs&worker_type=llm").json()
    keys = ("param_class", "param_name", "param_type", "description", "default_value")
    assert set(described[0]) == {*keys, "required", "valid_values", "ext_metadata"}


def check_the_gateway_passes_errors_on(ours):
    chunks = ours.stream("fail")
    assert [(chunk["text"], chunk["error_code"] != 0) for chunk in chunks] == [
        (" token", False),
        ("**LLMServer Generate Error**: the engine broke", True),
    ]
    broken = ours.stream("break")
    assert (broken[0]["text"], broken[-1]["error_code"]) == (" token", 502)
    assert "broke off its answer" in broken[-1]["text"]
    wait_until(lambda: ours.metadata().status_code == 200, "it is used again")


def check_a_client_that_hangs_up_at_the_gateway_ends_the_answer_there(ours):
    wait_until(lambda: ours.running() == 0, "nothing runs")
    slow = {"model": "theirs", "worker_type": "llm"}
    started = ours.gateway.post("models/startup", {**slow, "model": "slow", "params": {**STARTUP, **_slow()}})
    assert started.json() is None, started.text
    body = {"model": "slow", "messages": [{"role": "user", "content": "a"}], "max_new_tokens": 10_000}
    wait_until(lambda: ours.gateway.post("model_metadata", {"model": "slow"}).status_code == 200, "it is there")
    with requests.post(ours.gateway.url("generate_stream"), json=body, stream=True, timeout=30) as answer:
        assert next(answer.iter_content(100))
        assert ours.running() == 1
    wait_until(lambda: ours.running() == 0, "the answer there has ended")


def _slow() -> dict[str, Any]:
    return {"name": "slow", "pause": 0.05}


def check_its_death_ends_a_stream_with_an_error_and_it_is_found_again(own_sides):
    ours = Ours(own_sides)
    params = {**STARTUP, **_slow()}
    startup = {"model": "slow", "worker_type": "llm", "params": params}
    assert ours.gateway.post("models/startup", startup).json() is None
    wait_until(lambda: ours.gateway.post("model_metadata", {"model": "slow"}).status_code == 200, "it is there")
    body = {"model": "slow", "messages": [{"role": "user", "content": "a"}], "max_new_tokens": 10_000}
    chunks: list[dict[str, Any]] = []
    spoke = threading.Event()

    def read() -> None:
        with requests.post(ours.gateway.url("generate_stream"), json=body, stream=True, timeout=30) as answer:
            rest = b""
            for data in answer.iter_content(None):
                *whole, rest = (rest + data).split(b"\0")
                chunks.extend(json.loads(chunk) for chunk in whole if chunk)
                spoke.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert spoke.wait(20)
    os.killpg(ours.worker.pid, signal.SIGKILL)
    reader.join(20)
    assert chunks[0]["text"].startswith(" token")
    assert chunks[-1]["error_code"] == 502
    refused = ours.gateway.post("embeddings", {"model": "theirs-emb", "input": ["a"]})
    assert refused.status_code == 503
    assert f"127.0.0.1:{ours.worker.port}" in refused.json()["detail"]
    wait_until(lambda: not keys_at(ours.controller, ours.worker), "it is no longer healthy", 30)
    again = own_sides.their_worker(ours.controller)
    wait_until(lambda: ours.metadata().status_code == 200, "another one is used")
    assert keys_at(ours.controller, again) == THEIR_KEYS


def check_what_it_stops_it_deregisters(own_sides):
    controller = own_sides.controller()
    worker: Service = own_sides.their_worker(controller)
    worker.signal(signal.SIGTERM)
    wait_until(lambda: not keys_at(controller, worker) - {MANAGER_KEY}, "its models are deregistered")
