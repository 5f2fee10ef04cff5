"""A server on a bare socket that does what a script says: hangs, breaks off, talks nonsense, answers in odd pieces."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

DELTA_TYPE = "application/x-model-output-delta"
STREAM_TYPE = "application/octet-stream"


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Peer:
    """One connection, as a script sees it, with the request that came on it last."""

    def __init__(self, sock: socket.socket, request: Request, number: int) -> None:
        """``number`` counts the requests of the server, from 1."""
        self.sock = sock
        self.request = request
        self.number = number

    def send(self, *parts: bytes) -> None:
        """Send ``parts``, each in a packet of its own as far as that can be had."""
        for part in parts:
            self.sock.sendall(part)

    def wait_hung_up(self) -> None:
        """Do nothing until the client hangs up, or the server is closed."""
        with suppress(OSError):
            while self.sock.recv(4096):
                pass

    def reset(self) -> None:
        """Break the connection off as a host does that has lost it all: with a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


Script = Callable[[Peer], bool | None]
"""What to do with a request. Where it returns True, the connection is kept for another."""


class Faulty:
    """Runs a script for every request, each connection in a thread of its own. `close` it."""

    def __init__(self, script: Script, path: Path | None = None, tls: ssl.SSLContext | None = None) -> None:
        """Listen on a free port of the loopback, or on a unix socket at ``path``."""
        self.script = script
        self.requests: list[Request] = []
        self._tls = tls
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.connections = 0
        """How many were accepted."""
        self.reads_bodies = True
        """Whether a request is read whole before the script runs."""
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
            scheme = "http" if tls is None else "https"
            self.url = f"{scheme}://localhost:{self._listener.getsockname()[1]}/api"
        else:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(str(path))
            self._listener.listen(512)
            self.url = f"http+unix://{quote(str(path), safe='')}/api"
        self._acceptor = threading.Thread(target=self._accept, name="faulty", daemon=True)
        self._acceptor.start()

    @property
    def open_connections(self) -> int:
        with self._lock:
            return len(self._open)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._open.add(sock)
                thread = threading.Thread(target=self._serve, args=(sock,), name="faulty-peer", daemon=True)
                self._threads.append(thread)
            thread.start()

    def _serve(self, plain: socket.socket) -> None:
        sock = plain
        try:
            if self._tls is not None:
                sock = self._tls.wrap_socket(plain, server_side=True)
                with self._lock:
                    self._open.discard(plain)
                    self._open.add(sock)
            while (request := _read_request(sock, self.reads_bodies)) is not None:
                with self._lock:
                    self.requests.append(request)
                    number = len(self.requests)
                if not self.script(Peer(sock, request, number)):
                    return
        except OSError:
            pass  # the client has gone: mostly that is the point
        finally:
            with self._lock:
                self._open.discard(sock)
                self._open.discard(plain)
            sock.close()

    def close(self) -> None:
        """End everything, also what hangs."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(10)
        with self._lock:
            still_open = list(self._open)
        for sock in still_open:
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), "a script of the faulty server does not end"


@contextmanager
def faulty(script: Script, path: Path | None = None, tls: ssl.SSLContext | None = None) -> Iterator[Faulty]:
    """Give a server that runs ``script``, and close it."""
    server = Faulty(script, path, tls)
    try:
        yield server
    finally:
        server.close()


def _read_request(sock: socket.socket, reads_body: bool) -> Request | None:
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(65536)
        if not part:
            return None
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while reads_body and len(body) < int(headers.get("content-length", 0)):
        body += sock.recv(65536)
    method, path, _ = first.split(" ")
    return Request(method, path, headers, body)


# Parts of answers


def head(status: int = 200, *headers: str) -> bytes:
    """Return a status line and ``headers``."""
    return "\r\n".join([f"HTTP/1.1 {status} Some Reason", *headers, "", ""]).encode("latin-1")


def stream_head(*headers: str, content_type: str = DELTA_TYPE) -> bytes:
    return head(200, f"Content-Type: {content_type}", "Transfer-Encoding: chunked", *headers)


def http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


LAST = b"0\r\n\r\n"


def output(text: str, **more: Any) -> bytes:
    """Return a ModelOutput with its NUL: a new piece, unless ``incremental`` is False."""
    fields = {"text": text, "error_code": 0, "incremental": True, "finish_reason": None, "usage": None, **more}
    return json.dumps(fields, ensure_ascii=False).encode() + b"\0"


def whole(status: int, body: Any, *headers: str, content_type: str = "application/json") -> bytes:
    """Return an answer with a length; ``body`` is JSON unless it is bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head(status, f"Content-Type: {content_type}", f"Content-Length: {len(data)}", *headers) + data


def streamed(*outputs: bytes, headers: Sequence[str] = (), content_type: str = DELTA_TYPE) -> bytes:
    """Return a whole stream, each of ``outputs`` in a chunk of HTTP of its own."""
    return stream_head(*headers, content_type=content_type) + b"".join(map(http_chunk, outputs)) + LAST


# Scripts


def says(*parts: bytes, keep: bool = True) -> Script:
    """Send ``parts`` as the answer to every request."""

    def script(peer: Peer) -> bool:
        peer.send(*parts)
        return keep

    return script


def dribbles(data: bytes, size: int = 1) -> Script:
    """Send ``data`` in packets of ``size`` bytes: boundaries fall anywhere, also within a character."""

    def script(peer: Peer) -> bool:
        peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.send(*(data[at : at + size] for at in range(0, len(data), size)))
        return True

    return script


def breaks_off(*parts: bytes) -> Script:
    """Send ``parts``, then close the connection."""
    return says(*parts, keep=False)


def resets(*parts: bytes) -> Script:
    """Send ``parts``, then break the connection off with a RST."""

    def script(peer: Peer) -> None:
        peer.send(*parts)
        peer.reset()

    return script


def stalls(*parts: bytes) -> Script:
    """Send ``parts``, then nothing more; the connection stays open. Without parts: accept and never answer."""

    def script(peer: Peer) -> None:
        peer.send(*parts)
        peer.wait_hung_up()

    return script


def in_turn(*scripts: Script) -> Script:
    """Run another script for each request; the last one for all that follow."""
    return lambda peer: scripts[min(peer.number, len(scripts)) - 1](peer)
