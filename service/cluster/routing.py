"""Choose among the instances of a model, without those that fail.

A request of a session goes to the instance that is first in the session's order, while its load is within a bound; any
other request goes to the less loaded of two random instances.

`Routes` keeps for each instance the requests under way, the last reported load, and failures. It does no I/O, and its
clock is a parameter.
"""

from __future__ import annotations

import functools
import random
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..affinity import Candidate, preferred
from ..worker.states import State
from .registry.base import Instance

COOL_DOWN = 0.25
"""Seconds until the first probe of an address that has failed; each further failure in a row doubles them."""

LONGEST_COOL_DOWN = 30.0

LOAD_AGE = 5.0
"""Seconds after which a reported load no longer counts."""

SLOTS = 8
"""The slots of an instance that has not reported any."""

LEAST_WEIGHT = 1e-6


@dataclass(frozen=True, slots=True)
class Load:
    """The load of a gate: the value of ``Modelyard-Load``."""

    slots: int
    free: int
    waiting: int
    loaded: bool = True
    """Whether the model is in memory: else a request loads it."""

    @property
    def busy(self) -> int:
        """Requests that run or wait."""
        return self.slots - self.free + self.waiting

    def __str__(self) -> str:
        return f"slots={self.slots};free={self.free};waiting={self.waiting}{'' if self.loaded else ';loaded=0'}"

    @staticmethod
    @functools.lru_cache(maxsize=256)
    def parse(text: str | None) -> Load | None:
        """Return the load of ``text``; None if it is not valid. Few texts differ, so the last ones are kept."""
        try:
            numbers = dict(item.split("=", 1) for item in (text or "").split(";"))
            slots, free, waiting = (int(numbers[name]) for name in ("slots", "free", "waiting"))
            load = Load(slots, free, waiting, numbers.get("loaded") != "0")
        except (ValueError, KeyError):
            return None
        return load if load.slots >= load.free >= 0 and load.waiting >= 0 else None


def state_of(instance: Instance) -> State:
    """Return the state of the model of an instance, by its last heartbeat."""
    if not instance.healthy:
        return State.STOPPED
    load = Load.parse(instance.load)
    return State.READY if load is None or load.loaded else State.UNLOADED


def _weight(instance: Instance) -> float:
    return max(instance.weight, LEAST_WEIGHT)


class Taken(NamedTuple):
    """The instance that was chosen, or None, and the number of candidates."""

    instance: Instance | None
    among: int


@dataclass(slots=True)
class _Traffic:
    """The traffic of one instance: the requests of this process under way, and the last reported load."""

    in_flight: int = 0
    load: Load | None = None
    reported_at: float = 0.0
    others: int = 0
    """Requests of other processes in that load."""


@dataclass(slots=True)
class _Health:
    """The failures in a row of one address, or of one model at an address."""

    failures: int = 0
    cool_until: float = 0.0
    cause: str = ""
    generation: int = 0
    """The registration that failed: a newer one has no failures."""
    reached: bool = False
    """Whether a probe has reached it since: it is used again; until a request is answered, failures add up."""


