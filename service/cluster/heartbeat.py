"""Heartbeat: a thread that registers, refreshes and deregisters all keys of this process together.

It has no other work, so it continues while all threads of the models are busy. Its last call is the deregistration.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..errors import ModelyardError, Unavailable
from ..telemetry.metrics import HEARTBEATS, Metrics
from ..threads import BackgroundThread
from .registry.base import Instance, Registry

log = logging.getLogger(__name__)

STOP_TIMEOUT = 5.0
"""Seconds that the last call may take."""

FIRST_RETRY = 0.5
"""Seconds until the next call after the first failure; each further failure doubles them."""
LONGEST_PAUSE = 3600.0
JITTER = 0.1
"""The share of an interval that is random, so that processes that started together do not beat together."""


@dataclass
class _Member:
    """One key of this process."""

    describe: Callable[[], Instance]
    interval: float
    beats: bool
    generation: int | None = None
    registered: bool = False
    superseded: bool = False


class Heartbeat:
    """Registers keys, which are added and removed at any time. `start` and `stop` may be called twice."""

    def __init__(self, registry: Registry, metrics: Metrics | None = None) -> None:
        """Call ``registry`` from a thread of its own, and from no other; count the calls in ``metrics``."""
        self._registry = registry
        self._metrics = metrics or Metrics()
        self._changed = threading.Condition()
        self._members: dict[str, _Member] = {}
        self._leaving: list[tuple[Instance, bool]] = []
        self._ending = False
        self._thread = BackgroundThread("modelyard-heartbeat", self._work, last=self._call)
        self._wanted = float("inf")
        self._failures = 0
        self._away_since = 0.0
        self.error = ""
        """Why the last try failed; empty if it did not."""
        self.succeeded_at: float | None = None
        """When the registry was reached last, in seconds since 1970; None before it."""

    # Keys

    def add(self, key: str, describe: Callable[[], Instance], interval: float, *, beats: bool = True) -> None:
        """Register a key, and beat at least every ``interval`` seconds with the instance that ``describe`` returns.

        Without ``beats`` it is registered once, and needs no heartbeats to count as healthy. It is registered again
        only if the store has lost it, which is looked at as often.
        """
        with self._changed:
            self._leaving = [(instance, forget) for instance, forget in self._leaving if instance.key != key]
            self._members[key] = _Member(describe, interval, beats)
        self._wake()

    def refresh(self, key: str) -> bool:
        """Beat now, with the present state of a key; return False if it was not added."""
        with self._changed:
            is_member = key in self._members
        self._wake()
        return is_member

    def remove(self, key: str, *, forget: bool = False) -> None:
        """Deregister a key: it is unhealthy until it is added again; with ``forget`` its row is removed."""
        with self._changed:
            member = self._members.pop(key, None)
            if member is not None:
                self._leave(member, forget)
            self._changed.notify_all()
        self._wake()

    def _wake(self) -> None:
        """Call the registry now, unless the last call failed: then the growing pauses stay."""
        if not self._failures:
            self._thread.wake()

    def _leave(self, member: _Member, forget: bool) -> None:
        if not member.superseded:
            self._leaving.append((replace(member.describe(), generation=member.generation), forget))

    def registered(self) -> list[str]:
        """Return the keys that are registered."""
        with self._changed:
            return sorted(key for key, member in self._members.items() if member.registered)

    def wait_settled(self, timeout: float) -> None:
        """Wait until the registry has every key and no removed one, or a call fails; ``timeout`` seconds at most."""
        with self._changed:
            self._changed.wait_for(self._is_settled, timeout)

    def _is_settled(self) -> bool:
        if self.error or self._ending:
            return True
        return not self._leaving and all(m.registered or m.superseded for m in self._members.values())

    # Life

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Deregister everything, as the last call to the registry, for which it waits ``timeout`` seconds at most."""
        with self._changed:
            self._ending = True
            members, self._members = self._members, {}
            for member in members.values():
                self._leave(member, forget=False)
            self._changed.notify_all()
        if not self._thread.stop(timeout):
            log.warning("this process could not be deregistered within %g s", timeout)

    def _work(self) -> float:
        self._call()
        return self._pause()

    def _call(self) -> None:
        """Make the calls that are due, and keep the result."""
        try:
            self._send()
        except ModelyardError as error:
            self._failed(error)
        except Exception as error:
            log.exception("the heartbeat failed")
            self._failed(Unavailable(type(error).__name__))
        else:
            self._succeeded()
        with self._changed:
            self._changed.notify_all()

    def _send(self) -> None:
        """Deregister the keys that were removed, then beat for the others."""
        with self._changed:
            leaving = list(self._leaving)
        for forget in (False, True):
            gone = [instance for instance, forgotten in leaving if forgotten is forget]
            if gone:
                self._registry.deregister(gone, forget=forget)
                log.info("deregistered: %s", ", ".join(instance.key for instance in gone))
        with self._changed:
            self._leaving = [left for left in self._leaving if left not in leaving]
            superseded = [key for key, member in self._members.items() if member.superseded]
        for key in superseded:
            self._check_successor(key)
        self._check_silent()
        with self._changed:
            members = {k: m for k, m in self._members.items() if not m.superseded and (m.beats or not m.registered)}
        if members:
            self._beat(members)

    def _check_successor(self, key: str) -> None:
        """Register a key again if its successor has gone: it ended, or was a late call of this process itself."""
        with self._changed:
            member = self._members.get(key)
        if member is None:
            return
        url = member.describe().url
        if not any(row.url == url and row.healthy for row in self._registry.instances(key)):
            member.superseded, member.generation = False, None

    def _check_silent(self) -> None:
        """Mark the keys without heartbeats as not registered that the store has lost: the next beat has them."""
        with self._changed:
            silent = {key: member for key, member in self._members.items() if member.registered and not member.beats}
        for key, member in silent.items():
            url = member.describe().url
            if not any(row.url == url for row in self._registry.instances(key)):
                member.registered = False

    def _beat(self, members: dict[str, _Member]) -> None:
        instances = [replace(m.describe(), generation=m.generation) for m in members.values()]
        beaten = self._registry.beat(instances)
        self._wanted = beaten.interval
        new = []
        with self._changed:
            for member, receipt in zip(members.values(), beaten.receipts, strict=True):
                if not member.registered and not receipt.superseded:
                    new.append(receipt.key)
                member.generation, member.registered = receipt.generation, not receipt.superseded
                member.superseded = receipt.superseded
                if receipt.superseded:
                    text = "%s at %s: a newer process has registered it; this one no longer does"
                    log.warning(text, receipt.key, receipt.url)
        if new:
            log.info("registered at %s: %s", instances[0].url, ", ".join(new))

    def _failed(self, error: ModelyardError) -> None:
        self._failures += 1
        self._metrics.add(HEARTBEATS, "failed")
        if not self.error:
            self._away_since = time.monotonic()
            log.warning("the registry was not reached; the next tries come with growing pauses: %s", error)
        elif str(error) != self.error and not isinstance(error, Unavailable):
            log.warning("the registry refuses this process: %s", error)
        self.error = str(error)

    def _succeeded(self) -> None:
        if self.error:
            log.info("the registry answers again, after %.0f s", time.monotonic() - self._away_since)
        self._failures, self.error = 0, ""
        self._metrics.add(HEARTBEATS, "succeeded")
        self.succeeded_at = time.time()

    def _pause(self) -> float:
        """Return the seconds until the next beat: the shortest of all intervals, or a growing pause after failures."""
        with self._changed:
            least = min([LONGEST_PAUSE, self._wanted, *(member.interval for member in self._members.values())])
        pause = least if not self._failures else min(least, FIRST_RETRY * 2 ** min(self._failures - 1, 16))
        return pause * random.uniform(1 - JITTER, 1)  # noqa: S311 - no secret
