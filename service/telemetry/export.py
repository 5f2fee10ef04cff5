"""Where spans go, by OpenTelemetry's SDK: a file of JSON lines, a collector, a class of the operator's.

A thread writes them in batches. A request never waits for it: what finds the queue full is dropped, counted and said.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import orjson
import requests
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from ..settings.settings import Settings
from ..types import JSONObject
from ..version import __version__

log = logging.getLogger(__name__)

INTERVAL = 1.0
"""Seconds between two batches."""
BATCH = 512
QUEUE = 4096
STOP_TIMEOUT = 5.0
MAX_TEXT = 64 * 1024
"""Letters of one attribute; only prompts and answers are ever that long."""
TRACES_PATH = "/v1/traces"


def provider(settings: Settings, exporter: type[SpanExporter] | None = None) -> TracerProvider:
    """Return what makes spans and sends them where the setting says, or to a new ``exporter``. Shut it down.

    The process's own provider stays what it is. Raises whatever the exporter raises.
    """
    made = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.tracing_sample)),
        resource=_resource(settings),
        shutdown_on_exit=False,
        span_limits=SpanLimits(max_span_attribute_length=MAX_TEXT),
    )
    made.add_span_processor(Batches(_exporter(settings, exporter)))
    return made


def _resource(settings: Settings) -> Resource:
    # What OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say is taken in by `create`, and wins.
    said = os.environ.get("OTEL_SERVICE_NAME") or "modelyard"
    return Resource.create(
        {
            "service.name": said,
            "service.version": __version__,
            "service.instance.id": settings.instance_name,
            "host.name": socket.gethostname(),
            "process.pid": os.getpid(),
        }
    )


def _exporter(settings: Settings, named: type[SpanExporter] | None) -> SpanExporter:
    if named is not None:
        return named()
    kind, _, where = (settings.tracing or "").partition(":")
    if kind == "file":
        return JsonLines(Path(where).expanduser())
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - a file needs none

    session = requests.Session()
    session.trust_env = False
    return OTLPSpanExporter(endpoint=_traces_of(where) if where else None, session=session)


def _traces_of(url: str) -> str:
    """Return a collector's address with the path for spans, unless it has a path."""
    scheme, _, rest = url.partition("://")
    return url if rest.partition("/")[2] else f"{scheme}://{rest.rstrip('/')}{TRACES_PATH}"


class JsonLines(SpanExporter):
    """Appends one JSON object a span to a file, which is opened anew for each batch: it may be moved away."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write the spans at once, so that several processes may share the file. Raises OSError."""
        data = b"".join(_line(span) for span in spans)
        number = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while data:
                data = data[os.write(number, data) :]
        finally:
            os.close(number)
        return SpanExportResult.SUCCESS


def _line(span: ReadableSpan) -> bytes:
    plain = as_plain(span)
    try:
        return orjson.dumps(plain) + b"\n"
    except TypeError:
        # A lone surrogate, which is no text in UTF-8; or what a host application's own sampler put in.
        return json.dumps(plain, default=str).encode() + b"\n"


def as_plain(span: ReadableSpan) -> JSONObject:
    """Return what a line of the file says of a span."""
    own, began, ended = span.get_span_context(), span.start_time or 0, span.end_time or 0
    return {
        "trace_id": format(own.trace_id if own else 0, "032x"),
        "span_id": format(own.span_id if own else 0, "016x"),
        "parent_id": format(span.parent.span_id, "016x") if span.parent else None,
        "name": span.name,
        "kind": span.kind.name.lower(),
        "start": _time(began),
        "duration_ms": (ended - began) // 1000 / 1000,
        "status": span.status.status_code.name.lower(),
        "attributes": dict(span.attributes or {}),
        "events": [
            {"name": event.name, "time": _time(event.timestamp), "attributes": dict(event.attributes or {})}
            for event in span.events
        ],
        "service": span.resource.attributes.get("service.instance.id"),
        "pid": span.resource.attributes.get("process.pid"),
    }


def _time(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Batches(SpanProcessor):
    """Hands ended spans to an exporter, from a thread of its own; a failure is said once, until it works again."""

    def __init__(self, exporter: SpanExporter, interval: float = INTERVAL, queue: int = QUEUE) -> None:
        """Start the thread."""
        self._exporter = exporter
        self._interval = interval
        self._limit = queue
        self._queue: deque[ReadableSpan] = deque()
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._exporting = threading.Lock()
        self.dropped = 0
        """Spans that found the queue full, or could not be sent, since the last time that was said."""
        self._failing = False
        self._said_at = 0.0
        self._thread = threading.Thread(target=self._run, name="modelyard-tracing", daemon=True)
        self._words = _LastWords(self._thread)
        self._thread.start()

    def on_end(self, span: ReadableSpan) -> None:
        """Take a span in; never blocks."""
        own = span.get_span_context()
        if own is None or not own.trace_flags.sampled:
            return
        if len(self._queue) >= self._limit or self._ended.is_set():
            self.dropped += 1
            return
        self._queue.append(span)
        if len(self._queue) == BATCH:
            self._wake.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._wake.wait(self._interval)
            self._wake.clear()
            self._export_all()
            self._say_dropped()

    def _export_all(self) -> None:
        with self._exporting:
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
                self._export(batch)

    def _export(self, batch: list[ReadableSpan]) -> None:
        self._words.text = ""
        try:
            why = "" if self._exporter.export(batch) is SpanExportResult.SUCCESS else "the exporter says no more"
        except Exception as error:  # noqa: BLE001 - an exporter may raise anything; it is said below
            why = str(error) or type(error).__name__
        if why:
            self.dropped += len(batch)
            if not self._failing:
                log.error("spans can't be sent: %s; this is said once, until it works again", self._words.text or why)
        elif self._failing:
            log.info("spans are sent again")
        self._failing = bool(why)

    def _say_dropped(self) -> None:
        now = time.monotonic()
        if self.dropped and not self._failing and (self._ended.is_set() or now - self._said_at >= 60):
            dropped, self.dropped, self._said_at = self.dropped, 0, now
            log.warning("%d spans were dropped", dropped)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Send what is there, now."""
        self._export_all()
        return not self._failing

    def shutdown(self) -> None:
        """Send what is left, and end the thread, within a few seconds. A second call does nothing."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._wake.set()
        self._thread.join(STOP_TIMEOUT)
        try:
            # A collector that does not answer is waited for no longer.
            self._exporter.shutdown()
        finally:
            self._words.leave()
        self._thread.join(1.0)
        if self._thread.is_alive() or self._failing:
            log.warning("%d spans are lost", self.dropped + len(self._queue))


class _LastWords(logging.Filter):
    """Keeps what OpenTelemetry's exporter logs of each failed try out of the log, and the last of it as the reason."""

    def __init__(self, thread: threading.Thread) -> None:
        super().__init__()
        self.text = ""
        self._thread = thread
        self._loggers = [
            logging.getLogger(f"opentelemetry.exporter.otlp.{name}")
            for name in ("proto.http.trace_exporter", "common.http")
        ]
        for logger in self._loggers:
            logger.addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Let pass what another thread says, about another exporter."""
        if record.thread != self._thread.ident:
            return True
        self.text = record.getMessage()
        return False

    def leave(self) -> None:
        """Filter no more."""
        for logger in self._loggers:
            logger.removeFilter(self)
