"""Connection: one of urllib3's to a server, over TCP, TLS or a unix socket, that can be shut down from any thread.

It connects by itself, as only so the socket is there before it is connected, and before TLS shakes hands.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from contextlib import suppress
from typing import Any, ClassVar

from urllib3.connection import HTTPConnection

from ..errors import NotConnected
from ..sockets import is_quiet, wait_readable
from .address import Origin
from .calls import Call, Ended, current_call
from .faults import why_not_connected

MAX_HEAD = 256 * 1024
"""Bytes that status line and headers may have together, with all interim ones before them."""

_BUFFER = 16 * 1024


class Connection(HTTPConnection):
    """One call at a time goes over it."""

    def __init__(self, *args: Any, origin: Origin, tls: ssl.SSLContext | None = None, **options: Any) -> None:
        """Connect to ``origin`` when a request is sent, with ``tls`` where that is given."""
        super().__init__(*args, **options)
        self.idle_since = 0.0
        self._origin = origin
        self._tls = tls
        self._call: Call | None = None
        self._socket: Any = None
        """The newest socket, whatever state it is in. http.client lets go of its own while a response still comes."""

    def request(self, *args: Any, **options: Any) -> None:
        """Send the request of the current call."""
        call = current_call()
        assert call is not None
        self._call = call
        call.was_kept = self.sock is not None
        call.hold(self)
        super().request(*args, **options)

    def connect(self) -> None:
        """Connect within ``timeout`` seconds, to any of the host's addresses. Raises NotConnected, Ended.

        Looking a name up takes as long as the system's resolver lets it.
        """
        try:
            self._connect()
        except (OSError, UnicodeError) as error:
            why = why_not_connected(error, self.timeout or 0)
            raise NotConnected(f"{self._origin} {why}") from error
        self.sock = _Wire(self._socket)

    def _connect(self) -> None:
        addresses: list[tuple[int, Any]] = [(socket.AF_UNIX, self._origin.host)]
        if self._origin.scheme != "http+unix":
            results = socket.getaddrinfo(self._origin.host, self._origin.port, type=socket.SOCK_STREAM)
            addresses = [(family, address) for family, _, _, _, address in results]
        deadline = time.monotonic() + (self.timeout or 0)
        for number, (family, address) in enumerate(addresses, 1):
            try:
                return self._connect_to(family, address, deadline)
            except BaseException as error:
                if self._socket is not None:
                    self._socket.close()
                is_last = number == len(addresses) or time.monotonic() >= deadline
                if is_last or not isinstance(error, OSError) or (self._call is not None and self._call.has_ended):
                    raise

    def _connect_to(self, family: int, address: Any, deadline: float) -> None:
        sock = socket.socket(family, socket.SOCK_STREAM)
        self._hold(sock)
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        sock.connect(address)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            self._hold(self._tls.wrap_socket(sock, server_hostname=self._origin.host, do_handshake_on_connect=False))
            self._socket.do_handshake()
            self.is_verified = True

    def _hold(self, sock: Any) -> None:
        """Make ``sock`` the one that is shut down. Whoever ends the call sees it, or its end is seen here."""
        self._socket = sock
        if self._call is not None and self._call.has_ended:
            raise Ended

    def send(self, data: Any) -> None:
        """Send ``data``, of which some must be taken within the call's seconds of silence."""
        if self.sock is None:
            self.connect()
        assert self._call is not None
        # As `timeout` is still the one for connecting.
        self._socket.settimeout(self._call.read_timeout)
        super().send(data)

    @property
    def is_connected(self) -> bool:
        """Whether another request may follow: the server has neither closed it, nor sent what nobody asked for."""
        return self.sock is not None and is_quiet(self.sock.fileno())

    def shut_down(self) -> None:
        """End what another thread does with it, now: connecting, sending and receiving fail there."""
        if self._socket is not None:
            with suppress(OSError):
                # Not the TLS socket's own: it would let the reader go on in plain text.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def finish_call(self) -> bool:
        """Let go of its call, whose response has come; return whether another may follow."""
        call, self._call = self._call, None
        if call is None:
            return False
        call.let_go()
        self.idle_since = time.monotonic()
        is_clean = call.incoming is not None and not call.incoming.left_over
        return self.sock is not None and is_clean and call.keep and not call.has_ended


