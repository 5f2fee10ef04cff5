"""A listener in the place of a server that was killed: counts the requests that are still sent there."""

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
            # The last of a group that was killed may hold it a little longer than the first.
            if time.monotonic() > deadline:
                raise ServerFailed(f"port {port} of what was killed does not become free: {error}") from error
            time.sleep(0.001)


class DeadAddress:
    """Accepts, notes what comes and when, answers nothing, hangs up. Leave it as a context manager."""

    def __init__(self, port: int) -> None:
        """Listen on ``port`` of the loopback, as soon as nobody has it any more. Raises ServerFailed."""
        self._listener = _listener(port)
        self._ended = False
        self.began = time.monotonic()
        self.requests: list[float] = []
        """When a request came: a POST. A GET is a probe whether the address is back."""
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
