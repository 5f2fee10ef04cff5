"""Regions of a page that follow what happens: sent by EventSource, a few streams a process, each for a limited time.

A stream holds a thread, so they are few; the script of a page that gets none reads the page again now and then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from flask import g, request

from ...errors import ModelyardError
from ...worker.protocol import Service
from ..request.access_log import AccessLine
from ..request.calls import bound_writes, socket_of
from ..request.streaming import StreamResponse

EVENT_STREAM = "text/event-stream"
MOST = 4
"""Streams of a process."""
TICK = 2.0
"""Seconds between two looks of a stream. Without a change it sends a comment: so it finds that a client has gone."""
LIFETIME = 300.0
"""Seconds until a stream ends; a browser opens the next one by itself."""
RECONNECT = 2000
"""Milliseconds until it does."""


class LiveStreams:
    """The streams of one process. Safe to use from many threads."""

    def __init__(
        self,
        service: Service,
        *,
        tick: float,
        lifetime: float = LIFETIME,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Serve the pages of ``service``, from the threads that it keeps free for them."""
        self._service = service
        self._tick = tick
        self._lifetime = lifetime
        self._clock = clock
        self._free = threading.BoundedSemaphore(max(1, min(MOST, service.settings.reserve // 2)))

    def open(self, render: Callable[[], str], is_wanted: Callable[[], bool]) -> StreamResponse | None:
        """Return the response that sends what ``render`` returns, now and whenever it changes, while ``is_wanted``.

        None where a stream would hold the only thread of the process, or too many are open.
        """
        if not request.environ.get("wsgi.multithread") or not self._free.acquire(blocking=False):
            return None
        response = g.modelyard_stream = StreamResponse(
            _Events(self._events(render, is_wanted), self._release_at_end(), g.modelyard_line), EVENT_STREAM
        )
        return response

    def _release_at_end(self) -> Callable[[], None]:
        """Bound the writes of the current request, and return what gives its place back.

        A client that reads nothing would hold the thread until it goes.
        """
        sock = socket_of(request)
        is_timed = sock is not None and bound_writes(sock, self._service.settings.write_timeout)

        def release() -> None:
            self._free.release()
            if is_timed:
                sock.settimeout(None)

        return release

    def _events(self, render: Callable[[], str], is_wanted: Callable[[], bool]) -> Iterator[bytes]:
        end = self._clock() + self._lifetime
        yield f"retry: {RECONNECT}\n\n".encode()
        previous = ""
        while is_wanted():
            try:
                text = render()
            except ModelyardError:
                return  # what it shows has gone: the page that the browser reads then says so
            yield _event(text) if text != previous else b":\n\n"
            previous = text
            left = end - self._clock()
            if left <= 0 or self._service.wait_draining(min(self._tick, left)):
                return


class _Events:
    """The body of a stream: gives its place back when the server closes it, or an earlier error ends the request."""

    def __init__(self, events: Iterator[bytes], release: Callable[[], None], line: AccessLine) -> None:
        self._events = events
        self._release = release
        self._line = line
        self._is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        data = next(self._events)
        self._line.bytes += len(data)
        return data

    def close(self) -> None:
        """End the stream; a second call does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._release()
            self._line.write()


def _event(text: str) -> bytes:
    lines = "".join(f"data: {line}\n" for line in text.splitlines())
    return f"{lines}\n".encode()
