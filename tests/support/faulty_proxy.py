"""A TCP proxy that fails when it is told to, and notes the requests that pass: the network between two services."""

from __future__ import annotations

import re
import socket
import threading
from contextlib import suppress
from types import TracebackType

_REQUEST = re.compile(rb"(GET|POST|DELETE) (\S+) HTTP/1\.1\r\n")


class Proxy:
    """Listens on the loopback. Without a target it accepts connections, reads requests, and never answers."""

    def __init__(self, target: int | None = None, port: int = 0) -> None:
        """Pass what comes on to the port ``target``; ``close`` it in the end, or use it in a ``with``."""
        self.target = target
        self.requests: list[str] = []
        """Method and path of each request that came."""
        self.stalls: re.Pattern[str] | None = None
        """Requests that it matches are passed on, but nothing of an answer comes back while it is set."""
        self._changed = threading.Condition()
        self._closed = False
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = int(self._listener.getsockname()[1])
        self._threads: list[threading.Thread] = []
        self._run(self._accept)

    def _run(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, name="proxy", daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def stall(self, pattern: str = "") -> None:
        """Let no byte of an answer come back, of requests whose method and path match; those under way too."""
        self.stalls = re.compile(pattern)

    def flow(self) -> None:
        """Let all pass again, also what was held."""
        with self._changed:
            self.stalls = None
            self._changed.notify_all()

    def cut(self) -> None:
        """End every connection."""
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def posts(self) -> list[str]:
        """Return the paths of the POSTs that came: what is no probe."""
        return [line.removeprefix("POST ") for line in list(self.requests) if line.startswith("POST ")]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(client)
            latest = [""]
            server = None
            if self.target is not None:
                try:
                    server = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    client.close()
                    continue
                self._open.append(server)
                self._run(self._answer, server, client, latest)
            self._run(self._ask, client, server, latest)

    def _ask(self, client: socket.socket, server: socket.socket | None, latest: list[str]) -> None:
        while data := _received(client):
            for method, path in _REQUEST.findall(data):
                latest[0] = f"{method.decode()} {path.decode()}"
                self.requests.append(latest[0])
            if server is not None and not _sent(server, data):
                break
        if server is not None:
            with suppress(OSError):
                server.shutdown(socket.SHUT_WR)

    def _answer(self, server: socket.socket, client: socket.socket, latest: list[str]) -> None:
        while data := _received(server):
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self.stalls is None or not self.stalls.search(latest[0]))
            if not _sent(client, data):
                break
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the listener and every connection."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(5)
        for sock in self._open:
            sock.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except OSError:
        return b""


def _sent(sock: socket.socket, data: bytes) -> bool:
    try:
        sock.sendall(data)
    except OSError:
        return False
    return True
