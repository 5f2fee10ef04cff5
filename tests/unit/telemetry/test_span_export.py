"""Spans leave in batches, by the SDK's thread: into a file that may be moved, and never at a request's cost."""

from __future__ import annotations

import stat
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest
import requests
import responses
from kept_spans import Broken, Kept, lines_of
from modelyard.settings.settings import Settings
from modelyard.telemetry.export import BATCH, QUEUE, CollectorSession, SpanExport, traces_url
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status, StatusCode
from running import wait_until

LONG = 3600.0
"""An interval that never passes: what leaves then leaves for another reason."""


class Held(SpanExporter):
    """Exports once the test says so."""

    begun: ClassVar[threading.Event]
    go: ClassVar[threading.Event]
    batches: ClassVar[list[int]]

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.begun.set()
        self.go.wait(30)
        self.batches.append(len(spans))
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self.go.set()


class Refusing(SpanExporter):
    """Reports a failure and raises nothing."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.FAILURE


@pytest.fixture
def made() -> Iterator[Any]:
    """Make exports, to a file or an exporter, and the tracers that feed them; stop them at the end."""
    exports: list[SpanExport] = []
    before = set(threading.enumerate())
    Kept.spans.clear()
    Broken.failing, Broken.exported = True, 0
    Held.begun, Held.go, Held.batches = threading.Event(), threading.Event(), []

    def make(target: Any, *, interval: float = LONG) -> tuple[SpanExport, Any]:
        named = isinstance(target, type)
        settings = Settings() if named else Settings(tracing=f"file:{target}")
        exports.append(SpanExport(settings, target if named else None, interval=interval))
        return exports[-1], exports[-1].provider.get_tracer("test")

    yield make
    for export in exports:
        export.stop()
    wait_until(lambda: set(threading.enumerate()) <= before, "the threads have ended")


def spans(tracer: Any, count: int = 1) -> None:
    for number in range(count):
        tracer.start_span(f"span {number}").end()


def test_a_line_has_all_of_a_span(tmp_path, made):
    path = tmp_path / "trace.jsonl"
    export, tracer = made(path)
    with tracer.start_as_current_span("above", kind=SpanKind.SERVER, start_time=1_700_000_000_123_456_789) as above:
        below = tracer.start_span("below", attributes={"word": "übung", "number": 1, "list": ["a"]})
        below.add_event("happened", {"how": "well"})
        below.set_status(Status(StatusCode.ERROR))
        below.end()
    export.provider.force_flush()
    first, second = lines_of(path)
    ids = above.get_span_context()
    assert list(second) == [
        *("trace_id", "span_id", "parent_id", "name", "kind", "start", "duration_ms"),
        *("status", "attributes", "events", "service", "pid"),
    ]
    assert (second["trace_id"], second["span_id"]) == (format(ids.trace_id, "032x"), format(ids.span_id, "016x"))
    assert second["parent_id"] is None
    assert (second["kind"], second["status"], second["start"]) == ("server", "unset", "2023-11-14T22:13:20.123457Z")
    assert second["duration_ms"] > 0
    assert second["service"] == "standalone-8000"
    assert first["parent_id"] == second["span_id"]
    assert (first["kind"], first["status"]) == ("internal", "error")
    assert first["attributes"] == {"word": "übung", "number": 1, "list": ["a"]}
    assert [(event["name"], event["attributes"]) for event in first["events"]] == [("happened", {"how": "well"})]


def test_the_file_is_for_its_owner_alone(tmp_path, made):
    export, tracer = made(tmp_path / "trace.jsonl")
    spans(tracer)
    export.provider.force_flush()
    assert stat.S_IMODE((tmp_path / "trace.jsonl").stat().st_mode) == 0o600


def test_a_file_that_was_moved_away_is_made_again(tmp_path, made):
    path = tmp_path / "trace.jsonl"
    export, tracer = made(path)
    spans(tracer, 2)
    export.provider.force_flush()
    path.rename(tmp_path / "old.jsonl")
    spans(tracer, 3)
    export.provider.force_flush()
    assert (len(lines_of(tmp_path / "old.jsonl")), len(lines_of(path))) == (2, 3)


def test_half_a_surrogate_pair_breaks_no_batch(tmp_path, made):
    export, tracer = made(tmp_path / "trace.jsonl")
    tracer.start_span("odd", attributes={"word": "\ud800"}).end()
    spans(tracer)
    export.provider.force_flush()
    assert len(lines_of(tmp_path / "trace.jsonl")) == 2


def test_spans_leave_by_themselves_and_at_the_end(made):
    _export, tracer = made(Kept, interval=0.05)
    spans(tracer)
    wait_until(lambda: len(Kept.spans) == 1, "the first span")
    slow, tracer = made(Kept)
    spans(tracer, 2)
    slow.stop()
    assert len(Kept.spans) == 3
    slow.stop()


def test_opentelemetrys_own_variable_says_how_often_spans_leave(monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "0")
    with pytest.raises(ValueError, match="must be positive"):
        SpanExport(Settings(), Kept)


def test_a_full_batch_does_not_wait_for_its_time(made):
    _, tracer = made(Kept)
    spans(tracer, BATCH)
    wait_until(lambda: len(Kept.spans) == BATCH, "a batch")


def test_a_full_queue_drops_spans_blocks_nobody_and_is_logged(made, caplog):
    export, tracer = made(Held, interval=0.02)
    spans(tracer)
    assert Held.begun.wait(10)
    spans(tracer, QUEUE + 100)
    assert Held.batches == [], "nothing has been exported meanwhile"
    assert "ueue" in caplog.text
    Held.go.set()
    export.stop()
    assert sum(Held.batches) == QUEUE + 1


def test_a_stop_does_not_wait_for_an_exporter_that_hangs(made, caplog):
    export, tracer = made(Held)
    spans(tracer)
    began = time.monotonic()
    export.stop(timeout=0.1)
    assert time.monotonic() - began < 10
    assert "the last spans are lost" in caplog.text
    assert Held.go.is_set(), "the exporter is shut down: its retries end"


@pytest.mark.parametrize(("exporter", "reason"), [(Broken, "no space left"), (Refusing, "reports a failure")])
def test_a_failure_is_logged_once(made, caplog, exporter, reason):
    export, tracer = made(exporter)
    for _ in range(3):
        spans(tracer)
        export.provider.force_flush()
    assert caplog.text.count("spans can't be sent") == 1
    assert reason in caplog.text
    export.stop()
    assert "3 spans were lost" in caplog.text
    assert not [record for record in caplog.records if not record.name.startswith("modelyard")]


def test_after_a_failure_its_end_is_logged_with_the_loss_and_the_next_failure_again(made, caplog):
    export, tracer = made(Broken)
    spans(tracer, 2)
    export.provider.force_flush()
    Broken.failing = False
    spans(tracer)
    export.provider.force_flush()
    assert caplog.text.count("spans are sent again; 2 were lost") == 1
    assert Broken.exported == 1
    Broken.failing = True
    spans(tracer)
    export.provider.force_flush()
    assert caplog.text.count("spans can't be sent") == 2


def test_a_file_that_can_not_be_written_is_logged(tmp_path, made, caplog):
    export, tracer = made(tmp_path / "nowhere" / "trace.jsonl")
    spans(tracer)
    export.provider.force_flush()
    assert "nowhere" in caplog.text


def test_lines_of_several_processes_do_not_mix(tmp_path, made):
    path = tmp_path / "trace.jsonl"
    pairs = [made(path, interval=0.01) for _ in range(3)]
    for _, tracer in pairs:
        spans(tracer, 300)
    for export, _ in pairs:
        export.stop()
    assert len(lines_of(path)) == 900


@pytest.mark.parametrize(
    ("peer", "reason"),
    [
        ({"status": 401}, "answers with 401"),
        ({"body": requests.ConnectionError("refused")}, "refused"),
        ({"body": requests.ReadTimeout("too slow")}, "too slow"),
    ],
)
@responses.activate
def test_the_reason_of_a_collectors_failure_is_logged(caplog, peer, reason):
    responses.post("http://collector.test:4318/v1/traces", **peer)
    export = SpanExport(Settings(tracing="otlp:http://collector.test:4318"), interval=LONG)
    spans(export.provider.get_tracer("test"))
    export.stop(0.5)
    wait_until(lambda: "spans can't be sent" in caplog.text, "the reason")
    assert reason in caplog.text


@responses.activate
def test_the_session_of_a_collector_uses_no_proxy_and_forgets_a_failure_after_a_success(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    url = "http://collector.test/v1/traces"
    responses.post(url, status=503)
    responses.post(url, status=200)
    session = CollectorSession()
    session.post(url)
    assert session.failure == f"{url} answers with 503 Service Unavailable"
    session.post(url)
    assert session.failure == ""
    assert not session.trust_env


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://here:4318", "http://here:4318/v1/traces"),
        ("http://here:4318/", "http://here:4318/v1/traces"),
        ("https://here/otlp/v1/traces", "https://here/otlp/v1/traces"),
    ],
)
def test_the_address_of_a_collector_gets_the_path_for_traces(url, wanted):
    assert traces_url(url) == wanted
