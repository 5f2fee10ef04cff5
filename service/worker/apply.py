"""Start, stop, restart and update_params of one model that is declared here.

Each returns a sentence for the outcome, or raises; each holds the model's lifecycle lock throughout.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..errors import Conflict, ModelyardError, NotReady
from ..settings import params as parameters
from ..types import JSONObject, WorkerType
from .protocol import EventKind
from .worker import STOP_TIMEOUT, ModelWorker, State


@dataclass
class Entry:
    """A model of this process, and what was set over HTTP for it. The worker is replaced when parameters change."""

    worker: ModelWorker
    over_http: JSONObject
    claimed: int = 0
    """Slots that a change under way holds for the worker to come."""
    _lifecycle: threading.Lock = field(default_factory=threading.Lock)

    @property
    def slots(self) -> int:
        """Slots that count against the budget."""
        return max(self.worker.gate.slots, self.claimed)

    def refuse_while_busy(self) -> None:
        """Raise Conflict when the model runs, or when somebody is about to start, stop or change it."""
        state = self.worker.state
        if state in (State.STOPPED, State.FAILED):
            if not self._lifecycle.locked():
                return
            state = State.STARTING
        raise Conflict(f"model {self.worker.key} is {state.value} already: shut it down first, or restart it")

    @contextmanager
    def alone(self, timeout: float | None = None) -> Iterator[None]:
        """Hold the lifecycle lock: one start, stop or change at a time.

        Raises NotReady when another takes longer than ``timeout`` seconds (default: a stop and a start).
        """
        limit = STOP_TIMEOUT + self.worker.params.start_timeout if timeout is None else timeout
        if not self._lifecycle.acquire(timeout=limit):
            raise NotReady(f"model {self.worker.key} is {self.worker.state.value}: it was not let go of in {limit:g} s")
        try:
            yield
        finally:
            self._lifecycle.release()


class ModelHost(Protocol):
    """What the operations need of the manager."""

    def new_worker(self, name: str, worker_type: WorkerType | None, over_http: JSONObject) -> ModelWorker:
        """Return a worker that is not started."""

    def claim(self, entry: Entry, worker: ModelWorker) -> None:
        """Hold room for the worker that is about to replace the entry's own. Raises Conflict."""

    def held(self, entry: Entry) -> AbstractContextManager[None]:
        """Hold an entry's lifecycle lock. Raises NotReady after too long, UnknownModel where the entry has gone."""

    def start_locked(self, entry: Entry) -> None:
        """Start an entry whose lifecycle lock is held, and tell listeners."""

    def tell(self, kind: EventKind, entry: Entry) -> None:
        """Tell listeners."""


def operation(host: ModelHost, apply_type: str, params: Mapping[str, Any]) -> Callable[[Entry], str]:
    """Return what ``apply_type`` does to one entry."""
    operations: dict[str, Callable[[Entry], str]] = {
        "start": lambda entry: _start(host, entry),
        "stop": lambda entry: _stop(host, entry),
        "restart": lambda entry: _change(host, entry, params, restart=True),
        "update_params": lambda entry: _change(host, entry, params, restart=False),
    }
    return operations[apply_type]


def _start(host: ModelHost, entry: Entry) -> str:
    with host.held(entry):
        if entry.worker.state is State.READY:
            return f"model {entry.worker.key} runs already"
        host.start_locked(entry)
    return f"model {entry.worker.key} started"


def _stop(host: ModelHost, entry: Entry) -> str:
    with host.held(entry):
        entry.worker.stop()
        host.tell("stopped", entry)
    return f"model {entry.worker.key} stopped"


def _change(host: ModelHost, entry: Entry, params: Mapping[str, Any], *, restart: bool) -> str:
    key = entry.worker.key
    with host.held(entry):
        changed, fixed = _changes(entry.worker, params)
        note = f"; fixed, so unchanged: {', '.join(fixed)}" if fixed else ""
        if not changed and not restart:
            return f"model {key}: nothing changed{note}"
        run = restart or entry.worker.state is not State.STOPPED
        _replace(host, entry, {**entry.over_http, **changed}, run=run)
    if not changed:
        return f"model {key} restarted{note}"
    return f"model {key}: changed {', '.join(sorted(changed))}{' and restarted' if run else ''}{note}"


def _changes(worker: ModelWorker, params: Mapping[str, Any]) -> tuple[JSONObject, list[str]]:
    """Return the parameters that would change, and the names of the fixed ones that may not."""
    declared = parameters.params_of(type(worker.params))
    given = parameters.from_json(type(worker.params), params)
    different = {k: v for k, v in given.items() if getattr(worker.params, k) != v}
    fixed = sorted(k for k in different if "fixed" in declared[k].tags)
    return {k: v for k, v in different.items() if k not in fixed}, fixed


def _replace(host: ModelHost, entry: Entry, over_http: JSONObject, *, run: bool) -> None:
    """Give the model new parameters; where it does not start with them, it runs on with the old ones."""
    old, old_http = entry.worker, entry.over_http
    fresh = host.new_worker(old.params.model_name, old.worker_type, over_http)
    host.claim(entry, fresh)
    ran = old.state is State.READY
    try:
        if ran:
            old.stop()
        entry.worker, entry.over_http = fresh, over_http
        if not run:
            host.tell("changed", entry)
            return
        host.start_locked(entry)
    except ModelyardError as error:
        entry.worker, entry.over_http = old, old_http
        if not ran:
            host.tell("changed", entry)
            raise
        host.start_locked(entry)
        raise type(error)(f"{error}; it runs on with the parameters it had") from error
    finally:
        entry.claimed = 0
