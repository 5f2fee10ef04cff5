"""Export spans by OpenTelemetry's SDK: to a file of JSON lines, a collector, or an exporter class of the operator.

The SDK's BatchSpanProcessor exports in a thread of its own. A request never waits for it: if its queue is full, spans
are dropped, and the SDK logs that.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import requests
from opentelemetry.sdk.environment_variables import OTEL_BSP_SCHEDULE_DELAY
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from ..settings.folders import expanded
from ..settings.settings import Settings
from ..types import JSONObject
from ..version import __version__

log = logging.getLogger(__name__)

INTERVAL = 1.0
"""Seconds between two batches, if ``OTEL_BSP_SCHEDULE_DELAY`` (milliseconds) does not say it."""
BATCH = 512
"""The most spans of a batch; a full batch is sent before the interval has passed."""
QUEUE = 4096
STOP_TIMEOUT = 5.0
TRACES_PATH = "/v1/traces"


class SpanExport:
    """A provider of spans with its exporter. `stop` it. It does not become the global provider."""

    def __init__(
        self, settings: Settings, exporter_class: type[SpanExporter] | None = None, *, interval: float | None = None
    ) -> None:
        """Export to the target of the setting, or to a new ``exporter_class``, every ``interval`` seconds.

        Raises the errors of the exporter.
        """
        if interval is None and OTEL_BSP_SCHEDULE_DELAY not in os.environ:
            interval = INTERVAL
        self._exporter = _exporter(settings, exporter_class)
        self._stopped = False
        self.provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.tracing_sample)),
            resource=_resource(settings),
            shutdown_on_exit=False,
        )
        self.provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter,
                max_queue_size=QUEUE,
                schedule_delay_millis=None if interval is None else interval * 1000,
                max_export_batch_size=BATCH,
            )
        )

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Export the spans that are left, within ``timeout`` seconds, and end. A second call does nothing."""
        if self._stopped:
            return
        self._stopped = True
        # In a thread, because the SDK waits for a silent collector as long as its exporter does.
        thread = threading.Thread(target=self.provider.shutdown, name="modelyard-tracing-stop", daemon=True)
        thread.start()
        thread.join(timeout)
        if thread.is_alive():
            self._exporter.shutdown()
            log.warning("the last spans are lost: they were not sent within %g s", timeout)


class GuardedExporter(SpanExporter):
    """Passes batches on to an exporter. Logs a failure once, until it works again, and never raises it."""

    def __init__(self, exporter: SpanExporter, reason: Callable[[], str] = lambda: "") -> None:
        """Pass spans on to ``exporter``; ``reason`` returns why its last export failed without an exception."""
        self._exporter = exporter
        self._reason = reason
        self._shutdown = threading.Lock()
        self._lost = 0
        self._is_failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export a batch. The spans of one that fails are lost, and counted."""
        try:
            result = self._exporter.export(spans)
            reason = self._reason() or "the exporter reports a failure"
        except Exception as error:  # noqa: BLE001 - an exporter may raise anything; it is logged below
            result, reason = SpanExportResult.FAILURE, str(error) or type(error).__name__
        if result is SpanExportResult.SUCCESS:
            if self._is_failing:
                log.warning("spans are sent again; %d were lost", self._lost)
            self._is_failing, self._lost = False, 0
            return result
        if not self._is_failing:
            log.error("spans can't be sent: %s; this is logged once, until it works again", reason)
        self._is_failing = True
        self._lost += len(spans)
        return result

    def shutdown(self) -> None:
        """End the exporter, which ends its retries. A second call does nothing."""
        if self._shutdown.acquire(blocking=False):
            self._exporter.shutdown()
            if self._is_failing:
                log.warning("%d spans were lost", self._lost)


class CollectorSession(requests.Session):
    """The HTTP session of OpenTelemetry's exporter: without proxies, and it keeps why the last request failed."""

    def __init__(self) -> None:
        """Make a session that ignores the environment."""
        super().__init__()
        self.trust_env = False
        self.failure = ""

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send a request, and note its failure. Raises RequestException."""
        try:
            response = super().send(request, **options)
        except requests.RequestException as error:
            self.failure = str(error)
            raise
        self.failure = "" if response.ok else f"{response.url} answers with {response.status_code} {response.reason}"
        return response


def _resource(settings: Settings) -> Resource:
    # `create` adds what OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME give, which has precedence.
    return Resource.create(
        {
            "service.name": os.environ.get("OTEL_SERVICE_NAME") or "modelyard",
            "service.version": __version__,
            "service.instance.id": settings.instance_name,
            "host.name": socket.gethostname(),
            "process.pid": os.getpid(),
        }
    )


def _exporter(settings: Settings, exporter_class: type[SpanExporter] | None) -> GuardedExporter:
    if exporter_class is not None:
        return GuardedExporter(exporter_class())
    kind, _, target = (settings.tracing or "").partition(":")
    if kind == "file":
        return GuardedExporter(JsonLines(expanded(target)))
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - a file needs none

    session = CollectorSession()
    exporter = OTLPSpanExporter(endpoint=traces_url(target) if target else None, session=session)
    return GuardedExporter(exporter, lambda: session.failure)


def traces_url(url: str) -> str:
    """Return a collector's address with the path for spans, unless it has a path."""
    scheme, _, rest = url.partition("://")
    return url if rest.partition("/")[2] else f"{scheme}://{rest.rstrip('/')}{TRACES_PATH}"


class JsonLines(SpanExporter):
    """Appends one JSON object for each span to a file, which is opened for each batch, so that it may be renamed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write a batch at once, so that several processes may share the file. Raises OSError."""
        data = b"".join(_line(span) for span in spans)
        fileno = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while data:
                data = data[os.write(fileno, data) :]
        finally:
            os.close(fileno)
        return SpanExportResult.SUCCESS


def _line(span: ReadableSpan) -> bytes:
    row = as_row(span)
    try:
        return orjson.dumps(row) + b"\n"
    except TypeError:
        # A lone surrogate, which UTF-8 does not have, or a value of an application's own sampler.
        return json.dumps(row, default=str).encode() + b"\n"


def as_row(span: ReadableSpan) -> JSONObject:
    """Return the JSON object of a span for a line of the file."""
    ids, began, ended = span.get_span_context(), span.start_time or 0, span.end_time or 0
    return {
        "trace_id": format(ids.trace_id if ids else 0, "032x"),
        "span_id": format(ids.span_id if ids else 0, "016x"),
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
