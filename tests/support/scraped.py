"""What ``/metrics`` shows, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

Samples = dict[str, list[tuple[dict[str, str], float]]]
"""By name, without our prefix: the labels and the value of each sample."""


def samples_in(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name.removeprefix("modelyard_"), []).append((dict(sample.labels), sample.value))
    return found


def value_in(text: str, name: str, **labels: str) -> float:
    """Return the sum of the samples of a name that have these labels."""
    return sum(value for found, value in samples_in(text).get(name, []) if labels.items() <= found.items())
