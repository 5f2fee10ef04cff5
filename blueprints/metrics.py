"""Prometheus' metrics: of all processes of a service, in the text format or OpenMetrics, as the scraper prefers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from flask import Blueprint, request
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from werkzeug.wrappers import Response

from ..access.tokens import METRICS
from ..telemetry.metrics import FAMILIES, Counts, Family
from ..worker.protocol import Service
from .request import guard, problems
from .request.mounted import MountedBlueprint


def metrics_blueprint(service: Service, path_prefix: str, name: str = "modelyard_metrics") -> Blueprint:
    """Return the blueprint of ``/metrics``, below ``path_prefix``. Raises ConfigError.

    A scrape takes no thread of the budget, and is answered while the service drains. Nothing is registered in the
    registry that an application uses.
    """
    blueprint = MountedBlueprint(name, __name__)
    problems.install(blueprint)
    if service.settings.metrics != "open":
        guard.install(blueprint, service.settings, service.keys, needs=(METRICS,))
    registry = CollectorRegistry()
    registry.register(_Families(service))
    rendered = make_wsgi_app(registry)

    @blueprint.get(f"{path_prefix}/metrics")
    def metrics() -> Response:
        return Response.from_app(rendered, request.environ)

    return blueprint


class _Families(Collector):
    """The metrics of a service, as prometheus-client reads them at each scrape."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        sample = self._service.sample()
        for family in FAMILIES.values():
            yield _rendered(family, sample.gauges if family.kind == "gauge" else sample.counts)


def _rendered(family: Family, counts: Counts) -> Metric:
    cells = sorted(counts.get(family.name, {}).items())
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        bounds = [*map(str, family.buckets), "+Inf"]
        for labels, (total, *buckets) in cells:
            histogram.add_metric(labels, list(zip(bounds, accumulate(buckets), strict=True)), total)
        return histogram
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(family.name, family.help, labels=family.labels)
    for labels, (value,) in cells:
        metric.add_metric(labels, value)
    return metric
