"""A gthread worker for gunicorn in which the thread that finds a request serves it.

gunicorn's gthread hands every request from its main loop to a pool and back: under load some twenty context
switches a request, each a fight for the GIL. Here one thread, the leader, waits for readable connections and serves
short requests itself. A request that lasts longer than a tick loses the lead: the deputy gives it to a follower, and
the thread goes on with its request alone. A connection whose last request was long gets a thread at once.

(The pattern is Schmidt's Leader/Followers, POSA 2.) gunicorn's main loop still accepts, times out and drains.
"""

from __future__ import annotations

import contextlib
import select
import threading
import time
from collections import deque

from gunicorn.workers.gthread import TConn, ThreadWorker

TICK = 0.001
"""Seconds a request may keep the lead (at most two of them)."""

STAY = 1
"""Milliseconds that the thread of a long request waits for the next one: to wake it costs less than to hand over."""

NAP_AFTER = 20
"""Ticks without a request after which the deputy sleeps until there is one."""

FIRST_REQUEST_TIMEOUT = 5.0
"""Least seconds a new connection has for its first byte."""

_WAIT = select.EPOLLIN | select.EPOLLONESHOT


class _NoPool:
    """Stands where ThreadWorker keeps its pool, which it shuts down at the end."""

    def shutdown(self, wait: bool = False) -> None:
        """Do nothing: the threads here end by themselves."""


class LeaderWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's ``worker_class``: at most ``threads`` requests run at once; what waits holds no thread."""

    def init_process(self) -> None:
        """Make what the threads share, in the worker process."""
        self._epoll = select.epoll()
        # Connections without a request, oldest first. Whoever pops one owns it.
        self._waiting: dict[int, TConn] = {}
        self._ready: deque[TConn] = deque()
        # Holds one item while the leader is in a request. Whoever pops it decides who leads on.
        self._lead: deque[None] = deque()
        self._slow: set[int] = set()
        self._served = 0
        # What more requests may run at once: one item each. Popping is atomic, and costs less than a semaphore.
        self._spares = deque([None] * (self.cfg.threads - 1))
        # The batons of followers that wait: whoever pops one and releases it has made its owner the leader.
        self._followers: deque[threading.Lock] = deque()
        self._napping = False
        self._wake = threading.Event()
        self._keep_until: float | None = None
        self._over = False
        super().init_process()

    # What ThreadWorker's main loop calls

    def get_thread_pool(self) -> _NoPool:
        """Return no pool: the leader and its followers are the threads."""
        return _NoPool()

    def run(self) -> None:
        """Start leader and deputy, then run gunicorn's main loop until the worker ends."""
        self._hand_over()
        threading.Thread(target=self._watch, name="deputy", daemon=True).start()
        try:
            super().run()
        finally:
            self._over = True

    def enqueue_req(self, conn: TConn) -> None:
        """Wait for the request of a new connection, without a thread."""
        conn.data_ready = True
        conn.fd = conn.sock.fileno()
        conn.timeout = time.monotonic() + max(self.cfg.keepalive, FIRST_REQUEST_TIMEOUT)
        self._waiting[conn.fd] = conn
        self._epoll.register(conn.fd, _WAIT)

    def murder_keepalived(self, force: bool = False) -> None:
        """Close connections that have waited too long for a request."""
        now = time.monotonic()
        for fd, conn in list(self._waiting.items()):
            due = conn.timeout if self._keep_until is None else min(conn.timeout, self._keep_until)
            if due > now and not force:
                break
            if self._waiting.pop(fd, None) is not None:
                self._discard(conn, graceful=False)

    def _cap_keepalive(self, deadline: float) -> None:
        self._keep_until = deadline

    # Leader and followers

    def _hand_over(self) -> None:
        """Make another thread the leader."""
        try:
            baton = self._followers.pop()
        except IndexError:
            threading.Thread(target=self._member, name="request", daemon=True).start()
        else:
            baton.release()

    def _member(self) -> None:
        baton = threading.Lock()
        baton.acquire()
        while not self._over:
            self._lead_on()
            self._spares.append(None)
            self._followers.append(baton)
            baton.acquire()

    def _may_follow(self) -> bool:
        """Take one of the spares, if there is one left."""
        try:
            self._spares.pop()
        except IndexError:
            return False
        return True

    def _lead_on(self) -> None:
        """Serve requests until the lead is gone."""
        ready, waiting, poll = self._ready, self._waiting, self._epoll.poll
        while not self._over:
            while ready:
                conn = ready.popleft()
                if conn.fd in self._slow and self._may_follow():
                    self._hand_over()
                    self._serve_long(conn)
                    return
                if not self._serve_short(conn):
                    return
            for fd, _ in poll(1.0):
                conn = waiting.pop(fd, None)
                if conn is not None:
                    ready.append(conn)

    def _serve_short(self, conn: TConn) -> bool:
        """Serve a request as the leader; return whether this thread still leads."""
        fd = conn.fd
        self._served += 1
        self._lead.append(None)
        if self._napping:
            self._wake.set()
        kept = self._serve(conn)
        try:
            self._lead.pop()
        except IndexError:
            leads = False
            if kept:
                self._slow.add(fd)
        else:
            leads = True
        if kept:
            self._park(conn)
        return leads

    def _serve_long(self, conn: TConn) -> None:
        """Serve a connection whose last request was long, and those that follow, in a thread that does not lead."""
        fd, began = conn.fd, time.monotonic()
        while kept := self._serve(conn):
            if time.monotonic() - began < TICK:
                self._slow.discard(fd)
                break
            if self._ready or not _is_readable(fd, STAY):
                break
            began = time.monotonic()
        if kept:
            self._park(conn)

    def _serve(self, conn: TConn) -> bool:
        """Serve a connection's request, and those pipelined behind it; return whether the connection is kept."""
        while True:
            try:
                kept = self.handle(conn) is True
            except BaseException:
                # SystemExit passes through gunicorn's handle; nothing may end the leader.
                self.log.exception("a request ended its thread")
                kept = False
            if not kept:
                self._discard(conn, graceful=True)
                return False
            if not conn.parser.unreader.buf.getvalue():
                return True

    def _park(self, conn: TConn) -> None:
        """Wait for a connection's next request, without a thread."""
        conn.timeout = time.monotonic() + self.cfg.keepalive
        self._waiting[conn.fd] = conn
        # The main loop may have closed it in between, when it is stopping.
        with contextlib.suppress(OSError):
            self._epoll.modify(conn.fd, _WAIT)

    def _discard(self, conn: TConn, *, graceful: bool) -> None:
        self._slow.discard(conn.fd)
        # handle() may have closed it already: then its number may be that of a new connection by now.
        with contextlib.suppress(OSError, ValueError):
            self._epoll.unregister(conn.sock)
        conn.close(graceful=graceful)
        self.method_queue.defer(self._forget_one)

    def _forget_one(self) -> None:
        self.nr_conns -= 1

    # The deputy

    def _watch(self) -> None:
        """Take the lead from a request that holds it over a whole tick; sleep while there are none."""
        seen, quiet = -1, 0
        while not self._over:
            time.sleep(TICK)
            if self._served != seen:
                seen, quiet = self._served, 0
            elif not self._lead:
                quiet += 1
                if quiet >= NAP_AFTER:
                    self._nap(seen)
                    quiet = 0
            elif self._may_follow():
                self._take_lead()

    def _take_lead(self) -> None:
        try:
            self._lead.pop()
        except IndexError:
            self._spares.append(None)
        else:
            self._hand_over()

    def _nap(self, seen: int) -> None:
        self._wake.clear()
        self._napping = True
        if self._served == seen and not self._lead:
            self._wake.wait(1.0)
        self._napping = False


def _is_readable(fd: int, timeout: int) -> bool:
    """Return whether something comes within ``timeout`` milliseconds, be it the end."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout))
