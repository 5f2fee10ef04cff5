"""The mock of a server with OpenAI's API that every gateway is in front of: ``python -m bench.gateways.backend PORT``.

It reads of a request only what its answer depends on, and its answers are made once, so that it takes little of the
machine: some 12 microseconds for a whole answer. A word in the prompt says how a stream is sent.
"""

from __future__ import annotations

import contextlib
import gc
import heapq
import json
import re
import select
import socket
import sys
import time
from collections.abc import Sequence
from functools import cache

MODEL = "mock"
EVENTS = "[events]"
"""Send each event in a write of its own, as soon as the one before has left."""
BURSTS = "[bursts]"
"""Send events in writes of `BURST`."""
SLOW = "[slow]"
"""Send an event each `PACE` seconds, by the clock; the events of the end in one write, as servers do."""

PIECES = 64
BURST = 16
PACE = 0.1
SLOW_PIECES = 80
_END = 3
"""The events of the end: the reason, the usage, and ``[DONE]``."""

_WAY = re.compile(rb"\[(?:events|bursts|slow)\]")
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:\s*chunked", re.IGNORECASE)
_STREAM = re.compile(rb'"stream"\s*:\s*true')
_USAGE = {"prompt_tokens": 9, "completion_tokens": PIECES, "total_tokens": 9 + PIECES}
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
_LAST = b"0\r\n\r\n"
_READ = 262_144


def _whole(value: object) -> bytes:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@cache
def _answer() -> bytes:
    message = {"role": "assistant", "content": " token" * PIECES}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return _whole({**_header("chat.completion"), "choices": [choice], "usage": _USAGE})


def _header(kind: str) -> dict[str, object]:
    return {"id": "chatcmpl-0123456789abcdef", "object": kind, "created": 1_764_000_000, "model": MODEL}


def _chunks(pieces: int) -> list[bytes]:
    """Return the events of a stream, each as a chunk of HTTP: the role, the pieces, the end with the usage."""
    header = _header("chat.completion.chunk")
    deltas: list[dict[str, object]] = [{"role": "assistant", "content": ""}, *[{"content": " token"}] * pieces]
    choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"})
    events = [json.dumps({**header, "choices": [choice]}) for choice in choices]
    events += [json.dumps({**header, "choices": [], "usage": _USAGE}), "[DONE]"]
    return [_chunk(f"data: {event}\n\n".encode()) for event in events]


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@cache
def _writes(way: str) -> list[bytes]:
    """Return the writes of a stream, head and end included."""
    chunks = _chunks(SLOW_PIECES if way == SLOW else PIECES)
    size = BURST if way == BURSTS else 1
    writes = [b"".join(chunks[first : first + size]) for first in range(0, len(chunks), size)]
    if way == SLOW:
        writes[-_END:] = [b"".join(writes[-_END:])]
    writes[0] = _STREAM_HEAD + writes[0]
    writes[-1] += _LAST
    return writes


_LIST = _whole({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "mock"}]})


class Connection:
    """One connection. Requests on it are answered in turn."""

    def __init__(self, sock: socket.socket) -> None:
        """Take requests from ``sock``."""
        self.sock = sock
        self._received = b""
        self._unsent = b""
        self.writes: Sequence[bytes] = ()
        """The writes of the stream that is under way, of which ``written`` were sent."""
        self.written = 0
        self.began = 0.0
        """When a slow stream began; 0 for one without pauses."""

    def receive(self) -> bool:
        """Read what has come; return whether the connection is still open."""
        try:
            data = self.sock.recv(_READ)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._received += data
        return bool(data)

    def next_body(self) -> bytes | None:
        """Return the body of the next request that is whole, empty for a GET; None if there is none."""
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            return None
        if found := _LENGTH.search(head):
            length = int(found[1])
            if len(rest) < length:
                return None
            body, rest = rest[:length], rest[length:]
        elif _CHUNKED.search(head):
            body, end, rest = rest.partition(b"0\r\n\r\n")
            if not end:
                return None
        else:
            body = b""
        self._received = rest
        return body

    def send(self, data: bytes) -> bool:
        """Send ``data`` behind what was not sent yet; return whether all of it has left. Raises OSError."""
        data = self._unsent + data
        try:
            count = self.sock.send(data)
        except BlockingIOError:
            count = 0
        self._unsent = data[count:]
        return not self._unsent


