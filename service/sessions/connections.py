"""Connection: a urllib3 connection over TCP, TLS or a unix socket that any thread can shut down.

It makes its socket itself: so the socket can be shut down while it connects, and during the TLS handshake.
"""

from __future__ import annotations

import http.client
import io
import re
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

from urllib3.connection import HTTPConnection

from ..errors import NotConnected
from ..sockets import is_quiet
from .address import Origin
from .calls import Call, Ended, current_call
from .faults import why_not_connected

MAX_HEAD = 256 * 1024
"""The most bytes of the status line and the headers together, with all interim responses before them."""

_BUFFER = 16 * 1024
_END = b"\r\n"
"""The empty line that ends a head."""
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [^\r\n\0]*\r\n")


class Connection(HTTPConnection):
    """A connection that serves one call at a time."""

    def __init__(self, origin: Origin, keep: Callable[[Connection], object], tls: ssl.SSLContext | None = None) -> None:
        """Connect to ``origin`` when a request is sent, with ``tls`` if given.

        ``keep`` is called when another call may use the connection.
        """
        is_unix = origin.scheme == "http+unix"
        super().__init__("localhost" if is_unix else origin.host, None if is_unix else origin.port)
        self.idle_since = 0.0
        self._keep = keep
        self._origin = origin
        self._tls = tls
        self._call: Call | None = None
        self._unsent: list[bytes] | None = None
        """The parts of a request that is being made: its head, without ``_headers``, and its body; else None."""
        self._headers: list[str] = []
        """The lines of its headers."""
        self._socket: Any = None
        """The newest socket, whatever state it is in. http.client lets go of its own while a response still comes."""

    def request(self, *args: Any, **options: Any) -> None:
        """Send the request of the current call."""
        call = current_call.get()
        assert call is not None
        self._call = call
        call.was_kept = self.sock is not None
        call.hold(self)
        # Head and body in one write: a server reads them at once, and each write costs a call of the system.
        self._unsent, self._headers = [], []
        try:
            super().request(*args, **options)
            head, *body = self._unsent
            headers = "".join(self._headers).encode("latin-1")
            data = b"".join((head[: -len(_END)], headers, _END, *body))
        finally:
            self._unsent = None
        # A server may answer before it has read all, and read no more.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.send(data)

    def putheader(self, header: Any, *values: Any) -> None:
        """Add a header to the request. Raises ValueError if it can't be sent."""
        # That of urllib3 and http.client takes eight calls for each.
        (value,) = values
        if isinstance(value, bytes):  # a Host that http.client has encoded
            value = value.decode("latin-1")
        line = f"{header}: {value}\r\n"
        if not _HEADER.fullmatch(line):
            raise ValueError(f"the header {header!r} can't be sent: a name is a word, and a value has one line")
        self._headers.append(line)

    def connect(self) -> None:
        """Connect within ``timeout`` seconds, to any of the host's addresses. Raises NotConnected, Ended.

        The look-up of a name takes as long as the system's resolver allows.
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
        """Make ``sock`` the socket that `shut_down` ends. Raises Ended if the call was ended before."""
        self._socket = sock
        if self._call is not None and self._call.has_ended:
            raise Ended

    def send(self, data: Any) -> None:
        """Send ``data``. Each write must make progress within the call's ``read_timeout``."""
        if self._unsent is not None:
            self._unsent.append(data)
            return
        if self.sock is None:
            self.connect()
        assert self._call is not None
        # Until now the socket has the timeout for connecting.
        self._socket.settimeout(self._call.read_timeout)
        # At first `send`, which is all for a small request: gevent's `sendall` costs some more calls.
        if (count := self._socket.send(data)) < len(data):
            self._socket.sendall(memoryview(data)[count:])

    @property
    def is_connected(self) -> bool:
        """Whether another request may follow: the server has not closed it, and has sent nothing unexpected."""
        return self.sock is not None and is_quiet(self.sock.fileno())

    def shut_down(self) -> None:
        """End it at once from any thread: connecting, sending and receiving fail in the thread that uses it."""
        if self._socket is not None:
            with suppress(OSError):
                # Not the method of the TLS socket: after that its reader would continue in plain text.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def finish_call(self, *, is_whole: bool) -> None:
        """Go on without its call, whose response has come as a whole, or not; without another call to follow close it.

        The call has let it go before: so ending a call never hits another call.
        """
        call, self._call = self._call, None
        is_clean = is_whole and call is not None and call.incoming is not None and not call.incoming.left_over
        if call is None or not is_clean or self.sock is None or not call.keep or call.has_ended:
            self.close()
        else:
            self.idle_since = time.monotonic()
            self._keep(self)


