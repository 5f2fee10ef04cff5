"""The worker API over Flask's test client: ten calls to the letter, each refusal in its form, each slot given back."""

from __future__ import annotations

import gzip
import io
import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import steered
from clients import DELTA, NO_WAIT, chunks_of
from flask import Flask, Response, abort
from flask.testing import FlaskClient
from modelyard import Modelyard
from modelyard.errors import EngineError, StartFailed
from modelyard.server.extension import attach, create_app
from modelyard.server.runtime import Runtime
from modelyard.settings.settings import Settings
from modelyard.streams import Cancel, OutputStream
from modelyard.types import Burst, WorkerType
from modelyard.worker.admission import BATCH_SHARE
from modelyard.worker.states import State
from running import wait_until
from steered import Steered
from werkzeug.test import TestResponse

OUTPUT_KEYS = ["text", "error_code", "incremental", "model_context", "finish_reason", "usage", "metrics"]
DESCRIPTION_KEYS = {
    *("param_class", "param_name", "param_type", "description"),
    *("default_value", "required", "valid_values", "ext_metadata"),
}
TABLES: list[dict[str, Any]] = [
    {"name": "echo"},
    {"name": "emb", "engine": "echo", "worker_type": "text2vec"},
    {"name": "rank", "engine": "echo", "worker_type": "reranker"},
    {"name": "s", "worker_class": steered.PATH, "limit_model_concurrency": 1, "max_waiting": 1, "token": "hunter2"},
    {"name": "vec", "worker_class": steered.PATH, "worker_type": "text2vec", "limit_model_concurrency": 1},
    {"name": "spare", "worker_class": steered.PATH, "start": False},
]


Build = Callable[..., Runtime]


@contextmanager
def building(folder: Path) -> Iterator[Build]:
    """Give what makes runtimes over `TABLES` that are started; stop them in the end, when nothing is held any more."""
    Steered.reset()
    made: list[Runtime] = []

    def runtime(**options: Any) -> Runtime:
        given = {"state_dir": str(folder / "state"), "models_dirs": [str(folder / "models")], **options}
        settings = Settings(instance=f"test-{len(made)}", **given)
        settings.model_tables = tuple(TABLES)
        made.append(Runtime(settings, environ={}))
        made[-1].start()
        assert made[-1].wait_loaded(30)
        return made[-1]

    yield runtime
    Steered.go.set()
    for one in made:
        assert one.requests == set(), "a request was never closed"
        assert one.budget.held == 0, "a thread of the budget was lost"
        one.stop()
    assert Steered.running() == []


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    with building(tmp_path) as made:
        yield made


@pytest.fixture
def runtime(build) -> Runtime:
    return build()


@pytest.fixture
def app(runtime) -> Flask:
    """An application with the blueprints, and with the error handlers of `create_app`."""
    return app_of(runtime)


def app_of(runtime: Runtime) -> Flask:
    made = create_app(Settings(models=[]))
    replaced = Flask("modelyard", static_folder=None)
    replaced.error_handler_spec = made.error_handler_spec
    attach(replaced, runtime, probes_prefix="")
    return replaced


@pytest.fixture
def client(app) -> FlaskClient:
    return app.test_client()


@pytest.fixture(scope="module")
def shared_runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """One for all tests that change nothing in it."""
    with building(tmp_path_factory.mktemp("shared")) as made:
        yield made()


@pytest.fixture(scope="module")
def shared_client(shared_runtime) -> FlaskClient:
    return app_of(shared_runtime).test_client()


def post(client: FlaskClient, call: str, body: Any = None, **options: Any) -> TestResponse:
    if body is not None:
        options["json"] = body
    # Buffered, the client reads all of it and closes it, as a server does.
    options.setdefault("buffered", True)
    return client.post(f"/api/worker/{call}", **options)


def prompt(text: str = "a b", model: str = "s", **fields: Any) -> dict[str, Any]:
    return {"model": model, "prompt": text, **fields}


def free(runtime: Runtime, model: str = "s", kind: WorkerType = WorkerType.LLM) -> int:
    load = runtime.manager.load_of(model, kind) or ""
    return int(load.split("free=")[1].split(";")[0])


def held_slot(runtime: Runtime, model: str = "s") -> Any:
    """Return a stream that holds the only slot of a model."""
    worker = next(w for w in runtime.local.models.workers() if w.name == model)
    return worker.gate.request()


# Generation


def test_generate_answers_one_model_output(client):
    response = post(client, "generate", prompt("你好", "echo", max_new_tokens=2))
    assert (response.status_code, response.content_type) == (200, "application/json")
    assert list(response.json) == OUTPUT_KEYS
    assert response.json == {
        "text": " token token",
        "error_code": 0,
        "incremental": False,
        "model_context": None,
        "finish_reason": "length",
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        "metrics": None,
    }
    assert response.headers["Modelyard-Load"] == "slots=8;free=8;waiting=0"


def test_generate_stream_answers_chunks_with_all_text_so_far(client):
    response = post(client, "generate_stream", prompt("a b", "echo", max_new_tokens=3))
    assert (response.status_code, response.content_type) == (200, "application/octet-stream")
    found = chunks_of(response.data)
    assert [list(chunk) for chunk in found] == [OUTPUT_KEYS] * 3
    assert [chunk["text"] for chunk in found] == [" token", " token token", " token token token"]
    assert [chunk["finish_reason"] for chunk in found] == [None, None, "length"]
    assert response.headers["X-Accel-Buffering"] == "no"
    assert response.headers["Modelyard-Load"] == "slots=8;free=7;waiting=0"


