"""Connection: one socket to a server, over TCP, TLS or a unix socket. It knows nothing of HTTP, and can be aborted."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import threading
import time
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from ..sockets import is_quiet

TICK = 1.0
RECEIVE_SIZE = 64 * 1024
_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """Where a server listens. For a unix socket ``host`` is its path, and ``port`` 0."""

    scheme: str
    host: str
    port: int

    @property
    def netloc(self) -> str:
        """Host and port as a Host header says them."""
        if self.scheme == "http+unix":
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        """Return the address for people."""
        return f"unix:{self.host}" if self.scheme == "http+unix" else f"{self.scheme}://{self.netloc}"


@lru_cache(maxsize=4096)
def parse_url(url: str) -> tuple[Origin, str]:
    """Return where ``url`` leads to, and the target of the request. ValueError where it is no URL of ours."""
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not target.isascii() or not target.isprintable() or " " in target or parts.fragment:
        raise ValueError(f"{url!r} is no address: the path must be quoted")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"the address of {parts.hostname} has a name or password in it: give a token instead")
    if parts.scheme == "http+unix":
        path = unquote(parts.netloc)
        if not path.startswith("/"):
            raise ValueError(f"{url!r} is no address: expected http+unix://%2Fpath%2Fof.sock/...")
        return Origin(parts.scheme, path, 0), target
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError(f"{url!r} is no address: expected http://, https:// or http+unix://")
    return Origin(parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme]), target


class Aborted(Exception):
    """`Connection.abort` was called before there was a socket."""


class Connection:
    """One thread at a time uses it, whoever has it closes it; only `abort` may come from another thread."""

    __slots__ = ("_aborted", "_in_kernel", "_lock", "_sock", "_timeout", "_timeouts", "idle_since", "origin")

    def __init__(self, origin: Origin) -> None:
        """Make one that is not connected yet."""
        self.origin = origin
        self.idle_since = 0.0
        self._lock = threading.Lock()
        self._sock: Any = None
        self._timeout: float | None = 0.0
        self._in_kernel = False
        self._timeouts: dict[int, float] = {}
        self._aborted = False

    def connect(self, timeout: float, tls: ssl.SSLContext | None) -> None:
        """Connect within ``timeout`` seconds, to whichever of the host's addresses answers. Raises OSError, Aborted.

        Looking a name up takes as long as the system's resolver lets it.
        """
        scheme, host, port = self.origin
        addresses: list[tuple[Any, Any]] = [(socket.AF_UNIX, host)]
        if scheme != "http+unix":
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = [(family, address) for family, _, _, _, address in found]
        deadline = time.monotonic() + timeout
        for number, (family, address) in enumerate(addresses, 1):
            try:
                return self._connect_to(family, address, deadline, tls)
            except OSError:
                self.close()
                if number == len(addresses) or time.monotonic() >= deadline:
                    raise

    def _connect_to(self, family: int, address: Any, deadline: float, tls: ssl.SSLContext | None) -> None:
        sock = socket.socket(family, socket.SOCK_STREAM)
        self._hold(sock)
        self._set_timeout(max(0.001, deadline - time.monotonic()))
        sock.connect(address)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            # The handshake comes after it is held, so that it can be aborted too.
            self._hold(tls.wrap_socket(sock, server_hostname=self.origin.host, do_handshake_on_connect=False))
            self._sock.do_handshake()
        else:
            self._set_timeout(None)
            # Not under gevent, whose sockets never block.
            self._in_kernel = os.get_blocking(sock.fileno())

    def _hold(self, sock: Any) -> None:
        with self._lock:
            if self._aborted:
                sock.close()
                raise Aborted
            self._sock = sock

    def _set_timeout(self, seconds: float | None) -> None:
        if seconds != self._timeout:
            self._sock.settimeout(seconds)
            self._timeout = seconds

    def _bound(self, option: int, seconds: float) -> None:
        """Bound the next wait, in the kernel where that can be: a timeout of Python's costs a poll a call."""
        if not self._in_kernel:
            self._set_timeout(seconds)
        elif seconds != self._timeouts.get(option):
            timeval = struct.pack("ll", int(seconds), max(1, int(seconds % 1 * 1_000_000)))
            self._sock.setsockopt(socket.SOL_SOCKET, option, timeval)
            self._timeouts[option] = seconds

    def send(self, data: bytes, timeout: float) -> None:
        """Send all of ``data``, of which some must be taken every ``timeout`` seconds. Raises OSError."""
        self._bound(socket.SO_SNDTIMEO, timeout)
        try:
            self._sock.sendall(data)
        except BlockingIOError:
            raise TimeoutError("timed out") from None

    def receive(self, timeout: float) -> bytes | None:
        """Return what is there, b"" at the end, or None where nothing came within ``timeout`` seconds.

        Raises OSError.
        """
        self._bound(socket.SO_RCVTIMEO, timeout)
        try:
            data: bytes = self._sock.recv(RECEIVE_SIZE)
        except (TimeoutError, BlockingIOError):
            return None
        return data

    def is_quiet(self) -> bool:
        """Return whether the server has neither closed it nor sent what nobody asked for."""
        return is_quiet(self._sock.fileno())

    def abort(self) -> None:
        """End whatever another thread does with it, now: connecting, sending or receiving fail there."""
        with self._lock:
            self._aborted = True
            if self._sock is not None:
                with suppress(OSError):
                    # Not the TLS socket's own: it would let the reader go on in plain text.
                    socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    @property
    def is_aborted(self) -> bool:
        """Whether `abort` was called: then it is of no use any more."""
        return self._aborted

    def close(self) -> None:
        """Close the socket; a second call does nothing."""
        with self._lock:
            sock, self._sock = self._sock, None
            if sock is not None:
                sock.close()
            self._timeout = 0.0
