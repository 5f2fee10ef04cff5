"""The end of a worker process of gunicorn: at a signal, or when its master has gone. It takes no longer than it must.

gunicorn's own handlers are not run within a signal: that of SIGQUIT takes a lock of the thread pool which the code that
it interrupts may hold, and the process would wait for itself. Here a handler puts a number into a queue, and a thread
does the rest.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from types import FrameType
from typing import Any

from ..sockets import is_patched
from .clients import Clients
from .runtime import CUT_TIMEOUT, Runtime

log = logging.getLogger(__name__)

LOOK_INTERVAL = 0.5
"""Seconds between two looks whether the master is there."""
LINGER = 0.5
"""Seconds that connections which are kept stay open, for a request that is on its way: it gets 503."""
_WRITE_TIMEOUT = 0.2
"""Seconds, after those of the drain, to write what is ready."""
_IMMEDIATE = (signal.SIGQUIT, signal.SIGINT)


class Ending:
    """Ends this process: SIGTERM lets answers end within ``drain_timeout``, SIGQUIT and SIGINT cut them off."""

    def __init__(self, runtime: Runtime, clients: Clients) -> None:
        """End ``runtime`` and ``clients``; nothing is changed until `start`."""
        self._runtime = runtime
        self._clients = clients
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._is_hurried = False
        self._master = os.getppid()
        self._previous: dict[int, Any] = {}

    def start(self) -> None:
        """Take over the signals, and start the thread. Only the main thread may call it."""
        for number in (signal.SIGTERM, *_IMMEDIATE):
            self._previous[number] = signal.getsignal(number)
            signal.signal(number, self._handle)
            # signal.signal makes system calls end with EINTR; gunicorn had asked for the opposite.
            signal.siginterrupt(number, False)
        threading.Thread(target=self._run, name="modelyard-end", daemon=True).start()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number in _IMMEDIATE:
            self._is_hurried = True
        self._signals.put(number)

    def _run(self) -> None:
        self._wait()
        deadline = time.monotonic() + self._runtime.settings.drain_timeout + CUT_TIMEOUT + _WRITE_TIMEOUT
        self._clients.drain()
        try:
            self._runtime.drain(is_hurried=lambda: self._is_hurried)
        except Exception:
            log.exception("the process ends, although the drain failed")
        # An application has requests of its own, and an answer that is computed has still to be written.
        self._clients.wait_idle(deadline, lambda: self._is_hurried)
        if self._is_hurried:
            self._clients.wait_idle(time.monotonic() + _WRITE_TIMEOUT)
        is_gevent = is_patched()
        if not is_gevent:
            # It accepts no more connections, and ends when the last one is closed.
            self._previous[signal.SIGTERM](signal.SIGTERM, None)
        if not self._is_hurried:
            time.sleep(max(0.0, min(deadline - time.monotonic(), LINGER)))
        self._clients.close()
        if is_gevent:
            # Its end at SIGTERM looks once a second whether connections are left; that at SIGQUIT takes no lock.
            self._previous[signal.SIGQUIT](signal.SIGQUIT, None)

    def _wait(self) -> None:
        """Return when the process is to end."""
        while True:
            try:
                self._signals.get(timeout=LOOK_INTERVAL)
            except queue.Empty:
                if os.getppid() == self._master:
                    continue
                log.warning("this process ends: its master, pid %d, was killed", self._master)
                self._is_hurried = True
            return
