"""What is forgotten by itself: the rows of processes that nothing was heard of for a day."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from ...errors import ModelyardError
from . import rows
from .base import Instance, Registry

log = logging.getLogger(__name__)

FORGET_AFTER = 24 * 3600.0
"""Seconds that an address is silent until its rows are forgotten."""

LOOK_INTERVAL = 3600.0
"""Seconds between two looks of one process: a look reads the whole table."""


class Forgetting:
    """Removes such rows from a store when something is registered there. Safe to use from many threads."""

    def __init__(self, registry: Registry) -> None:
        """Forget what lies in ``registry``."""
        self._registry = registry
        self._looked = float("-inf")

    def after(self, told: Sequence[Instance]) -> None:
        """Look at the table, if this beat registered something, and nobody here has looked for long. Never raises."""
        now = time.monotonic()
        if now - self._looked < LOOK_INTERVAL or all(one.generation is not None for one in told):
            return
        self._looked = now
        try:
            self._forget()
        except ModelyardError as error:
            # The beat itself has counted; what is dead can wait.
            log.warning("what is dead in the registry was not looked at: %s", error)

    def _forget(self) -> None:
        silent = silent_for_long(self._registry.instances())
        if silent:
            # With their generations: who has registered anew meanwhile stays. Who only beat is back with its next beat.
            self._registry.deregister(silent, forget=True)
            log.info("forgotten after a long silence: %s", ", ".join(f"{one.key} at {one.url}" for one in silent))


def silent_for_long(instances: Sequence[Instance]) -> list[Instance]:
    """Return those at addresses whose last heartbeat is `FORGET_AFTER` seconds older than the newest of all.

    All of these times are the store's. A model that is stopped on a host that beats is not silent, nor is what needs no
    heartbeats. One whose generation lies ahead of the store's clock stays: the next would not be greater.
    """
    latest: dict[str, float] = {}
    for one in instances:
        latest[one.url] = max(latest.get(one.url, 0.0), one.last_heartbeat or 0.0)
    newest = max(latest.values(), default=0.0)
    return [
        one
        for one in instances
        if newest - latest[one.url] > FORGET_AFTER
        and one.check_healthy
        and not one.healthy
        and (one.generation or 0) <= newest * rows.MICROSECONDS
    ]
