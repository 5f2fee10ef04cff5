"""Heartbeat: the one thread of a process that registers, beats and deregisters, for all of its keys at once.

It has no other work, so that it beats on while every model thread is busy; what it says in the end is the
deregistration.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..errors import ModelyardError, Unavailable
from .registry.base import Instance, Registry

log = logging.getLogger(__name__)

STOP_TIMEOUT = 5.0
"""Seconds that the last word may take."""

FIRST_RETRY = 0.5
JITTER = 0.1
"""Of an interval: so that processes that started together do not beat together."""


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
    """`add` and `remove` keys at any time, `start` the thread, `stop` it; both twice are fine."""

    def __init__(self, registry: Registry) -> None:
        """Speak to ``registry``, from a thread of its own only."""
        self._registry = registry
        self._changed = threading.Condition()
        self._members: dict[str, _Member] = {}
        self._leaving: list[tuple[Instance, bool]] = []
        self._new = False
        self._ending = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._wanted = float("inf")
        self._failures = 0
        self._away_since = 0.0
        self.error = ""
        """Why the last try failed; empty where it did not."""

    # What is said

    def add(self, key: str, describe: Callable[[], Instance], interval: float, *, beats: bool = True) -> None:
        """Register a key, and beat at least every ``interval`` seconds; ``describe`` says what it is at each beat.

        Without ``beats`` it is registered once, and needs no heartbeats to count as healthy.
        """
        with self._changed:
            self._leaving = [(one, forget) for one, forget in self._leaving if one.key != key]
            self._members[key] = _Member(describe, interval, beats)
            self._new = True
            self._changed.notify_all()

    def remove(self, key: str, *, forget: bool = False) -> None:
        """Deregister a key: unhealthy until it is added again, or with ``forget`` as if it had never been."""
        with self._changed:
            member = self._members.pop(key, None)
            if member is not None:
                self._leave(member, forget)
            self._changed.notify_all()

    def _leave(self, member: _Member, forget: bool) -> None:
        if not member.superseded:
            self._leaving.append((replace(member.describe(), generation=member.generation), forget))

    def registered(self) -> list[str]:
        """Return the keys that the registry has taken."""
        with self._changed:
            return sorted(key for key, member in self._members.items() if member.registered)

    def is_behind(self) -> bool:
        """Return whether something has changed that the registry was not told yet."""
        with self._changed:
            return bool(self._leaving) or any(not m.registered and not m.superseded for m in self._members.values())

    def wait_heard(self, timeout: float) -> None:
        """Block until every key was registered, or a try has failed; ``timeout`` seconds at most."""
        with self._changed:
            self._changed.wait_for(self._is_heard, timeout)

    def _is_heard(self) -> bool:
        members = self._members.values()
        return bool(self.error) or self._ending or all(m.registered or m.superseded for m in members)

    # Life

    def start(self) -> None:
        """Start the thread."""
        with self._changed:
            if self._thread is None and not self._ending:
                self._thread = threading.Thread(target=self._run, name="modelyard-heartbeat", daemon=True)
                self._thread.start()

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Deregister everything, and say nothing more after it. Returns when that is done, or ``timeout`` is over."""
        with self._changed:
            self._ending = True
            members, self._members = self._members, {}
            for member in members.values():
                self._leave(member, forget=False)
            self._changed.notify_all()
            started = self._thread is not None
        if started and not self._ended.wait(timeout):
            log.warning("the registry was not told within %g s that this process ends", timeout)

    def _run(self) -> None:
        due = 0.0
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(self._has_news, max(0.0, min(due - time.monotonic(), 3600.0)))
                    ending, self._new = self._ending, False
                try:
                    self._say_all()
                except ModelyardError as error:
                    self._failed(error)
                except Exception as error:
                    log.exception("the heartbeat failed")
                    self._failed(Unavailable(type(error).__name__))
                else:
                    self._succeeded()
                with self._changed:
                    self._changed.notify_all()
                if ending:
                    return
                due = time.monotonic() + self._pause()
        finally:
            self._ended.set()

    def _has_news(self) -> bool:
        return self._ending or (not self._failures and (self._new or bool(self._leaving)))

    def _say_all(self) -> None:
        """Deregister what has left, then beat for what is there."""
        with self._changed:
            leaving = list(self._leaving)
        for forget in (False, True):
            gone = [one for one, forgotten in leaving if forgotten is forget]
            if gone:
                self._registry.deregister(gone, forget=forget)
                log.info("deregistered: %s", ", ".join(one.key for one in gone))
        with self._changed:
            self._leaving = [left for left in self._leaving if left not in leaving]
            superseded = [key for key, member in self._members.items() if member.superseded]
        for key in superseded:
            self._look_at_successor(key)
        with self._changed:
            members = {k: m for k, m in self._members.items() if not m.superseded and (m.beats or not m.registered)}
        if members:
            self._beat(members)

    def _look_at_successor(self, key: str) -> None:
        """Register a key anew whose successor has gone: it ended, or was this process's own word, come late."""
        with self._changed:
            member = self._members.get(key)
        if member is None:
            return
        url = member.describe().url
        if not any(row.url == url and row.healthy for row in self._registry.instances(key)):
            member.superseded, member.generation = False, None

    def _beat(self, members: dict[str, _Member]) -> None:
        said = [replace(m.describe(), generation=m.generation) for m in members.values()]
        beaten = self._registry.beat(said)
        self._wanted = beaten.interval
        new = []
        with self._changed:
            for member, receipt in zip(members.values(), beaten.receipts, strict=True):
                if not member.registered and not receipt.superseded:
                    new.append(receipt.key)
                member.generation, member.registered = receipt.generation, not receipt.superseded
                member.superseded = receipt.superseded
                if receipt.superseded:
                    text = "%s at %s: a newer process has registered it, this one says no more"
                    log.warning(text, receipt.key, receipt.url)
        if new:
            log.info("registered at %s: %s", said[0].url, ", ".join(new))

    def _failed(self, error: ModelyardError) -> None:
        self._failures += 1
        if not self.error:
            self._away_since = time.monotonic()
            log.warning("the registry was not reached; it is tried again, with growing pauses: %s", error)
        elif str(error) != self.error and not isinstance(error, Unavailable):
            log.warning("the registry refuses this process: %s", error)
        self.error = str(error)

    def _succeeded(self) -> None:
        if self.error:
            log.info("the registry answers again, after %.0f s", time.monotonic() - self._away_since)
        self._failures, self.error = 0, ""

    def _pause(self) -> float:
        """Return the seconds until the next beat: the least that a key or the registry wants, or a growing back-off."""
        with self._changed:
            least = min([m.interval for m in self._members.values()] + [self._wanted], default=float("inf"))
        least = min(least, 3600.0)
        pause = least if not self._failures else min(least, FIRST_RETRY * 2 ** min(self._failures - 1, 16))
        return pause * random.uniform(1 - JITTER, 1)  # noqa: S311 - no secret