@dataclass
class Routes:
    """The state of instances as this process has seen them, and the choice by it. Safe to use from many threads."""

    clock: Callable[[], float] = time.monotonic
    random: random.Random = field(default_factory=random.Random)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _traffic: dict[tuple[str, str], _Traffic] = field(default_factory=dict)
    _addresses: dict[str, _Health] = field(default_factory=dict)
    _models: dict[tuple[str, str], _Health] = field(default_factory=dict)
    _newest: dict[str, int] = field(default_factory=dict)
    """By address: the newest generation registered there."""

    # The choice

    def take(self, instances: Sequence[Instance], tried: Collection[str] = (), session: str = "") -> Taken:
        """Return the usable instance for a request, and the number of usable ones.

        It is the first with room in the order of the ``session``; without one the less loaded of two random instances.
        Instances whose model is loaded come before others; addresses in ``tried`` are left out. The caller must call
        `ended` after the request, as after `began`.
        """
        with self._lock:
            usable = [row for row in instances if row.url not in tried and not self._why_not(row)]
            if not usable:
                return Taken(None, 0)
            first = [row for row in usable if self._is_loaded(row)] or usable
            if session and len(first) > 1:
                taken = self._in_order(first, session)[0]
            else:
                # In random order, so that each of two equal ones may be the first.
                taken = min(self.random.sample(first, min(2, len(first))), key=self._score)
            self._traffic_of(taken).in_flight += 1
            return Taken(taken, len(usable))

    def by_load(self, instances: Sequence[Instance], session: str = "") -> list[Instance]:
        """Return the usable instances, the least loaded first; before them those with room, in a session's order."""
        with self._lock:
            return self._in_order([row for row in instances if not self._why_not(row)], session)

    def _in_order(self, usable: Sequence[Instance], session: str) -> list[Instance]:
        first: list[Instance] = []
        if session:
            rows = {Candidate(row.url, *self._busy_and_slots(row), _weight(row)): row for row in usable}
            first = [rows[candidate] for candidate in preferred(session, list(rows))]
        return [*first, *sorted((row for row in usable if row not in first), key=self._score)]

    def why_not(self, instance: Instance) -> str:
        """Return why an instance is not usable now; empty if it is."""
        with self._lock:
            return self._why_not(instance)

    def _why_not(self, instance: Instance) -> str:
        if not instance.enabled:
            return "it is disabled"
        if not instance.healthy:
            return "it is not healthy: no heartbeat came in time, or it was deregistered"
        address = self._current(self._addresses.get(instance.url), instance)
        if address is not None and not address.reached:
            return f"it is not used until a probe reaches it, because: {address.cause}"
        model = self._current(self._models.get((instance.key, instance.url)), instance)
        if model is not None and (left := model.cool_until - self.clock()) > 0:
            return f"it is not used for {left:.1f} s, because: {model.cause}"
        return ""

    @staticmethod
    def _current(health: _Health | None, instance: Instance) -> _Health | None:
        return None if health is None or health.generation < (instance.generation or 0) else health

    def _score(self, instance: Instance) -> float:
        busy, slots = self._busy_and_slots(instance)
        return (1 + busy) / (slots * _weight(instance))

    def _is_loaded(self, instance: Instance) -> bool:
        """Return whether the model of an instance is in memory, by a recent answer or its last heartbeat."""
        traffic = self._traffic.get((instance.key, instance.url))
        is_recent = traffic is not None and self.clock() - traffic.reported_at < LOAD_AGE
        load = (is_recent and traffic is not None and traffic.load) or Load.parse(instance.load)
        return not load or load.loaded

    def _busy_and_slots(self, instance: Instance) -> tuple[int, int]:
        """Return the requests that run or wait at an instance, as far as this process sees, and its slots."""
        traffic = self._traffic.get((instance.key, instance.url))
        # Until it has answered a request, use the load of its last heartbeat.
        load = (traffic and traffic.load) or Load.parse(instance.load)
        if traffic is None:
            busy = load.busy if load else 0
        else:
            busy = traffic.in_flight + (traffic.others if self.clock() - traffic.reported_at < LOAD_AGE else 0)
        return busy, max(1, load.slots) if load else SLOTS

    # What requests report

    def began(self, instance: Instance) -> None:
        """Note the start of a request to an instance that was not chosen by `take`."""
        with self._lock:
            self._traffic_of(instance).in_flight += 1

    def ended(self, instance: Instance) -> None:
        """Note the end of a request, with any result."""
        with self._lock:
            self._traffic_of(instance).in_flight -= 1

    def answered(self, instance: Instance, load: str | None = None) -> None:
        """Note that an instance has answered, with its load: its failures are forgotten.

        Failures without a probe since are kept: this answer was on its way before them.
        """
        with self._lock:
            self._forget_failures(instance.url)
            self._models.pop((instance.key, instance.url), None)
            self._report(instance, load)

    def busy(self, instance: Instance, load: str | None) -> None:
        """Note that an instance has refused a request because it has no free slot."""
        with self._lock:
            self._forget_failures(instance.url)
            self._report(instance, load)

    def _report(self, instance: Instance, text: str | None) -> None:
        if (load := Load.parse(text)) is not None:
            traffic = self._traffic_of(instance)
            traffic.load, traffic.reported_at = load, self.clock()
            traffic.others = max(0, load.busy - traffic.in_flight)

    def failed(self, instance: Instance, cause: str) -> None:
        """Note that an address was not reached, or broke off: it is not used until a probe reaches it."""
        with self._lock:
            health = self._addresses.setdefault(instance.url, _Health(reached=True))
            generation = max(instance.generation or 0, self._newest.get(instance.url, 0))
            if health.reached or generation > health.generation:
                self._cool(health, generation, cause, COOL_DOWN)

    def unwilling(self, instance: Instance, cause: str, seconds: float) -> None:
        """Note that a model accepts no requests for ``seconds``: it starts, stops or has gone. Its address answers."""
        with self._lock:
            self._forget_failures(instance.url)
            health = self._models.setdefault((instance.key, instance.url), _Health())
            self._cool(health, instance.generation or 0, cause, seconds)

    def _forget_failures(self, url: str) -> None:
        health = self._addresses.get(url)
        if health is not None and health.reached:
            del self._addresses[url]

    def _cool(self, health: _Health, generation: int, cause: str, first: float) -> None:
        if generation > health.generation:
            health.failures, health.cool_until, health.generation = 0, 0.0, generation
        if self.clock() < health.cool_until:
            # Several requests that were under way together count as one failure.
            return
        health.failures += 1
        pause: float = min(LONGEST_COOL_DOWN, first * 2 ** (health.failures - 1))
        # Random, so that processes do not probe at the same moment.
        health.cool_until = self.clock() + pause * self.random.uniform(1.0, 1.25)
        health.cause = cause
        health.reached = False

    # Probes

    def to_probe(self) -> list[str]:
        """Return the addresses whose probe is due."""
        with self._lock:
            return [u for u, h in self._addresses.items() if not h.reached and h.cool_until <= self.clock()]

    def next_probe_in(self) -> float | None:
        """Return the seconds until the next probe is due; None if no address waits for one."""
        with self._lock:
            left = (h.cool_until - self.clock() for h in self._addresses.values() if not h.reached)
            return min(left, default=None)

    def probed(self, url: str, failure: str = "") -> None:
        """Note that a probe has reached an address, or why it has not."""
        with self._lock:
            health = self._addresses.get(url)
            if health is None:
                return
            if failure:
                self._cool(health, health.generation, failure, COOL_DOWN)
            else:
                health.reached = True

    # Views

    def under_way(self) -> dict[str, int]:
        """Return the number of requests of this process under way, by worker key."""
        with self._lock:
            counts: dict[str, int] = {}
            for (key, _), traffic in self._traffic.items():
                counts[key] = counts.get(key, 0) + traffic.in_flight
        return counts

    def load_seen(self, instance: Instance) -> Load | None:
        """Return the load of an instance now, as far as this process sees it; None if it has not reported any.

        It is that of its last answer, if that is new, or of its last heartbeat, and at least what is under way.
        """
        with self._lock:
            traffic = self._traffic.get((instance.key, instance.url)) or _Traffic()
            beaten = Load.parse(instance.load)
            load, busy = traffic.load or beaten, traffic.in_flight
            if load is None:
                return None
            if traffic.load is not None and self.clock() - traffic.reported_at < LOAD_AGE:
                busy += traffic.others
            elif beaten is not None:
                load, busy = beaten, max(busy, beaten.busy)
        return Load(load.slots, max(0, load.slots - busy), max(0, busy - load.slots), load.loaded)

    def load_of(self, instances: Sequence[Instance]) -> Load | None:
        """Return the sum of the last reported loads, in answers or heartbeats; None if no instance has reported one."""
        with self._lock:
            loads = [load for row in instances if (load := self._last_load(row)) is not None]
        if not loads:
            return None
        return Load(
            sum(x.slots for x in loads),
            sum(x.free for x in loads),
            sum(x.waiting for x in loads),
            any(x.loaded for x in loads),
        )

    def _last_load(self, instance: Instance) -> Load | None:
        traffic = self._traffic.get((instance.key, instance.url))
        return (traffic and traffic.load) or Load.parse(instance.load)

    def seen(self, instances: Sequence[Instance]) -> None:
        """Note the registered instances. The state of others is removed, except of requests under way."""
        newest: dict[str, int] = {}
        for row in instances:
            newest[row.url] = max(newest.get(row.url, 0), row.generation or 0)
        places = {(row.key, row.url) for row in instances}
        with self._lock:
            self._newest = newest
            self._addresses = {u: h for u, h in self._addresses.items() if u in newest}
            self._models = {k: h for k, h in self._models.items() if k in places}
            self._traffic = {k: t for k, t in self._traffic.items() if k in places or t.in_flight}

    def _traffic_of(self, instance: Instance) -> _Traffic:
        return self._traffic.setdefault((instance.key, instance.url), _Traffic())
