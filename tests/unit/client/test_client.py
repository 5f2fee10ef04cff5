"""modelyard.Client against servers that do what a script says: what it sends, what again, what each failure means."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from faulty import (
    Faulty,
    Peer,
    breaks_off,
    dribbles,
    faulty,
    http_chunk,
    in_turn,
    output,
    resets,
    says,
    stalls,
    stream_head,
    streamed,
    whole,
)
from modelyard import Client, errors
from modelyard.types import SupportedModel
from modelyard.wire.unsaved import UNSAVED_HEADER, encode_reason
from running import free_port, wait_until

READY = whole(200, {"ready": True, "models": [{"model": "m@llm", "state": "ready", "reason": None}]})
HELLO = streamed(output("Hel"), output("lo"), output("", finish_reason="stop", usage={"total_tokens": 3}))


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODELYARD_URL", "MODELYARD_TOKEN", "MODELYARD_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)


def problem(kind: type[errors.ModelyardError], detail: str = "why", *headers: str, **more: Any) -> bytes:
    document = {"type": f"urn:modelyard:error:{kind.code}", "title": "T", "status": kind.status, "detail": detail}
    return whole(kind.status, {**document, **more}, *headers, content_type="application/problem+json")


def refused(kind: type[errors.ModelyardError], *headers: str, status: int | None = None) -> bytes:
    """Return a refusal of a stream: a ModelOutput, with its code."""
    said = output("why", error_code=kind.status, model_context={"error": kind.code})
    return whole(status or kind.status, said, *headers, content_type="application/x-model-output-delta")


def client_of(server: Faulty, **options: Any) -> Client:
    return Client(server.url, **{"retries": 0, **options})


def test_importing_it_loads_requests_and_of_the_package_only_what_it_is_made_of() -> None:
    script = "import modelyard; modelyard.Client\nimport sys\nprint(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(ran.stdout.split())
    assert {name.partition(".")[2] for name in loaded if name.startswith("modelyard")} == {
        *("", "version", "errors", "types", "streams", "processes", "sockets"),
        *("wire", "wire.messages", "wire.decoder", "wire.errors", "wire.terms", "wire.unsaved"),
        *("client", "client.answers", "client.calls", "client.client", "client.stream"),
        *("sessions", "sessions.address", "sessions.adapters", "sessions.calls", "sessions.connections"),
        *("sessions.faults", "sessions.response", "sessions.session"),
    }
    foreign = {
        "opentelemetry",
        "flask",
        "werkzeug",
        "gunicorn",
        "gevent",
        "marshmallow",
        "orjson",
        "click",
        "sqlite3",
        "numpy",
    }
    assert "requests" in loaded
    assert not loaded & foreign


# Text


def test_a_token_file_in_an_unknown_home_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_TOKEN_FILE", "~nobody-of-that-name/token")
    with pytest.raises(errors.ConfigError, match="MODELYARD_TOKEN_FILE: ~nobody-of-that-name/token can't be read"):
        Client("http://127.0.0.1:9")


def test_an_answer_is_its_text() -> None:
    with faulty(says(HELLO)) as server, client_of(server) as client:
        assert client.chat("Why?", model="m", max_new_tokens=5, stop=["."]) == "Hello"
        (request,) = server.requests
        assert (request.method, request.path) == ("POST", "/api/worker/generate_stream")
        assert request.headers["accept"] == "application/x-model-output-delta"
        assert request.json() == {
            "model": "m",
            "messages": [{"role": "human", "content": "Why?"}],
            "echo": False,
            "max_new_tokens": 5,
            "stop": ["."],
        }


def test_a_whole_answer_says_how_it_ended() -> None:
    with faulty(says(HELLO)) as server, client_of(server) as client:
        answer = client.generate(prompt="Once", model="m", temperature=None)
        assert (answer.text, answer.finish_reason, answer.usage) == ("Hello", "stop", {"total_tokens": 3})
        assert server.requests[0].json() == {"model": "m", "messages": [], "prompt": "Once", "echo": False}


def test_a_stream_gives_pieces_and_has_the_whole_answer_in_the_end() -> None:
    with faulty(says(HELLO)) as server, client_of(server) as client, client.stream("x", model="m") as stream:
        assert (next(stream), stream.text) == ("Hel", "Hel")
        assert list(stream) == ["lo"]
        assert (stream.output.text, stream.text, stream.usage) == ("Hello", "Hello", {"total_tokens": 3})
        assert stream.finish_reason == "stop"
        assert list(stream) == []


def test_a_stream_may_come_in_any_portions_with_empty_chunks_and_as_whole_text() -> None:
    parts = output("Né", incremental=False), b"\0\0", output("Né 🙂", incremental=False)
    with faulty(dribbles(streamed(*parts))) as server, client_of(server) as client:
        assert list(client.stream("x", model="m")) == ["Né", " 🙂"]


def test_messages_and_prompt_exclude_each_other_and_options_are_those_there_are() -> None:
    with faulty(says(HELLO)) as server, client_of(server) as client:
        for wrong in ({}, {"messages": "a", "prompt": "b"}, {"messages": "a", "max_tokens": 3}):
            with pytest.raises(TypeError):
                client.chat(model="m", **wrong)
        with pytest.raises(errors.InvalidRequest, match="messages"):
            client.chat([{"content": "no role"}], model="m")
        with pytest.raises(errors.InvalidRequest):
            client.chat("x", model="m", temperature=float("nan"))
        assert server.requests == []


# The model that is meant


def test_without_a_name_the_only_model_of_the_kind_is_meant_and_it_is_asked_for_once() -> None:
    with faulty(lambda peer: says(READY if peer.request.path.endswith("readyz") else HELLO)(peer)) as server:
        with client_of(server) as client:
            assert [client.chat("x"), client.chat("x")] == ["Hello", "Hello"]
        assert [request.path.rpartition("/")[2] for request in server.requests] == [
            "readyz",
            "generate_stream",
            "generate_stream",
        ]
        assert server.requests[1].json()["model"] == "m"


@pytest.mark.parametrize(
    ("keys", "kind", "says_so"),
    [
        (["a@llm", "b@llm"], errors.InvalidRequest, "name one of those at .*: a, b"),
        (["a@text2vec"], errors.UnknownModel, "no model of the type llm"),
    ],
)
def test_where_it_can_not_be_told_which_model_is_meant_the_error_says_what_there_is(keys, kind, says_so) -> None:
    models = [{"model": key, "state": "ready", "reason": None} for key in keys]
    with (
        faulty(says(whole(200, {"ready": True, "models": models}))) as server,
        client_of(server) as client,
        pytest.raises(kind, match=says_so),
    ):
        client.chat("x")


def test_a_model_that_was_the_only_one_and_is_gone_is_looked_for_anew() -> None:
    now = ["one"]

    def script(peer: Peer) -> bool:
        if peer.request.path.endswith("readyz"):
            model = {"model": f"{now[0]}@llm", "state": "ready", "reason": None}
            return bool(says(whole(200, {"ready": True, "models": [model]}))(peer))
        known = peer.request.json()["model"] == now[0]
        return bool(says(HELLO if known else refused(errors.UnknownModel, status=200))(peer))

    with faulty(script) as server, client_of(server) as client:
        assert client.chat("x") == "Hello"
        now[0] = "other"
        with pytest.raises(errors.UnknownModel):
            client.chat("x")
        assert client.chat("x") == "Hello"


# What goes wrong


@pytest.mark.parametrize(
    "kind",
    [errors.PromptTooLong, errors.UnknownModel, errors.Forbidden, errors.Draining, errors.Conflict, errors.StartFailed],
)
def test_an_error_is_the_one_that_the_service_names(kind: type[errors.ModelyardError]) -> None:
    with faulty(says(problem(kind))) as server, client_of(server) as client, pytest.raises(kind, match="why") as caught:
        client.count_token("x", model="m")
    assert type(caught.value) is kind


def test_the_fields_at_fault_and_the_pause_come_along() -> None:
    fault = {"field": "top_p", "message": "is 7"}
    answers = problem(errors.InvalidRequest, errors=[fault]), problem(errors.Overloaded, "full", "Retry-After: 7")
    with faulty(in_turn(*map(says, answers))) as server, client_of(server) as client:
        with pytest.raises(errors.InvalidRequest) as invalid:
            client.embeddings(["a"], model="m")
        assert invalid.value.errors == [fault]
        with pytest.raises(errors.Overloaded) as full:
            client.embeddings(["a"], model="m")
        assert full.value.retry_after == 7


@pytest.mark.parametrize(("kind", "status"), [(errors.UnknownModel, 200), (errors.PromptTooLong, 422)])
def test_a_refused_stream_is_raised_before_there_is_one(kind: type[errors.ModelyardError], status: int) -> None:
    with faulty(says(refused(kind, status=status))) as server, client_of(server) as client, pytest.raises(kind):
        client.stream("x", model="m")


def test_what_fails_midway_is_raised_after_what_had_come() -> None:
    broken = output("engine broke", error_code=500, model_context={"error": "engine_error"})
    with faulty(says(streamed(output("Hel"), broken))) as server, client_of(server, retries=3) as client:
        stream = client.stream("x", model="m")
        assert next(stream) == "Hel"
        for _ in range(2):
            with pytest.raises(errors.EngineError, match="engine broke"):
                next(stream)
        assert stream.output.text == "Hel"
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (breaks_off(stream_head(), http_chunk(output("Hel"))), errors.WorkerLost),
        (resets(stream_head(), http_chunk(output("Hel"))), errors.WorkerLost),
        (breaks_off(stream_head(), http_chunk(output("Hel") + b'{"te'), b"0\r\n\r\n"), errors.WorkerLost),
        (stalls(stream_head(), http_chunk(output("Hel"))), errors.WorkerLost),
        (breaks_off(stream_head(), http_chunk(output("Hel") + b"[]\0")), errors.WorkerLost),
        (breaks_off(stream_head()), errors.WorkerUnreachable),
        (says(streamed()), errors.EngineError),
    ],
    ids=["closed", "reset", "half a chunk", "silent", "no object", "nothing", "empty"],
)
def test_an_answer_that_breaks_off_is_never_asked_for_again(script, kind: type[errors.ModelyardError]) -> None:
    with faulty(script) as server, client_of(server, retries=3, read_timeout=0.5) as client:
        with pytest.raises(kind) as caught:
            client.chat("x", model="m")
        assert type(caught.value) is kind
        assert "deque" not in str(caught.value), "the reason is that of the connection"
        assert len(server.requests) == 1


def test_something_else_at_the_address_is_said_to_be_that() -> None:
    pages = [
        whole(404, b"<h1>Not Found</h1>", content_type="text/html"),
        whole(200, b"<h1>Log in</h1>", content_type="text/html"),
        whole(302, b"", "Location: http://elsewhere/api"),
    ]
    for page in pages:
        with faulty(says(page)) as server, client_of(server, retries=3) as client:
            for call in (client.chat, client.count_token):
                with pytest.raises(errors.ConfigError):
                    call("x", model="m")
            with pytest.raises(errors.ConfigError):
                client.models()
            assert "elsewhere" not in {request.headers["host"] for request in server.requests}


@pytest.mark.parametrize("url", ["here", "ftp://here", "http://", "http://h:0", "http+unix://relative.sock"])
def test_what_is_no_address_is_refused_when_it_is_given(url: str) -> None:
    with pytest.raises(errors.ConfigError, match="is not an address"):
        Client(url)


# What is sent again


def test_a_call_is_sent_again_where_the_connection_broke_before_an_answer() -> None:
    for script in (breaks_off(), resets()):
        with faulty(in_turn(script, script, says(HELLO))) as server, client_of(server, retries=2) as client:
            assert client.chat("x", model="m") == "Hello"
            assert len(server.requests) == 3


def test_a_call_is_sent_again_after_a_503_and_not_before_it_says() -> None:
    busy = refused(errors.Overloaded, "Retry-After: 1")
    with faulty(in_turn(says(busy), says(HELLO))) as server, client_of(server, retries=1) as client:
        began = time.monotonic()
        assert client.chat("x", model="m") == "Hello"
        assert time.monotonic() - began >= 1.0
        assert len(server.requests) == 2


@pytest.mark.parametrize("content_type", ["text/html", "text/plain"])
def test_the_503_of_a_proxy_is_no_list_of_models_but_a_reason_to_ask_again(content_type: str) -> None:
    page = whole(503, b"no server is available", content_type=content_type)
    with faulty(in_turn(says(page), says(READY))) as server, client_of(server, retries=1) as client:
        assert [model.name for model in client.models()] == ["m"]
    refusal = pytest.raises(errors.Unavailable, match="no server is available")
    with faulty(says(page)) as server, client_of(server, retries=0) as client, refusal:
        client.models()


def test_it_does_not_wait_longer_than_it_may() -> None:
    busy = problem(errors.Overloaded, "full", "Retry-After: 30")
    with faulty(says(busy)) as server, client_of(server, retries=1, retry_seconds=5) as client:
        with pytest.raises(errors.Overloaded):
            client.count_token("x", model="m")
        assert len(server.requests) == 1


def test_retries_are_bounded_in_number() -> None:
    with faulty(breaks_off()) as server, client_of(server, retries=2) as client:
        with pytest.raises(errors.WorkerUnreachable, match="no service answers"):
            client.count_token("x", model="m")
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    "script",
    [stalls(), says(problem(errors.EngineError)), says(problem(errors.UnknownModel)), says(whole(502, b"bad gateway"))],
    ids=["silent", "engine", "unknown", "gateway"],
)
def test_what_may_have_been_computed_or_never_helps_is_not_sent_again(script) -> None:
    with faulty(script) as server, client_of(server, retries=3, read_timeout=0.3) as client:
        with pytest.raises(errors.ModelyardError):
            client.embeddings(["x"], model="m")
        assert len(server.requests) == 1


@pytest.mark.parametrize("script", [breaks_off(), says(problem(errors.Draining, "why", "Retry-After: 0"))])
def test_what_changes_something_is_sent_once(script) -> None:
    with faulty(script) as server, client_of(server, retries=3) as client:
        calls = [
            lambda: client.start("m", n_ctx=1),
            lambda: client.stop("m"),
            lambda: client.stop("m", forget=True),
            lambda: client.apply("m", "restart"),
        ]
        for call in calls:
            with pytest.raises(errors.Unavailable):
                call()
        assert len(server.requests) == len(calls)


def test_what_changes_something_is_sent_again_where_nobody_can_have_seen_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sock"
    done = whole(200, {"message": "", "success": True, "timecost": 0.1})
    came: list[Faulty] = []

    def pause(seconds: float) -> float:
        came.append(Faulty(says(done), path))
        return 0.0

    monkeypatch.setattr("modelyard.client.calls._jittered", pause)
    try:
        with Client(f"http+unix://{quote(str(path), safe='')}", retries=1) as client:
            client.stop("m")
        assert [len(server.requests) for server in came] == [1]
    finally:
        for server in came:
            server.close()


def test_what_changes_something_never_goes_over_a_kept_connection_which_may_be_closed_just_then() -> None:
    used: set[int] = set()

    def script(peer: Peer) -> bool:
        if peer.sock.fileno() in used:
            return False
        used.add(peer.sock.fileno())
        done = {"message": "", "success": True, "timecost": 0.1}
        return bool(says(whole(200, 3 if peer.request.path.endswith("count_token") else done))(peer))

    with faulty(script) as server, client_of(server) as client:
        client.count_token("x", model="m")
        client.stop("m")
        assert (len(server.requests), server.connections) == (2, 2)


# Start, stop, apply


def test_start_starts_what_is_hosted_and_else_hosts_it() -> None:
    unknown, started = problem(errors.UnknownModel), whole(200, None)
    with faulty(in_turn(says(unknown), says(started))) as server, client_of(server) as client:
        client.start("m", "llm")
        assert [request.path for request in server.requests] == ["/api/worker/apply", "/api/worker/models/startup"]
        assert server.requests[1].json() == {"model": "m", "worker_type": "llm", "params": {}}


def test_an_outcome_without_success_is_an_error_of_start_and_stop_and_a_result_of_apply() -> None:
    failed = whole(200, {"message": "no room", "success": False, "timecost": 0.1})
    with faulty(says(failed)) as server, client_of(server) as client:
        with pytest.raises(errors.StartFailed, match="no room"):
            client.start("m")
        with pytest.raises(errors.EngineError, match="no room"):
            client.stop("m")
        assert client.apply("*", "restart").success is False


def test_a_change_that_the_service_does_not_remember_says_why_in_its_outcome() -> None:
    reason = "the state folder /srv/m\u00fcll was removed; 100 % of it"
    answer = whole(200, None, f"{UNSAVED_HEADER}: {encode_reason(reason)}")
    with faulty(says(answer)) as server, client_of(server) as client:
        started = client.start("m", host="10.0.0.1")
        stopped = client.stop("m", forget=True)
    note = f"this will not be remembered: {reason}"
    assert (started.success, started.message) == (True, f"model m started; {note}")
    assert stopped.message == f"model m stopped and forgotten; {note}"


def test_a_host_is_named_for_a_model_that_is_new_there_or_forgotten() -> None:
    with faulty(says(whole(200, None))) as server, client_of(server) as client:
        client.start("m", host="10.0.0.1", port=8001)
        client.start("m", "llm", host="10.0.0.1", port=8001, n_ctx=64)
        client.stop("m", forget=True, host="10.0.0.1", port=8001)
        place = {"host": "10.0.0.1", "port": 8001}
        assert [(request.path.removeprefix("/api/worker/"), request.json()) for request in server.requests] == [
            ("models/startup", {"model": "m", "worker_type": None, "params": {}, **place}),
            ("models/startup", {"model": "m", "worker_type": "llm", "params": {"n_ctx": 64}, **place}),
            ("models/shutdown", {"model": "m", "worker_type": None, **place}),
        ]
        with pytest.raises(TypeError, match="forget=True"):
            client.stop("m", host="10.0.0.1", port=8001)


@pytest.mark.parametrize("limits", [({"change_timeout": 0.2}, {}), ({}, {"timeout": 0.2})], ids=["of all", "of one"])
def test_a_change_has_a_limit_of_its_own(limits: tuple[dict[str, float], dict[str, float]]) -> None:
    with faulty(stalls()) as server, client_of(server, **limits[0]) as client:
        for change in (client.start, client.stop, lambda model, **limit: client.apply(model, "restart", **limit)):
            with pytest.raises(errors.WorkerUnreachable, match=r"did not answer within 0\.2 s"):
                change("m", **limits[1])


# What a service can tell of itself

SUPPORTED = {"model": "m", "path": "m.gguf", "worker_type": "llm", "path_exist": True, "proxy": False, "enabled": True}
PARAM = {"param_name": "n_ctx", "param_type": "int", "default_value": 2048}


def test_session_and_priority_are_headers() -> None:
    def script(peer: Peer) -> bool | None:
        is_text = peer.request.path.endswith("generate_stream")
        return (says(HELLO) if is_text else says(whole(200, [[1.0]])))(peer)

    with faulty(script) as server, client_of(server) as client:
        client.generate("x", model="m", session="s1", batch=True)
        client.generate("x", model="m", batch=False)
        client.embeddings(["x"], model="m", batch=True)
        client.rerank("q", ["x"], model="m", batch=True)
        client.embeddings(["x"], model="m")
        sent = server.requests
    assert [request.headers.get("modelyard-priority") for request in sent] == ["batch", None, "batch", "batch", None]
    assert [request.headers.get("x-session-id") for request in sent] == ["s1", None, None, None, None]
    assert not {"session", "batch"} & {name for request in sent for name in request.json()}


def test_the_status_is_what_readyz_answers_whole_also_where_it_is_not_ready() -> None:
    models = [{"model": "broken", "state": "failed"}]
    status = {"ready": False, "reason": "draining", "models": models, "cluster": {"role": "worker"}}
    with faulty(says(whole(503, status))) as server, client_of(server) as client:
        assert client.status() == status
        assert client.models() == [("broken", None, "failed", None)]


def test_supported_models_are_values_by_host_and_absent_keys_have_defaults() -> None:
    peers = {name: SUPPORTED[name] for name in ("model", "worker_type", "enabled")}
    hosts = [{"host": "h", "port": 1, "models": [{**SUPPORTED, "params": [PARAM]}, {**peers, "params": [], "new": 1}]}]
    with faulty(says(whole(200, hosts))) as server, client_of(server) as client:
        (host,) = client.supported_models()
        assert (host.host, host.port) == ("h", 1)
        assert host.models[0] == SupportedModel(**SUPPORTED, params=[PARAM])
        assert host.models[1] == SupportedModel("m", "", "llm", False, False, True, [])


def test_parameter_descriptions_are_asked_for_by_name_and_type() -> None:
    with faulty(says(whole(200, [PARAM]))) as server, client_of(server) as client:
        assert client.parameter_descriptions("a model", "llm") == [PARAM]
        assert client.parameter_descriptions("m&n") == [PARAM]
        assert [request.path.partition("?")[2] for request in server.requests] == [
            "model=a+model&worker_type=llm",
            "model=m%26n",
        ]


def test_instances_are_rows_and_a_service_without_the_call_has_none() -> None:
    rows = [{"key": "m@llm", "url": "http://h/api", "healthy": True, "load": None}]
    with faulty(in_turn(says(whole(200, rows)), says(whole(404, {"title": "Not Found"})))) as server:
        with client_of(server) as client:
            assert client.instances() == rows
            with pytest.raises(errors.ConfigError, match="has no list of instances"):
                client.instances()
        assert server.requests[0].path == "/api/controller/instances"


@pytest.mark.parametrize("shape", [{"a": 1}, [1], [{"models": [1]}], [{"host": "h", "port": 1, "models": [{}]}], None])
def test_an_answer_of_another_shape_is_that_of_something_else(shape: Any) -> None:
    with faulty(says(whole(200, shape))) as server, client_of(server) as client:
        calls = [client.status, client.supported_models, client.instances, lambda: client.parameter_descriptions("m")]
        for call in calls:
            with pytest.raises(errors.ConfigError):
                call()
        for change in (client.start, client.stop, lambda model: client.apply(model, "restart")):
            with pytest.raises(errors.ConfigError, match="not like a worker"):
                change("m")


def test_only_null_says_that_a_model_was_started_or_forgotten() -> None:
    with faulty(says(whole(200, {"hello": 1}))) as server, client_of(server) as client:
        for call in (lambda: client.start("m", n_ctx=1), lambda: client.stop("m", forget=True)):
            with pytest.raises(errors.ConfigError, match="not like a worker"):
                call()


# Vectors


def test_vectors_and_scores_are_one_for_each_text() -> None:
    rows = in_turn(says(whole(200, [[1.0], [2.0]])), says(whole(200, [[0.5, 0.25]])), says(whole(200, [[1.0]])))
    with faulty(rows) as server, client_of(server) as client:
        assert client.embeddings(["a", "b"], model="m") == [[1.0], [2.0]]
        assert client.rerank("q", ["a", "b"], model="m") == [0.5, 0.25]
        assert server.requests[1].json() == {"model": "m", "input": ["a", "b"], "query": "q"}
        with pytest.raises(errors.ConfigError, match="not like a worker"):
            client.embeddings(["a", "b"], model="m")
        with pytest.raises(TypeError, match="not one string"):
            client.embeddings("abc", model="m")


# Addresses, tokens, the environment


def test_an_address_without_a_path_gets_the_usual_one() -> None:
    with faulty(says(whole(200, 3))) as server:
        for url in (server.url, server.url + "/", server.url.removesuffix("/api")):
            with Client(url) as client:
                assert client.count_token("x", model="m") == 3
                assert client.url == server.url
        assert {request.path for request in server.requests} == {"/api/worker/count_token"}


def test_models_are_looked_for_below_the_prefix_and_then_above_it() -> None:
    found = lambda peer: says(READY if peer.request.path == "/readyz" else whole(404, b""))(peer)  # noqa: E731
    with faulty(found) as server, Client(server.url.replace("/api", "/ml/api")) as client:
        assert [tuple(model) for model in client.models()] == [("m", "llm", "ready", None)]
        assert [request.path for request in server.requests] == ["/ml/api/readyz", "/ml/readyz", "/readyz"]


def test_it_speaks_over_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "Some Socket.sock"
    with faulty(in_turn(says(HELLO), says(whole(200, 3))), path) as server, client_of(server) as client:
        assert client.chat("x", model="m") == "Hello"
        assert client.count_token("x", model="m") == 3
        assert server.requests[0].path == "/api/worker/generate_stream"
    with pytest.raises(errors.WorkerUnreachable, match=r"Connection refused|No such file"):
        client.count_token("x", model="m")


def test_address_and_token_come_from_the_environment_and_what_is_said_is_stronger(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("of-file\n")
    with faulty(says(whole(200, 3))) as server:
        monkeypatch.setenv("MODELYARD_URL", server.url)
        monkeypatch.setenv("MODELYARD_TOKEN_FILE", str(tmp_path / "token"))
        for options, expected in [
            ({}, "Bearer of-file"),
            ({"token": "said"}, "Bearer said"),
            ({"token": ""}, None),
        ]:
            with Client(**options) as client:
                client.count_token("x", model="m")
            assert server.requests[-1].headers.get("authorization") == expected
        monkeypatch.setenv("MODELYARD_TOKEN", "of-variable")
        with Client() as client:
            client.count_token("x", model="m")
            assert "of-variable" not in repr(client)
        assert server.requests[-1].headers["authorization"] == "Bearer of-variable"


def test_proxies_and_cookies_of_others_are_nothing_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with faulty(says(whole(200, 3, "Set-Cookie: a=b; Path=/"))) as server, client_of(server) as client:
        assert [client.count_token("x", model="m") for _ in range(2)] == [3, 3]
        assert "cookie" not in server.requests[1].headers
        assert server.connections == 1, "the connection is kept"


# Closing, threads, processes


@pytest.fixture
def endless() -> Iterator[Faulty]:
    """A server whose answers have one piece, and then never end; the client's hanging up ends them."""
    with faulty(stalls(stream_head(), http_chunk(output("Hel")))) as server:
        yield server


