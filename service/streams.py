"""OutputStream: one answer on its way, with the slot it holds and the event that ends it.

`Relay` passes on the answer of another stream, and opens the next stream if one fails before its first burst.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from types import TracebackType
from typing import Protocol

from .errors import Cancelled, ModelyardError
from .types import Burst, JSONObject, ModelOutput

TICK = 1.0
_numbers = itertools.count(1)


class Cancel:
    """The event that cancels a request, set once, with the error that ends it. Engines check it or wait on it."""

    __slots__ = ("_barrier", "_callbacks", "_error", "_lock", "_set", "instance", "queued")

    def __init__(self) -> None:
        """Make a cancel that is not set."""
        self._set = False
        self._lock = threading.Lock()
        # Held until it is set, by the first that waits. A stream may wait once for each piece: a lock takes a tenth of
        # the memory of an Event, and its wait allocates nothing.
        self._barrier: threading.Lock | None = None
        self._callbacks: list[Callable[[], None]] = []
        self._error: ModelyardError | None = None
        self.queued = 0.0
        """Seconds that its request stood in line before it had a slot; 0 if a slot was free."""
        self.instance: str | None = None
        """The address of the instance that a router has chosen for its request."""

    def set(self, error: ModelyardError | None = None) -> None:
        """Cancel, with ``error`` (default: the client has gone). Later calls change nothing.

        Callbacks run in this thread, so they must be short.
        """
        with self._lock:
            if self._set:
                return
            self._error = error or self._error
            self._set = True
            callbacks, self._callbacks = self._callbacks, []
        if self._barrier is not None:
            self._barrier.release()
        for callback in callbacks:
            callback()

    @property
    def error(self) -> ModelyardError:
        """The error that ends the work where it is cancelled."""
        if self._error is None:
            self._error = Cancelled("the client has gone")
        return self._error

    def is_set(self) -> bool:
        """Return whether the work is cancelled."""
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        """Block for ``timeout`` seconds at most, or until cancelled; return whether it is."""
        barrier = self._barrier or self._new_barrier()
        if not self._set and barrier.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            barrier.release()
        return self._set

    def _new_barrier(self) -> threading.Lock:
        with self._lock:
            if self._barrier is None:
                self._barrier = threading.Lock()
                if not self._set:
                    self._barrier.acquire()
            return self._barrier

    def on_set(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when it is cancelled: at once, if it is already."""
        with self._lock:
            if not self._set:
                self._callbacks.append(callback)
                return
        callback()

    def forget(self, callback: Callable[[], None]) -> None:
        """Remove a callback, if it has not been called."""
        with self._lock:
            if callback in self._callbacks:
                self._callbacks.remove(callback)


@contextmanager
def following(cancel: Cancel) -> Iterator[Cancel]:
    """Yield a cancel of its own for a part of the work: it is set with ``cancel``, and alone by the end of the part."""
    part = Cancel()

    def pass_on() -> None:
        part.set(cancel.error)

    cancel.on_set(pass_on)
    try:
        yield part
    finally:
        cancel.forget(pass_on)


