"""The mock of a server with OpenAI's API that every gateway is in front of: ``python -m bench.gateways.backend PORT``.

It reads of a request only what its answer depends on, and its answers are made once, so that it takes little of the
machine: some 20 microseconds for a whole answer. A word in the prompt says how a stream is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import re
import sys
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


class Backend(asyncio.Protocol):
    """One connection. Requests on it are answered in turn."""

    def __init__(self) -> None:
        """Wait for a connection."""
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        """Stop to answer."""
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Answer each request that is whole."""
        self._received += data
        while (body := self._next_body()) is not None:
            self._respond(body)

    def _next_body(self) -> bytes | None:
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            return None
        if _CHUNKED.search(head):
            body, end, rest = rest.partition(b"0\r\n\r\n")
            if not end:
                return None
        else:
            found = _LENGTH.search(head)
            length = int(found[1]) if found else 0
            if len(rest) < length:
                return None
            body, rest = rest[:length], rest[length:]
        self._received = rest
        return body

    def _respond(self, body: bytes) -> None:
        transport = self._transport
        if transport is None:
            return
        if not body:
            transport.write(_LIST)
            return
        if not _STREAM.search(body):
            transport.write(_answer())
            return
        found = _WAY.search(body)
        way = found[0].decode() if found else EVENTS
        if way == SLOW:
            self._send_by_clock(_writes(way), 0, asyncio.get_running_loop().time())
        else:
            self._send(_writes(way), 0)

    def _send(self, writes: Sequence[bytes], number: int) -> None:
        if self._transport is None:
            return
        self._transport.write(writes[number])
        if number + 1 < len(writes):
            asyncio.get_running_loop().call_soon(self._send, writes, number + 1)

    def _send_by_clock(self, writes: Sequence[bytes], number: int, began: float) -> None:
        if self._transport is None:
            return
        self._transport.write(writes[number])
        if number + 1 < len(writes):
            due = began + (number + 1) * PACE
            asyncio.get_running_loop().call_at(due, self._send_by_clock, writes, number + 1, began)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Backend, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


def main() -> None:
    """Serve until the process is stopped."""
    gc.disable()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(int(sys.argv[1])))


if __name__ == "__main__":
    main()
