"""Off it costs nothing and cuts no trace; on, a request is one tree of spans, in which nothing that was said stands."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kept_spans
import pytest
import steered
from clients import NO_WAIT
from flask import Flask
from flask.testing import FlaskClient
from kept_spans import Kept, named, tree
from modelyard import create_app
from modelyard.blueprints.request import traces
from modelyard.errors import Cancelled, ConfigError, EngineError, MissingLibrary, Overloaded, StartFailed
from modelyard.server.runtime import Runtime
from modelyard.settings.settings import Settings
from modelyard.streams import Cancel, OutputStream
from modelyard.telemetry import dbgpt, resource, tracing
from modelyard.telemetry.tracing import Tracing, current_tracing, end, has_span, outgoing_headers
from modelyard.types import Burst, GenerateRequest
from modelyard.worker.spans import MAX_TEXT, spanned
from opentelemetry import context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NoOpTracer, get_current_span
from running import wait_until
from steered import Steered, SteeredParams

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
UUIDS = "11111111-2222-4333-8444-555555555555:99999999-2222-4333-8444-555555555555"
UUIDS_PARENT = {"traceparent": "00-11111111222243338444555555555555-593d3169376e21ab-01"}
TABLES: list[dict[str, Any]] = [
    {"name": "echo"},
    {"name": "emb", "engine": "echo", "worker_type": "text2vec"},
    {"name": "rank", "engine": "echo", "worker_type": "reranker"},
    {"name": "s", "worker_class": steered.PATH, "limit_model_concurrency": 1, "max_waiting": 1, "token": "hunter2"},
    {"name": "bad", "worker_class": steered.PATH, "start": False},
]
MARKER = "marker7f3a"


class Traced:
    """An application, its runtime, and the spans that it has sent off."""

    def __init__(self, folder: Path, **options: Any) -> None:
        given = {"role": "worker", "state_dir": str(folder), "models_dirs": [str(folder)], "tracing": kept_spans.PATH}
        settings = Settings(**{**given, **options})
        settings.model_tables = tuple(TABLES)
        self.app: Flask = create_app(settings)
        self.runtime: Runtime = self.app.extensions["modelyard"]
        self.client: FlaskClient = self.app.test_client()
        self.runtime.start()
        assert self.runtime.wait_loaded(30)

    def post(self, path: str, body: Any, **options: Any) -> bytes:
        with self.client.post(f"/api/worker/{path}", json=body, **options) as answer:
            return answer.data

    def spans(self) -> list[dict[str, Any]]:
        """Stop, and return all spans but those of the start."""
        self.runtime.stop()
        starts = {span["trace_id"] for span in Kept.spans if span["name"] == "service.start"}
        return [span for span in Kept.spans if span["trace_id"] not in starts]


@pytest.fixture
def folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Path]:
    Steered.reset()
    Kept.spans.clear()
    yield tmp_path
    Steered.go.set()
    Kept.spans.clear()
    assert context.get_current() == {}, "a request left its span behind"
    assert not [record for record in caplog.get_records("call") if record.name.startswith("opentelemetry")]


@pytest.fixture
def traced(folder: Path) -> Iterator[Traced]:
    made = Traced(folder)
    yield made
    made.runtime.stop()


def prompt(model: str = "echo", text: str = "a b", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "human", "content": text}], **more}


def test_the_model_that_answers_is_in_the_spans(folder):
    traced = Traced(folder, aliases={"gpt": "echo"}, fallbacks={"nowhere": ["echo"]})
    for call in ("generate", "generate_stream"):
        for model in ("gpt", "nowhere", "echo"):
            traced.post(call, prompt(model))
    spans = traced.spans()
    names = ("gen_ai.request.model", "gen_ai.response.model")
    for call in ("generate", "generate_stream"):
        calls = named(spans, f"POST /api/worker/{call}")
        assert [tuple(span["attributes"].get(name) for name in names) for span in calls] == [
            ("gpt", "echo"),
            ("nowhere", "echo"),
            ("echo", None),
        ]
    tried = [span for span in named(spans, "manager.generate_stream") if span["parent_id"]]
    managers = [(span["attributes"]["modelyard.manager"], span["attributes"][names[0]]) for span in tried]
    assert managers.count(("NamingManager", "nowhere")) == 2
    assert managers.count(("LocalWorkerManager", "nowhere")) == 2


# Off


def test_it_is_off_by_default_and_does_not_load_the_sdk():
    script = (
        "from modelyard import create_app; from modelyard.settings.settings import Settings\n"
        "import sys, tempfile\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    app = create_app(Settings(role='worker', models=['echo'], models_dirs=[folder], state_dir=folder))\n"
        "    runtime = app.extensions['modelyard']\n"
        "    runtime.start(); runtime.wait_loaded(30)\n"
        "    for call in ('generate', 'generate_stream'):\n"
        "        with app.test_client().post(f'/api/worker/{call}', json={'model': 'echo', 'prompt': 'x'}) as answer:\n"
        "            assert answer.status_code == 200, answer.data\n"
        "    runtime.stop()\n"
        "loaded = [name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))]\n"
        "assert not loaded, loaded\n"
        "assert 'modelyard.telemetry.export' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_off_no_span_is_made(folder, monkeypatch):
    def never(*args: object, **options: object) -> None:
        raise AssertionError("a span was made")

    traced = Traced(folder, tracing=None)
    monkeypatch.setattr(NoOpTracer, "start_span", never)
    for module in (tracing, traces):
        monkeypatch.setattr(module, "attach", never)
    assert b"token" in traced.post("generate", prompt(span_id="empty_span"))
    assert b"token" in traced.post("generate_stream", prompt())
    assert b"[[" in traced.post("embeddings", {"model": "emb", "input": ["a"], "span_id": None})
    assert traced.spans() == []


@pytest.mark.parametrize(
    ("headers", "span_id", "told"),
    [
        (PARENT, None, {**PARENT, "DB-GPT-Trace-Span-Id": f"{TRACE}:{SPAN}"}),
        (
            {**PARENT, "tracestate": "a=1"},
            None,
            {**PARENT, "tracestate": "a=1", "DB-GPT-Trace-Span-Id": f"{TRACE}:{SPAN}"},
        ),
        ({**PARENT, "tracestate": "nonsense"}, None, {**PARENT, "DB-GPT-Trace-Span-Id": f"{TRACE}:{SPAN}"}),
        ({**PARENT, "DB-GPT-Trace-Span-Id": UUIDS}, None, {**PARENT, "DB-GPT-Trace-Span-Id": UUIDS}),
        ({"DB-GPT-Trace-Span-Id": UUIDS}, "a:b", {**UUIDS_PARENT, "DB-GPT-Trace-Span-Id": UUIDS}),
        ({}, UUIDS, {**UUIDS_PARENT, "DB-GPT-Trace-Span-Id": UUIDS}),
        ({"traceparent": "nonsense"}, UUIDS, {**UUIDS_PARENT, "DB-GPT-Trace-Span-Id": UUIDS}),
        ({}, "empty_span", {}),
        ({}, None, {}),
    ],
)
def test_off_a_callers_span_is_told_to_the_next_hop(folder, monkeypatch, headers, span_id, told):
    traced = Traced(folder, tracing=None)
    heard: list[dict[str, str]] = []

    def generate_stream(request: GenerateRequest, cancel: Cancel) -> OutputStream:
        heard.append(dict(outgoing_headers()))
        return OutputStream(iter(()), cancel, lambda: None)

    monkeypatch.setattr(traced.runtime.manager, "generate_stream", generate_stream)
    traced.post("generate", prompt(span_id=span_id), headers=headers)
    assert heard == [told]
    traced.runtime.stop()


def test_off_a_span_of_the_host_application_is_passed_on_and_left_alone():
    off = Tracing()
    tracer = TracerProvider().get_tracer("host")
    with tracer.start_as_current_span("the host's") as span:
        passed = outgoing_headers()
        with off.running(off.span("x", {"a": 1})) as below:
            end(below, "failed")
            assert outgoing_headers() == passed
        call = off.context_of_call(PARENT)
        assert get_current_span(call) is span
        assert span.is_recording()
        assert not span.attributes


def test_off_without_a_caller_there_is_no_span():
    off = current_tracing()
    assert not off.on
    with off.running(off.span("x", {"a": 1})) as span:
        assert outgoing_headers() == {}
        assert dbgpt.span_id() is None
        assert not has_span()
        assert not span.is_recording()


# One tree


def test_a_request_is_one_tree(traced):
    traced.post("generate_stream", prompt(max_new_tokens=3))
    found = traced.spans()
    assert tree(found) == {
        "POST /api/worker/generate_stream": {"manager.generate_stream": {"worker.generate": {"chat echo": {}}}}
    }
    assert len({span["trace_id"] for span in found}) == 1
    (server,) = named(found, "POST /api/worker/generate_stream")
    assert server["kind"] == "server"
    assert server["attributes"]["http.response.status_code"] == 200
    assert server["attributes"]["http.response.body.size"] > 0
    assert server["attributes"]["modelyard.pieces"] == 3
    (engine,) = named(found, "chat echo")
    assert engine["attributes"] == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "echo",
        "gen_ai.request.model": "echo",
        "gen_ai.request.max_tokens": 3,
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": 2,
        "gen_ai.usage.output_tokens": 3,
        "modelyard.pieces": 3,
        "modelyard.time_to_first_piece": engine["attributes"]["modelyard.time_to_first_piece"],
    }
    assert [event["name"] for event in engine["events"]] == ["modelyard.first_piece"]


@pytest.mark.parametrize(
    ("call", "body", "below"),
    [
        ("generate", prompt(), {"manager.generate_stream": {"worker.generate": {"chat echo": {}}}}),
        (
            "generate",
            {"model": "echo", "prompt": "a"},
            {"manager.generate_stream": {"worker.generate": {"text_completion echo": {}}}},
        ),
        (
            "embeddings",
            {"model": "emb", "input": ["a", "b"]},
            {"manager.embeddings": {"worker.embeddings": {"embeddings emb": {}}}},
        ),
        (
            "embeddings",
            {"model": "rank", "query": "a", "input": ["a", "b"]},
            {"manager.rerank": {"worker.rerank": {"rerank rank": {}}}},
        ),
        ("count_token", {"model": "echo", "prompt": "a"}, {"manager.count_token": {}}),
        ("model_metadata", {"model": "echo"}, {"manager.model_metadata": {}}),
        (
            "apply",
            {"model": "echo", "apply_type": "restart"},
            {"manager.worker_apply": {"model.start": {}}},
        ),
    ],
)
def test_every_call_has_its_spans(traced, call, body, below):
    traced.post(call, body)
    assert tree(traced.spans()) == {f"POST /api/worker/{call}": below}


def test_a_span_lasts_until_the_body_was_closed(traced):
    answer = traced.client.post("/api/worker/generate_stream", json=prompt("s", "hold"))
    stream = iter(answer.response)
    next(stream)
    assert not has_span(), "the view has ended"
    wait_until(lambda: named(Kept.spans, "service.start"), "a batch")
    assert not named(Kept.spans, "POST /api/worker/generate_stream")
    answer.close()
    found = traced.spans()
    assert [span["name"] for span in found] == [
        "chat s",
        "worker.generate",
        "manager.generate_stream",
        "POST /api/worker/generate_stream",
    ]
    assert {span["attributes"]["error.type"] for span in found} == {"cancelled"}


def test_waiting_in_line_is_on_the_span_of_the_worker(traced):
    release = Cancel()
    holder = traced.runtime.local.generate_stream(GenerateRequest("s", prompt="hold"), release)
    next(holder)
    waiter = threading.Thread(target=traced.post, args=("generate", prompt("s", "one")))
    waiter.start()
    wait_until(lambda: traced.runtime.local.models.workers()[3].gate.waiting == 1, "one in line")
    assert b"busy" in traced.post("generate", prompt("s"), headers=NO_WAIT)
    holder.close()
    waiter.join(30)
    found = traced.spans()
    refused = next(
        s for s in found if s["attributes"].get("error.type") == "overloaded" and s["name"] == "worker.generate"
    )
    assert refused["attributes"].get("modelyard.time_in_line") is None
    served = next(s for s in named(found, "worker.generate") if s["status"] == "unset")
    assert served["attributes"]["modelyard.time_in_line"] > 0
    assert [event["name"] for event in served["events"]] == ["modelyard.slot"]


def test_a_call_of_the_host_application_is_a_trace_of_its_own(traced):
    traced.runtime.manager.generate(GenerateRequest("echo", prompt="a"))
    assert tree(traced.spans()) == {"manager.generate_stream": {"worker.generate": {"text_completion echo": {}}}}


# In and out


@pytest.mark.parametrize(
    ("headers", "span_id", "trace", "parent"),
    [
        (PARENT, UUIDS, TRACE, SPAN),
        ({**PARENT, "DB-GPT-Trace-Span-Id": UUIDS}, None, TRACE, SPAN),
        ({"DB-GPT-Trace-Span-Id": UUIDS}, f"{TRACE}:{SPAN}", "11111111222243338444555555555555", "593d3169376e21ab"),
        ({}, f"{TRACE}:{SPAN}", TRACE, SPAN),
        ({"traceparent": "nonsense"}, f"{TRACE}:{SPAN}", TRACE, SPAN),
    ],
)
def test_the_callers_span_is_the_parent(traced, headers, span_id, trace, parent):
    traced.post("generate", prompt(span_id=span_id), headers=headers)
    (server,) = named(traced.spans(), "POST /api/worker/generate")
    assert (server["trace_id"], server["parent_id"]) == (trace, parent)


def test_an_empty_span_is_no_parent(traced):
    traced.post("generate", prompt(span_id="empty_span"), headers={"DB-GPT-Trace-Span-Id": "empty_span"})
    (server,) = named(traced.spans(), "POST /api/worker/generate")
    assert server["parent_id"] is None


def test_the_callers_own_id_is_kept(traced):
    traced.post("generate", prompt(), headers={"DB-GPT-Trace-Span-Id": UUIDS})
    (server,) = named(traced.spans(), "POST /api/worker/generate")
    assert server["attributes"]["modelyard.dbgpt.span_id"] == UUIDS


def test_the_next_hop_is_told_of_the_span_that_asks_it(traced, monkeypatch):
    heard: list[dict[str, str]] = []
    manager = traced.runtime.local

    def generate_stream(self: Any, request: GenerateRequest, cancel: Cancel) -> OutputStream:
        heard.append({**outgoing_headers(), "span_id": dbgpt.span_id() or ""})
        return OutputStream(iter(()), cancel, lambda: None)

    monkeypatch.setattr(manager, "generate_stream", spanned(generate_stream).__get__(manager))
    traced.post("generate", prompt(), headers={"DB-GPT-Trace-Span-Id": UUIDS})
    traced.post("generate", prompt(), headers={**PARENT, "tracestate": "vendor=1"})
    dbgpts, w3cs = named(traced.spans(), "manager.generate_stream")
    trace = UUIDS.partition(":")[0]
    assert heard == [
        {
            "traceparent": f"00-{trace.replace('-', '')}-{dbgpts['span_id']}-01",
            "DB-GPT-Trace-Span-Id": f"{trace}:{dbgpts['span_id']}",
            "span_id": f"{trace}:{dbgpts['span_id']}",
        },
        {
            "traceparent": f"00-{TRACE}-{w3cs['span_id']}-01",
            "tracestate": "vendor=1",
            "DB-GPT-Trace-Span-Id": f"{TRACE}:{w3cs['span_id']}",
            "span_id": f"{TRACE}:{w3cs['span_id']}",
        },
    ]


def test_a_trace_that_the_caller_does_not_keep_is_not_kept_here_and_told_on(traced, monkeypatch):
    heard: list[str] = []
    real = traced.runtime.local.count_token
    monkeypatch.setattr(
        traced.runtime.local,
        "count_token",
        lambda *a, **k: (heard.append(outgoing_headers()["traceparent"]), real(*a, **k))[1],
    )
    traced.post("count_token", {"model": "echo", "prompt": "x"}, headers={"traceparent": f"00-{TRACE}-{SPAN}-00"})
    assert traced.spans() == []
    (told,) = heard
    assert told.startswith(f"00-{TRACE}-")
    assert told.endswith("-00")


def test_none_of_the_traces_begun_here_is_kept_with_a_share_of_none(folder):
    traced = Traced(folder, tracing_sample=0.0)
    traced.post("generate", prompt())
    traced.post("generate", prompt(span_id=UUIDS))
    traced.post("generate_stream", prompt(), headers=PARENT)
    assert {span["trace_id"] for span in traced.spans()} == {TRACE}


# Errors


@pytest.mark.parametrize(
    ("body", "names", "code"),
    [
        (prompt("nobody"), {"manager.generate_stream"}, "unknown_model"),
        (prompt(temperature="hot"), set(), "invalid_request"),
        (prompt("s", "refuse"), {"manager.generate_stream", "worker.generate", "chat s"}, "prompt_too_long"),
        (prompt("s", "break"), {"manager.generate_stream", "worker.generate"}, "engine_error"),
    ],
)
def test_an_error_is_on_every_span_that_it_went_through(traced, body, names, code):
    traced.post("generate", body)
    failed = {s["name"] for s in traced.spans() if s["status"] == "error" and s["attributes"]["error.type"] == code}
    assert failed == {*names, "POST /api/worker/generate"}


def test_an_engines_own_error_is_named_by_its_class_and_never_quoted(traced):
    traced.post("generate_stream", prompt("s", "break"))
    found = traced.spans()
    (engine,) = named(found, "chat s")
    assert engine["attributes"]["error.type"] == "RuntimeError"
    assert "the inside of the engine" not in json.dumps(found)


def test_a_refusal_before_the_body_was_read_has_a_span(traced):
    traced.runtime.drain(0)
    traced.post("generate", prompt(), headers=PARENT)
    traced.post("generate", prompt())
    servers = named(traced.spans(), "POST /api/worker/generate")
    assert [server["attributes"]["error.type"] for server in servers] == ["draining", "draining"]
    assert [server["parent_id"] for server in servers] == [SPAN, None]
    assert [server["attributes"]["http.response.status_code"] for server in servers] == [503, 503]


# The start


ATTRIBUTES = """
import subprocess
subprocess.Popen = None
from modelyard.settings.settings import Settings
from modelyard.telemetry.resource import of_service
assert of_service(Settings())["os.description"].startswith("Linux ")
"""


def test_the_attributes_of_a_process_start_no_program():
    """Under gevent the child of a fork would read the requests of this process."""
    subprocess.run([sys.executable, "-c", ATTRIBUTES], timeout=60, check=True)


def test_the_start_is_a_span_with_parameters_and_the_system(folder):
    traced = Traced(folder, registry=None, remote_headers=["X-Key=hunter2"])
    traced.runtime.stop()
    assert tree(Kept.spans) == {"service.start": {"model.start": {}}}
    assert len(named(Kept.spans, "model.start")) == 4
    (start,) = named(Kept.spans, "service.start")
    said = start["attributes"]
    assert said["modelyard.setting.role"] == "worker"
    assert said["process.runtime.version"] == ".".join(map(str, sys.version_info[:3]))
    assert {"os.description", "modelyard.host.cores", "modelyard.host.memory", "modelyard.package.flask"} <= set(said)
    assert said["modelyard.setting.remote_headers"] == "******"
    script = next(s for s in named(Kept.spans, "model.start") if s["attributes"]["modelyard.model"] == "s@llm")
    assert script["attributes"]["modelyard.param.token"] == "******"
    assert script["attributes"]["modelyard.param.limit_model_concurrency"] == 1
    assert "hunter2" not in json.dumps(Kept.spans)


def test_a_private_value_that_is_not_set_is_left_out_of_the_facts():
    facts = resource.of_service(Settings())
    facts |= resource.shown("param", SteeredParams(model_name="s", engine="steered", token=""))
    assert "modelyard.setting.port" in facts
    assert [name for name, value in facts.items() if value == "******"] == []


def test_a_start_that_fails_says_why(traced):
    body = {"model": "bad", "params": {"fail": "library"}, "host": "127.0.0.1", "port": 1, "worker_type": "llm"}
    traced.post("models/startup", body)
    (start,) = named(traced.spans(), "model.start")
    assert start["attributes"]["error.type"] == "missing_library"
    assert "torch" in start["attributes"]["modelyard.reason"]


# Content


def test_prompts_and_answers_are_left_out_unless_they_are_wanted(folder):
    quiet = Traced(folder / "quiet")
    for traced in (quiet, Traced(folder / "loud", tracing_content=True)):
        traced.post("generate", prompt("s", f"{MARKER} b"))
        traced.post("generate_stream", {"model": "s", "prompt": MARKER, "stop": [MARKER]})
        traced.post("embeddings", {"model": "emb", "input": [MARKER]})
        traced.post("generate", {"model": "echo", "messages": [{"role": MARKER, "content": MARKER}]})
        found = traced.spans()
        if traced is quiet:
            assert MARKER not in json.dumps(found)
            Kept.spans.clear()
    chat, completion = [s["attributes"] for s in found if s["name"] in ("chat s", "text_completion s")]
    assert json.loads(chat["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": f"{MARKER} b"}]}
    ]
    assert json.loads(chat["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": f" {MARKER} b"}], "finish_reason": "stop"}
    ]
    assert MARKER in completion["gen_ai.input.messages"]
    (texts,) = named(found, "embeddings emb")
    assert json.loads(texts["attributes"]["modelyard.input.texts"]) == [MARKER]


def test_long_texts_are_cut(folder):
    traced = Traced(folder, tracing_content=True)
    traced.post("embeddings", {"model": "emb", "input": ["x" * 200_000]})
    (texts,) = named(traced.spans(), "embeddings emb")
    assert len(texts["attributes"]["modelyard.input.texts"]) == MAX_TEXT == 65_536


def test_half_a_surrogate_pair_in_a_prompt_breaks_no_request(folder):
    traced = Traced(folder, tracing_content=True)
    request = GenerateRequest("s", prompt="\ud800 a")
    assert traced.runtime.manager.generate(request).error_code == 0
    assert {span["status"] for span in traced.spans() if span["name"].endswith(" s")} == {"unset"}


# Streams


class Wholes:
    """A manager of one stream."""

    def __init__(self, tracing: Tracing, bursts: list[Any]) -> None:
        self.tracing = tracing
        self.bursts = iter(bursts)

    @spanned
    def generate_stream(self, request: GenerateRequest) -> OutputStream:
        def run() -> Iterator[Burst]:
            for burst in self.bursts:
                if isinstance(burst, BaseException):
                    raise burst
                yield burst

        return OutputStream(run(), Cancel(), lambda: None)


@pytest.mark.parametrize(
    ("bursts", "code"), [([Burst(["a"])], None), ([Burst(["a"]), Overloaded("x")], "overloaded"), ([], None)]
)
def test_the_span_over_a_stream_ends_with_it(folder, bursts, code):
    own = Tracing(Settings(tracing=kept_spans.PATH))
    own.start()
    stream = Wholes(own, bursts).generate_stream(GenerateRequest("m", prompt="x"))
    assert not has_span()
    with contextlib.suppress(Overloaded):
        list(stream)
    stream.close()
    own.stop()
    (span,) = Kept.spans
    assert span["name"] == "manager.generate_stream"
    assert span["attributes"].get("error.type") == code


def test_listeners_hear_of_the_end_of_a_stream_once_in_order():
    heard: list[Any] = []
    stream = OutputStream(iter([Burst(["a"])]), Cancel(), lambda: heard.append("let go"))
    stream.when_closed(lambda error: heard.append(("first", error)))
    stream.when_closed(lambda error: heard.append(("second", error)))
    assert list(stream) == [Burst(["a"])]
    stream.close()
    stream.when_closed(lambda error: heard.append(("late", error)))
    assert heard == ["let go", ("first", None), ("second", None), ("late", None)]


def test_listeners_hear_why_a_stream_failed():
    for cause, wanted in ((None, Cancelled), (EngineError("x"), EngineError)):
        heard: list[Any] = []
        cancel = Cancel()
        stream = OutputStream(iter([Burst(["a"]), Burst(["b"])]), cancel, lambda: None)
        stream.when_closed(heard.append)
        next(stream)
        if cause is not None:
            cancel.set(cause)
            with pytest.raises(EngineError):
                next(stream)
        stream.close()
        assert [type(error) for error in heard] == [wanted]


# Settings


@pytest.mark.parametrize(
    "said",
    ["file:/tmp/x", "file:x", "otlp", "otlp:http://here:4318", "otlp:https://here/v1/traces", "host", "a.b:C", None],
)
def test_places_for_spans(said):
    assert Settings(tracing=said).tracing == said
    assert Settings(tracing="off").tracing is None


@pytest.mark.parametrize(
    "said", ["", "on", "file:", "otlp:here:4318", "otlp:ftp://here", "a.b.C", "http://here", "a:b-c"]
)
def test_what_is_no_place_for_spans_is_refused(said):
    with pytest.raises(ConfigError, match="tracing"):
        Settings(tracing=said)


def test_credentials_in_the_address_are_refused_and_not_quoted():
    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_HEADERS") as caught:
        Settings(tracing="otlp:http://me:hunter2@here")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "said", ["kept_spans:Nobody", "no.such.module:Class", "kept_spans:NoExporter", "kept_spans:PATH"]
)
def test_a_class_that_is_no_exporter_is_refused(said):
    with pytest.raises(ConfigError, match="tracing"):
        Tracing(Settings(tracing=said))


@pytest.mark.parametrize(("said", "absent"), [("file:x", "sdk"), ("otlp", "exporter")])
def test_without_the_library_the_extra_is_named(monkeypatch, said, absent):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if absent in name else real(name))
    with pytest.raises(MissingLibrary, match=r"modelyard\[otel\]"):
        Tracing(Settings(tracing=said))
    Tracing(Settings())
    Tracing(Settings(tracing="host"))


def test_an_exporter_that_can_not_be_made_is_told_and_nothing_is_traced(folder, monkeypatch, caplog):
    def refuse(self: Kept) -> None:
        raise ValueError("no collector")

    monkeypatch.setattr(Kept, "__init__", refuse)
    traced = Traced(folder)
    assert b"token" in traced.post("generate", prompt())
    assert traced.spans() == []
    assert "nothing is traced: no collector" in caplog.text


# In an application that traces already

HOST = """
import sys, json, tempfile
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from modelyard import create_app
from modelyard.settings.settings import Settings

