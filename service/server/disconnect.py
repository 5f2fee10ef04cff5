"""The watcher of clients: it notices a hang-up while a request waits or computes.

One thread uses epoll with EPOLLRDHUP and EPOLLONESHOT: data does not wake it, and the callback follows the client's FIN
or RST within a fraction of a millisecond, also behind pipelined bytes. gevent's patches remove epoll; under gevent the
thread checks all sockets four times a second with the original poll, which never blocks. A server that shows no socket
but a function (waitress) is asked as often, by a thread of its own.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable

from ..sockets import GONE, has_gone, is_patched, original
from ..threads import BackgroundThread, start_thread
from ..worker.protocol import ClientOfServer

log = logging.getLogger(__name__)

_POLL_INTERVAL = 0.25
_JOIN_TIMEOUT = 2.0


class DisconnectWatcher:
    """Calls back when a watched client hangs up. Call `unwatch` before its socket is closed."""

    def __init__(self) -> None:
        """Make a watcher without clients; `start` starts its thread."""
        self._lock = threading.Lock()
        self._watched: dict[int, Callable[[], None]] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._epoll: select.epoll | None = None
        self._alarm = -1
        """An eventfd in the epoll, so that `stop` need not wait for a hang-up."""
        self._asked: dict[Callable[[], bool], Callable[[], None]] = {}
        """The callback of each client that has no socket here, by the function that tells whether it has gone."""
        self._asker = BackgroundThread("disconnect-asker", self._ask_all)

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
        asker, self._asker = self._asker, BackgroundThread("disconnect-asker", self._ask_all)
        asker.stop()
        self._stopping.set()
        if self._alarm >= 0:
            os.eventfd_write(self._alarm, 1)
        thread.join(_JOIN_TIMEOUT)
        with self._lock:
            epoll, self._epoll = self._epoll, None
            alarm, self._alarm = self._alarm, -1
            self._watched.clear()
            self._asked.clear()
        if epoll is not None:
            epoll.close()
            os.close(alarm)

    def watch(self, client: ClientOfServer, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, in a thread of the watcher, when the client hangs up. Raises Overloaded."""
        with self._lock:
            if self._thread is None:
                return
            if isinstance(client, int):
                self._watched[client] = callback
                self._arm(client)
                return
            self._asked[client] = callback
            is_first = len(self._asked) == 1
        if is_first:
            self._asker.start()
            self._asker.wake()

    def unwatch(self, client: ClientOfServer) -> None:
        """Forget a client, watched or not."""
        with self._lock:
            if not isinstance(client, int):
                self._asked.pop(client, None)
            elif self._watched.pop(client, None) is not None:
                self._drop(client)

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
        _call(callback)

    def _ask_all(self) -> float | None:
        with self._lock:
            clients = list(self._asked)
        for is_gone in clients:
            if is_gone():
                with self._lock:
                    callback = self._asked.pop(is_gone, None)
                if callback is not None:
                    _call(callback)
        return _POLL_INTERVAL if clients else None


def _call(callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception:
        log.exception("a hang-up callback failed")
