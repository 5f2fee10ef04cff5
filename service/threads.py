"""Start threads: one in the background, as many as the system has room for, or some that wait for others' answers."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from typing import TypeVar, cast

from .errors import Overloaded

log = logging.getLogger(__name__)
T = TypeVar("T")

STOP_TIMEOUT = 5.0
"""Seconds that `BackgroundThread.stop` waits for a call that is under way."""
FAILURE_PAUSE = 1.0
"""Seconds until the next call after one that raised."""


def bounded_semaphore(value: int) -> threading.BoundedSemaphore:
    """Return a bounded semaphore: where gevent has replaced threads, its own, which does the same.

    That of `threading` asks at each release for a lock that it holds, and such an attempt costs gevent a switch.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        from gevent.lock import BoundedSemaphore  # noqa: PLC0415 - threads need no gevent

        return cast(threading.BoundedSemaphore, BoundedSemaphore(value))
    return threading.BoundedSemaphore(value)


def start_thread(thread: threading.Thread) -> None:
    """Start a thread. Raises Overloaded if the system has no room for it: too many tasks, or too little memory."""
    try:
        thread.start()
    except RuntimeError as error:
        raise Overloaded(f"{error} (limit of tasks or memory): ask again in a moment", retry_after=1) from error


def startable(count: int) -> int:
    """Start up to ``count`` threads, as long as the system has room for them, and end them; return their number."""
    end = threading.Event()
    threads: list[threading.Thread] = []
    try:
        for number in range(count):
            thread = threading.Thread(target=end.wait, name=f"modelyard-probe-{number}", daemon=True)
            start_thread(thread)
            threads.append(thread)
    except Overloaded:
        pass
    finally:
        end.set()
        for thread in threads:
            thread.join()
    return len(threads)


class WaitingThreads:
    """Threads that make blocking calls, so that their callers can do something else now and then meanwhile.

    A thread is started when none is idle, and kept for the next call: a call then costs 40 microseconds of CPU, and
    140 if a thread had to be started for it.
    """

    def __init__(self, name: str, most: int) -> None:
        """Start no thread yet, and never more than ``most``."""
        self._executor = ThreadPoolExecutor(most, thread_name_prefix=name)

    def result(self, call: Callable[[], T], tick: float, discard: Callable[[T], object]) -> Generator[None, None, T]:
        """Make a call in the current context; yield None each ``tick`` seconds until it ends, and return its result.

        A caller that does not want to wait any longer makes the call end, and closes the generator: a result that
        comes all the same is given to ``discard``. Raises the errors of the call, and Overloaded.
        """
        try:
            future = self._executor.submit(copy_context().run, call)
        except RuntimeError as error:
            raise Overloaded(f"{error} (limit of tasks or memory): ask again in a moment", retry_after=1) from error
        try:
            while not future.done():
                with suppress(TimeoutError):
                    return future.result(tick)
                yield None
            return future.result()
        except GeneratorExit:
            future.add_done_callback(lambda ended: ended.exception() or discard(ended.result()))
            raise

    def stop(self) -> None:
        """End the idle threads now, and each other one with its call."""
        self._executor.shutdown(wait=False)


class BackgroundThread:
    """A daemon thread that calls ``work`` until it is stopped. Objects only, until `start`."""

    def __init__(self, name: str, work: Callable[[], float | None], last: Callable[[], object] | None = None) -> None:
        """Call ``work``, which returns the seconds until its next call; None: not before `wake`.

        ``last`` is called in the same thread at the end. Their exceptions are logged.
        """
        self._name = name
        self._work = work
        self._last = last
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; a second call, or one after `stop`, does nothing. Raises Overloaded."""
        with self._lock:
            if self._thread is None and not self._stopping.is_set():
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                start_thread(thread)
                self._thread = thread

    def wake(self) -> None:
        """Call ``work`` now, or once more after the call that is under way."""
        self._wake.set()

    def stop(self, timeout: float = STOP_TIMEOUT) -> bool:
        """End the thread. Return whether it has ended within ``timeout`` seconds; True if it never ran."""
        with self._lock:
            self._stopping.set()
            self._wake.set()
            thread = self._thread
        if thread is None:
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def pause(self, seconds: float) -> None:
        """Wait in any thread, until `stop` at most."""
        self._stopping.wait(seconds)

    def _run(self) -> None:
        while True:
            # In this order: a stop that comes between the two lines is seen by the second.
            self._wake.clear()
            if self._stopping.is_set():
                break
            try:
                seconds = self._work()
            except Exception:
                log.exception("%s: a call failed", self._name)
                seconds = FAILURE_PAUSE
            self._wake.wait(seconds)
        if self._last is not None:
            try:
                self._last()
            except Exception:
                log.exception("%s: the last call failed", self._name)
