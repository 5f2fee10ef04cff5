"""What a running service does: readings of its state and counters, and the rates between two of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from ..client.answers import ModelState
from ..client.client import Client
from ..errors import ConfigError, Forbidden, ModelyardError, Unauthorized
from ..telemetry import metrics
from ..telemetry.metrics import CallFamilies, Family
from ..types import JSONObject

Key = tuple[str, str]
"""A model, and its type."""


@dataclass(frozen=True)
class Reading:
    """The answers of a service at one moment."""

    at: float
    """Seconds of the monotonic clock."""
    status: JSONObject
    instances: Sequence[JSONObject] | None
    """The rows of the registry; None from a service that has none."""
    sums: Mapping[str, Mapping[Key, float]]
    """The samples of ``/metrics`` by name, added up for each model; those without a model have the key of no model."""
    labels: Mapping[str, str]
    """Version and role of the service; empty without metrics."""
    error: ModelyardError | None
    """Why there are no metrics."""

    def value(self, name: str, key: Key = ("", "")) -> float | None:
        """Return the value of a metric, None if it is not there."""
        return self.sums.get(name, {}).get(key)

    @property
    def routes(self) -> bool:
        """Whether the service sends requests to instances, and counts them as a router."""
        return self.labels.get("role") in ("standalone", "gateway")


@dataclass(frozen=True)
class ModelLoad:
    """What a model does. Rates are for a second, of requests that have ended; None where they are not known."""

    model: str
    worker_type: str | None
    state: str
    reason: str | None
    instances: str | None
    running: int | None
    slots: int | None
    waiting: int | None
    requests: float | None
    failures: float | None
    tokens_in: float | None
    tokens_out: float | None
    first_token: float | None
    """Mean seconds to the first token."""


@dataclass
class Readings:
    """The last readings of a service, the oldest first."""

    seconds: float
    """The time that rates are for: tokens are counted at the end of a request, so they come in lumps."""
    kept: list[Reading] = field(default_factory=list)

    def add(self, reading: Reading) -> None:
        """Keep ``reading``, and of the older ones those that rates need."""
        self.kept.append(reading)
        while len(self.kept) > 2 and reading.at - self.kept[1].at >= self.seconds:
            del self.kept[0]

    @property
    def last(self) -> Reading:
        """The newest reading."""
        return self.kept[-1]

    def loads(self) -> list[ModelLoad]:
        """Return what each model of the service does, by name."""
        models = {ModelState.of(model)[:2]: model for model in self.last.status["models"]}
        return [self._load(models[key]) for key in sorted(models, key=lambda key: (key[0], key[1] or ""))]

    def _load(self, model: JSONObject) -> ModelLoad:
        state = ModelState.of(model)
        key = (state.name, state.worker_type or "")
        families = metrics.ROUTED if self.last.routes else metrics.ENGINE
        running = self._gauge(metrics.RUNNING, key)
        waiting = self._gauge(metrics.WAITING, key)
        if running is None:  # the model is at other services, or there are no metrics
            running = self._gauge(metrics.ROUTED_RUNNING, key) if self.last.routes else model.get("running")
        if waiting is None and isinstance(model.get("waiting"), dict):
            waiting = sum(model["waiting"].values())
        return ModelLoad(
            *state,
            instances=self._instances(key),
            running=running,
            slots=self._gauge(metrics.SLOTS, key),
            waiting=waiting,
            requests=self._rate(families.success.exposed_name, key),
            failures=self._rate(families.failure.exposed_name, key),
            tokens_in=self._rate(families.prompt_tokens.exposed_name, key),
            tokens_out=self._rate(families.generation_tokens.exposed_name, key),
            first_token=self._first_token(families, key),
        )

    def _gauge(self, family: Family, key: Key) -> int | None:
        value = self.last.value(family.name, key)
        return None if value is None else int(value)

    def _instances(self, key: Key) -> str | None:
        usable = self.last.value(f"{metrics.INSTANCES.name} usable", key) or 0
        every = self.last.value(metrics.INSTANCES.name, key)
        return None if every is None else f"{usable:.0f}/{every:.0f}"

    def _rate(self, name: str, key: Key) -> float | None:
        growth = self._growth(name, key)
        return None if growth is None else growth / (self.last.at - self.kept[0].at)

    def _growth(self, name: str, key: Key) -> float | None:
        """Return how much a counter has grown; None with one reading, without metrics, or after a restart."""
        if len(self.kept) == 1 or self.last.error or self.kept[0].error:
            return None
        growth = (self.last.value(name, key) or 0) - (self.kept[0].value(name, key) or 0)
        return growth if growth >= 0 else None

    def _first_token(self, families: CallFamilies, key: Key) -> float | None:
        seconds = self._growth(f"{families.first_token.name}_sum", key)
        requests = self._growth(f"{families.first_token.name}_count", key)
        return seconds / requests if requests and seconds is not None else None


def read(client: Client) -> Reading:
    """Return a reading of the service. Raises the errors of `Client.status`."""
    status = client.status()
    try:
        instances: list[JSONObject] | None = client.instances()
    except (ConfigError, Unauthorized, Forbidden):
        instances = None
    text, failure = "", None
    try:
        text = client.metrics()
    except ModelyardError as error:
        failure = error
    sums, labels = _sums(text)
    return Reading(time.monotonic(), status, instances, sums, labels, failure)


def _sums(text: str) -> tuple[dict[str, dict[Key, float]], Mapping[str, str]]:
    """Return the samples by name, added up for each model, and the labels of the version."""
    sums: dict[str, dict[Key, float]] = {}
    version: Mapping[str, str] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.labels.get("model", ""), sample.labels.get("worker_type", ""))
            _add(sums, sample.name, key, sample.value)
            if sample.name == metrics.INFO.name:
                version = sample.labels
            if sample.name == metrics.INSTANCES.name:
                _add(sums, f"{sample.name} {sample.labels['state']}", key, sample.value)
    return sums, version


def _add(sums: dict[str, dict[Key, float]], name: str, key: Key, value: float) -> None:
    cells = sums.setdefault(name, {})
    cells[key] = cells.get(key, 0.0) + value