def test_who_asks_for_pieces_gets_them(client):
    response = post(client, "generate_stream", prompt("a b", "echo", max_new_tokens=3), headers=DELTA)
    assert response.content_type == "application/x-model-output-delta"
    assert [(c["text"], c["incremental"]) for c in chunks_of(response.data)] == [(" token", True)] * 3


@pytest.mark.parametrize("accept", ["*/*", "application/json", "application/octet-stream", ""])
def test_who_does_not_ask_for_pieces_gets_the_whole_text(shared_client, accept):
    response = post(shared_client, "generate_stream", prompt("a b", "echo"), headers={"Accept": accept})
    assert response.content_type == "application/octet-stream"
    assert not any(c["incremental"] for c in chunks_of(response.data))


def test_non_ascii_text_is_not_escaped(client):
    for call in ("generate", "generate_stream"):
        data = post(client, call, prompt("你好 🙂")).data
        assert "你好".encode() in data
        assert b"\\u" not in data


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"prompt": "from prompt", "messages": None}, " from prompt"),
        ({"prompt": "from prompt", "messages": []}, " from prompt"),
        ({"prompt": None, "messages": [{"role": "human", "content": "from messages"}]}, " from messages"),
        ({"prompt": "from prompt", "messages": [{"role": "human", "content": "from messages"}]}, " from messages"),
    ],
)
def test_messages_win_unless_they_are_empty(shared_client, fields, text):
    assert post(shared_client, "generate", {"model": "s", **fields}).json["text"] == text


def test_no_chat_model_means_the_prompt(client):
    messages = [{"role": "human", "content": "from messages"}]
    body = prompt("from prompt", "echo", messages=messages, chat_model=False, max_new_tokens=1)
    assert post(client, "generate", body).json["usage"]["prompt_tokens"] == 2


def test_metrics_are_told_when_asked_for(client):
    assert post(client, "generate", prompt(metrics=True)).json["metrics"] == {"speed": 1.0}
    assert chunks_of(post(client, "generate_stream", prompt(metrics=True)).data)[-1]["metrics"] == {"speed": 1.0}
    assert post(client, "generate", prompt()).json["metrics"] is None


def test_null_means_absent_and_unknown_keys_are_ignored(client):
    nulls = dict.fromkeys(("temperature", "stop", "stop_token_ids", "max_new_tokens", "span_id", "context", "echo"))
    body = prompt("a", **nulls, version="v2", something={"else": [1]})
    assert post(client, "generate", body).json["text"] == " a"


@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded", "text/plain", None])
def test_a_body_is_json_whatever_its_type_says(shared_client, content_type):
    response = post(shared_client, "generate", data=json.dumps(prompt("a")), content_type=content_type)
    assert response.json["text"] == " a"


# Vectors


def test_embeddings_are_a_row_a_text(client):
    response = post(client, "embeddings", {"model": "emb", "input": ["a b", ""], "span_id": None, "query": None})
    assert (response.status_code, response.content_type) == (200, "application/json")
    assert [len(row) for row in response.json] == [384, 384]
    assert response.headers["Modelyard-Load"] == "slots=64;free=64;waiting=0"


@pytest.mark.parametrize("model", ["rank", "emb"])
def test_with_a_query_one_row_has_a_score_for_each_text(shared_client, model):
    (scores,) = post(
        shared_client, "embeddings", {"model": model, "input": ["cat sat", "dog"], "query": "cat sat"}
    ).json
    assert scores[0] == pytest.approx(1.0)
    assert scores[1] < 0.5


def test_a_header_has_the_number_of_texts_that_were_cut(shared_client):
    for query, cut in ((None, "2"), ("a", "2"), ("cut", "3")):
        body = {"model": "vec", "input": ["cut", "a", "cut"], "query": query}
        assert post(shared_client, "embeddings", body).headers["Modelyard-Truncated"] == cut
    assert "Modelyard-Truncated" not in post(shared_client, "embeddings", {"model": "vec", "input": ["a"]}).headers


@pytest.mark.parametrize("model", ["rank", "emb"])
def test_no_texts_have_no_rows_and_an_empty_query_is_no_query(shared_client, model):
    assert post(shared_client, "embeddings", {"model": model, "input": [], "query": "cat"}).json == [[]]
    for query in (None, ""):
        assert post(shared_client, "embeddings", {"model": "emb", "input": [], "query": query}).json == []
        assert len(post(shared_client, "embeddings", {"model": "emb", "input": ["a"], "query": query}).json[0]) == 384
    assert post(shared_client, "embeddings", {"model": "nope", "input": []}).status_code == 404


# Cheap calls


def test_count_token_answers_an_integer(client):
    response = post(client, "count_token", {"model": "echo", "prompt": "a b c"})
    assert (response.data, response.content_type) == (b"3", "application/json")
    assert post(client, "count_token", {"model": "echo", "prompt": ""}).data == b"0"


def test_count_token_without_a_model_is_answered_by_the_first_llm_that_is_ready(client):
    assert post(client, "count_token", {"prompt": "a b"}).json == 2
    assert post(client, "count_token", {"prompt": "a b", "model": None}).json == 2
    for model in ("echo", "s"):
        post(client, "models/shutdown", {"model": model})
    none = post(client, "count_token", {"prompt": "a b"})
    assert none.status_code == 422
    assert none.json["errors"] == [{"field": "model", "message": "is missing: no LLM is hosted"}]


def test_metadata_has_exactly_its_keys(client):
    metadata = post(client, "model_metadata", {"model": "echo", "span_id": "empty_span"}).json
    assert set(metadata) == {"model", "context_length", "chat_model", "metadata", "ext_metadata"}
    assert set(metadata["ext_metadata"]) == {"prompt_roles", "prompt_sep", "prompt_chat_template"}
    assert (metadata["model"], metadata["context_length"], metadata["chat_model"]) == ("echo", 4096, True)


