"""The registry as this process last saw it: looked at in the background, kept while nobody answers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from ..errors import ModelyardError
from .registry.base import MANAGER_KEY, Instance, Registry

log = logging.getLogger(__name__)

MISS_INTERVAL = 0.25
"""Seconds between two looks that are made at once because a key is not in view."""

ANEW_INTERVAL = 0.05
"""Seconds between two looks that are made at once because what is in view can't be used."""

KEPT_FOR = 30.0
"""Seconds that a worker stays in view as it was which a store has lost, or has not heard of since it came back: longer
than the longest interval between two heartbeats."""

STOP_TIMEOUT = 5.0


class RegistryView:
    """All instances, by key. `start` it, `stop` it; both twice are fine."""

    def __init__(
        self, registry: Registry, interval: float, seen: Callable[[Sequence[Instance]], None] = lambda rows: None
    ) -> None:
        """Look every ``interval`` seconds; tell ``seen`` all that is there."""
        self._registry = registry
        self._interval = interval
        self._seen = seen
        self._by_key: dict[str, list[Instance]] = {}
        self._looking = threading.Lock()
        self._began = self._looked = float("-inf")
        self._beats: dict[str, float] = {}
        self._unheard: dict[str, tuple[float | None, float]] = {}
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.complete = False
        """Whether the registry has answered at least once."""
        self.error = ""
        """Why the last look failed; empty where it did not."""

    def start(self) -> None:
        """Start the thread that looks."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="modelyard-registry-view", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(STOP_TIMEOUT)

    def refresh_soon(self) -> None:
        """Look again now, in the background: what was seen has turned out wrong."""
        self._wake.set()

    def instances(self, key: str) -> list[Instance]:
        """Return the instances of a worker key, healthy or not. One not in view is looked for at once, now and then."""
        found = self._by_key.get(key)
        if not found:
            self.look(MISS_INTERVAL)
            found = self._by_key.get(key, [])
        return found

    def all(self) -> list[Instance]:
        """Return all instances."""
        if not self.complete:
            self.look(MISS_INTERVAL)
        return [one for those in self._by_key.values() for one in those]

    def look(self, max_age: float = 0.0) -> None:
        """Look now, unless somebody has within ``max_age`` seconds. A registry that does not answer changes nothing."""
        with self._looking:
            if time.monotonic() - self._looked >= max_age:
                self._look()

    def look_anew(self, interval: float = ANEW_INTERVAL) -> None:
        """Return after a look that began after this call, so that what was registered before it is in view.

        Many who ask at once share a look; two are ``interval`` seconds apart. Of one that failed all share the failure.
        """
        asked = time.monotonic()
        with self._looking:
            if self._began >= asked or (self.error and self._looked >= asked):
                return
            self._ended.wait(max(0.0, self._began + interval - time.monotonic()))
            self._look()

    def _look(self) -> None:
        self._began = time.monotonic()
        try:
            rows = self._registry.instances()
        except ModelyardError as error:
            self._failed(error)
        else:
            self._update(self._with_unheard(rows))
        self._looked = time.monotonic()

    def _with_unheard(self, rows: list[Instance]) -> list[Instance]:
        """Return the rows; of workers that the store has lost, or not heard of since it was away, as they were before.

        Their heartbeats had nowhere to go, and the next will tell. Who left was deregistered, not forgotten; who has
        died meanwhile is found out by the first request.
        """
        beats = {row.url: row.last_heartbeat or 0.0 for row in rows if row.key == MANAGER_KEY}
        for url, beat in self._beats.items():
            if url not in beats or (self.error and beats[url] <= beat):
                self._unheard[url] = beats.get(url), self._began
        self._beats = beats
        self._unheard = {
            url: (beat, since)
            for url, (beat, since) in self._unheard.items()
            if beats.get(url) == beat and self._began - since < KEPT_FOR
        }
        known = (row for those in self._by_key.values() for row in those if row.url in self._unheard)
        return [*(row for row in rows if row.url not in self._unheard), *known]

    def _update(self, rows: list[Instance]) -> None:
        by_key: dict[str, list[Instance]] = {}
        for row in rows:
            by_key.setdefault(row.key, []).append(row)
        self._by_key = by_key
        if self.error:
            log.info("the registry answers again")
        self.complete, self.error = True, ""
        self._seen(rows)

    def _failed(self, error: ModelyardError) -> None:
        if not self.error:
            log.warning("the registry can't be read, what was seen last stays valid: %s", error)
        self.error = str(error)

    def _run(self) -> None:
        while not self._ended.is_set():
            self._wake.clear()
            try:
                self.look()
            except Exception:
                log.exception("the registry view failed")
            self._wake.wait(self._interval)
            if self._wake.is_set():
                # Many failures at once are one reason to look.
                self._ended.wait(min(MISS_INTERVAL, self._interval))
