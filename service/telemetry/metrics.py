"""Count what a process does: the families of metrics, and `Metrics`, their counts in one process.

The names are vLLM's with the prefix ``modelyard_``, where vLLM has them. prometheus-client renders the families
(`blueprints.metrics`) and does not keep the counts: where an application has set PROMETHEUS_MULTIPROC_DIR, each counter
of that library, whatever its registry, is written to the application's files and appears in its own metrics.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

PREFIX = "modelyard_"

Counts: TypeAlias = dict[str, dict[tuple[str, ...], list[float]]]
"""By the name of a family and the values of its labels: one number; of a histogram the sum, and the count of each
bucket."""


@dataclass(frozen=True)
class Family:
    """One metric with its labels. The name of a counter is without ``_total``."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """The upper bounds, without infinity."""
    largest: bool = False
    """Whether the value of a service is the largest of its processes' values, and not their sum."""

    @property
    def exposed_name(self) -> str:
        """The name as Prometheus shows it."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


Value: TypeAlias = tuple[Family, tuple[str, ...], float]
"""What is added to a counter, or counted in a histogram: the family, the values of its labels, and the number."""

FAMILIES: dict[str, Family] = {}
"""All families, by name."""

MANY = 256
"""Requests after which their values are added up."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_SECONDS_A_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
_SECONDS_OF_LOADS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TEXTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
_MODEL = ("model", "worker_type")


def _family(family: Family) -> Family:
    FAMILIES[family.name] = family
    return family


def _counter(name: str, help: str, *labels: str) -> Family:
    return _family(Family(PREFIX + name, "counter", help, labels))


def _gauge(name: str, help: str, *labels: str, largest: bool = False) -> Family:
    return _family(Family(PREFIX + name, "gauge", help, labels, largest=largest))


def _histogram(name: str, help: str, *labels: str, buckets: tuple[float, ...] = _SECONDS) -> Family:
    return _family(Family(PREFIX + name, "histogram", help, labels, buckets))


class CallFamilies(NamedTuple):
    """The families of the calls of models: as the process of the model counts them, or as a router does."""

    success: Family
    failure: Family
    queue_time: Family
    first_token: Family
    time_per_token: Family
    duration: Family
    prompt_tokens: Family
    generation_tokens: Family
    texts: Family
    texts_a_call: Family


def _call_families(prefix: str, where: str) -> CallFamilies:
    return CallFamilies(
        _counter(f"{prefix}request_success", f"Requests that were answered{where}.", *_MODEL, "finished_reason"),
        _counter(f"{prefix}request_failure", f"Requests that failed or were refused{where}.", *_MODEL, "error"),
        _histogram(f"{prefix}request_queue_time_seconds", f"Time in line of answered requests{where}.", *_MODEL),
        _histogram(f"{prefix}time_to_first_token_seconds", f"Time to the first piece of an answer{where}.", *_MODEL),
        _histogram(
            f"{prefix}request_time_per_output_token_seconds",
            f"Time for each token after the first: the mean of an answer{where}.",
            *_MODEL,
            buckets=_SECONDS_A_TOKEN,
        ),
        _histogram(f"{prefix}e2e_request_latency_seconds", f"Time from arrival to end of an answer{where}.", *_MODEL),
        _counter(f"{prefix}prompt_tokens", f"Tokens of prompts and texts that were computed{where}.", *_MODEL),
        _counter(f"{prefix}generation_tokens", f"Tokens of answers, also of those that broke off{where}.", *_MODEL),
        _counter(f"{prefix}texts", f"Texts that were embedded or ranked{where}.", *_MODEL),
        _histogram(f"{prefix}request_texts", f"Texts of a call that embeds or ranks{where}.", *_MODEL, buckets=_TEXTS),
    )


ENGINE = _call_families("", "")
"""Of the models of this process."""
ROUTED = _call_families("routed_", ", as the router sees them")
"""Of the models of a cluster, in the process that chooses their instances."""

