"""Spans of real services: one tree a request and one trace over all hops, in a file or at a collector."""

from __future__ import annotations

import functools
import json
import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from clients import Connection, outputs
from kept_spans import lines_of, named, tree
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from running import WORKER_CLASSES, Service, Services, wait_until

MARKER = "marker7f3a"
"""What no span may hold unless it is wanted: it stands in prompts, answers and texts."""

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
DBGPT = "11111111-2222-4333-8444-555555555555:99999999-2222-4333-8444-555555555555"

TABLES = """
[[models]]
name = "echo"
reply = "prompt"

[[models]]
name = "script"
worker_class = "scripted:Blocking"
limit_model_concurrency = 1
secret = "hunter2"

[[models]]
name = "vectors"
worker_class = "scripted:Scripted"
worker_type = "text2vec"
"""

GENERATED = {"manager.generate_stream": {"worker.generate": {"chat script": {}}}}
"""The manager of the cluster, and below it that of this process, whose model it is."""

STREAM = "POST /api/worker/generate_stream"


def prompt(model: str = "echo", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "human", "content": f"{MARKER} {MARKER}"}], **more}


def script(**plan: Any) -> dict[str, Any]:
    return {"model": "script", "messages": [{"role": "human", "content": json.dumps({"said": MARKER, **plan})}]}


def trace_of(number: int) -> tuple[str, dict[str, str]]:
    """Return a trace of its own, and the headers that begin it."""
    trace = format(number + 1, "032x")
    return trace, {"traceparent": f"00-{trace}-{SPAN}-01"}


def spans_of(path: Path, trace: str, last: str) -> list[dict[str, Any]]:
    """Return the spans of a trace once the span ``last``, which ends last, has been written."""

    def found() -> list[dict[str, Any]]:
        spans = [span for span in lines_of(path) if span["trace_id"] == trace]
        return spans if named(spans, last) else []

    return wait_until(found, f"{last} in {path.name}")


each_class = pytest.mark.parametrize("service", WORKER_CLASSES, indirect=True)
"""For what depends on threads: a span's context is theirs, or greenlets'."""


@pytest.fixture(scope="module")
def service(request: pytest.FixtureRequest, run_module: Services) -> Iterator[Service]:
    folder = run_module.folder()
    service = run_module.start(
        TABLES,
        worker_class=getattr(request, "param", "gthread"),
        folder=folder,
        tracing=f"file:{folder}/trace.jsonl",
        remote_headers="K=hunter2",
    )
    yield service
    service.kill()


def file_of(service: Service) -> Path:
    return service.folder / "trace.jsonl"


def test_a_streamed_answer_is_one_tree(service: Service) -> None:
    trace, headers = trace_of(1)
    with service.post("generate_stream", script(pieces=5, each=0.02), headers=headers, stream=True) as answer:
        assert list(outputs(answer))[-1]["text"] == "xxxxx"
    spans = spans_of(file_of(service), trace, STREAM)
    (server,) = named(spans, STREAM)
    assert server["parent_id"] == SPAN
    assert tree(spans, SPAN) == {STREAM: GENERATED}
    (engine,) = named(spans, "chat script")
    assert engine["attributes"]["gen_ai.usage.output_tokens"] == 5
    assert [event["name"] for event in engine["events"]] == ["modelyard.first_piece"]
    # Until the last byte was handed over, not until the view returned.
    assert all(server["duration_ms"] >= span["duration_ms"] for span in spans)
    assert server["duration_ms"] >= 100
    assert server["pid"] == service.worker_pid()


@each_class
def test_threads_do_not_mix_their_requests(service: Service) -> None:
    def ask(number: int) -> None:
        _, headers = trace_of(100 + number)
        assert service.post("generate", prompt(max_new_tokens=2), headers=headers).status_code == 200

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    def is_one_chain(trace: str) -> bool:
        spans = spans_of(file_of(service), trace, "POST /api/worker/generate")
        below = [len(below) for below in _chain(tree(spans, SPAN))]
        return len(named(spans, "chat echo")) == 1 and below == [1] * len(spans)

    for number in range(16):
        # A model host writes its spans by itself.
        wait_until(functools.partial(is_one_chain, trace_of(100 + number)[0]), "one chain of spans")


