"""Removes the rows of processes that were silent for a day."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from ...errors import ModelyardError
from . import rows
from .base import Instance, Registry

log = logging.getLogger(__name__)

FORGET_AFTER = 24 * 3600.0
"""Seconds of silence after which the rows of an address are removed."""

READ_INTERVAL = 3600.0
"""Seconds between two searches of one process, as a search reads the whole table."""


class Forgetting:
    """Removes such rows when an instance is registered. Safe to use from many threads."""

    def __init__(self, registry: Registry) -> None:
        """Remove rows from ``registry``."""
        self._registry = registry
        self._searched = float("-inf")

    def after(self, instances: Sequence[Instance]) -> None:
        """Search the table, if this beat registered an instance and the last search was long ago. Never raises."""
        now = time.monotonic()
        if now - self._searched < READ_INTERVAL or all(instance.generation is not None for instance in instances):
            return
        self._searched = now
        try:
            self._forget()
        except ModelyardError as error:
            # The beat itself succeeded; dead rows can wait.
            log.warning("dead rows of the registry were not searched: %s", error)

    def _forget(self) -> None:
        silent = silent_for_long(self._registry.instances())
        if silent:
            # With their generations, so that rows registered meanwhile stay. A row that is removed in spite of a beat
            # returns with the next one.
            self._registry.deregister(silent, forget=True)
            log.info("removed after a long silence: %s", ", ".join(f"{row.key} at {row.url}" for row in silent))


def silent_for_long(instances: Sequence[Instance]) -> list[Instance]:
    """Return the instances of addresses whose last heartbeat is `FORGET_AFTER` seconds older than the newest of all.

    All of these times are the store's. A stopped model on a machine that beats is not silent, nor is a model that needs
    no heartbeats. A row whose generation is ahead of the store's clock stays: the next generation must be greater.
    """
    latest: dict[str, float] = {}
    for row in instances:
        latest[row.url] = max(latest.get(row.url, 0.0), row.last_heartbeat or 0.0)
    newest = max(latest.values(), default=0.0)
    return [
        row
        for row in instances
        if newest - latest[row.url] > FORGET_AFTER
        and row.check_healthy
        and not row.healthy
        and (row.generation or 0) <= newest * rows.MICROSECONDS
    ]
