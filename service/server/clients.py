"""The connections of clients: each has a time limit for its requests, and all are closed when the process ends.

gunicorn waits for the rest of a request without limit, and each such wait holds a thread. What a client has sent so far
is known to gunicorn alone, so the connections are looked for among the open files of the process, and the kernel says
when bytes came last. One that is late is shut down: the thread that waits for it reads its end.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from werkzeug.exceptions import RequestTimeout

from ..sockets import HELD, has_unread, is_listening, listening_addresses, open_sockets, send_held, tcp_info
from ..threads import BackgroundThread

log = logging.getLogger(__name__)

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]

LOOK_INTERVAL = 0.5
"""Seconds between two looks at the connections."""
SHORT_INTERVAL = 0.05
"""The same while connections are shut down: those that waited for their threads may be as late."""
END_LIMIT = 1.0
"""Seconds that a request which is on its way still has when the process begins to end."""
IDLE_FILES = 1000
"""Connections that may be idle between two requests."""
OTHER_FILES = 128
"""Open files of a process that are neither connections of clients nor belong to a request."""
OTHERS_KEPT = 4096
"""Sockets that are not of clients, of which so many are remembered, also after they were closed."""
_KEY = "modelyard.connection"
_TICK = 0.02


class Connection:
    """What is known of one connection."""

    __slots__ = ("is_busy", "is_kept", "is_reading", "is_suspect", "late_after", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        """When the wait for the request began, or the request, or the pause after it; on the monotonic clock."""
        self.is_busy = False
        """Whether the application has a request of it."""
        self.is_reading = False
        """Whether the application waits for the body of that request."""
        self.is_suspect = False
        """Whether it was late at the last look, unless a thread had just read its request."""
        self.late_after = 0.0
        """Seconds after which the body was not there; 0 if it was."""
        self.is_kept = False
        """Whether it has had a request, and the next has not begun."""


class Clients:
    """The connections of one worker process of gunicorn. Objects only, until `start`."""

    def __init__(self, limit: float, keepalive: float, most: int) -> None:
        """Let each request arrive within ``limit`` seconds.

        gunicorn closes what is idle for ``keepalive`` seconds, and accepts nothing beyond ``most`` connections.
        """
        self._limit = limit
        self._keepalive = keepalive
        self._most = most
        self._connections: dict[int, Connection] = {}
        """By the inode of the socket."""
        self._others: set[int] = set()
        """Inodes of sockets that are not of clients."""
        self._places = {place if isinstance(place, str) else place[1] for place in listening_addresses()}
        self._is_full = False
        self._is_ending = False
        self._is_closing = False
        self._thread = BackgroundThread("modelyard-clients", self._look)

    def start(self) -> None:
        """Start to look; a second call does nothing."""
        self._thread.start()

    def stop(self) -> bool:
        """Stop to look; return whether the thread has ended."""
        return self._thread.stop()

    # Requests

    def wrap(self, application: Application) -> Application:
        """Return a WSGI application that notes when ``application`` has a request, and when it waits for a body."""

        def call(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            sock = environ.get("gunicorn.socket")
            if sock is not None:
                now, inode = time.monotonic(), os.fstat(sock.fileno()).st_ino
                connection = self._connections.get(inode) or self._connections.setdefault(inode, Connection(now))
                environ[_KEY] = connection
                environ[HELD] = []
                connection.since, connection.is_busy = now, True
                connection.is_kept = connection.is_suspect = False
                environ["wsgi.input"] = _Body(environ["wsgi.input"], connection)
            return application(environ, start_response)

        return call

    def end_request(self, environ: dict[str, Any]) -> None:
        """Note that the last byte of an answer was written, or that it never will be."""
        connection = environ.get(_KEY)
        if connection is not None:
            connection.since, connection.is_kept, connection.is_busy = time.monotonic(), True, False
        for sock in environ.get(HELD, ()):
            send_held(sock)

    def wait_idle(self, deadline: float, is_hurried: Callable[[], bool] = lambda: False) -> None:
        """Block until no request is being answered, or until ``deadline`` on the monotonic clock.

        The wait ends early when ``is_hurried`` returns True.
        """
        while time.monotonic() < deadline and not is_hurried() and self._are_busy():
            time.sleep(_TICK)

    def _are_busy(self) -> bool:
        return any(connection.is_busy for connection in list(self._connections.values()))

    # The end

    def drain(self) -> None:
        """Close what is idle without ever having had a request, and give requests on their way little time."""
        self._limit = min(self._limit, END_LIMIT)
        self._is_ending = True
        self._thread.wake()

    def close(self) -> None:
        """Shut down every connection from now on, whatever it does."""
        self._is_closing = True
        self._thread.wake()

    # The look

    def _look(self) -> float:
        try:
            is_soon = self._look_once() or self._is_ending
        except OSError as error:
            log.warning("the connections of clients can't be looked at: %s", error.strerror)
            is_soon = False
        return SHORT_INTERVAL if is_soon else LOOK_INTERVAL

    def _look_once(self) -> bool:
        """Shut down what is late; return whether more may be so soon."""
        now = time.monotonic()
        seen: set[int] = set()
        late, is_soon = 0, False
        connections = list(self._connections.items())
        # Requests may begin and end during the look.
        busy = {inode for inode, connection in connections if connection.is_busy}
        for inode, sock in open_sockets(without=self._uninteresting()):
            if inode not in self._connections and not self._is_of_client(sock):
                self._others.add(inode)
                continue
            seen.add(inode)
            connection = self._connections.setdefault(inode, Connection(now))
            how = self._end_of(connection, sock, now)
            is_soon |= connection.is_suspect or how is not None
            if how is not None:
                late += not self._is_closing and (connection.is_busy or how == socket.SHUT_RDWR)
                sock.shutdown(how)
        for inode, connection in connections:
            if inode not in seen and inode not in busy and not connection.is_busy:
                self._connections.pop(inode, None)
        if late:
            log.info("%d connections were closed: no whole request came within %g s", late, self._limit)
        self._warn_if_full(len(self._connections))
        return is_soon

    def _uninteresting(self) -> set[int]:
        """Return the inodes of sockets that are not of clients, and of connections whose request is being answered."""
        if len(self._others) > OTHERS_KEPT:
            self._others.clear()
        if self._is_closing:
            return self._others
        busy = {inode for inode, c in list(self._connections.items()) if c.is_busy and not c.is_reading}
        return self._others | busy

    def _is_of_client(self, sock: socket.socket) -> bool:
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            place: int | str = sock.getsockname()[1]
        elif sock.family == socket.AF_UNIX:
            place = os.fsdecode(sock.getsockname())
        else:
            return False
        return place in self._places and not is_listening(sock)

    def _end_of(self, connection: Connection, sock: socket.socket, now: float) -> int | None:
        """Return which sides of a connection are to be shut down; None if it may go on."""
        if self._is_closing:
            return socket.SHUT_RDWR
        info = tcp_info(sock)
        silence = 0.0 if info is None else info.silence
        waited = now - connection.since
        if connection.is_busy:
            # One that had waited for a thread of ours has a moment more.
            is_late = waited >= self._limit or (silence >= self._limit and waited >= SHORT_INTERVAL)
            if not connection.is_reading or not is_late or has_unread(sock):
                return None
            connection.late_after = self._limit
            # The application may still answer.
            return socket.SHUT_RD
        if info is not None and info.has_ended:
            # gunicorn's main loop waits for the client to close as well, and does nothing else meanwhile.
            return socket.SHUT_RD
        if connection.is_kept and info is not None and silence + _TICK < waited:
            connection.is_kept, connection.since = False, now
            waited = 0.0
        limit = self._limit + (self._keepalive if connection.is_kept else 0)
        # Bytes that are not read yet wait for a thread of ours, not for the client.
        was_suspect, connection.is_suspect = (
            connection.is_suspect,
            max(waited, silence) >= limit and not has_unread(sock),
        )
        return socket.SHUT_RDWR if was_suspect and connection.is_suspect else None

    def _warn_if_full(self, count: int) -> None:
        is_full = count >= self._most
        if is_full and not self._is_full:
            log.warning(
                "%d connections are open, and no more are accepted until some of them close (worker_connections)", count
            )
        self._is_full = is_full


class _Body:
    """The body of a request, which notes while it is waited for. Its methods are those of ``wsgi.input``."""

    def __init__(self, body: Any, connection: Connection) -> None:
        self._body = body
        self._connection = connection

    def read(self, *size: int) -> bytes:
        return self._wait_for(self._body.read, *size)

    def readline(self, *size: int) -> bytes:
        return self._wait_for(self._body.readline, *size)

    def readlines(self, *hint: int) -> list[bytes]:
        return list(self)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    def _wait_for(self, read: Callable[..., bytes], *size: int) -> bytes:
        connection = self._connection
        connection.is_reading = True
        try:
            return read(*size)
        finally:
            connection.is_reading = False
            if connection.late_after:
                raise RequestTimeout(f"the body did not arrive within {connection.late_after:g} s (receive_timeout)")


def connections_within(files: int, threads: int) -> int:
    """Return how many connections a process with ``threads`` may have, if it may open so many ``files``.

    Each thread may have two more open: one to wait for its client, one for what it asks another service or a store.
    """
    most = threads + IDLE_FILES
    if files == resource.RLIM_INFINITY:
        return most
    return max(threads, min(most, files - OTHER_FILES - 2 * threads))


def raise_file_limit() -> int:
    """Let this process and its children open as many files as the system lets them; return how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
