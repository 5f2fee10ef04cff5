"""Session: HTTP requests to other processes, over pooled sessions of requests.

A call on a kept connection takes 0.4 of the CPU of a plain ``requests.Session.post``, and 0.8 of that of urllib3's
pool (``python -m bench sessions``).
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from pathlib import Path

import requests
import urllib3

from ..errors import ConfigError, WorkerSilent, WorkerUnreachable
from ..processes import PerProcess
from ..streams import Cancel
from ..version import __version__
from .adapters import new_requests_session
from .address import origin_of
from .calls import Call, current_call
from .faults import FOREIGN, fault_of
from .response import Response

_PREPARED = 1024
"""Requests that are kept prepared, by method and URL: to prepare one costs 100 microseconds."""


def _no_headers() -> Mapping[str, str]:
    return {}


class Session:
    """Sends requests over TCP, TLS and unix sockets. Many threads may share it, and it may be made before a fork.

    It takes nothing from the environment: no proxy, no password. It follows no redirect and keeps no cookie. If the
    server has closed a kept connection before the first byte of a response, the request is sent once more, on a new
    connection.
    """

    def __init__(
        self,
        connect_timeout: float = 3.0,
        read_timeout: float = 60.0,
        *,
        headers: Mapping[str, str] | None = None,
        ca: str | None = None,
        token: str | Callable[[], str | None] | None = None,
        current_headers: Callable[[], Mapping[str, str]] = _no_headers,
    ) -> None:
        """Send ``headers`` and ``token`` with every request; ``token`` and ``current_headers`` may be functions.

        A function is called for each request. ``read_timeout`` is seconds of silence. ``ca`` is a file or folder of
        certificates that https is checked against; default: the system's. Raises ConfigError.
        """
        self.connect_timeout = connect_timeout
        self.read_timeout = read_timeout
        self._headers = {"User-Agent": f"modelyard/{__version__}", "Accept-Encoding": "identity", **(headers or {})}
        self._token = token if callable(token) else None
        if isinstance(token, str):
            self._headers["Authorization"] = f"Bearer {token}"
        self._current_headers = current_headers
        try:
            "".join(self._headers.values()).encode("latin-1")
            self._prepare("GET", "http://localhost/")
        except ValueError as error:
            raise ConfigError(f"remote headers: {error}") from None
        context = cache(ssl.create_default_context) if ca is None else _trusting(ca)
        self._sessions = PerProcess(lambda: new_requests_session(context))
        self._prepared = lru_cache(_PREPARED)(self._prepare)

    def request(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: tuple[float, float] | None = None,
        until: float | None = None,
        cancel: Cancel | None = None,
        reuse: bool = True,
    ) -> Response:
        """Return the response as soon as its headers have come; read it to its end or close it.

        ``body`` is JSON. ``timeout`` is a pair: seconds to connect, and seconds of silence. ``until`` is the monotonic
        time by which the response must be whole. Without ``reuse`` the request has a connection of its own, and is
        never sent twice. Raises WorkerUnreachable (NotConnected if no connection was made), the error of ``cancel``
        once that is set, and ValueError for a header that can't be sent.
        """
        try:
            origin = origin_of(url)
            template = self._prepared(method, url)
        except ValueError as error:
            raise WorkerUnreachable(str(error)) from None
        connect_timeout, read_timeout = timeout or (self.connect_timeout, self.read_timeout)
        added = dict(self._current_headers())
        if self._token is not None and (token := self._token()) is not None:
            added["Authorization"] = f"Bearer {token}"
        if body is not None:
            added["Content-Type"], added["Content-Length"] = "application/json", str(len(body))
        if not reuse:
            added["Connection"] = "close"
        fields = _joined(template.headers, added, headers or {})
        prepared = requests.PreparedRequest()
        prepared.method, prepared.url, prepared.body = template.method, template.url, body
        prepared.headers = fields  # type: ignore[assignment]
        call = Call(origin, read_timeout, until, fresh=not reuse, keep=reuse)
        try:
            return self._send(prepared, connect_timeout, call, cancel)
        except WorkerUnreachable as error:
            if not call.was_kept or call.received or isinstance(error, WorkerSilent):
                raise
        return self._send(prepared, connect_timeout, Call(origin, read_timeout, until, fresh=True), cancel)

    def _send(
        self, prepared: requests.PreparedRequest, connect_timeout: float, call: Call, cancel: Cancel | None
    ) -> Response:
        if cancel is not None:
            cancel.on_set(call.end)
        token = current_call.set(call)
        try:
            timeout = _timeout(connect_timeout, call.read_timeout)
            response = self._sessions.get().send(prepared, stream=True, timeout=timeout, proxies={})  # type: ignore[arg-type]
            return Response(response, call, cancel)
        except BaseException as error:
            call.let_go()
            if cancel is not None:
                cancel.forget(call.end)
                if cancel.is_set():
                    raise cancel.error from error
            if isinstance(error, FOREIGN):
                raise fault_of(error, call) from error
            raise
        finally:
            current_call.reset(token)

    def _prepare(self, method: str, url: str) -> requests.PreparedRequest:
        prepared = requests.Request(method, url, headers=self._headers).prepare()
        # A plain dict: to copy and to read one of requests costs more than all else that is done with it.
        prepared.headers = dict(prepared.headers)  # type: ignore[assignment]
        return prepared

    def close(self) -> None:
        """Close the idle connections of this process; each other one is closed with its response.

        A second call does nothing; a later request makes new connections.
        """
        if (session := self._sessions.pop()) is not None:
            session.close()


@lru_cache
def _timeout(connect: float, read: float) -> urllib3.Timeout:
    return urllib3.Timeout(connect=connect, read=read)


def _joined(*parts: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of all ``parts``: of those that have the same name, in whatever case, the last one."""
    headers: dict[str, tuple[str, str]] = {}
    for part in parts:
        for header in part.items():
            headers[header[0].lower()] = header
    return dict(headers.values())


def _trusting(ca: str) -> Callable[[], ssl.SSLContext]:
    folder = Path(ca).is_dir()
    try:
        context = ssl.create_default_context(cafile=None if folder else ca, capath=ca if folder else None)
    except OSError as error:
        raise ConfigError(f"{ca} has no certificates that can be read: {error}") from error
    return lambda: context