def test_a_loop_that_is_left_hangs_up_at_once(endless: Faulty) -> None:
    with client_of(endless) as client:
        with client.stream("x", model="m") as stream:
            for _ in stream:
                break
        wait_until(lambda: endless.open_connections == 0, "the connection ends with the `with`")
        assert list(stream) == []
        for _ in client.stream("x", model="m"):
            break
        wait_until(lambda: endless.open_connections == 0, "the connection ends with the last reference")


def test_a_stream_may_be_closed_by_another_thread_while_it_is_read(endless: Faulty) -> None:
    with client_of(endless) as client, ThreadPoolExecutor(1) as pool:
        stream = client.stream("x", model="m")
        reading = pool.submit(list, stream)
        wait_until(lambda: stream.text == "Hel" and stream._reading.locked(), "the reader waits for the second piece")
        stream.close()
        assert reading.result(10) == ["Hel"]
        wait_until(lambda: endless.open_connections == 0, "the connection ends")


def test_many_threads_share_one() -> None:
    def script(peer: Peer) -> bool:
        said = peer.request.json()
        if "messages" in said:
            return bool(says(streamed(output(said["messages"][0]["content"])))(peer))
        return bool(says(whole(200, int(said["prompt"])))(peer))

    with faulty(script) as server, client_of(server) as client, ThreadPoolExecutor(16) as pool:

        def ask(number: int) -> tuple[str, int]:
            return client.chat(str(number), model="m"), client.count_token(str(number), model="m")

        assert list(pool.map(ask, range(200))) == [(str(number), number) for number in range(200)]


