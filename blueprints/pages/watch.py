"""What the cluster does now, as pages show it: read once a second at most, whoever looks, with rates by earlier looks.

Nothing is sampled while nobody looks.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ...telemetry import metrics
from ...telemetry.metrics import Counts, Family
from ...telemetry.shared_metrics import Sample
from ...types import JSONObject, WorkerType
from ...worker.protocol import Service

LOOK_INTERVAL = 1.0
RATE_SPAN = 10.0
"""Seconds that a rate is over."""
MEAN_SPAN = 60.0
"""Seconds that a mean time is over, if anything was answered in them; else it is since the start."""
KEPT_FOR = 120.0
"""Seconds that a look is kept for the next ones, and that the curve shows."""


class Counted(NamedTuple):
    """What was counted of a model since its service began."""

    tokens: float = 0.0
    requests: float = 0.0
    failures: float = 0.0
    first_seconds: float = 0.0
    """The sum of the times to a first piece, of so many ``firsts``."""
    firsts: float = 0.0

    def since(self, earlier: Counted) -> Counted:
        """Return what was counted since an ``earlier`` look."""
        return Counted(*(max(0.0, now - before) for now, before in zip(self, earlier, strict=True)))

    def plus(self, other: Counted) -> Counted:
        """Return the sum."""
        return Counted(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass
class ModelView:
    """A model of the cluster: its state, its load over all instances, and what it does."""

    key: str
    state: str
    reason: str = ""
    context_length: int | None = None
    running: int | None = None
    waiting: int | None = None
    slots: int | None = None
    instances: list[JSONObject] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its name, without the type."""
        return self.key.rpartition("@")[0] or self.key

    @property
    def kind(self) -> str:
        """Its type; of other programs it may be one that is not ours."""
        return self.key.rpartition("@")[2]

    @property
    def usable(self) -> int:
        """How many of its instances get requests."""
        return sum(instance["state"] == "usable" for instance in self.instances)


class Pace(NamedTuple):
    """What some models do now."""

    tokens: float | None
    """A second; None before there are two looks."""
    requests: float | None
    """A minute."""
    first: float | None
    """Seconds to the first piece, the mean."""


class Look(NamedTuple):
    """What one look has found, and the earlier ones, the oldest first."""

    at: float
    status: JSONObject
    models: Sequence[ModelView]
    counted: dict[str, Counted]
    earlier: Sequence[tuple[float, dict[str, Counted]]]

    def pace(self, keys: Collection[str]) -> Pace:
        """Return what the models of these keys do together."""
        total = _sum(self.counted, keys)
        since = self._since(RATE_SPAN)
        recent = total.since(_sum(self._before(MEAN_SPAN), keys))
        firsts = recent if recent.firsts else total
        first = firsts.first_seconds / firsts.firsts if firsts.firsts else None
        if since is None:
            return Pace(None, None, first)
        moment, before = since
        gained, seconds = total.since(_sum(before, keys)), self.at - moment
        return Pace(gained.tokens / seconds, gained.requests / seconds * 60, first)

    def curve(self, keys: Collection[str]) -> list[tuple[float, float]]:
        """Return the tokens a second of these models over time: the age in seconds, the youngest last, and the rate."""
        looks = [*self.earlier, (self.at, self.counted)]
        points = []
        for (begin, before), (end, after) in itertools.pairwise(looks):
            gained = _sum(after, keys).since(_sum(before, keys)).tokens
            points.append((self.at - end, gained / (end - begin)))
        return points

    def _since(self, span: float) -> tuple[float, dict[str, Counted]] | None:
        """Return the youngest look that is ``span`` seconds old; the oldest if none is that old, None without any."""
        old = [look for look in self.earlier if self.at - look[0] >= span]
        return old[-1] if old else next(iter(self.earlier), None)

    def _before(self, span: float) -> dict[str, Counted]:
        since = self._since(span)
        return {} if since is None else since[1]


