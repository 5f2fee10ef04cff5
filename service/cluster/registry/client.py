"""The registry of one or several controllers, over HTTP."""

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
"""Seconds that a call may take, however many controllers there are; each that is left gets the same share."""


class _Controller:
    """One address, and whether DB-GPT's calls are what it understands: looked at again when it has failed."""

    def __init__(self, url: str, session: Session) -> None:
        self.url = url
        self._ours = ControllerCalls(url, session)
        self._theirs = DbgptCalls(self._ours)
        self._is_peer = False

    def answer(self, call: Callable[[ControllerCalls | DbgptCalls, float], T], deadline: float) -> T:
        """Return what it answers. WorkerUnreachable where another should be asked."""
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
    """A registry that others keep. The first controller that answers serves until it fails; then the next is asked."""

    def __init__(self, urls: Sequence[str], session: Session, timeout: float = TIMEOUT) -> None:
        """Ask the controllers at ``urls`` (each with its prefix); ``session`` stays the caller's to close."""
        self._controllers = [_Controller(url.rstrip("/"), session) for url in urls]
        self._timeout = timeout
        self._serving = 0

    def beat(self, instances: Sequence[Instance]) -> Beaten:
        """Register or refresh all of them."""
        limits.check_beat(instances)
        beaten = [self._beat(some) for some in _batches(instances)]
        return Beaten([receipt for one in beaten for receipt in one.receipts], min(one.interval for one in beaten))

    def _beat(self, some: Sequence[Instance]) -> Beaten:
        return self._ask(lambda calls, end: calls.beat(some, end))

    def deregister(self, instances: Sequence[Instance], *, forget: bool = False) -> list[Receipt]:
        """Mark them unhealthy until they beat again; with ``forget`` remove their rows."""
        limits.check_identities(instances)
        return [receipt for some in _batches(instances) for receipt in self._deregister(some, forget)]

    def _deregister(self, some: Sequence[Instance], forget: bool) -> list[Receipt]:
        return self._ask(lambda calls, end: calls.deregister(some, forget, end))

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
                log.info("the registry is asked at %s from now on", controller.url)
            return answer
        raise RegistryUnavailable(f"no controller answers: {'; '.join(faults)}")


def _batches(instances: Sequence[Instance]) -> Iterator[Sequence[Instance]]:
    """Give what fits into a body each; an empty body where there is nothing at all."""
    for start in range(0, max(1, len(instances)), MAX_INSTANCES):
        yield instances[start : start + MAX_INSTANCES]