class TLSConnection(Connection):
    """The same, where a Host header without a port means 443."""

    default_port: ClassVar[int] = 443  # type: ignore[misc]  # as in urllib3's own


class _Wire:
    """A connected socket as urllib3 and http.client use it, whose `makefile` is an `Incoming`."""

    def __init__(self, sock: Any) -> None:
        self._socket = sock
        self.settimeout = sock.settimeout
        self.sendall = sock.sendall
        self.fileno = sock.fileno
        self.shutdown = sock.shutdown
        self.close = sock.close

    def makefile(self, mode: str) -> Incoming:
        """Return the bytes of the next response."""
        call = current_call()
        assert call is not None
        call.incoming = Incoming(_Source(self._socket, call))
        return call.incoming


class HeadTooLong(http.client.HTTPException):
    """A response's status line and headers do not end, or interim ones follow each other without end."""


class HeadBrokenOff(http.client.HTTPException):
    """A response ends before its headers do: http.client would take those that came for all."""


class _Source(io.RawIOBase):
    """The bytes of a socket, counted."""

    def __init__(self, sock: Any, call: Call) -> None:
        self._socket = sock
        # Its own closing keeps the socket open until the response has come, after `http.client` has closed it.
        self._raw = sock.makefile("rb", buffering=0)
        self._read_timeout, self._until = call.read_timeout, call.until
        self.received = 0
        self.is_in_head = True
        self.is_held = False
        """Whether nothing is received for now: so that a reader shows what it has."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self.is_held:
            return None
        if self.is_in_head and self.received > MAX_HEAD:
            raise HeadTooLong(f"its headers are over {MAX_HEAD} bytes")
        if self._until is not None:
            left = self._until - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            self._socket.settimeout(min(left, self._read_timeout))
        count: int = self._raw.readinto(buffer)
        if not count and self.is_in_head and self.received:
            raise HeadBrokenOff("it ends within its headers")
        self.received += count
        return count

    def wait(self, seconds: float) -> bool:
        pending = getattr(self._socket, "pending", None)
        return bool(pending is not None and pending()) or wait_readable(self._socket.fileno(), seconds)

    def close(self) -> None:
        self._raw.close()
        super().close()


class Incoming(io.BufferedReader):
    """The bytes of one response: it can be asked whether there are any, and says at its end whether some were left."""

    def __init__(self, source: _Source) -> None:
        super().__init__(source, _BUFFER)
        self.source = source
        self.left_over = False
        """Whether bytes came behind the response, which nobody asked for."""

    def _buffered(self) -> bytes:
        self.source.is_held = True
        try:
            return self.peek(1)
        finally:
            self.source.is_held = False

    def has_more(self, *, end: bool = True) -> bool:
        """Return whether more of the body is here already; with ``end`` its end counts too."""
        if self.closed:
            return False
        ahead = self._buffered()
        if ahead.startswith(b"\r\n"):  # the end of a chunk of HTTP, and perhaps the size of the next
            return b"\n" in ahead[2:] and (end or not ahead.startswith(b"\r\n0\r\n"))
        return ahead not in (b"", b"\r")

    def wait(self, seconds: float) -> bool:
        """Wait ``seconds`` at most until something, or the end, can be read without blocking; return whether it can."""
        return self.closed or self.has_more() or self.source.wait(seconds)

    def close(self) -> None:
        """Close it; what it still has is given up."""
        if not self.closed:
            self.left_over = self._buffered() != b""
        super().close()