@pytest.mark.parametrize("query", ["model=s&worker_type=llm", "model=s", "model=s&worker_type=", "model=s&x=y"])
def test_descriptions_are_a_list_with_exactly_their_keys(shared_client, query):
    described = shared_client.get(f"/api/worker/parameter/descriptions?{query}").json
    assert all(set(d) == DESCRIPTION_KEYS for d in described)
    found = {d["param_name"]: d for d in described}
    assert found["limit_model_concurrency"]["default_value"] == 1
    assert found["token"]["default_value"] == "******"
    assert found["serial"]["ext_metadata"]["tags"] == "fixed"
    assert "hunter2" not in json.dumps(described)


def test_supported_models_are_told_by_host(client):
    ((host),) = client.get("/api/worker/models/supports").json
    assert set(host) == {"host", "port", "models"}
    keys = {"model", "path", "worker_type", "path_exist", "proxy", "enabled", "params"}
    assert all(set(model) == keys for model in host["models"])
    assert {"echo", "s", "spare", "smollm2-135m"} <= {model["model"] for model in host["models"]}
    assert all(set(d) == DESCRIPTION_KEYS for model in host["models"] for d in model["params"])


# Administration


def test_startup_and_shutdown_answer_null(client):
    body = {"host": "127.0.0.1", "port": 8000, "model": "spare", "worker_type": "llm", "params": {"size": 3}}
    started = post(client, "models/startup", {**body, "worker_name": None, "sys_code": None, "delete_after": False})
    assert (started.status_code, started.data) == (200, b"null")
    assert post(client, "generate", prompt("x", "spare")).json["text"] == " x"
    stopped = post(client, "models/shutdown", {**body, "params": {}})
    assert (stopped.status_code, stopped.data) == (200, b"null")
    assert post(client, "generate", prompt("x", "spare")).json["error_code"] == 404


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"model": "nope"}, 404, "'nope' is neither in the catalogue nor in the models folders"),
        ({"model": "nope", "params": {"model_path": None}}, 404, "no model_path is given"),
        ({"model": "x", "params": {"model_name": "x", "model_path": "/nope"}}, 422, "outside of the models"),
        ({"model": "x", "params": {"model_path": "nope.gguf"}}, 422, "params.model_path: there is no model file"),
        (
            {"model": "spare", "params": {"worker_class": "os:system"}},
            422,
            "params.worker_class: can't be set",
        ),
        ({"model": "s"}, 409, "s@llm is ready already"),
        ({"model": "spare", "params": {"limit_model_concurrency": 4000}}, 409, "asks for 4000 slots"),
        ({"model": "spare", "params": {"size": 99}}, 422, "99 is more than 9"),
        ({"model": "spare", "params": {"engine": "os:system"}}, 422, "is unknown"),
        ({"model": "spare", "worker_type": "king"}, 422, "Must be one of"),
        ({"model": "spare", "params": [1]}, 422, "Not a valid mapping"),
        ({"model": "spare", "params": {"fail": "file"}}, 500, "weights.bin"),
        ({"model": "spare", "params": {"fail": "other"}}, 500, "did not start: RuntimeError: odd"),
        ({"model": "x", "params": {"model_path": "../../etc/passwd", "engine": "echo"}}, 422, "outside of the models"),
        ({"params": {}}, 422, "Missing data"),
    ],
    ids=repr,
)
def test_a_startup_that_can_not_be_says_why(client, body, status, says):
    response = post(client, "models/startup", body)
    assert response.status_code == status
    assert_is_problem(response, says)
    assert client.get("/readyz").json["ready"] is True
    assert post(client, "generate", prompt("x")).json["text"] == " x"


def test_a_shutdown_of_nothing_says_so(client):
    response = post(client, "models/shutdown", {"model": "nope", "worker_type": "llm", "params": {}})
    assert response.status_code == 404
    assert_is_problem(response, "there is no model 'nope' of type llm here; there are")


@pytest.mark.parametrize(
    ("apply_type", "params", "message"),
    [
        ("start", None, "model s@llm runs already"),
        ("restart", {}, "model s@llm restarted"),
        ("update_params", {"size": 1}, "model s@llm: nothing changed"),
        ("update_params", {"size": 2}, "model s@llm: changed size and restarted"),
        ("stop", None, "model s@llm stopped"),
    ],
)
def test_apply_answers_message_success_and_seconds(client, apply_type, params, message):
    body = {"model": "s", "apply_type": apply_type, "worker_type": "llm", "params": params, "apply_user": None}
    response = post(client, "apply", body)
    assert response.status_code == 200
    assert set(response.json) == {"message", "success", "timecost"}
    assert (response.json["message"], response.json["success"]) == (message, True)
    assert 0 <= response.json["timecost"] < 30


def test_a_failed_apply_is_an_outcome_too(client):
    response = post(client, "apply", {"model": "s", "apply_type": "update_params", "params": {"fail": "other"}})
    assert response.status_code == 200
    assert response.json["success"] is False
    assert "it runs on with the parameters it had" in response.json["message"]


def test_apply_reaches_all_models(client):
    response = post(client, "apply", {"model": "*", "apply_type": "restart"})
    assert response.json["message"].count("restarted") == 5


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": "nope", "apply_type": "restart"}, 404),
        ({"model": "s", "apply_type": "restart", "worker_type": "reranker"}, 404),
        ({"model": "s", "apply_type": "explode"}, 422),
        ({"model": "s"}, 422),
        ({"apply_type": "restart"}, 422),
        ({"model": "s", "apply_type": "restart", "params": {"size": "x"}}, 422),
        ({"model": "s", "apply_type": "restart", "params": "x"}, 422),
    ],
    ids=repr,
)
def test_an_apply_that_can_not_be_is_a_problem(shared_client, body, status):
    response = post(shared_client, "apply", body)
    assert response.status_code == status
    assert_is_problem(response)