BATCH = _histogram(
    "batch_texts", "Texts that an engine embeds in one call, of one request or of several.", *_MODEL, buckets=_TEXTS
)
RUNNING = _gauge("num_requests_running", "Requests that hold a slot.", *_MODEL)
WAITING = _gauge("num_requests_waiting", "Requests in line, by priority.", *_MODEL, "priority")
SLOTS = _gauge("num_slots", "Requests that may run at once (limit_model_concurrency).", *_MODEL)
PLACES = _gauge("num_waiting_places", "Requests that may wait in line (max_waiting).", *_MODEL)
MODEL_STATE = _gauge("model_state", "1 for the state that a model is in.", *_MODEL, "state", largest=True)
LOAD_SECONDS = _histogram(
    "model_load_seconds", "Time of the starts of a model that succeeded.", *_MODEL, buckets=_SECONDS_OF_LOADS
)
LOADS = _counter(
    "model_loads",
    "Loads of a model, by cause: start (of the process), call (that starts it), request, "
    "restart (its engine was lost).",
    *_MODEL,
    "cause",
)
UNLOADS = _counter("model_unloads", "Models that were unloaded, by cause: idle (keep_alive), room.", *_MODEL, "cause")
MEMORY = _gauge("model_memory_bytes", "Memory that memory_budget counts for a loaded model.", *_MODEL)
MEMORY_BUDGET = _gauge("memory_budget_bytes", "Memory that the models of a process may take together (memory_budget).")
LOAD_FAILURES = _counter("model_load_failures", "Starts of a model that failed.", *_MODEL, "error")
ROUTED_RUNNING = _gauge("routed_num_requests_running", "Requests under way at the instances of a model.", *_MODEL)
INSTANCES = _gauge("instances", "Instances in the registry, by state.", *_MODEL, "state")
REGISTRY_UP = _gauge("registry_up", "1 if the last call of the registry succeeded.")
HEARTBEATS = _counter("heartbeats", "Calls of the heartbeat to the registry.", "outcome")
LAST_HEARTBEAT = _gauge(
    "last_heartbeat_timestamp_seconds", "Time of the last heartbeat that succeeded, since 1970.", largest=True
)
HTTP_REQUESTS = _counter("http_requests", "HTTP requests that have ended.", "call", "status")
HTTP_SECONDS = _histogram("http_request_duration_seconds", "Time from arrival to last byte.", "call")
REFUSED = _counter("requests_refused", "HTTP requests that were refused, and may be sent again.", "reason")
THREADS = _gauge("threads", "Threads that answer requests.")
THREADS_RESERVED = _gauge("threads_reserved", "Threads that requests for models do not take (reserve).")
THREADS_HELD = _gauge("threads_held", "Threads that requests for models hold.")
PROCESSES = _gauge("processes", "Processes of this service that run, its model host among them.")
INFO = _gauge("build_info", "1, with the version.", "version", "role")


class Metrics:
    """The counters and histograms of one process. Safe to use from many threads.

    A request that ends appends its values to a queue, and waits for no other: they are added up when the counts are
    read, or when there are many.
    """

    def __init__(self) -> None:
        """Count from 0."""
        self._pending: deque[tuple[Value, ...]] = deque()
        self._adding = threading.Lock()
        self._counts: Counts = {}

    def add(self, family: Family, *labels: str, amount: float = 1.0) -> None:
        """Add ``amount`` to a counter."""
        self.note((family, labels, amount))

    def observe(self, family: Family, value: float, *labels: str) -> None:
        """Count ``value`` in a histogram."""
        self.note((family, labels, value))

    def note(self, *values: Value) -> None:
        """Add values to counters, and count values in histograms: all that one request brings, in one step."""
        self._pending.append(values)
        if len(self._pending) >= MANY and self._adding.acquire(blocking=False):
            try:
                self._add_pending()
            finally:
                self._adding.release()

    def _add_pending(self) -> None:
        for _ in range(len(self._pending)):
            for family, labels, value in self._pending.popleft():
                cells = self._counts.setdefault(family.name, {})
                cell = cells.get(labels)
                if cell is None:
                    cell = cells[labels] = [0.0] * (len(family.buckets) + 2 if family.buckets else 1)
                cell[0] += value
                if family.buckets:
                    cell[bisect_left(family.buckets, value) + 1] += 1

    def counts(self) -> Counts:
        """Return a copy of all counts."""
        with self._adding:
            self._add_pending()
            return added([self._counts])


def added(parts: Iterable[Mapping[str, Mapping[tuple[str, ...], list[float]]]]) -> Counts:
    """Return the sum of counts, and the largest value where that is the one of a family.

    A histogram whose buckets differ in a part is taken from the first.
    """
    total: Counts = {}
    for part in parts:
        for name, cells in part.items():
            sums = total.setdefault(name, {})
            is_largest = name in FAMILIES and FAMILIES[name].largest
            for labels, cell in cells.items():
                previous = sums.get(labels)
                if previous is None:
                    sums[labels] = list(cell)
                elif is_largest:
                    sums[labels] = max(previous, cell)
                elif len(previous) == len(cell):
                    sums[labels] = [a + b for a, b in zip(previous, cell, strict=True)]
    return total
