"""The watcher of clients' sockets: it notices a hang-up while a request waits or computes.

One thread uses epoll with EPOLLRDHUP and EPOLLONESHOT: data does not wake it, and the callback follows the client's FIN
or RST within a fraction of a millisecond, also behind pipelined bytes. gevent's patches remove epoll; under gevent the
thread checks all sockets four times a second with the original poll, which never blocks.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable

from ..sockets import GONE, has_gone, is_patched, original
from ..threads import start_thread

log = logging.getLogger(__name__)

_POLL_INTERVAL = 0.25
_JOIN_TIMEOUT = 2.0


class DisconnectWatcher:
    """Calls back when the client of a watched socket hangs up. Call `unwatch` before a socket is closed."""

    def __init__(self) -> None:
        """Make a watcher without sockets; `start` starts its thread."""
        self._lock = threading.Lock()
        self._watched: dict[int, Callable[[], None]] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._epoll: select.epoll | None = None
        self._alarm = -1
        """An eventfd in the epoll, so that `stop` need not wait for a hang-up."""

    def start(self) -> None:
        """Start the thread; a second call does nothing."""
        with self._lock:
            if self._thread is not None:
                return
            self._stopping.clear()
            if not is_patched() and self._epoll is None:
                self._epoll = select.epoll()
                self._alarm = os.eventfd(0, os.EFD_CLOEXEC)
                self._epoll.register(self._alarm, select.EPOLLIN)
            thread = threading.Thread(target=self._run, name="disconnect-watcher", daemon=True)
            start_thread(thread)
            self._thread = thread

    def stop(self) -> None:
        """End the thread at once, or after a callback that runs; a second call does nothing."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stopping.set()
        if self._alarm >= 0:
            os.eventfd_write(self._alarm, 1)
        thread.join(_JOIN_TIMEOUT)
        with self._lock:
            epoll, self._epoll = self._epoll, None
            alarm, self._alarm = self._alarm, -1
            self._watched.clear()
        if epoll is not None:
            epoll.close()
            os.close(alarm)

    def watch(self, fileno: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, in the watcher's thread, when the client hangs up."""
        with self._lock:
            if self._thread is None:
                return
            self._watched[fileno] = callback
            self._arm(fileno)

    def unwatch(self, fileno: int) -> None:
        """Forget a socket, watched or not."""
        with self._lock:
            if self._watched.pop(fileno, None) is not None:
                self._drop(fileno)

    def _arm(self, fileno: int) -> None:
        if self._epoll is None:
            return
        events = select.EPOLLRDHUP | select.EPOLLONESHOT
        try:
            try:
                self._epoll.register(fileno, events)
            except FileExistsError:
                self._epoll.modify(fileno, events)
        except OSError as error:  # it is closed, or not a socket any more
            self._watched.pop(fileno, None)
            log.debug("socket %d can't be watched: %s", fileno, error)

    def _drop(self, fileno: int) -> None:
        if self._epoll is not None:
            try:
                self._epoll.unregister(fileno)
            except OSError:  # closed before `unwatch`: the kernel has forgotten it already
                log.debug("socket %d was closed while watched", fileno)

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self._epoll is None:
                self._stopping.wait(_POLL_INTERVAL)
                filenos = self._poll_once()
            else:
                filenos = [fileno for fileno, _ in self._epoll.poll()]
            for fileno in filenos:
                self._call_back(fileno)

    def _poll_once(self) -> list[int]:
        poll = original("poll")()
        with self._lock:
            for fileno in self._watched:
                poll.register(fileno, select.POLLIN | select.POLLRDHUP)
        return [fileno for fileno, event in poll.poll(0) if event & GONE]

    def _call_back(self, fileno: int) -> None:
        with self._lock:
            callback = self._watched.get(fileno)
            if callback is None:
                return
            # The event may belong to an earlier request on the same number, so the socket is checked again.
            if not has_gone(fileno):
                self._arm(fileno)
                return
            del self._watched[fileno]
            self._drop(fileno)
        try:
            callback()
        except Exception:
            log.exception("a hang-up callback failed")