class TLSConnection(Connection):
    """A `Connection` whose default port is 443: the Host header leaves it out."""

    default_port: ClassVar[int] = 443  # type: ignore[misc]  # as in urllib3's own


class _Wire:
    """A connected socket as urllib3 and http.client use it, whose `makefile` is an `Incoming`."""

    def __init__(self, sock: Any) -> None:
        self._socket = sock
        self.fileno = sock.fileno
        self.shutdown = sock.shutdown
        self.close = sock.close

    def makefile(self, mode: str) -> Incoming:
        """Return the bytes of the next response."""
        call = current_call.get()
        assert call is not None
        call.incoming = Incoming(_Source(self._socket, call))
        return call.incoming

    def settimeout(self, timeout: float | None) -> None:
        """Do nothing: each write and read sets the limit of its call."""


class HeadTooLong(http.client.HTTPException):
    """The status line and headers of a response do not end, or interim responses never stop."""


class HeadBrokenOff(http.client.HTTPException):
    """A response ends within its headers: http.client would take the headers that came for all."""


class _Source(io.RawIOBase):
    """The bytes of a socket, counted."""

    def __init__(self, sock: Any, call: Call) -> None:
        self._socket = sock
        # It keeps the socket open until the response has come, also after `http.client` has closed the socket.
        self._file = sock.makefile("rb", buffering=0)
        self._read_timeout, self._until = call.read_timeout, call.until
        self.received = 0
        self.is_in_head = True
        self.has_ended = False
        self.is_held = False
        """Whether reads return None for now: so a buffered reader shows only the bytes that it has."""
        self.patience: float | None = None
        """Seconds after which a read returns None for now; None: it raises TimeoutError after ``read_timeout``."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self.is_held:
            return None
        if self.is_in_head and self.received > MAX_HEAD:
            raise HeadTooLong(f"its headers are over {MAX_HEAD} bytes")
        timeout = self._read_timeout if self.patience is None else self.patience
        if self._until is not None:
            timeout = min(timeout, self._until - time.monotonic())
            if timeout <= 0:
                raise TimeoutError("timed out")
        self._socket.settimeout(timeout)
        try:
            count: int = self._socket.recv_into(buffer)
        except TimeoutError:
            if self.patience is None:
                raise
            return None
        if not count:
            self.has_ended = True
            if self.is_in_head and self.received:
                raise HeadBrokenOff("it ends within its headers")
        self.received += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class Incoming(io.BufferedReader):
    """The bytes of one response. It reports whether bytes are ready, and at its end whether some were left over."""

    def __init__(self, source: _Source) -> None:
        super().__init__(source, _BUFFER)
        self.source = source
        self.left_over = False
        """Whether bytes came after the response, which belong to no request."""

    def _buffered(self) -> bytes:
        self.source.is_held = True
        try:
            return self.peek(1)
        finally:
            self.source.is_held = False

    def wait(self, seconds: float) -> bool:
        """Wait until bytes or the end have come, ``seconds`` at most; return whether they have."""
        if self.closed:
            return True
        self.source.patience = seconds
        try:
            return self.peek(1) != b"" or self.source.has_ended
        finally:
            self.source.patience = None

    def read_chunks(self) -> bytes:
        """Return the content of the chunks of HTTP that have come whole.

        It ends before the last chunk, one that has not come whole, and one that is at fault: their reader is urllib3.
        """
        ahead = b"" if self.closed else self._buffered()
        contents: list[bytes] = []
        first = 0
        while (end := ahead.find(b"\r\n", first)) >= 0:
            try:
                size = int(ahead[first:end], 16)
            except ValueError:  # not a number, or one with an extension
                break
            content = ahead[end + 2 : end + 2 + size]
            after = end + 2 + size + 2
            if size <= 0 or ahead[after - 2 : after] != b"\r\n":
                break
            contents.append(content)
            first = after
        self.read(first)
        return b"".join(contents)

    def close(self) -> None:
        """Close it, and discard the bytes that were not read."""
        if not self.closed:
            self.left_over = self._buffered() != b""
        super().close()
