"""A listener at the address of a killed server: it counts the requests that are still sent there."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import TracebackType

from .processes import ServerFailed

WAIT = 0.5
FREE_WITHIN = 5.0


def _listener(port: int) -> socket.socket:
    deadline = time.monotonic() + FREE_WITHIN
    while True:
        try:
            return socket.create_server(("127.0.0.1", port), backlog=128)
        except OSError as error:
            # The last process of a killed group may hold the port a little longer than the first.
            if time.monotonic() > deadline:
                raise ServerFailed(f"port {port} of the killed server does not become free: {error}") from error
            time.sleep(0.001)


class DeadAddress:
    """Accepts connections, notes requests and their times, and hangs up. Use it as a context manager."""

    def __init__(self, port: int) -> None:
        """Listen on ``port`` of the loopback as soon as it is free. Raises ServerFailed."""
        self._listener = _listener(port)
        self._ended = False
        self.began = time.monotonic()
        self.requests: list[float] = []
        """The times of requests, which are POSTs. A GET is a probe."""
        self.probes = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended:
            with contextlib.suppress(OSError):
                connection, _ = self._listener.accept()
                with connection:
                    connection.settimeout(WAIT)
                    head = connection.recv(64)
                    if head.startswith(b"POST"):
                        self.requests.append(time.monotonic())
                    elif head:
                        self.probes += 1

    def close(self) -> None:
        """Stop listening."""
        self._ended = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(2 * WAIT)

    def __enter__(self) -> DeadAddress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
