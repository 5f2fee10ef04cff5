"""One request's way over the instances of a model: which to call next, and what their refusals come to.

First every candidate without waiting in line, then the line of the least loaded; each at most once. Once a piece of an
answer has come, nothing is sent anywhere again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

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
from .registry.base import Instance
from .routing import Routes

GONE_FOR = 1.0
"""Seconds that an instance is left alone which does not know the model that it is registered with."""

REFUSALS = (Unauthorized, Forbidden)
"""What an instance says that does not take this process's own token; whose request it is plays no part in that."""

SEND_AGAIN = (Unavailable, UnknownModel, *REFUSALS)
"""What an instance may say after which another is asked: it has computed nothing."""


@dataclass
class Attempts:
    """The instances to call for one request, one after the other. `next` takes one, `over` notes how it went."""

    key: str
    look: Callable[[], Sequence[Instance]]
    """Returns the instances that are known, healthy or not."""
    look_again: Callable[[], Sequence[Instance]]
    """The same, after asking the registry once more."""
    routes: Routes
    wait: bool
    """Whether the request may stand in a line."""
    failed: Callable[[], None] = lambda: None
    """Called when an instance is not what the registry says."""
    _known: Sequence[Instance] = ()
    _tried: set[str] = field(default_factory=set)
    _said: dict[str, ModelyardError] = field(default_factory=dict)
    _full: list[Instance] = field(default_factory=list)
    _lines: Iterator[Instance] | None = None
    _looked_again: bool = False
    _asked: Instance | None = None
    _waits: bool = True

    def next(self) -> tuple[Instance, bool]:
        """Return the instance to try now, and whether the request may wait there. Raises the error of all refusals."""
        taken = self._fresh() or self._in_line()
        if taken is None:
            raise self._refusal()
        self._asked = taken
        return taken, self._waits

    def _fresh(self) -> Instance | None:
        """Return one that was not asked yet."""
        if self._lines is not None:
            return None
        if not self._known:
            self._known = self.look()
        found = self.routes.take(self._known, self._tried)
        if found.instance is None and not self._looked_again:
            self._looked_again = True
            self._known = self.look_again()
            found = self.routes.take(self._known, self._tried)
        if found.instance is not None:
            # A refusal by the only instance would only cost time.
            self._waits = self.wait and found.among == 1 and not self._tried
            self._tried.add(found.instance.url)
        return found.instance

    def _in_line(self) -> Instance | None:
        """Return one of those that were full, for the request to wait there."""
        if self._lines is None:
            self._lines = iter(self.routes.by_load(self._full) if self.wait else ())
        taken = next(self._lines, None)
        if taken is not None:
            self._waits = True
            self.routes.began(taken)
        return taken

    def answering(self, load: str | None) -> None:
        """Note that the last one answers, with the ``load`` that it had when it took the request."""
        if self._asked is not None:
            self.routes.answered(self._asked, load)

    def over(self, error: BaseException | None = None, load: str | None = None) -> bool:
        """Note how the call of the last one ended, with its ``load``; return whether another may be called."""
        instance, self._asked = self._asked, None
        if instance is None:
            return False
        self.routes.ended(instance)
        if isinstance(error, SEND_AGAIN):
            self._said[instance.url] = error
            self._learn(instance, error)
            return True
        if isinstance(error, WorkerLost):
            # Too late for another, but a reason to look whether it is there.
            self.routes.failed(instance, str(error))
            self.failed()
        elif error is None or isinstance(error, ModelyardError):
            # An instance that fails for another reason can be reached.
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
        """Return one error for all: that of the only instance, or which are known and why none was taken."""
        if len(self._known) == 1 and self._said:
            error = next(iter(self._said.values()))
            if isinstance(error, REFUSALS):
                return NotReady(f"{self._known[0].url} refuses this router, not its client: {error}", retry_after=5)
            return NotReady(str(error)) if isinstance(error, UnknownModel) else error
        reasons = "; ".join(
            f"{one.url}: {self._said.get(one.url) or self.routes.why_not(one) or 'not asked'}" for one in self._known
        )
        overloaded = [error for error in self._said.values() if isinstance(error, Overloaded)]
        if overloaded:
            load = self.routes.load_of(self._known)
            pause = min(error.retry_after for error in overloaded)
            text = f"no instance of {self.key} has room: {reasons}"
            return Overloaded(text, retry_after=pause, load=str(load) if load else None)
        if not self._known:
            return UnknownModel(f"there is no instance of {self.key}")
        return NotReady(f"no instance of {self.key} can be taken: {reasons}", retry_after=1)


class RoutedStreams:
    """The streams of one request at the instances of a model: the `Source` of its relay."""

    def __init__(self, attempts: Attempts, ask: Callable[[Instance, Cancel, bool], OutputStream]) -> None:
        """``ask(instance, cancel, wait)`` opens a stream at an instance."""
        self._attempts = attempts
        self._ask = ask

    def open(self, cancel: Cancel) -> OutputStream:
        """Return a stream of the next instance. Raises what all refusals come to, where none is left."""
        instance, wait = self._attempts.next()
        return self._ask(instance, cancel, wait)

    def begun(self, stream: OutputStream) -> None:
        """Note that the instance answers."""
        self._attempts.answering(stream.load)

    def ended(self, error: BaseException | None) -> bool:
        """Note how it went; return whether another may be asked."""
        return self._attempts.over(error)
