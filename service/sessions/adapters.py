"""Make a session of requests that sends over pools of our connections."""

from __future__ import annotations

import math
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import BaseHTTPResponse, HTTPConnectionPool, Timeout

from .address import Origin, origin_of
from .calls import current_call
from .connections import Connection, TLSConnection

IDLE_LIMIT = 30.0
"""Seconds that a connection is kept for another request; our servers keep theirs longer."""


class RawResponse:
    """The attributes of a response of requests that are read here. One of requests takes a cookie jar and a lock."""

    __slots__ = ("headers", "raw", "request", "status_code", "url")

    def __init__(self, request: requests.PreparedRequest, response: BaseHTTPResponse) -> None:
        """Keep the ``response`` to a ``request``, whose body has not been read."""
        self.request = request
        self.url = request.url
        self.status_code = response.status
        self.headers = response.headers
        self.raw = response


@lru_cache(1024)
def _target(url: str) -> str:
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


class _Pool:
    """The connections to one server, of which the idle ones are kept, the newest on top. Their number is not limited.

    It stands for a pool of urllib3, which takes 60,000 instructions more for each request.
    """

    def __init__(self, origin: Origin, tls: ssl.SSLContext | None) -> None:
        """Connect to ``origin`` when a request is sent, with ``tls`` if given."""
        self._origin = origin
        self._tls = tls
        self._idle: deque[Connection] = deque()
        self._is_closed = False

    def urlopen(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout: Timeout, **options: Any
    ) -> BaseHTTPResponse:
        """Send a request of the current call, and return its response with the body unread.

        `HTTPAdapter.send` calls it with more ``options``, which are those of every request here. Raises NotConnected,
        Ended, OSError and http.client.HTTPException.
        """
        connection = self._take()
        try:
            connection.timeout = timeout.connect_timeout  # type: ignore[assignment]
            connection.request(method, url, body, headers, preload_content=False, decode_content=False)
            return connection.getresponse()
        except BaseException:
            connection.close()
            raise

    def _take(self) -> Connection:
        call = current_call.get()
        while self._idle and (call is None or not call.fresh):
            with suppress(IndexError):  # another thread may take the last one
                connection = self._idle.pop()
                if connection.is_connected:
                    return connection
                connection.close()
        if self._tls is not None:
            return TLSConnection(self._origin, self._keep, self._tls)
        return Connection(self._origin, self._keep)

    def _keep(self, connection: Connection) -> None:
        if self._is_closed:
            connection.close()
        else:
            self._idle.append(connection)

    def close(self) -> None:
        """Close the idle connections now, and each other one with its response."""
        self._is_closed = True
        self.close_older(math.inf)

    def close_older(self, since: float) -> None:
        """Close the connections that have been idle since before ``since``, by the monotonic clock."""
        with suppress(IndexError):  # another thread may take the last one
            while self._idle[0].idle_since < since:
                self._idle.popleft().close()


class _Adapter(HTTPAdapter):
    """Sends requests over our connections."""

    def __init__(self, tls: Callable[[], ssl.SSLContext]) -> None:
        """Check certificates by the context that ``tls`` returns."""
        super().__init__()
        self._tls = tls
        self._pools: dict[Origin, _Pool] = {}
        self._swept = time.monotonic()

    def get_connection_with_tls_context(
        self, request: requests.PreparedRequest, verify: Any, proxies: Any = None, cert: Any = None
    ) -> HTTPConnectionPool:
        """Return the pool of a request's server."""
        self._sweep(time.monotonic() - IDLE_LIMIT)
        origin = origin_of(request.url or "")
        pool = self._pools.get(origin)
        if pool is None:
            tls = self._tls() if origin.scheme == "https" else None
            pool = self._pools.setdefault(origin, _Pool(origin, tls))
        return pool  # type: ignore[return-value]

    def _sweep(self, since: float) -> None:
        """Close the connections to all servers that have been idle since before ``since``; once in that time."""
        if self._swept < since:
            self._swept = time.monotonic()
            for pool in list(self._pools.values()):
                pool.close_older(since)

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Do nothing: the pool has its certificates."""

    def request_url(self, request: requests.PreparedRequest, proxies: Any) -> str:
        """Return the path and query: no request is sent through a proxy."""
        return _target(request.url or "")

    def build_response(self, req: requests.PreparedRequest, resp: BaseHTTPResponse) -> requests.Response:
        """Return a `RawResponse`: no session of ours keeps cookies, and none guesses the coding of a text."""
        return RawResponse(req, resp)  # type: ignore[return-value]

    def close(self) -> None:
        """Close the idle connections; those in use are closed when their responses are."""
        for pool in list(self._pools.values()):
            pool.close()
        super().close()


class _RequestsSession(requests.Session):
    """A session that takes nothing from the environment, keeps no cookie, follows no redirect and calls no hook."""

    def __init__(self, adapter: HTTPAdapter) -> None:
        super().__init__()
        self._adapter = adapter
        for scheme in ("http://", "https://", "http+unix://"):
            self.mount(scheme, adapter)

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Return the response as the adapter has it. ``options`` are those of `HTTPAdapter.send`."""
        return self._adapter.send(request, **options)


def new_requests_session(tls: Callable[[], ssl.SSLContext]) -> requests.Session:
    """Return a session whose connections can be shut down; https is checked by the context that ``tls`` returns."""
    return _RequestsSession(_Adapter(tls))
