"""Spans leave in batches, from a thread of their own: into a file that may move, and never at a request's cost."""

from __future__ import annotations

import logging
import stat
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from kept_spans import Broken, Kept, lines_of
from modelyard.settings.settings import Settings
from modelyard.telemetry.export import BATCH, Batches, JsonLines, _LastWords, _traces_of, provider
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status, StatusCode
from running import wait_until

LONG = 3600.0
"""An interval that never passes: what leaves then leaves for another reason."""


class Held(SpanExporter):
    """Exports when it is let."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self.batches: list[int] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.begun.set()
        assert self.go.wait(30)
        self.batches.append(len(spans))
        return SpanExportResult.SUCCESS


@pytest.fixture
def made() -> Iterator[Any]:
    """Makes batches and the tracer that feeds them; ends their threads."""
    providers: list[TracerProvider] = []
    Kept.spans.clear()
    Broken.failing, Broken.exported = True, 0

    def make(exporter: SpanExporter, **options: Any) -> tuple[Batches, Any]:
        batches = Batches(exporter, **options)
        providers.append(TracerProvider(shutdown_on_exit=False))
        providers[-1].add_span_processor(batches)
        return batches, providers[-1].get_tracer("test")

    yield make
    for one in providers:
        one.shutdown()
    assert not [thread for thread in threading.enumerate() if thread.name == "modelyard-tracing"]


def spans(tracer: Any, count: int = 1) -> None:
    for number in range(count):
        tracer.start_span(f"span {number}").end()


def test_a_line_says_all_of_a_span(tmp_path, made):
    path = tmp_path / "trace.jsonl"
    batches, tracer = made(JsonLines(path), interval=LONG)
    with tracer.start_as_current_span("above", kind=SpanKind.SERVER, start_time=1_700_000_000_123_456_789) as above:
        below = tracer.start_span("below", attributes={"word": "übung", "number": 1, "list": ["a"]})
        below.add_event("happened", {"how": "well"})
        below.set_status(Status(StatusCode.ERROR))
        below.end()
    assert batches.force_flush()
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
    assert first["parent_id"] == second["span_id"]
    assert (first["kind"], first["status"]) == ("internal", "error")
    assert first["attributes"] == {"word": "übung", "number": 1, "list": ["a"]}
    assert [(event["name"], event["attributes"]) for event in first["events"]] == [("happened", {"how": "well"})]


def test_the_file_is_for_its_owner_alone(tmp_path, made):
    batches, tracer = made(JsonLines(tmp_path / "trace.jsonl"), interval=LONG)
    spans(tracer)
    batches.force_flush()
    assert stat.S_IMODE((tmp_path / "trace.jsonl").stat().st_mode) == 0o600


def test_a_file_that_was_moved_away_is_made_anew(tmp_path, made):
    path = tmp_path / "trace.jsonl"
    batches, tracer = made(JsonLines(path), interval=LONG)
    spans(tracer, 2)
    batches.force_flush()
    path.rename(tmp_path / "old.jsonl")
    spans(tracer, 3)
    batches.force_flush()
    assert (len(lines_of(tmp_path / "old.jsonl")), len(lines_of(path))) == (2, 3)


def test_half_a_surrogate_pair_breaks_no_batch(tmp_path, made):
    batches, tracer = made(JsonLines(tmp_path / "trace.jsonl"), interval=LONG)
    tracer.start_span("odd", attributes={"word": "\ud800"}).end()
    spans(tracer)
    assert batches.force_flush()
    assert len(lines_of(tmp_path / "trace.jsonl")) == 2


def test_spans_leave_by_themselves_and_at_the_end(made):
    _batches, tracer = made(Kept(), interval=0.05)
    spans(tracer)
    wait_until(lambda: len(Kept.spans) == 1, "the first span")
    slow, tracer = made(Kept(), interval=LONG)
    spans(tracer, 2)
    slow.shutdown()
    assert len(Kept.spans) == 3
    slow.shutdown()


def test_a_full_batch_does_not_wait_for_its_time(made):
    _, tracer = made(Kept(), interval=LONG)
    spans(tracer, BATCH)
    wait_until(lambda: len(Kept.spans) == BATCH, "a batch")


def test_what_finds_the_queue_full_is_dropped_counted_and_said(made, caplog):
    held = Held()
    batches, tracer = made(held, interval=0.02, queue=3)
    spans(tracer)
    assert held.begun.wait(10)
    spans(tracer, 8)
    held.go.set()
    wait_until(lambda: "5 spans were dropped" in caplog.text, "the count")
    batches.force_flush()
    assert sum(held.batches) == 4


def test_a_failure_is_said_once_until_it_works_again(made, caplog):
    caplog.set_level(logging.INFO)
    batches, tracer = made(Broken(), interval=LONG)
    for _ in range(3):
        spans(tracer)
        assert not batches.force_flush()
    assert caplog.text.count("spans can't be sent: no space left") == 1
    Broken.failing = False
    spans(tracer)
    assert batches.force_flush()
    assert caplog.text.count("spans are sent again") == 1
    assert Broken.exported == 1
    Broken.failing = True
    spans(tracer)
    assert not batches.force_flush()
    assert caplog.text.count("spans can't be sent") == 2


def test_a_file_that_can_not_be_written_is_said(tmp_path, made, caplog):
    batches, tracer = made(JsonLines(tmp_path / "nowhere" / "trace.jsonl"), interval=LONG)
    spans(tracer)
    batches.force_flush()
    assert "nowhere" in caplog.text


def test_lines_of_several_processes_do_not_mix(tmp_path, made):
    path = tmp_path / "trace.jsonl"
    pairs = [made(JsonLines(path), interval=0.01) for _ in range(3)]
    for _, tracer in pairs:
        spans(tracer, 300)
    for batches, _ in pairs:
        batches.shutdown()
    assert len(lines_of(path)) == 900


def test_what_opentelemetry_logs_of_a_failed_try_becomes_the_reason(caplog):
    log = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    words: _LastWords

    def fail() -> None:
        log.warning("connection refused")

    thread = threading.Thread(target=fail)
    words = _LastWords(thread)
    try:
        thread.start()
        thread.join(10)
        assert words.text == "connection refused"
        assert caplog.text == ""
        log.warning("of another exporter")
        assert "of another exporter" in caplog.text
    finally:
        words.leave()


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("http://here:4318", "http://here:4318/v1/traces"),
        ("http://here:4318/", "http://here:4318/v1/traces"),
        ("https://here/otlp/v1/traces", "https://here/otlp/v1/traces"),
    ],
)
def test_the_address_of_a_collector_gets_the_path_for_traces(said, wanted):
    assert _traces_of(said) == wanted


def test_long_texts_are_cut(tmp_path):
    path = tmp_path / "trace.jsonl"
    made = provider(Settings(tracing=f"file:{path}"))
    made.get_tracer("test").start_span("long", attributes={"text": "x" * 200_000}).end()
    made.shutdown()
    (line,) = lines_of(path)
    assert len(line["attributes"]["text"]) == 65_536
    assert line["service"] == "standalone-8000"
