"""Clients of the wire: DB-GPT's stream loop, and a connection by hand, for what no library lets happen."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple

import requests

DELTA = {"Accept": "application/x-model-output-delta"}
NO_WAIT = {"Prefer": "wait=0"}


def outputs(response: requests.Response) -> Iterator[dict[str, Any]]:
    """Yield the chunks of a stream as DB-GPT's clients read them: split at NUL, empty ones skipped, JSON each."""
    rest = b""
    while data := response.raw.read1(65536):
        *whole, rest = (rest + data).split(b"\0")
        for chunk in whole:
            if chunk:
                yield json.loads(chunk)
    assert rest == b"", f"the stream broke off inside a chunk: {rest!r}"


def chunks_of(body: bytes) -> list[dict[str, Any]]:
    """Return the chunks of a whole body, each of which ended in NUL."""
    assert body.endswith(b"\0"), body[-100:]
    return [json.loads(chunk) for chunk in body.split(b"\0") if chunk]


class Head(NamedTuple):
    """The status line and headers of an answer; names in lower case."""

    version: str
    status: int
    headers: dict[str, str]


class Connection:
    """One HTTP connection, spoken to by hand. `close` it, `reset` it, or use it in a ``with``."""

    def __init__(self, port: int, timeout: float = 20.0, receive_buffer: int | None = None) -> None:
        """Connect; ``receive_buffer`` bytes at most lie here unread."""
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(timeout)
        self.sock.connect(("127.0.0.1", port))
        self._reader = self.sock.makefile("rb")

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        version: str = "1.1",
    ) -> None:
        """Send a request; ``body`` is JSON unless it is bytes. A path without a slash is one of the worker API."""
        self.sock.sendall(request_bytes(method, path, body, headers, version))

    def read_head(self) -> Head:
        """Read a status line and headers; ConnectionError where the connection ends instead."""
        line = self._reader.readline().decode("latin-1").strip()
        if not line:
            raise ConnectionError("the server closed the connection without an answer")
        version, status, *_ = line.split(" ", 2)
        headers = {}
        while line := self._reader.readline().decode("latin-1").strip():
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        return Head(version, int(status), headers)

    def read_http_chunk(self) -> bytes:
        """Read one chunk of a chunked body; empty at its end."""
        size = int(self._reader.readline().split(b";")[0], 16)
        data = self._reader.read(size)
        self._reader.readline()
        return data

    def read_body(self, head: Head) -> bytes:
        """Read the whole body of an answer, however it is framed."""
        if head.headers.get("transfer-encoding") == "chunked":
            whole = b""
            while data := self.read_http_chunk():
                whole += data
            return whole
        if "content-length" in head.headers:
            return self._reader.read(int(head.headers["content-length"]))
        return self._reader.read()

    def read_answer(self) -> tuple[Head, bytes]:
        head = self.read_head()
        return head, self.read_body(head)

    def read_rest(self) -> bytes:
        """Read until the server ends the connection."""
        return self._reader.read()

    def ends(self) -> bool:
        """Return whether the server ends the connection now: nothing more to read."""
        try:
            return self._reader.read(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        """Hang up as a program that ends does: with a FIN."""
        self._reader.close()
        self.sock.close()

    def reset(self) -> None:
        """Hang up as a host that has lost it all does: with a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def request_bytes(
    method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, version: str = "1.1"
) -> bytes:
    """Return a request as it goes over the wire."""
    payload = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path if path.startswith('/') else '/api/worker/' + path} HTTP/{version}", "Host: here"]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(payload)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + payload