FORKS = """
import os, sys
from modelyard import Client
client = Client(sys.argv[1])
stream = client.stream("parent", model="endless")
assert next(stream) == "Hel"
assert client.count_token("parent", model="m") == 3
child = os.fork()
if child == 0:
    assert client.count_token("child", model="m") == 3
    stream.close()
    del stream
    client.close()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert client.count_token("parent", model="m") == 3
print("forked", flush=True)
sys.stdin.readline()
assert next(stream) == "lo"
print("done", flush=True)
"""


def test_a_forked_process_has_connections_of_its_own_and_ends_none_of_its_parents() -> None:
    go_on, ports = threading.Event(), []

    def script(peer: Peer) -> bool:
        said = peer.request.json()
        if said["model"] == "endless":
            peer.send(stream_head(), http_chunk(output("Hel")))
            assert go_on.wait(30)
            peer.send(http_chunk(output("lo")))
            return False
        ports.append((said["prompt"], peer.sock.getpeername()[1]))
        return bool(says(whole(200, 3))(peer))

    with faulty(script) as server:
        command = [sys.executable, "-c", FORKS, server.url]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None and process.stdin is not None
                assert process.stdout.readline() == "forked\n"
                go_on.set()
                process.stdin.write("\n")
                process.stdin.flush()
                assert process.stdout.readline() == "done\n"
                assert process.wait(20) == 0
            finally:
                go_on.set()
                process.kill()
    (_, first), (_, of_child), (_, again) = ports
    assert [who for who, _ in ports] == ["parent", "child", "parent"]
    assert first == again != of_child


def test_it_can_be_used_again_after_it_was_closed() -> None:
    with faulty(says(whole(200, 3))) as server:
        client = client_of(server)
        for _ in range(2):
            assert client.count_token("x", model="m") == 3
            client.close()
            client.close()
