"""The registry client: a registry that one or several controllers keep, over HTTP."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from ...errors import RegistryUnavailable, WorkerUnreachable
from ...sessions.session import Session
from . import limits
from .base import Beaten, Instance, Receipt
from .controller_calls import ControllerCalls, NoSuchCall
from .dbgpt import DbgptCalls
from .row_json import MAX_INSTANCES

log = logging.getLogger(__name__)
T = TypeVar("T")

TIMEOUT = 5.0
"""Seconds that a call may take in all, shared equally by the controllers that are tried."""


class _Controller:
    """One controller, and whether it understands DB-GPT's calls only, which is checked again after a failure."""

    def __init__(self, url: str, session: Session) -> None:
        self.url = url
        self._ours = ControllerCalls(url, session)
        self._theirs = DbgptCalls(self._ours)
        self._is_peer = False

    def answer(self, call: Callable[[ControllerCalls | DbgptCalls, float], T], deadline: float) -> T:
        """Return the result of ``call``. Raises WorkerUnreachable if another controller should be called."""
        if not self._is_peer:
            try:
                return call(self._ours, deadline)
            except NoSuchCall:
                pass
        try:
            answer = call(self._theirs, deadline)
        except NoSuchCall:
            self._is_peer = False
            raise WorkerUnreachable(f"{self.url} has no controller: its role is another, or its prefix") from None
        except WorkerUnreachable:
            self._is_peer = False
            raise
        if not self._is_peer:
            log.info("%s is a controller of DB-GPT", self.url)
            self._is_peer = True
        return answer


class RegistryClient:
    """A registry that controllers keep. The first controller that answers is used until it fails; then the next one."""

    def __init__(self, urls: Sequence[str], session: Session, timeout: float = TIMEOUT) -> None:
        """Call the controllers at ``urls`` (each with its prefix) by ``session``, which the caller closes."""
        self._controllers = [_Controller(url.rstrip("/"), session) for url in urls]
        self._timeout = timeout
        self._serving = 0

    def beat(self, instances: Sequence[Instance]) -> Beaten:
        """Register or refresh all instances."""
        limits.check_beat(instances)
        results = [self._beat(batch) for batch in _batches(instances)]
        receipts = [receipt for beaten in results for receipt in beaten.receipts]
        return Beaten(receipts, min(beaten.interval for beaten in results))

    def _beat(self, batch: Sequence[Instance]) -> Beaten:
        return self._ask(lambda calls, end: calls.beat(batch, end))

    def deregister(self, instances: Sequence[Instance], *, forget: bool = False) -> list[Receipt]:
        """Mark instances unhealthy until they beat again; with ``forget`` remove their rows."""
        limits.check_identities(instances)
        return [receipt for batch in _batches(instances) for receipt in self._deregister(batch, forget)]

    def _deregister(self, batch: Sequence[Instance], forget: bool) -> list[Receipt]:
        return self._ask(lambda calls, end: calls.deregister(batch, forget, end))

    def instances(self, key: str | None = None, *, healthy_only: bool = False) -> list[Instance]:
        """Return all rows, or those of one key, ordered by key and address."""
        if key is not None:
            limits.check_lookup(key)
        return self._ask(lambda calls, end: calls.instances(key, healthy_only, end))

    def close(self) -> None:
        """Do nothing: the connections are the session's."""

    def _ask(self, call: Callable[[ControllerCalls | DbgptCalls, float], T]) -> T:
        end = time.monotonic() + self._timeout
        first, count = self._serving, len(self._controllers)
        faults = []
        for step in range(count):
            index = (first + step) % count
            controller, now = self._controllers[index], time.monotonic()
            try:
                answer = controller.answer(call, now + (end - now) / (count - step))
            except WorkerUnreachable as error:
                faults.append(str(error))
                continue
            if index != self._serving:
                self._serving = index
                log.info("the registry at %s is used from now on", controller.url)
            return answer
        raise RegistryUnavailable(f"no controller answers: {'; '.join(faults)}")


def _batches(instances: Sequence[Instance]) -> Iterator[Sequence[Instance]]:
    """Yield the instances in batches that fit into one body; without instances, one empty batch."""
    for start in range(0, max(1, len(instances)), MAX_INSTANCES):
        yield instances[start : start + MAX_INSTANCES]
