"""The registry as this process last saw it: read in the background, kept while the registry does not answer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from ..errors import ModelyardError, NotReady
from ..threads import BackgroundThread
from .registry.base import MANAGER_KEY, Instance, Registry

log = logging.getLogger(__name__)

MISS_INTERVAL = 1.0
"""Seconds that a read holds for the keys that are not in view: all calls for these share it."""

FAULT_INTERVAL = 0.25
"""Seconds between two reads because instances fail."""

NOW_INTERVAL = 0.05
"""Seconds between two reads by `RegistryView.refresh_now`."""

KEPT_FOR = 30.0
"""Seconds that the old row of a worker is kept after a store has lost it, or came back without a new heartbeat of it:
longer than the longest interval between two heartbeats."""


class RegistryView:
    """All instances, by key. `start` it, `stop` it; both may be called twice."""

    def __init__(
        self, registry: Registry, interval: float, seen: Callable[[Sequence[Instance]], None] = lambda rows: None
    ) -> None:
        """Read ``registry`` every ``interval`` seconds; ``seen`` is called with all rows."""
        self._registry = registry
        self._interval = interval
        self._seen = seen
        self._by_key: dict[str, list[Instance]] = {}
        self._reading = threading.Lock()
        self._began = self._read = float("-inf")
        self._heartbeats: dict[str, float] = {}
        self._unheard: dict[str, tuple[float | None, float]] = {}
        self._thread = BackgroundThread("modelyard-registry-view", self._work)
        self.complete = False
        """Whether the registry has answered at least once."""
        self.error = ""
        """Why the last read failed; empty if it did not."""

    def start(self) -> None:
        """Start the thread that reads."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._thread.stop()

    def refresh_soon(self) -> None:
        """Read again in the background, at once: a row has turned out to be wrong."""
        self._thread.wake()

    def instances(self, key: str) -> list[Instance]:
        """Return the instances of a worker key, healthy or not. If it was not in the last read, which is old, read."""
        if key not in self._by_key:
            self.refresh(MISS_INTERVAL)
        return self.last_instances(key)

    def last_instances(self, key: str) -> list[Instance]:
        """Return the instances of a worker key in the last read."""
        return self._by_key.get(key, [])

    def listed(self, key: str | None = None) -> list[Instance]:
        """Return the instances in the last read, of a worker key or all, by address. Nothing is read now.

        Raises NotReady before the first read.
        """
        if not self.complete:
            raise NotReady(f"the registry was not read yet{self.error and ': '}{self.error}", retry_after=1)
        keys = sorted(self._by_key) if key is None else [key]
        return [row for each in keys for row in self.last_instances(each)]

    def all(self) -> list[Instance]:
        """Return all instances."""
        if not self.complete:
            self.refresh(MISS_INTERVAL)
        return [row for rows in self._by_key.values() for row in rows]

    def refresh(self, max_age: float = 0.0) -> None:
        """Read, unless the last read is at most ``max_age`` seconds old. If the read fails, the old rows stay."""
        with self._reading:
            if time.monotonic() - self._read >= max_age:
                self._refresh()

    def refresh_now(self) -> None:
        """Return after a read that began after this call, so that everything registered before the call is in view.

        Callers at the same time share a read, also one that failed; two reads are `NOW_INTERVAL` apart.
        """
        called = time.monotonic()
        with self._reading:
            if self._began >= called or (self.error and self._read >= called):
                return
            self._thread.pause(max(0.0, self._began + NOW_INTERVAL - time.monotonic()))
            self._refresh()

    def _work(self) -> float:
        """Read, but not twice within a moment: many failures together are one reason to read. Return the pause."""
        left = self._read + min(FAULT_INTERVAL, self._interval) - time.monotonic()
        if left > 0:
            return left
        self.refresh()
        return self._interval

    def _refresh(self) -> None:
        self._began = time.monotonic()
        try:
            rows = self._registry.instances()
        except ModelyardError as error:
            self._failed(error)
        else:
            self._update(self._with_unheard(rows))
        self._read = time.monotonic()

    def _with_unheard(self, rows: list[Instance]) -> list[Instance]:
        """Return the rows, and the old rows of workers that the store has lost, or not heard from since it was away.

        The heartbeats of these workers could not reach the store; their next ones decide. A worker that ended in order
        is still in the store, as deregistered; a worker that has died meanwhile fails its first request.
        """
        heartbeats = {row.url: row.last_heartbeat or 0.0 for row in rows if row.key == MANAGER_KEY}
        for url, last in self._heartbeats.items():
            if url not in heartbeats or (self.error and heartbeats[url] <= last):
                self._unheard[url] = heartbeats.get(url), self._began
        self._heartbeats = heartbeats
        self._unheard = {
            url: (last, since)
            for url, (last, since) in self._unheard.items()
            if heartbeats.get(url) == last and self._began - since < KEPT_FOR
        }
        previous = (row for kept in self._by_key.values() for row in kept if row.url in self._unheard)
        return [*(row for row in rows if row.url not in self._unheard), *previous]

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
            log.warning("the registry can't be read; its last answer stays in use: %s", error)
        self.error = str(error)