class Backend:
    """Answers all connections in one thread."""

    def __init__(self, port: int) -> None:
        """Listen on ``port``."""
        self._listener = socket.create_server(("127.0.0.1", port), backlog=2048)
        self._listener.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._open: dict[int, Connection] = {}
        self._streaming: dict[int, Connection] = {}
        """Those with a stream without pauses."""
        self._slow: list[tuple[float, int, Connection]] = []
        """A heap of those with a slow stream, by the time of the next write."""

    def serve(self) -> None:
        """Answer until the process is stopped."""
        while True:
            for fd, events in self._epoll.poll(self._patience()):
                if fd == self._listener.fileno():
                    self._accept()
                elif connection := self._open.get(fd):
                    self._attend(fd, connection, events)
            for fd, connection in list(self._streaming.items()):
                if not self._write_next(fd, connection):
                    self._streaming.pop(fd, None)
            now = time.monotonic()
            while self._slow and self._slow[0][0] <= now:
                _, fd, connection = heapq.heappop(self._slow)
                if self._open.get(fd) is connection and self._write_next(fd, connection):
                    due = connection.began + connection.written * PACE
                    heapq.heappush(self._slow, (due, fd, connection))

    def _patience(self) -> float:
        if self._streaming:
            return 0.0
        return max(0.0, self._slow[0][0] - time.monotonic()) if self._slow else -1

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = self._listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open[sock.fileno()] = Connection(sock)
                self._epoll.register(sock, select.EPOLLIN)

    def _attend(self, fd: int, connection: Connection, events: int) -> None:
        if events & select.EPOLLOUT and self._send(fd, connection, b""):
            self._epoll.modify(fd, select.EPOLLIN)
            if connection.written < len(connection.writes) and not connection.began:
                self._streaming[fd] = connection
        if not events & ~select.EPOLLOUT:
            return
        if not connection.receive():
            self._close(fd)
            return
        while fd in self._open and (body := connection.next_body()) is not None:
            self._respond(fd, connection, body)

    def _respond(self, fd: int, connection: Connection, body: bytes) -> None:
        if not _STREAM.search(body):
            self._send(fd, connection, _answer() if body else _LIST)
            return
        found = _WAY.search(body)
        way = found[0].decode() if found else EVENTS
        connection.writes, connection.written, connection.began = _writes(way), 0, 0.0
        if way == SLOW:
            connection.began = time.monotonic()
            heapq.heappush(self._slow, (connection.began, fd, connection))
        else:
            self._streaming[fd] = connection

    def _write_next(self, fd: int, connection: Connection) -> bool:
        """Send the next write of a stream; return whether another may be sent."""
        data = connection.writes[connection.written]
        connection.written += 1
        has_left = self._send(fd, connection, data)
        return connection.written < len(connection.writes) and (has_left or connection.began > 0)

    def _send(self, fd: int, connection: Connection, data: bytes) -> bool:
        """Send ``data``, at once or when there is room; return whether it has left."""
        try:
            if connection.send(data):
                return True
            self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT)
        except OSError:
            self._close(fd)
        return False

    def _close(self, fd: int) -> None:
        self._streaming.pop(fd, None)
        if (connection := self._open.pop(fd, None)) is not None:
            connection.writes = ()
            connection.sock.close()


def main() -> None:
    """Serve until the process is stopped."""
    gc.disable()
    with contextlib.suppress(KeyboardInterrupt):
        Backend(int(sys.argv[1])).serve()


if __name__ == "__main__":
    main()