class Watch:
    """The looks of one process. Safe to use from many threads."""

    def __init__(self, service: Service, clock: Callable[[], float] = time.monotonic) -> None:
        """Look at ``service``, by a clock of seconds."""
        self._service = service
        self._clock = clock
        self._looking = threading.Lock()
        self._earlier: deque[tuple[float, dict[str, Counted]]] = deque()
        self._last: Look | None = None

    def look(self) -> Look:
        """Return what there is now; callers within `LOOK_INTERVAL` share a look."""
        with self._looking:
            now = self._clock()
            if self._last is None or now - self._last.at >= LOOK_INTERVAL:
                self._last = self._looked(now)
            return self._last

    def _looked(self, now: float) -> Look:
        if self._last is not None:
            self._earlier.append((self._last.at, self._last.counted))
        while self._earlier and now - self._earlier[0][0] > KEPT_FOR:
            self._earlier.popleft()
        status, sample = self._service.status(), self._service.sample()
        models = _models(status, self._service.instances(), sample)
        _correct(models, (status.get("cluster") or {}).get("url"))
        return Look(now, status, models, _counted(sample, self._service.settings.routes), list(self._earlier))


def _models(status: JSONObject, instances: Iterable[JSONObject], sample: Sample) -> list[ModelView]:
    """Return the models of a service and of its registry, by name."""
    views: dict[str, ModelView] = {}
    for entry in status["models"]:
        key = str(entry["model"])
        view = views[key] = ModelView(key, str(entry["state"]), entry["reason"] or "", entry.get("context_length"))
        if "running" in entry:
            view.running, view.waiting = entry["running"], sum(entry["waiting"].values())
            view.slots = _gauge(sample.gauges, metrics.SLOTS, key)
    remote = {key: view for key, view in views.items() if view.running is None}
    for instance in instances:
        key = instance["model"]
        if key not in views:
            views[key] = remote[key] = ModelView(key, "failed")
        views[key].instances.append(instance)
    for view in remote.values():
        _add_loads(view)
    return sorted(views.values(), key=lambda view: view.key)


def _correct(models: Iterable[ModelView], own_url: str | None) -> None:
    """Give the instances of this process its own loads, which are newer than what the registry has."""
    for view in models:
        for instance in view.instances:
            if instance["url"] == own_url and view.running is not None and len(view.instances) == 1:
                instance |= {"running": view.running, "waiting": view.waiting, "slots": view.slots}


def _add_loads(view: ModelView) -> None:
    """Complete a model that this process has no load of, by its instances."""
    loads = [instance for instance in view.instances if instance["slots"] is not None]
    if loads:
        view.slots, view.running, view.waiting = (
            sum(load[name] for load in loads) for name in ("slots", "running", "waiting")
        )
    if view.usable and view.state == "failed":
        view.state = "ready"
    if not view.reason and view.instances:
        view.reason = f"{view.usable} of {len(view.instances)} instances usable"


def _counted(sample: Sample, routes: bool) -> dict[str, Counted]:
    """Return the counts of each model: as the router sees them, where this service is one."""
    of = metrics.ROUTED if routes else metrics.ENGINE
    counts = sample.counts
    families = (of.success, of.failure, of.generation_tokens, of.prompt_tokens, of.first_token)
    keys = {"@".join(labels[:2]) for family in families for labels in counts.get(family.name, {})}
    return {key: _counted_of(counts, of, key) for key in keys}


def _counted_of(counts: Counts, of: metrics.CallFamilies, key: str) -> Counted:
    is_llm = key.rpartition("@")[2] == WorkerType.LLM.value
    tokens = of.generation_tokens if is_llm else of.prompt_tokens
    first = _cells(counts, of.first_token, key)
    return Counted(
        tokens=sum(cell[0] for cell in _cells(counts, tokens, key)),
        requests=sum(cell[0] for cell in _cells(counts, of.success, key)),
        failures=sum(cell[0] for cell in _cells(counts, of.failure, key)),
        first_seconds=sum(cell[0] for cell in first),
        firsts=sum(sum(cell[1:]) for cell in first),
    )


def _cells(counts: Counts, family: Family, key: str) -> list[list[float]]:
    return [cell for labels, cell in counts.get(family.name, {}).items() if "@".join(labels[:2]) == key]


def _gauge(gauges: Counts, family: Family, key: str) -> int | None:
    cells = _cells(gauges, family, key)
    return int(cells[0][0]) if cells else None


def _sum(counted: dict[str, Counted], keys: Collection[str]) -> Counted:
    total = Counted()
    for key, each in counted.items():
        if key in keys:
            total = total.plus(each)
    return total
