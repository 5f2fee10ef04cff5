"""The choice among the instances of a model: of two random ones the less loaded, none that is known to fail.

`Routes` keeps what this process has learnt of each: requests under way, the load that it last said, failures. It does
no I/O, and is given its clock.
"""

from __future__ import annotations

import functools
import random
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .registry.base import Instance

COOL_DOWN = 0.25
"""Seconds that an address is left alone after its first failure in a row, until a probe asks whether it is back;
each further failure doubles it."""

LONGEST_COOL_DOWN = 30.0

LOAD_AGE = 5.0
"""Seconds after which what an instance said of its load no longer counts."""

SLOTS = 8
"""What an instance is taken to have that never said how many slots it has."""

LEAST_WEIGHT = 1e-6


@dataclass(frozen=True, slots=True)
class Load:
    """What a gate said: the value of ``Modelyard-Load``."""

    slots: int
    free: int
    waiting: int

    @property
    def busy(self) -> int:
        """Requests that run or wait."""
        return self.slots - self.free + self.waiting

    def __str__(self) -> str:
        return f"slots={self.slots};free={self.free};waiting={self.waiting}"

    @staticmethod
    @functools.lru_cache(maxsize=256)
    def parse(text: str | None) -> Load | None:
        """Return what ``text`` says; None where it makes no sense. There are few that differ."""
        try:
            said = dict(item.split("=", 1) for item in (text or "").split(";"))
            load = Load(int(said["slots"]), int(said["free"]), int(said["waiting"]))
        except (ValueError, KeyError):
            return None
        return load if load.slots >= load.free >= 0 and load.waiting >= 0 else None


class Taken(NamedTuple):
    """An instance that was chosen, and among how many; None where there was none."""

    instance: Instance | None
    among: int


@dataclass(slots=True)
class _Traffic:
    """Of one instance: what is under way from here, and what it last said."""

    in_flight: int = 0
    said: Load | None = None
    said_at: float = 0.0
    others: int = 0
    """Requests of other processes there, when it last said its load."""


@dataclass(slots=True)
class _Health:
    """Of one address, or of one model there: its failures in a row."""

    failures: int = 0
    cool_until: float = 0.0
    cause: str = ""
    generation: int = 0
    """The registration that failed: a newer one starts afresh."""
    reached: bool = False
    """Whether a probe has reached it since: it is used again, but a next failure counts on until it has answered."""