# Refusals


def assert_is_output(response: TestResponse, status: int, says: str = "", *, streamed: bool) -> None:
    assert response.status_code == status, response.data
    if streamed:
        assert response.content_type == "application/octet-stream"
        (output,) = chunks_of(response.data)
    else:
        assert response.content_type == "application/json"
        output = response.json
    assert list(output) == OUTPUT_KEYS
    assert isinstance(output["text"], str)
    assert says in output["text"]
    assert output["text"]
    assert output["error_code"] != 0
    assert "Traceback" not in output["text"]


def assert_is_problem(response: TestResponse, says: str = "") -> None:
    assert response.content_type == "application/problem+json"
    assert (
        {"type", "title", "status", "detail"} <= set(response.json) <= {"type", "title", "status", "detail", "errors"}
    )
    assert response.json["status"] == response.status_code
    assert says in response.json["detail"]
    assert "Traceback" not in response.text
    for error in response.json.get("errors", []):
        assert set(error) == {"field", "message"}


REFUSED: list[tuple[Any, int, str]] = [
    (prompt(model="nope"), 200, "there is no model 'nope' here; there are"),
    (prompt(model="emb"), 200, "'emb' is of type text2vec"),
    (prompt("refuse"), 422, "the prompt is too long"),
    ({}, 422, "model: Missing data"),
    ({"prompt": "x"}, 422, "model: Missing data"),
    (prompt(""), 422, "messages: are empty"),
    (prompt("", messages=[]), 422, "messages: are empty"),
    (prompt(model=5), 422, "model: Not a valid string"),
    (prompt(temperature="hot"), 422, "temperature: Not a valid number"),
    (prompt(temperature=-1), 422, "temperature: Must be greater"),
    (prompt(max_new_tokens=0), 422, "max_new_tokens: Must be greater"),
    (prompt(messages=[{"role": "human"}]), 422, "messages[0].content: is missing"),
    (prompt(messages=[{"role": "human", "content": [{"type": "image_url"}]}]), 422, "'image_url' is not understood"),
]
BODIES: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("no JSON", b"{nonsense"),
    ("a list", b"[]"),
    ("null", b"null"),
    ("a string", b'"x"'),
    ("NaN", b'{"model": "s", "prompt": "x", "temperature": NaN}'),
    ("infinity", b'{"model": "s", "prompt": "x", "temperature": 1e999}'),
    ("Infinity", b'{"model": "s", "prompt": "x", "temperature": -Infinity}'),
    ("nesting", b'{"model": "s", "prompt": "x", "context": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
    ("nested objects", b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    ("lone surrogate", b'{"model": "s", "prompt": "\\ud800"}'),
    ("lone surrogate in a key", b'{"model": "s", "prompt": "x", "\\udfff": 1}'),
    ("encoded surrogate", b'{"model": "s", "prompt": "\xed\xa0\x80"}'),
    ("not UTF-8", b'{"model": "s", "prompt": "\xff"}'),
    ("UTF-16", json.dumps({"model": "s", "prompt": "x"}).encode("utf-16")),
    ("rest", b'{"model": "s", "prompt": "x"} x'),
]
CALLS = {
    "generate": prompt(),
    "generate_stream": prompt(),
    "embeddings": {"model": "emb", "input": ["x"]},
    "count_token": {"model": "s", "prompt": "x"},
    "model_metadata": {"model": "s"},
    "apply": {"model": "s", "apply_type": "start"},
    "models/startup": {"model": "spare"},
    "models/shutdown": {"model": "s"},
}


@pytest.mark.parametrize(("body", "status", "says"), REFUSED, ids=lambda value: repr(value)[:60])
@pytest.mark.parametrize("call", ["generate", "generate_stream"])
def test_every_refusal_of_a_generation_is_a_model_output(shared_client, shared_runtime, call, body, status, says):
    response = post(shared_client, call, body)
    assert_is_output(response, status, says, streamed=call == "generate_stream")
    assert free(shared_runtime) == 1
    assert post(shared_client, "generate", prompt("x")).json["text"] == " x"


def test_a_client_of_dbgpt_gets_the_sentence_of_a_refused_generate(shared_client, shared_runtime):
    """Its user sees the text of an answer of status 200, and of others the body as it is."""
    for body in (prompt("x", temperature="hot"), prompt("x", model="nope")):
        for headers, span in (({"DB-GPT-Trace-Span-Id": "empty_span"}, {}), ({}, {"span_id": "empty_span"})):
            assert_is_output(post(shared_client, "generate", {**body, **span}, headers=headers), 200, streamed=False)
    unread = {"headers": {"DB-GPT-Trace-Span-Id": "empty_span"}}
    assert_is_output(post(shared_client, "generate", data=b"{", **unread), 200, "JSON", streamed=False)
    gate = shared_runtime.local.models.find("s@llm").gate
    ticket = gate.request()
    full = post(shared_client, "generate", prompt("x", span_id="empty_span"), headers={"Prefer": "wait=0"})
    ticket.release()
    assert_is_output(full, 200, "is busy", streamed=False)
    assert full.headers["Retry-After"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("name", "data"), BODIES, ids=[name for name, _ in BODIES])
def test_a_body_that_is_no_json_object_is_refused_in_the_form_of_the_call(
    shared_client, shared_runtime, call, name, data
):
    response = post(shared_client, call, data=data)
    if call.startswith("generate"):
        assert_is_output(response, 422, "body", streamed=call == "generate_stream")
    else:
        assert response.status_code == 422
        assert_is_problem(response, "body")
    assert post(shared_client, "generate", prompt("x")).json["text"] == " x"


def test_a_compressed_body_is_refused_as_such(shared_client):
    packed = gzip.compress(json.dumps(prompt("x")).encode())
    response = post(shared_client, "count_token", data=packed, headers={"Content-Encoding": "gzip"})
    assert_is_problem(response, "it is compressed (Content-Encoding gzip): send it as it is")


def test_a_path_that_does_not_exist_is_named(shared_client):
    response = shared_client.post("/api/worker/generat", json={})
    assert response.status_code == 404
    assert response.json["detail"] == "POST /api/worker/generat is not served here: /openapi.json lists all calls"


def test_a_form_is_refused_as_such(shared_client):
    form = {"data": {"model": "a"}, "content_type": "multipart/form-data"}
    response = shared_client.post("/api/worker/count_token", **form)
    assert_is_problem(response, "it is a form (multipart/form-data): send a JSON object")


class Endless(io.RawIOBase):
    """A body that never ends, and counts what is read of it."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return 0

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0

    def readinto(self, buffer: Any) -> int:
        self.taken += len(buffer)
        buffer[:] = b" " * len(buffer)
        return len(buffer)


@pytest.mark.parametrize("call", CALLS)
def test_a_body_of_100_mb_is_refused_unread(shared_client, call):
    body = Endless()
    response = post(shared_client, call, input_stream=body, environ_overrides={"CONTENT_LENGTH": "100000000"})
    if call.startswith("generate"):
        assert_is_output(response, 413, "at most 16777216 are read", streamed=call == "generate_stream")
    else:
        assert response.status_code == 413
        assert_is_problem(response, "the body has 100000000 bytes; at most 16777216 are read (max_body_bytes)")
    assert body.taken == 0
    assert post(shared_client, "generate", prompt("x")).json["text"] == " x"


@pytest.mark.parametrize("call", CALLS)
def test_a_body_of_unknown_length_is_read_up_to_the_limit(build, call):
    client = app_of(build(max_body_bytes=100_000)).test_client()
    body = Endless()
    chunked = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    response = post(client, call, input_stream=body, environ_overrides=chunked)
    assert response.status_code == 413
    assert "larger; at most 100000 are read" in response.text
    assert body.taken < 400_000
    assert post(client, "generate", prompt("x")).json["text"] == " x"


def test_a_body_as_large_as_the_limit_is_read(build):
    client = app_of(build(max_body_bytes=100_000)).test_client()
    body = json.dumps(prompt("x")).encode()
    exact = body + b" " * (100_000 - len(body))
    chunked = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    assert post(client, "generate", data=exact).status_code == 200
    assert post(client, "generate", input_stream=io.BytesIO(exact), environ_overrides=chunked).status_code == 200
    assert post(client, "generate", data=exact + b" ").status_code == 413
    over = post(client, "generate", input_stream=io.BytesIO(exact + b" "), environ_overrides=chunked)
    assert over.status_code == 413


def test_a_body_that_ends_too_soon_is_refused(client):
    response = post(client, "generate", data=b'{"model"', environ_overrides={"CONTENT_LENGTH": "500"})
    assert_is_output(response, 422, "the body ended before its Content-Length", streamed=False)


@pytest.mark.parametrize(
    ("call", "body", "status", "field"),
    [
        ("embeddings", {"model": "emb"}, 422, "input"),
        ("embeddings", {"model": "emb", "input": "x"}, 422, "input"),
        ("embeddings", {"model": "emb", "input": ["x", 5]}, 422, "input[1]"),
        ("embeddings", {"model": "emb", "input": ["x"], "query": 5}, 422, "query"),
        ("embeddings", {"input": ["x"]}, 422, "model"),
        ("embeddings", {"model": "nope", "input": ["x"]}, 404, None),
        ("embeddings", {"model": "s", "input": ["x"]}, 400, None),
        ("embeddings", {"model": "vec", "input": ["break"]}, 500, None),
        ("count_token", {"model": "s"}, 422, "prompt"),
        ("count_token", {"model": "s", "prompt": 5}, 422, "prompt"),
        ("count_token", {"model": "nope", "prompt": "x"}, 404, None),
        ("count_token", {"model": "s", "prompt": "break"}, 500, None),
        ("model_metadata", {}, 422, "model"),
        ("model_metadata", {"model": "nope"}, 404, None),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_elsewhere_a_refusal_is_a_problem_that_names_the_field(
    shared_client, shared_runtime, call, body, status, field
):
    response = post(shared_client, call, body)
    assert response.status_code == status
    assert_is_problem(response)
    assert [e["field"] for e in response.json.get("errors", [])] == ([field] if field else [])
    assert "the inside of the engine" not in response.text
    assert free(shared_runtime, "vec", WorkerType.TEXT2VEC) == 1


@pytest.mark.parametrize(
    ("query", "status"),
    [("", 422), ("model=", 422), ("model=nope", 404), ("model=s&worker_type=king", 422), ("model=%ff", 404)],
)
def test_a_query_that_does_not_fit_is_a_problem(shared_client, query, status):
    response = shared_client.get(f"/api/worker/parameter/descriptions?{query}")
    assert response.status_code == status
    assert_is_problem(response)


# Overload and the like


@pytest.mark.parametrize("call", ["generate", "generate_stream"])
def test_overload_is_503_with_when_to_come_again_and_the_load(client, runtime, call):
    held = [held_slot(runtime), held_slot(runtime)]
    response = post(client, call, prompt())
    assert_is_output(response, 503, "max_waiting", streamed=call == "generate_stream")
    assert response.headers["Retry-After"] == "5"
    assert response.headers["Modelyard-Load"] == "slots=1;free=0;waiting=1"
    for ticket in held:
        ticket.release()
    assert post(client, call, prompt()).status_code == 200


@pytest.mark.parametrize("prefer", ["wait=0", "respond-async, wait=0", "respond-async,wait = 0"])
def test_who_does_not_wait_in_line_says_so(client, runtime, prefer):
    held = held_slot(runtime)
    response = post(client, "generate", prompt(), headers={"Prefer": prefer})
    assert_is_output(response, 503, "the caller does not wait", streamed=False)
    held.release()
    assert post(client, "generate", prompt(), headers=NO_WAIT).status_code == 200


def test_an_overloaded_embedder_is_a_problem_with_when_to_come_again(client, runtime):
    held = held_slot(runtime, "vec")
    response = post(client, "embeddings", {"model": "vec", "input": ["x"]}, headers=NO_WAIT)
    assert response.status_code == 503
    assert_is_problem(response, "'vec' is busy")
    assert "Retry-After" in response.headers
    held.release()


def test_a_stopped_model_is_503(client):
    post(client, "apply", {"model": "s", "apply_type": "stop"})
    response = post(client, "generate_stream", prompt())
    assert_is_output(response, 503, "'s' is stopped", streamed=True)
    assert response.headers["Retry-After"] == "5"
    assert post(client, "count_token", {"model": "s", "prompt": "x"}).status_code == 503


def test_when_all_threads_are_taken_data_is_refused_and_administration_is_not(client, runtime):
    for _ in range(runtime.budget.total):
        runtime.budget.enter()
    assert_is_output(post(client, "generate_stream", prompt()), 503, "this process is busy", streamed=True)
    assert_is_output(post(client, "generate", prompt()), 503, "this process is busy", streamed=False)
    assert post(client, "embeddings", {"model": "emb", "input": ["x"]}).status_code == 503
    assert post(client, "count_token", {"model": "s", "prompt": "x"}).status_code == 200
    assert post(client, "model_metadata", {"model": "s"}).status_code == 200
    assert post(client, "apply", {"model": "s", "apply_type": "restart"}).status_code == 200
    assert client.get("/healthz").status_code == 200
    for _ in range(runtime.budget.total):
        runtime.budget.leave()


@pytest.mark.parametrize("call", CALLS)
def test_while_it_drains_everything_is_503_but_health(client, runtime, call):
    runtime.drain(0)
    response = post(client, call, CALLS[call])
    if call.startswith("generate"):
        assert_is_output(response, 503, "about to end", streamed=call == "generate_stream")
    else:
        assert response.status_code == 503
        assert_is_problem(response, "about to end")
    assert response.headers["Retry-After"] == "1"
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").status_code == 503


# Streams that end otherwise


@pytest.mark.parametrize("accept", [{}, DELTA], ids=["whole", "pieces"])
def test_an_engine_that_breaks_midway_ends_the_stream_with_an_error_chunk(client, runtime, caplog, accept):
    response = post(client, "generate_stream", prompt("break"), headers=accept)
    assert response.status_code == 200
    *pieces, last = chunks_of(response.data)
    assert [c["text"] for c in pieces] == [" break"]
    assert list(last) == OUTPUT_KEYS
    assert (last["error_code"], last["text"]) == (500, "the engine of model 's' failed: RuntimeError")
    assert "the inside of the engine" in caplog.text
    assert free(runtime) == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (prompt("break"), 200, "engine_error"),
        (prompt(model="nope"), 200, "unknown_model"),
        ({"model": 5}, 422, "invalid_request"),
    ],
    ids=["midway", "unknown", "invalid"],
)
def test_only_who_asks_for_pieces_is_told_the_code_of_an_error(shared_client, body, status, code):
    told = post(shared_client, "generate_stream", body, headers=DELTA)
    untold = post(shared_client, "generate_stream", body)
    assert (told.status_code, untold.status_code) == (status, status)
    *_, last = chunks_of(told.data)
    assert last["model_context"]["error"] == code
    errors = last["model_context"].get("errors", [])
    assert [error["field"] for error in errors] == (["model"] if code == "invalid_request" else [])
    *_, last = chunks_of(untold.data)
    assert last["model_context"] is None
    assert list(last) == OUTPUT_KEYS


def test_an_engine_that_breaks_is_an_output_with_an_error_code(client, runtime):
    assert_is_output(post(client, "generate", prompt("break")), 200, "failed: RuntimeError", streamed=False)
    assert free(runtime) == 1


def test_a_model_that_is_stopped_midway_says_so_in_the_last_chunk(client, runtime):
    response = post(client, "generate_stream", prompt("hold"), buffered=False)
    chunks = response.response
    assert json.loads(next(chunks)[:-1])["text"] == " hold"
    stopped = threading.Thread(target=lambda: runtime.manager.worker_apply("s", "stop", None, {}))
    stopped.start()
    last = json.loads(b"".join(chunks).strip(b"\0"))
    response.close()
    stopped.join(30)
    assert (last["error_code"], last["text"]) == (503, "model 's' was stopped")


def test_what_is_cut_off_by_the_drain_gets_a_last_chunk(client, runtime):
    response = post(client, "generate_stream", prompt("hold"), buffered=False)
    chunks = response.response
    next(chunks)
    drain = threading.Thread(target=runtime.drain, args=(0.01,))
    drain.start()
    last = json.loads(b"".join(chunks).strip(b"\0"))
    response.close()
    drain.join(30)
    assert last["error_code"] == 503
    assert "drain_timeout 0.01 s" in last["text"]


def test_a_response_that_is_closed_midway_frees_everything(client, runtime):
    response = post(client, "generate_stream", prompt("hold"), buffered=False)
    next(response.response)
    assert (free(runtime), runtime.budget.held, len(runtime.requests)) == (0, 1, 1)
    response.close()
    response.close()
    assert (free(runtime), runtime.budget.held, len(runtime.requests)) == (1, 0, 0)


def test_a_response_that_is_closed_unread_frees_everything(client, runtime):
    post(client, "generate_stream", prompt("hold"), buffered=False).close()
    assert (free(runtime), runtime.budget.held, len(runtime.requests)) == (1, 0, 0)


def test_headers_leave_after_a_while_without_a_piece_and_silence_is_broken(build, monkeypatch):
    monkeypatch.setattr("modelyard.streams.TICK", 0.01)
    runtime = build(first_output_timeout=0.1, silence_timeout=0.1)
    response = post(app_of(runtime).test_client(), "generate_stream", prompt("silent"), buffered=False)
    assert response.status_code == 200
    assert [next(response.response) for _ in range(3)] == [b"\0"] * 3
    response.close()
    assert free(runtime) == 1


# What an application around it does


@pytest.fixture
def host(runtime) -> Flask:
    """Somebody else's application, with the blueprints in it."""
    made = Flask("host", static_folder=None)
    attach(made, runtime)
    return made


@pytest.mark.parametrize("call", ["generate", "generate_stream"])
@pytest.mark.parametrize("breaks", ["raises", "replaces", "reads"])
def test_an_after_request_that_breaks_the_response_frees_the_slot(host, runtime, call, breaks):
    @host.after_request
    def after(response: Response) -> Response:
        if breaks == "raises":
            raise RuntimeError("the host's own")
        if breaks == "reads":
            response.get_data()
        return Response("replaced", 299)

    client = host.test_client()
    response = post(client, call, prompt("a b"))
    assert response.status_code == (500 if breaks == "raises" else 299)
    wait_until(lambda: (free(runtime), runtime.budget.held, len(runtime.requests)) == (1, 0, 0), "all is free")


@pytest.mark.parametrize("how", ["answers", "aborts", "raises"])
@pytest.mark.parametrize("call", ["generate", "generate_stream", "count_token", "apply"])
def test_a_before_request_that_turns_the_caller_away_is_heard(host, runtime, how, call):
    @host.before_request
    def before() -> Response | None:
        if how == "aborts":
            abort(401)
        if how == "raises":
            raise EngineError("the host's own")
        return Response("who are you?", 401)

    response = post(host.test_client(), call, CALLS[call])
    if how == "answers":
        assert (response.status_code, response.text) == (401, "who are you?")
    elif how == "aborts":
        assert response.status_code == 401
    else:
        assert "the host's own" in response.text
    assert (free(runtime), runtime.budget.held, len(runtime.requests)) == (1, 0, 0)


def test_a_view_of_the_host_keeps_its_own_errors(host, runtime):
    @host.get("/broken")
    def broken() -> str:
        raise StartFailed("not a worker's call")

    client = host.test_client()
    assert client.get("/broken").content_type.startswith("text/html")
    assert client.get("/nothing").content_type.startswith("text/html")


def test_the_manager_may_be_swapped(client, runtime):
    class Other:
        def generate_stream(self, request: Any, cancel: Cancel) -> OutputStream:
            return OutputStream(iter([Burst([f"other: {request.prompt}"])]), cancel, lambda: None)

        def load_of(self, model: str, kind: WorkerType) -> None:
            return None

    runtime.manager = Other()  # type: ignore[assignment]
    response = post(client, "generate", prompt("x"))
    assert response.json["text"] == "other: x"
    assert "Modelyard-Load" not in response.headers


def test_the_worker_api_can_be_left_out(tmp_path):
    made = Flask("host", static_folder=None)
    extension = Modelyard(state_dir=str(tmp_path), placement="inline")
    runtime = extension.init_app(made, worker=False, url_prefix="/ml")
    client = made.test_client()
    assert client.get("/ml/health").json == {"status": "ok"}
    assert client.post("/ml/worker/generate", json={}).status_code == 404
    runtime.stop()


# Other methods and paths


@pytest.mark.parametrize("call", [*CALLS, "parameter/descriptions", "models/supports"])
@pytest.mark.parametrize("method", ["HEAD", "GET", "PUT", "DELETE", "PATCH", "POST"])
def test_another_method_is_405_with_those_that_are_allowed(shared_client, shared_runtime, call, method):
    allowed = {"GET", "HEAD"} if call in ("parameter/descriptions", "models/supports") else {"POST"}
    if method in allowed:
        return
    response = shared_client.open(f"/api/worker/{call}", method=method)
    assert response.status_code == 405
    assert {name.strip() for name in response.headers["Allow"].split(",")} == {*allowed, "OPTIONS"}
    if method != "HEAD":
        assert_is_problem(response)
    assert shared_runtime.budget.held == 0


def test_head_of_what_can_be_read_has_no_body(shared_client):
    response = shared_client.head("/api/worker/models/supports")
    assert (response.status_code, response.data) == (200, b"")


@pytest.mark.parametrize("path", ["/", "/api/worker", "/api/worker/nothing", "/api/worker/generate/", "/%ff"])
def test_an_unknown_path_is_404(shared_client, path):
    response = shared_client.get(path)
    assert response.status_code == 404
    assert_is_problem(response)


def test_health_is_told_in_three_ways(client, runtime):
    assert client.get("/healthz").json == {"status": "ok"}
    assert client.get("/api/health").json == {"status": "ok"}
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json["ready"], ready.json["reason"]) == (200, True, None)
    idle = {"running": 0, "waiting": {"interactive": 0, "batch": 0}}
    entry = {"model": "s@llm", "state": "ready", "reason": None, "context_length": 128, **idle}
    assert entry in ready.json["models"]


