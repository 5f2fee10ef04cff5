"""Transport: HTTP requests to other processes, over connections that are kept for the next.

A connection of our own rather than a library's pool, for three things that none offers: a wait that gives way once
a second, so that whoever passes a stream on can break a silence without a thread; a `Cancel` that ends a call at once
wherever it blocks; and a tenth of a millisecond less a call. Nothing comes from the environment, no redirect is
followed, no cookie kept.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path

from ..errors import ConfigError, WorkerUnreachable
from ..streams import Cancel
from ..telemetry.tracing import outgoing_headers
from ..version import __version__
from .answer import Answer, Request
from .connection import Origin, parse_url
from .connection_pool import Pool


class Transport:
    """Sends requests; safe to use from many threads. Its connections are made anew in a process that was forked."""

    def __init__(
        self,
        connect_timeout: float = 3.0,
        read_timeout: float = 60.0,
        headers: Mapping[str, str] | None = None,
        ca: str | None = None,
        token: str | Callable[[], str | None] | None = None,
    ) -> None:
        """Send ``headers`` and ``token`` with every request; one that can be called is asked each time.

        ``read_timeout`` counts seconds of silence. ``ca`` is a file or folder of certificates that https is checked
        against; default: the system's. Raises ConfigError.
        """
        self.connect_timeout = connect_timeout
        self.read_timeout = read_timeout
        self._tls: ssl.SSLContext | None = None if ca is None else _trusting(ca)
        given = {"User-Agent": f"modelyard/{__version__}", "Accept-Encoding": "identity", **(headers or {})}
        self._token = token if callable(token) else None
        if isinstance(token, str):
            given["Authorization"] = f"Bearer {token}"
        try:
            self._headers = _lines(given)
        except ValueError as error:
            raise ConfigError(f"remote headers: {error}") from None
        self._pool = Pool()

    def request(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: tuple[float, float] | None = None,
        stream: bool = False,
        cancel: Cancel | None = None,
        reuse: bool = True,
    ) -> Answer:
        """Return the answer: whole, or with ``stream`` as soon as its headers are there; then close it.

        ``timeout`` are seconds to connect and seconds of silence. A request that found a kept connection closed is
        sent once more on a new one, where no byte of an answer has come; without ``reuse`` it never is.
        Raises WorkerUnreachable, and the error of ``cancel`` once that is set.
        """
        answer = self.send(method, url, body=body, headers=headers, timeout=timeout, cancel=cancel, reuse=reuse)
        try:
            while not answer.wait_head():
                pass
            if not stream:
                answer.read_whole()
        except BaseException:
            answer.close()
            raise
        return answer

    def send(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: tuple[float, float] | None = None,
        cancel: Cancel | None = None,
        reuse: bool = True,
    ) -> Answer:
        """Send a request and return its answer, of which nothing has come yet; close it. Otherwise like `request`."""
        try:
            origin, target = parse_url(url)
        except ValueError as error:
            raise WorkerUnreachable(str(error)) from None
        fields = dict(outgoing_headers())
        if self._token is not None and (token := self._token()) is not None:
            fields["Authorization"] = f"Bearer {token}"
        if body is not None:
            fields["Content-Type"] = "application/json"
            fields["Content-Length"] = str(len(body))
        if not reuse:
            fields["Connection"] = "close"
        fields.update(headers or ())
        head = f"{method} {target} HTTP/1.1\r\nHost: {origin.netloc}\r\n".encode() + self._headers + _lines(fields)
        times = timeout or (self.connect_timeout, self.read_timeout)
        request = Request(origin, method, head + b"\r\n" + (body or b""), *times, reuse)
        answer = Answer(self.pool, self._tls_for(origin), request, cancel)
        try:
            answer.begin()
        except BaseException:
            answer.close()
            raise
        return answer

    @property
    def pool(self) -> Pool:
        """The idle connections of this process."""
        if self._pool.pid != os.getpid():
            inherited, self._pool = self._pool, Pool()
            inherited.close()
        return self._pool

    def _tls_for(self, origin: Origin) -> ssl.SSLContext | None:
        if origin.scheme != "https":
            return None
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    def close(self) -> None:
        """Close the idle connections; those in use are closed when their answers are. A second call does nothing."""
        self.pool.close()


def _trusting(ca: str) -> ssl.SSLContext:
    folder = Path(ca).is_dir()
    try:
        return ssl.create_default_context(cafile=None if folder else ca, capath=ca if folder else None)
    except OSError as error:
        raise ConfigError(f"remote_ca: {ca} has no certificates that can be read: {error}") from error


def _lines(headers: Mapping[str, str]) -> bytes:
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
        raise ValueError("a header has a line break in it")
    return lines.encode("latin-1")
