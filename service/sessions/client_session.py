"""Sessions of requests to one address: over TCP, TLS or a unix socket. Nothing comes from the environment.

Beside what requests does, a connection remembers its socket: so an answer can be ended at once, from any thread.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from .address import Address

POOL_SIZE = 64
"""Connections that are kept for the next requests; more are made where more threads ask at once."""


class _Connection(HTTPConnection):
    held: socket.socket | None = None

    def connect(self) -> None:
        super().connect()
        self.held = self.sock


class _TLSConnection(HTTPSConnection):
    held: socket.socket | None = None

    def connect(self) -> None:
        super().connect()
        self.held = self.sock


class _UnixConnection(HTTPConnection):
    held: socket.socket | None = None

    def __init__(self, *args: Any, socket_path: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self._path = socket_path

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(self.timeout)
            sock.connect(self._path)
        except TimeoutError as error:
            sock.close()
            raise ConnectTimeoutError(self, f"no connection to {self._path} within {self.timeout} s") from error
        except OSError as error:
            sock.close()
            raise NewConnectionError(self, f"no connection to {self._path}: {error}") from error
        self.sock = self.held = sock


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class _UnixPool(HTTPConnectionPool):
    ConnectionCls = _UnixConnection


class _Adapter(HTTPAdapter):
    """Connections that remember their socket."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}


class _UnixAdapter(HTTPAdapter):
    """Connections to one unix socket, whatever host a URL names."""

    def __init__(self, path: str) -> None:
        self._pool = _UnixPool("localhost", maxsize=POOL_SIZE, socket_path=path)
        super().__init__()

    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
        return self._pool

    def get_connection(self, *args: Any, **options: Any) -> Any:  # what requests calls before 2.32
        return self._pool

    def close(self) -> None:
        self._pool.close()
        super().close()


def new_session(address: Address, headers: Mapping[str, str], ca: str | None = None) -> requests.Session:
    """Return a session for ``address`` that sends ``headers``, trusts ``ca`` if that is given, and keeps no cookies."""
    session = requests.Session()
    session.trust_env = False
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.headers.update(headers)
    if ca is not None:
        session.verify = ca
    session.mount("https://", _Adapter(pool_maxsize=POOL_SIZE))
    plain = _Adapter(pool_maxsize=POOL_SIZE) if address.socket is None else _UnixAdapter(address.socket)
    session.mount("http://", plain)
    return session


def socket_of(response: requests.Response) -> socket.socket | None:
    """Return the socket that an answer comes over; None where it has come whole."""
    found: socket.socket | None = getattr(getattr(response.raw, "connection", None), "held", None)
    return found


def hang_up(sock: socket.socket | None) -> None:
    """End a connection now, also while another thread reads from it, or another process has inherited it."""
    if sock is not None:
        with suppress(OSError):
            # Not the TLS socket's own: it would let the reader go on in plain text.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


def never_connected(error: requests.RequestException) -> bool:
    """Return whether the server can't have seen anything of the request."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(error, requests.ConnectTimeout) or isinstance(reason, NewConnectionError)


def reason_of(error: BaseException) -> str:
    """Return what the operating system said, which requests hides four exceptions deep."""
    seen: list[BaseException] = []
    inner: BaseException | None = error
    while inner is not None and inner not in seen:
        seen.append(inner)
        if isinstance(inner, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {inner.verify_message}"
        if isinstance(inner, ssl.SSLError):  # whose errno is none of the operating system's
            return f"it does not speak TLS as expected: {inner.reason or inner}"
        if isinstance(inner, OSError) and inner.errno:
            return os.strerror(inner.errno) if inner.errno > 0 else str(inner.strerror)
        found = [a for a in inner.args if isinstance(a, BaseException)] + [getattr(inner, "reason", None)]
        inner = next((a for a in found if isinstance(a, BaseException)), inner.__cause__ or inner.__context__)
    return str(seen[-1]) or type(error).__name__
