"""Choose the next instance for a request, and merge the refusals of all instances into one error.

First each candidate is called once without waiting in line. Then the request waits in the line of the least loaded, or
in that of its session while it has room.
After the first piece of an answer, the request is not sent again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ..errors import (
    Forbidden,
    ModelyardError,
    NotReady,
    Overloaded,
    Unauthorized,
    Unavailable,
    UnknownModel,
    WorkerLost,
    WorkerUnreachable,
)
from ..streams import Cancel, OutputStream
from ..types import Terms
from .registry.base import Instance
from .routing import Routes

GONE_FOR = 1.0
"""Seconds that an instance is not called after it did not know the model that it is registered with."""

REFUSALS = (Unauthorized, Forbidden)
"""The errors of an instance that does not accept the token of this process; the client is not at fault."""

SEND_AGAIN = (Unavailable, UnknownModel, *REFUSALS)
"""The errors after which the request is sent to another instance: nothing was computed."""


@dataclass
class Attempts:
    """The instances to call for one request. `next` returns one after the other, `over` notes how its call ended."""

    key: str
    look: Callable[[], Sequence[Instance]]
    """Returns the instances in view, healthy or not."""
    look_again: Callable[[], Sequence[Instance]]
    """Returns the same after the registry was read once more."""
    routes: Routes
    terms: Terms
    """Of the request. Its session prefers some instances."""
    failed: Callable[[], None] = lambda: None
    """Called when an instance is not in the state that the registry shows."""
    _instances: Sequence[Instance] = ()
    _tried: set[str] = field(default_factory=set)
    _errors: dict[str, ModelyardError] = field(default_factory=dict)
    _full: list[Instance] = field(default_factory=list)
    _lines: Iterator[Instance] | None = None
    _looked_again: bool = False
    _current: Instance | None = None
    _waits: bool = True

    def next(self) -> tuple[Instance, Terms]:
        """Return the instance to call now, and the terms to call it with. Raises the error of all refusals."""
        taken = self._untried() or self._in_line()
        if taken is None:
            raise self._refusal()
        self._current = taken
        return taken, self.terms if self._waits == self.terms.wait else replace(self.terms, wait=self._waits)

    def _untried(self) -> Instance | None:
        """Return an instance that was not called yet."""
        if self._lines is not None:
            return None
        if not self._instances:
            self._instances = self.look()
        taken = self.routes.take(self._instances, self._tried, self.terms.session)
        if taken.instance is None and not self._looked_again:
            self._looked_again = True
            self._instances = self.look_again()
            taken = self.routes.take(self._instances, self._tried, self.terms.session)
        if taken.instance is not None:
            # With a single instance a first call without waiting would only cost time.
            self._waits = self.terms.wait and taken.among == 1 and not self._tried
            self._tried.add(taken.instance.url)
        return taken.instance

    def _in_line(self) -> Instance | None:
        """Return an instance that was full, for the request to wait in its line."""
        if self._lines is None:
            self._lines = iter(self.routes.by_load(self._full, self.terms.session) if self.terms.wait else ())
        taken = next(self._lines, None)
        if taken is not None:
            self._waits = True
            self.routes.began(taken)
        return taken

    def answering(self, load: str | None) -> None:
        """Note that the current instance answers, with the ``load`` that it had when it accepted the request."""
        if self._current is not None:
            self.routes.answered(self._current, load)

    def over(self, error: BaseException | None = None, load: str | None = None) -> bool:
        """Note how the call of the current instance ended, with its ``load``; return whether another may be called."""
        instance, self._current = self._current, None
        if instance is None:
            return False
        self.routes.ended(instance)
        if isinstance(error, SEND_AGAIN):
            self._errors[instance.url] = error
            self._learn(instance, error)
            return True
        if isinstance(error, WorkerLost):
            # Too late for another instance, but a reason to probe this one.
            self.routes.failed(instance, str(error))
            self.failed()
        elif error is None or isinstance(error, ModelyardError):
            # An instance that reports another error can be reached.
            self.routes.answered(instance, load)
        return False

    def _learn(self, instance: Instance, error: ModelyardError) -> None:
        if isinstance(error, WorkerUnreachable):
            self.routes.failed(instance, str(error))
            self.failed()
        elif isinstance(error, Overloaded):
            self.routes.busy(instance, error.load)
            if not self._waits:
                self._full.append(instance)
        elif isinstance(error, Unavailable):
            self.routes.unwilling(instance, str(error), error.retry_after)
            self.failed()
        else:
            self.routes.unwilling(instance, str(error), GONE_FOR)
            self.failed()

    def _refusal(self) -> ModelyardError:
        """Return one error for all: the error of the only instance, or a list of all instances with the reasons."""
        if len(self._instances) == 1 and self._errors:
            error = next(iter(self._errors.values()))
            if isinstance(error, REFUSALS):
                return NotReady(f"{self._instances[0].url} refuses this router, not its client: {error}", retry_after=5)
            return NotReady(str(error)) if isinstance(error, UnknownModel) else error
        reasons = "; ".join(
            f"{row.url}: {self._errors.get(row.url) or self.routes.why_not(row) or 'not called'}"
            for row in self._instances
        )
        overloaded = [error for error in self._errors.values() if isinstance(error, Overloaded)]
        if overloaded:
            load = self.routes.load_of(self._instances)
            pause = min(error.retry_after for error in overloaded)
            text = f"no instance of {self.key} has room: {reasons}"
            return Overloaded(text, retry_after=pause, load=str(load) if load else None)
        if not self._instances:
            return UnknownModel(f"there is no instance of {self.key}")
        return NotReady(f"no instance of {self.key} can be taken: {reasons}", retry_after=1)


class RoutedStreams:
    """The streams of one request at the instances of a model: the `Source` of its relay."""

    def __init__(self, attempts: Attempts, ask: Callable[[Instance, Cancel, Terms], OutputStream]) -> None:
        """Open a stream at an instance by ``ask(instance, cancel, terms)``."""
        self._attempts = attempts
        self._ask = ask

    def open(self, cancel: Cancel) -> OutputStream:
        """Return a stream of the next instance. Raises one error for all refusals if no instance is left."""
        instance, terms = self._attempts.next()
        return self._ask(instance, cancel, terms)

    def begun(self, stream: OutputStream) -> None:
        """Note that the instance answers."""
        self._attempts.answering(stream.load)

    def ended(self, error: BaseException | None) -> bool:
        """Note how the stream ended; return whether another instance may be called."""
        return self._attempts.over(error)