@dataclass
class Routes:
    """What this process has learnt of instances, and the choice that comes of it. Safe to use from many threads."""

    clock: Callable[[], float] = time.monotonic
    random: random.Random = field(default_factory=random.Random)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _traffic: dict[tuple[str, str], _Traffic] = field(default_factory=dict)
    _addresses: dict[str, _Health] = field(default_factory=dict)
    _models: dict[tuple[str, str], _Health] = field(default_factory=dict)
    _newest: dict[str, int] = field(default_factory=dict)
    """By address: the newest generation of all that is registered there."""

    # The choice

    def take(self, instances: Sequence[Instance], tried: Collection[str] = ()) -> Taken:
        """Return the less loaded of two random instances that may be used, and how many may be.

        Those whose address is in ``tried`` are left out. Whoever gets one tells `ended` after it, as after `began`.
        """
        with self._lock:
            fit = [one for one in instances if one.url not in tried and not self._why_not(one)]
            if not fit:
                return Taken(None, 0)
            # In random order, so that of two equal ones each may be the first.
            taken = min(self.random.sample(fit, min(2, len(fit))), key=self._score)
            self._traffic_of(taken).in_flight += 1
            return Taken(taken, len(fit))

    def by_load(self, instances: Sequence[Instance]) -> list[Instance]:
        """Return those that may be used, the least loaded first: whose line is the shortest."""
        with self._lock:
            return sorted((one for one in instances if not self._why_not(one)), key=self._score)

    def why_not(self, instance: Instance) -> str:
        """Return why an instance is not taken now; empty where it may be."""
        with self._lock:
            return self._why_not(instance)

    def _why_not(self, instance: Instance) -> str:
        if not instance.enabled:
            return "it is disabled"
        if not instance.healthy:
            return "it is not healthy: no heartbeat came in time, or it was deregistered"
        address = self._current(self._addresses.get(instance.url), instance)
        if address is not None and not address.reached:
            return f"it is left alone until a probe reaches it, because: {address.cause}"
        model = self._current(self._models.get((instance.key, instance.url)), instance)
        if model is not None and (left := model.cool_until - self.clock()) > 0:
            return f"it is left alone for {left:.1f} s more, because: {model.cause}"
        return ""

    @staticmethod
    def _current(health: _Health | None, instance: Instance) -> _Health | None:
        return None if health is None or health.generation < (instance.generation or 0) else health

    def _score(self, instance: Instance) -> float:
        traffic = self._traffic.get((instance.key, instance.url))
        if traffic is None:
            # Nothing was sent there yet: its last heartbeat says more than nothing.
            said = Load.parse(instance.load)
            busy = said.busy if said else 0
        else:
            said = traffic.said
            busy = traffic.in_flight + (traffic.others if self.clock() - traffic.said_at < LOAD_AGE else 0)
        slots = max(1, said.slots) if said else SLOTS
        return (1 + busy) / (slots * max(instance.weight, LEAST_WEIGHT))

    # What is learnt

    def began(self, instance: Instance) -> None:
        """Note that a request is on its way to an instance that `take` did not choose."""
        with self._lock:
            self._traffic_of(instance).in_flight += 1

    def ended(self, instance: Instance) -> None:
        """Note that a request is over, however it went."""
        with self._lock:
            self._traffic_of(instance).in_flight -= 1

    def answered(self, instance: Instance, load: str | None = None) -> None:
        """Note that an instance answers, and the load that it said: its failures are forgotten.

        Not those that no probe has looked at yet: this answer was on its way before them.
        """
        said = Load.parse(load)
        with self._lock:
            self._forget_failures(instance.url)
            self._models.pop((instance.key, instance.url), None)
            if said is not None:
                self._said(instance, said)

    def busy(self, instance: Instance, load: str | None) -> None:
        """Note that an instance refused for want of a slot: it answers, and is full."""
        said = Load.parse(load)
        with self._lock:
            self._forget_failures(instance.url)
            if said is not None:
                self._said(instance, said)

    def _said(self, instance: Instance, said: Load) -> None:
        traffic = self._traffic_of(instance)
        traffic.said, traffic.said_at = said, self.clock()
        traffic.others = max(0, said.busy - traffic.in_flight)

    def failed(self, instance: Instance, cause: str) -> None:
        """Note that an address could not be reached, or broke off: it is left alone until a probe reaches it."""
        with self._lock:
            health = self._addresses.setdefault(instance.url, _Health(reached=True))
            generation = max(instance.generation or 0, self._newest.get(instance.url, 0))
            if health.reached or generation > health.generation:
                self._cool(health, generation, cause, COOL_DOWN)

    def unwilling(self, instance: Instance, cause: str, seconds: float) -> None:
        """Note that the model there takes nothing for now (it starts, stops, or has gone), but its address answers."""
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
            # Several requests were under way when it failed: that is one failure.
            return
        health.failures += 1
        pause: float = min(LONGEST_COOL_DOWN, first * 2 ** (health.failures - 1))
        # Not all processes ask again at the same moment.
        health.cool_until = self.clock() + pause * self.random.uniform(1.0, 1.25)
        health.cause = cause
        health.reached = False

    # Probes

    def to_probe(self) -> list[str]:
        """Return the addresses that were left alone long enough."""
        with self._lock:
            return [u for u, h in self._addresses.items() if not h.reached and h.cool_until <= self.clock()]

    def next_probe_in(self) -> float | None:
        """Return the seconds until an address is to be probed; None where none is."""
        with self._lock:
            left = (h.cool_until - self.clock() for h in self._addresses.values() if not h.reached)
            return min(left, default=None)

    def probed(self, url: str, failure: str = "") -> None:
        """Note that a probe reached an address, or why it did not."""
        with self._lock:
            health = self._addresses.get(url)
            if health is None:
                return
            if failure:
                self._cool(health, health.generation, failure, COOL_DOWN)
            else:
                health.reached = True

    # What is known

    def load_of(self, instances: Sequence[Instance]) -> Load | None:
        """Return what these instances last said, summed; None where none said anything."""
        with self._lock:
            known = [self._traffic.get((one.key, one.url)) for one in instances]
            loads = [t.said for t in known if t is not None and t.said is not None]
        if not loads:
            return None
        return Load(sum(x.slots for x in loads), sum(x.free for x in loads), sum(x.waiting for x in loads))

    def seen(self, instances: Sequence[Instance]) -> None:
        """Note what is registered. What was learnt of others is forgotten, but for what is under way."""
        newest: dict[str, int] = {}
        for one in instances:
            newest[one.url] = max(newest.get(one.url, 0), one.generation or 0)
        places = {(one.key, one.url) for one in instances}
        with self._lock:
            self._newest = newest
            self._addresses = {u: h for u, h in self._addresses.items() if u in newest}
            self._models = {k: h for k, h in self._models.items() if k in places}
            self._traffic = {k: t for k, t in self._traffic.items() if k in places or t.in_flight}

    def _traffic_of(self, instance: Instance) -> _Traffic:
        return self._traffic.setdefault((instance.key, instance.url), _Traffic())