def _chain(found: dict[str, Any]) -> list[dict[str, Any]]:
    below = next(iter(found.values()), None)
    return [found, *_chain(below)] if below is not None else []


def test_a_failure_in_the_middle_of_a_stream_is_on_its_spans(service: Service) -> None:
    service.may_show_tracebacks = True
    trace, headers = trace_of(2)
    service.post("generate_stream", script(pieces=4, fail_at=2), headers=headers)
    spans = spans_of(file_of(service), trace, STREAM)
    assert {span["status"] for span in spans} == {"error"}
    assert {span["attributes"]["error.type"] for span in spans} == {"engine_error", "RuntimeError"}
    assert "the script says so" not in json.dumps(spans)


@pytest.mark.parametrize("plan", [{"before": 60}, {"pieces": 600, "each": 0.1}])
def test_a_hang_up_ends_every_span(service: Service, plan: dict[str, Any]) -> None:
    trace, headers = trace_of(10 + len(plan))
    client = Connection(service.port)
    client.send("POST", "generate_stream", script(**plan), headers=headers)
    if "each" in plan:
        client.read_head()
        client.read_http_chunk()
    wait_until(lambda: service.load("script").get("free") != 1, "the slot is held")
    client.close()
    spans = spans_of(file_of(service), trace, STREAM)
    assert named(spans, "chat script")
    assert {span["attributes"]["error.type"] for span in spans} == {"cancelled"}


def test_dbgpts_id_begins_no_trace_of_its_own(service: Service) -> None:
    trace = "11111111222243338444555555555555"
    service.post("embeddings", {"model": "vectors", "input": [MARKER], "span_id": DBGPT})
    (server,) = named(spans_of(file_of(service), trace, "POST /api/worker/embeddings"), "POST /api/worker/embeddings")
    assert server["attributes"]["modelyard.dbgpt.span_id"] == DBGPT


def test_the_start_is_there_with_its_secrets_masked(service: Service) -> None:
    starts = named(wait_until(lambda: lines_of(file_of(service)), "lines"), "service.start")
    assert len(starts) == 1
    assert starts[0]["attributes"]["modelyard.setting.remote_headers"] == "******"
    own = [span for span in lines_of(file_of(service)) if span["parent_id"] == starts[0]["span_id"]]
    assert {span["attributes"]["modelyard.model"] for span in own} == {"echo@llm", "script@llm", "vectors@text2vec"}
    assert "hunter2" not in file_of(service).read_text()


def test_nothing_that_was_said_is_in_the_file(service: Service) -> None:
    service.may_show_tracebacks = True
    trace, headers = trace_of(3)
    assert MARKER in service.post("generate", prompt(max_new_tokens=2)).json()["text"]
    service.post("generate_stream", prompt(max_new_tokens=2, stop=[MARKER, MARKER + "2"], context={"x": MARKER}))
    service.post("generate", prompt(temperature=MARKER))
    service.post("generate", {"model": "echo", "messages": [{"role": MARKER, "content": MARKER}]})
    service.post("embeddings", {"model": "vectors", "input": [MARKER, json.dumps({"said": MARKER, "fail_at": 0})]})
    service.post("embeddings", {"model": "vectors", "input": [MARKER], "query": MARKER})
    service.post("count_token", {"model": "echo", "prompt": MARKER})
    service.post("generate", data=b"{" + MARKER.encode(), headers=headers)
    spans_of(file_of(service), trace, "POST /api/worker/generate")
    assert MARKER not in file_of(service).read_text()


def test_prompts_and_answers_are_there_where_they_are_wanted(run: Services) -> None:
    folder = run.folder()
    service = run.start(TABLES, folder=folder, tracing=f"file:{folder}/trace.jsonl", tracing_content=True)
    trace, headers = trace_of(1)
    service.post("generate", prompt(max_new_tokens=1), headers=headers)
    (engine,) = named(spans_of(file_of(service), trace, "POST /api/worker/generate"), "chat echo")
    assert MARKER in engine["attributes"]["gen_ai.input.messages"]
    assert MARKER in engine["attributes"]["gen_ai.output.messages"]


