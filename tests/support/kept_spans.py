"""An exporter that keeps spans where tests find them, and what tests ask of the lines of a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from modelyard.telemetry.export import as_row
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

PATH = "kept_spans:Kept"


class Kept(SpanExporter):
    """Keeps all spans of the process, as the lines of a file would have them."""

    spans: ClassVar[list[dict[str, Any]]] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        Kept.spans += [as_row(span) for span in spans]
        return SpanExportResult.SUCCESS


class Broken(SpanExporter):
    """Fails while ``failing`` is set."""

    failing: ClassVar[bool] = True
    exported: ClassVar[int] = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if Broken.failing:
            raise OSError("no space left")
        Broken.exported += len(spans)
        return SpanExportResult.SUCCESS


class NoExporter:
    """Not an exporter."""


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the spans of a file; none where it is not there yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def named(spans: Iterable[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    return [span for span in spans if span["name"] == name]


def tree(spans: Sequence[Mapping[str, Any]], root: str | None = None) -> dict[str, Any]:
    """Return the spans' names below the span ``root``, each with those below it, in the order in which they began."""
    below = sorted((span for span in spans if span["parent_id"] == root), key=lambda span: str(span["start"]))
    return {span["name"]: tree(spans, span["span_id"]) for span in below}