def test_batch_requests_leave_threads_for_interactive_ones(client, runtime):
    held = int(runtime.budget.total * BATCH_SHARE)
    for _ in range(held):
        runtime.budget.enter()
    for call, body in (("embeddings", {"model": "emb", "input": ["x"]}), ("generate", prompt("x"))):
        refused = post(client, call, body, headers={"Modelyard-Priority": "batch"})
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert post(client, call, body).status_code == 200
    for _ in range(held):
        runtime.budget.leave()
    assert post(client, "generate", prompt("x"), headers={"Modelyard-Priority": "batch"}).status_code == 200


def test_the_line_is_shown_by_kind(client, runtime):
    gate = runtime.local.models.find("s@llm").gate
    tickets = [gate.request(), gate.request(batch=True)]
    (listed,) = (model for model in client.get("/readyz").json["models"] if model["model"] == "s@llm")
    assert (listed["running"], listed["waiting"]) == (1, {"interactive": 0, "batch": 1})
    for ticket in tickets:
        ticket.release()


# The access line


@pytest.fixture
def lines(caplog) -> Callable[[], list[dict[str, Any]]]:
    caplog.set_level(logging.INFO, "modelyard.access")
    return lambda: [json.loads(r.getMessage()) for r in caplog.records if r.name == "modelyard.access"]