class OutputStream:
    """An iterator of bursts; None if nothing came for about a second.

    Its owner must `close` it (twice is fine): that cancels the engine, ends its iterator, and gives the
    slot back. It closes itself at the end of the answer and on an error.
    """

    def __init__(
        self, bursts: Iterator[Burst | None], cancel: Cancel, on_close: Callable[[], None], load: str | None = None
    ) -> None:
        """Own ``bursts`` and ``cancel``; call ``on_close`` once at the end."""
        self._bursts = bursts
        self._on_close = on_close
        self._open = threading.Lock()
        self._failure: BaseException | None = None
        self._ended = False
        self._listeners: list[Callable[[BaseException | None], None]] | None = None
        self.cancel = cancel
        self.load = load
        """The gate at admission, the value of ``Modelyard-Load``; from another process with its first burst."""
        self.model: str | None = None
        """The model that answers, where it is not the one of the request; final with the first burst."""
        self.began = time.monotonic()
        self.first: float | None = None
        """When the first piece came, by the monotonic clock; None before it."""
        self.last = 0.0
        """When the last burst came."""
        self.pieces = 0
        self.finish_reason: str | None = None
        self.usage: JSONObject | None = None

    def __iter__(self) -> Iterator[Burst | None]:
        return self

    def __next__(self) -> Burst | None:
        if self._open.locked():
            raise StopIteration
        try:
            if self.cancel.is_set():
                raise self.cancel.error
            burst = next(self._bursts)
        except BaseException as error:
            # An engine that was cancelled ends without the reason: the reader gets that of the cancel.
            broke_off = isinstance(error, StopIteration | Cancelled) and self.cancel.is_set()
            self._ended = True
            if broke_off or not isinstance(error, StopIteration):
                self._failure = self.cancel.error if broke_off else error
            self.close()
            if broke_off:
                raise self.cancel.error from None
            raise
        if burst is not None:
            self._note(burst)
        return burst

    def _note(self, burst: Burst) -> None:
        """Keep when a burst came, and what it says of the answer: for what is counted at its end."""
        self.last = time.monotonic()
        if burst.pieces:
            self.pieces += len(burst.pieces)
            if self.first is None:
                self.first = self.last
        if burst.finish_reason is not None:
            self.finish_reason = burst.finish_reason
        if burst.usage is not None:
            self.usage = burst.usage

    def close(self) -> None:
        """End the answer at once. Called by the thread that iterates, or after it."""
        # In this order: under gevent an attempt that fails costs a switch, and each stream is closed twice.
        if self._open.locked() or not self._open.acquire(blocking=False):
            return
        if not self._ended:
            self._failure = self.cancel.error
        try:
            self.cancel.set()
            close = getattr(self._bursts, "close", None)
            if close is not None:
                close()
        finally:
            self._on_close()
            listeners, self._listeners = self._listeners, None
            for listener in listeners or ():
                listener(self._failure)

    def when_closed(self, listener: Callable[[BaseException | None], None]) -> None:
        """Call ``listener`` at the end, with the error of the answer; None if it was whole.

        A close before the end is a cancel. The first that was given is called first.
        """
        if self._open.locked():
            listener(self._failure)
        else:
            self._listeners = [*(self._listeners or ()), listener]

    def __enter__(self) -> OutputStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Source(Protocol):
    """The streams of one answer for a `Relay`: it opens the next one if a stream fails before its first burst."""

    def open(self, cancel: Cancel) -> OutputStream:
        """Return the next stream, which ``cancel`` ends. An exception counts as a failure of that stream."""

    def begun(self, stream: OutputStream) -> None:
        """Note that the first burst of a stream has come."""

    def ended(self, error: BaseException | None) -> bool:
        """Note that a stream has ended, by an ``error`` or without; return whether another may be opened.

        Raises the error that ends the relay, if that is not ``error``.
        """


class Relay(OutputStream):
    """An answer from whichever stream of a `Source` gives it, and the name of the model that answers.

    Its load is that of the first stream with a sign of life.
    """

    def __init__(self, source: Source, cancel: Cancel) -> None:
        """Open nothing yet. Streams are opened in the context of this call: spans that are made there are below it."""
        super().__init__(self._relayed(source, copy_context()), cancel, lambda: None)

    def _relayed(self, source: Source, context: Context) -> Iterator[Burst | None]:
        has_begun = False
        while True:
            try:
                with self._opened(source, context) as stream:
                    for burst in stream:
                        if self.load is None:
                            self.load = stream.load
                        if burst is not None and not has_begun:
                            has_begun = True
                            self.model = stream.model or self.model
                            self.cancel.queued = stream.cancel.queued
                            self.cancel.instance = stream.cancel.instance
                            source.begun(stream)
                        yield burst
            except GeneratorExit:
                source.ended(None)
                raise
            except BaseException as error:
                if not source.ended(error) or has_begun or self.cancel.is_set():
                    raise
            else:
                source.ended(None)
                return
            yield None

    @contextmanager
    def _opened(self, source: Source, context: Context) -> Iterator[OutputStream]:
        """Open the next stream, with a cancel of its own: it ends when it has failed, and the answer may go on."""
        with following(self.cancel) as cancel, context.run(source.open, cancel) as stream:
            yield stream


def whole_answer(bursts: Iterator[Burst | None]) -> ModelOutput:
    """Return the bursts of one answer as one output."""
    pieces: list[str] = []
    output = ModelOutput()
    for burst in bursts:
        if burst is None:
            continue
        pieces += burst.pieces
        output.finish_reason = burst.finish_reason or output.finish_reason
        output.usage = burst.counts or output.usage
        output.metrics = burst.metrics or output.metrics
    output.text = "".join(pieces)
    return output