def test_a_stop_sends_off_what_is_left(run: Services) -> None:
    folder = run.folder()
    late = {"OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    service = run.start(TABLES, folder=folder, tracing=f"file:{folder}/trace.jsonl", environ=late)
    trace, headers = trace_of(1)
    service.post("generate", prompt(), headers=headers)
    service.signal(signal.SIGTERM)
    service.wait_ended(30)
    assert named([span for span in lines_of(file_of(service)) if span["trace_id"] == trace], "chat echo")


def test_after_a_sigkill_every_line_is_whole(run: Services) -> None:
    folder = run.folder()
    service = run.start(TABLES, folder=folder, tracing=f"file:{folder}/trace.jsonl")
    trace, headers = trace_of(1)
    service.post("generate", prompt(), headers=headers)
    before = spans_of(file_of(service), trace, "POST /api/worker/generate")
    for _ in range(50):
        service.post("generate", prompt())
    os.kill(service.worker_pid(), signal.SIGKILL)
    wait_until(lambda: len(named(lines_of(file_of(service)), "service.start")) == 2, "the next worker's start")
    assert [span for span in lines_of(file_of(service)) if span["trace_id"] == trace] == before


def test_a_file_that_can_not_be_written_breaks_no_request_and_is_said_once(run: Services) -> None:
    folder = run.folder()
    service = run.start(TABLES, folder=folder, tracing=f"file:{folder}/nowhere/trace.jsonl")
    wait_until(lambda: "spans can't be sent" in service.log(), "the reason")
    for _ in range(3):
        assert service.post("generate", prompt()).status_code == 200
    service.signal(signal.SIGTERM)
    service.wait_ended(30)
    assert service.log().count("spans can't be sent") == 1


def test_without_the_exporters_class_the_service_does_not_start(run: Services) -> None:
    service = run.start(TABLES, tracing="no_such_module:Exporter", wait="nothing")
    assert service.wait_ended(30) != 0
    assert "no_such_module" in service.log()
    assert "Traceback" not in service.log()


class Collector(BaseHTTPRequestHandler):
    """Takes spans in as OTLP over HTTP."""

    received: list[Any]
    status = 200

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = ExportTraceServiceRequest()
        request.ParseFromString(body)
        self.received.append((self.path, dict(self.headers), request))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[ThreadingHTTPServer]:
    handler = type("Taking", (Collector,), {"received": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def test_a_collector_gets_the_spans(run: Services, collector: ThreadingHTTPServer) -> None:
    received = collector.RequestHandlerClass.received  # type: ignore[attr-defined]
    service = run.start(
        TABLES,
        tracing=f"otlp:http://127.0.0.1:{collector.server_port}",
        # Internal clients ignore proxies; OpenTelemetry's own variables count.
        environ={"http_proxy": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_HEADERS": "x-key=hunter2"},
        instance="here",
    )
    trace, headers = trace_of(1)
    service.post("generate_stream", prompt(max_new_tokens=3), headers=headers)
    service.signal(signal.SIGTERM)
    service.wait_ended(30)
    assert {(path, headers["x-key"]) for path, headers, _ in received} == {("/v1/traces", "hunter2")}
    resources = [resource for _, _, request in received for resource in request.resource_spans]
    said = {pair.key: pair.value.string_value for pair in resources[0].resource.attributes}
    assert (said["service.name"], said["service.instance.id"]) == ("modelyard", "here")
    spans = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
    own = {span.name: span for span in spans if span.trace_id.hex() == trace}
    assert own[STREAM].parent_span_id.hex() == SPAN
    assert own["chat echo"].parent_span_id == own["worker.generate"].span_id
    counts = {pair.key: pair.value.int_value for pair in own["chat echo"].attributes}
    assert counts["gen_ai.usage.output_tokens"] == 3
    assert MARKER not in str(received)


def test_a_collector_that_is_not_there_breaks_no_request_and_is_said_once(run: Services) -> None:
    service = run.start(TABLES, tracing="otlp:http://127.0.0.1:9", environ={"OTEL_EXPORTER_OTLP_TIMEOUT": "1"})
    assert service.post("generate", prompt()).status_code == 200
    wait_until(lambda: "spans can't be sent" in service.log(), "the reason")
    assert service.post("generate", prompt()).status_code == 200
    service.signal(signal.SIGTERM)
    service.wait_ended(30)
    assert service.log().count("spans can't be sent") == 1
    assert "export" not in service.log(), "OpenTelemetry's exporter logs every try"
    assert "Traceback" not in service.log()


@pytest.mark.parametrize("gateway_traces", [True, False])
def test_a_request_is_one_trace_over_two_services(run: Services, gateway_traces: bool) -> None:
    folder = run.folder()
    registry = f"sqlite:///{folder}/registry.db"
    worker = run.start(TABLES, "worker", registry=registry, tracing=f"file:{folder}/worker.jsonl")
    gateway = run.start(
        "", "gateway", registry=registry, tracing=f"file:{folder}/gateway.jsonl" if gateway_traces else "off"
    )
    wait_until(lambda: gateway.post("generate", prompt()).json()["error_code"] == 0, "a way to the worker")
    said = {
        "w3c": ({"traceparent": f"00-{TRACE}-{SPAN}-01"}, None, TRACE, SPAN),
        "dbgpt": ({"DB-GPT-Trace-Span-Id": DBGPT}, None, "11111111222243338444555555555555", "593d3169376e21ab"),
        "body": ({}, f"{'b' * 32}:{'c' * 16}", "b" * 32, "c" * 16),
    }
    for headers, span_id, trace, parent in said.values():
        for call, body in {
            "generate_stream": prompt(span_id=span_id),
            "generate": prompt(span_id=span_id),
            "embeddings": {"model": "vectors", "input": ["x"], "span_id": span_id},
        }.items():
            assert gateway.post(call, body, headers=headers).status_code == 200
        at_worker = spans_of(folder / "worker.jsonl", trace, "POST /api/worker/embeddings")
        wanted = {parent}
        if gateway_traces:
            at_gateway = spans_of(folder / "gateway.jsonl", trace, "POST /api/worker/embeddings")
            assert {span["parent_id"] for span in at_gateway if span["kind"] == "server"} == {parent}
            wanted = {span["span_id"] for span in at_gateway if span["kind"] == "client"}
            assert len(wanted) == 3
        assert {span["parent_id"] for span in at_worker if span["kind"] == "server"} == wanted
        assert len(named(at_worker, "chat echo")) == 2
    worker.kill()


def test_who_was_asked_in_vain_has_a_span_as_well(run: Services) -> None:
    folder = run.folder()
    registry = f"sqlite:///{folder}/registry.db"
    workers = [run.start(TABLES, "worker", registry=registry) for _ in range(2)]
    given = {"tracing": f"file:{folder}/gateway.jsonl", "registry_refresh": 3600, "session_affinity": False}
    gateway = run.start("", "gateway", registry=registry, **given)
    wait_until(lambda: gateway.post("generate", prompt()).json()["error_code"] == 0, "a way to the workers")
    workers[0].kill()
    path = folder / "gateway.jsonl"
    for number in range(40):
        trace, headers = trace_of(number)
        assert gateway.post("generate_stream", prompt(), headers=headers).status_code == 200
        spans = spans_of(path, trace, STREAM)
        asked = named(spans, "POST /worker/generate_stream")
        if len(asked) == 2:
            break
    vain, served = sorted(asked, key=lambda span: span["start"])
    assert vain["attributes"]["error.type"] == "worker_unreachable"
    assert vain["attributes"]["server.port"] == workers[0].port
    assert (served["status"], served["attributes"]["server.port"]) == ("unset", workers[1].port)
    assert vain["parent_id"] == served["parent_id"]
    assert named(spans, STREAM)[0]["status"] == "unset"
