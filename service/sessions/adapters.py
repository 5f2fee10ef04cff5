"""Make a session of requests that sends over pools of our connections."""

from __future__ import annotations

import queue
import ssl
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import BaseHTTPResponse, HTTPConnectionPool

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


class _Idle:
    """The idle connections of one pool, the newest on top. Their number is not limited.

    A connection that urllib3 gives back does not belong to a call any more, so ending a call never hits another call.
    """

    def __init__(self) -> None:
        self._connections: deque[Connection] = deque()

    def get(self, block: bool = True, timeout: float | None = None) -> Connection:
        """Return an idle connection. Raises ``queue.Empty`` if none is left, or the call needs a new one.

        urllib3 makes a new connection then.
        """
        call = current_call.get()
        if self._connections and (call is None or not call.fresh):
            with suppress(IndexError):  # another thread may take the last one
                return self._connections.pop()
        raise queue.Empty

    def put(self, connection: Connection | None, block: bool = True, timeout: float | None = None) -> None:
        """Keep a connection if another call may use it, else close it. Ignore None: urllib3 fills its queue with it."""
        if connection is None:
            return
        if connection.finish_call():
            self._connections.append(connection)
        else:
            connection.close()

    def close_older(self, since: float) -> None:
        """Close the connections that have been idle since before ``since``, by the monotonic clock."""
        with suppress(IndexError):  # another thread may take the last one
            while self._connections[0].idle_since < since:
                self._connections.popleft().close()


@lru_cache(1024)
def _target(url: str) -> str:
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


class _Pool(HTTPConnectionPool):
    """The connections to one server."""

    ConnectionCls = Connection

    def __init__(self, host: str, port: int | None, **options: Any) -> None:
        self.idle = _Idle()
        self.QueueCls: Any = lambda _maxsize: self.idle
        super().__init__(host, port, **options)


class _TLSPool(_Pool):
    scheme = "https"
    ConnectionCls = TLSConnection


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
        return pool if pool is not None else self._pools.setdefault(origin, self._new_pool(origin))

    def _new_pool(self, origin: Origin) -> _Pool:
        if origin.scheme == "https":
            return _TLSPool(origin.host, origin.port, origin=origin, tls=self._tls())
        if origin.scheme == "http":
            return _Pool(origin.host, origin.port, origin=origin)
        return _Pool("localhost", None, origin=origin)

    def _sweep(self, since: float) -> None:
        """Close the connections to all servers that have been idle since before ``since``; once in that time."""
        if self._swept < since:
            self._swept = time.monotonic()
            for pool in list(self._pools.values()):
                pool.idle.close_older(since)

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