def test_one_line_a_request_when_the_stream_has_ended_and_no_prompt_in_it(client, lines):
    response = post(client, "generate_stream", prompt("secret words"), buffered=False)
    next(response.response)
    assert lines() == []
    size = len(b"".join(response.response))
    response.close()
    (line,) = lines()
    assert (line["method"], line["path"], line["status"]) == ("POST", "/api/worker/generate_stream", 200)
    assert (line["model"], line["pieces"]) == ("s", 2)
    assert line["bytes"] > size
    assert 0 <= line["first_ms"] <= line["ms"]
    assert "secret" not in json.dumps(line)
    assert "error" not in line


@pytest.mark.parametrize(
    ("call", "body", "status", "error"),
    [
        ("generate", prompt("x"), 200, None),
        ("generate", prompt("break"), 200, "engine_error"),
        ("generate_stream", prompt("break"), 200, "engine_error"),
        ("generate", prompt(model="nope"), 200, "unknown_model"),
        ("generate_stream", {}, 422, "invalid_request"),
        ("count_token", {"model": "nope", "prompt": "x"}, 404, "unknown_model"),
        ("apply", {"model": "s", "apply_type": "start"}, 200, None),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_every_request_leaves_one_line_with_what_went_wrong(client, lines, call, body, status, error):
    response = post(client, call, body)
    (line,) = lines()
    assert (line["status"], line.get("error")) == (status, error)
    assert line["bytes"] == len(response.data)


@pytest.mark.parametrize("call", ["generate", "generate_stream"])
def test_the_access_line_has_the_tokens_and_why_the_answer_ended(client, lines, call):
    post(client, call, prompt("one two", model="echo", max_new_tokens=3)).close()
    (line,) = lines()
    assert (line["prompt_tokens"], line["completion_tokens"], line["finish_reason"]) == (2, 3, "length")
    assert 0 <= line["first_ms"] <= line["ms"]
    assert "instance" not in line, "no router has chosen one"


@pytest.mark.parametrize("call", ["generate", "generate_stream"])
def test_the_line_of_an_answer_that_broke_off_has_the_time_of_its_first_piece(client, lines, call):
    post(client, call, prompt("break")).close()
    (line,) = lines()
    assert line["error"] == "engine_error"
    assert 0 <= line["first_ms"] <= line["ms"]


@pytest.mark.parametrize("call", ["generate", "generate_stream"])
def test_the_time_in_line_is_in_the_access_line_and_a_header(client, lines, runtime, call):
    gate = runtime.local.models.find("s@llm").gate
    held, answers = gate.request(), []
    waiting = threading.Thread(target=lambda: answers.append(post(client, call, prompt("x"))))
    waiting.start()
    wait_until(lambda: gate.waiting == 1, "it stands in line")
    held.release()
    waiting.join(30)
    (line,) = lines()
    assert 0 <= line["queue_ms"] <= line["ms"]
    assert int(answers[0].headers["Modelyard-Queue-Ms"]) >= line["queue_ms"]
    assert "Modelyard-Queue-Ms" not in post(client, call, prompt("x")).headers
    assert "queue_ms" not in lines()[1]


def test_a_client_that_has_gone_is_told_in_the_line(client, lines):
    response = post(client, "generate_stream", prompt("hold"), buffered=False)
    next(response.response)
    response.close()
    (line,) = lines()
    assert line["error"] == "cancelled"


def test_the_lines_can_be_turned_off(build, lines):
    post(app_of(build(access_log=False)).test_client(), "generate", prompt("x"))
    assert lines() == []


# A count of tokens


def test_a_count_takes_a_thread_of_the_budget_only_to_wait_for_a_model_that_is_not_loaded(runtime, client):
    model = next(worker for worker in runtime.local.models.workers() if worker.name == "s")
    taken = runtime.budget.total
    for _ in range(taken):
        runtime.budget.enter()
    assert post(client, "count_token", prompt()).json == 2
    assert model.unload("idle")
    refused = post(client, "count_token", prompt())
    assert (refused.status_code, model.state) == (503, State.UNLOADED)
    assert "this process is busy" in refused.json["detail"]
    for _ in range(taken):
        runtime.budget.leave()
    assert post(client, "count_token", prompt(), headers=NO_WAIT).status_code == 503
    assert model.state is State.UNLOADED, "it is not loaded for a caller who does not wait"
    assert post(client, "count_token", prompt()).json == 2
    assert model.state is State.READY