kept = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(kept))
trace.set_tracer_provider(provider)
with tempfile.TemporaryDirectory() as folder:
    settings = Settings(role="worker", models=["echo"], models_dirs=[folder], state_dir=folder, tracing="host")
    app = create_app(settings)
    runtime = app.extensions["modelyard"]
    runtime.start()
    assert runtime.wait_loaded(30)
    kept.clear()
    with trace.get_tracer("host").start_as_current_span("the host's") as above:
        app.test_client().post("/api/worker/generate", json={"model": "echo", "prompt": "x"},
                               headers={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
    app.test_client().post("/api/worker/count_token", json={"model": "echo", "prompt": "x"},
                           headers={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
    runtime.stop()
for span in kept.get_finished_spans():
    ids = [one and format(one.span_id, "016x") for one in (span.parent, span.context)]
    print(json.dumps([span.name, *ids]))
"""


def test_in_an_application_that_traces_the_spans_join_its_own():
    ran = subprocess.run([sys.executable, "-c", HOST], check=True, capture_output=True, text=True, timeout=60)
    found = {name: (parent, own) for name, parent, own in map(json.loads, ran.stdout.splitlines())}
    assert found["POST /api/worker/generate"][0] == found["the host's"][1]
    assert found["manager.generate_stream"][0] == found["POST /api/worker/generate"][1]
    assert found["POST /api/worker/count_token"][0] == SPAN, "without a span of the host the header counts"


def test_spans_for_a_file_do_not_stand_below_those_of_the_application(traced):
    tracer = TracerProvider().get_tracer("host")
    with tracer.start_as_current_span("the host's") as above:
        traced.post("generate", prompt(), headers=PARENT)
        traced.runtime.manager.generate(GenerateRequest("echo", prompt="a"))
        assert get_current_span() is above
    found = traced.spans()
    (server,) = named(found, "POST /api/worker/generate")
    assert server["parent_id"] == SPAN, "as the header says"
    assert sorted(tree(found)) == ["manager.generate_stream"], "a trace of its own"


def test_a_failed_start_is_raised_through_its_span(traced):
    with pytest.raises(StartFailed):
        traced.runtime.local.model_startup("bad", None, {"fail": "other"})
    found = traced.spans()
    assert tree(found) == {"manager.model_startup": {"model.start": {}}}
    assert {span["status"] for span in found} == {"error"}
