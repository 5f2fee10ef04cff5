"""ServiceCalls: the HTTP calls of one service. It repeats them if that is safe, and turns failures into errors."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from ..errors import (
    ConfigError,
    InvalidRequest,
    ModelyardError,
    NotConnected,
    Unavailable,
    WorkerSilent,
    WorkerUnreachable,
)
from ..sessions.address import TOKEN_FILE_VARIABLE, TOKEN_VARIABLE, parse_address
from ..sessions.faults import reason_of
from ..sessions.response import Response
from ..sessions.session import Session
from ..types import JSONObject
from ..version import __version__
from ..wire.errors import document_in, error_of_document

T = TypeVar("T")

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0
"""Seconds before a call is repeated, at first and at most; the Retry-After of a 503 counts if it is longer."""

_NOT_FOUND, _NOT_ALLOWED, _UNAVAILABLE = 404, 405, 503
_REDIRECTS = (301, 302, 303, 307, 308)


class ServiceCalls:
    """Sends calls to one service. Many threads may share it, and it may be made before a fork.

    A call is repeated if no part of an answer has come, and the service has computed nothing: a connection failed, or
    the answer is 503. A call that ``changes`` something is repeated only if no connection could be made.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None,
        connect_timeout: float,
        read_timeout: float,
        retries: int,
        retry_seconds: float,
        ca: str | None,
    ) -> None:
        """Take the arguments of `Client`. Raises ConfigError."""
        self._address = address = parse_address(url)
        self.url = address.base
        """The address of the API, also in messages."""
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._retries = retries
        self._retry_seconds = retry_seconds
        headers = {"User-Agent": f"modelyard-client/{__version__}"}
        if secret := _token_of_environment() if token is None else token:
            headers["Authorization"] = f"Bearer {secret}"
        if address.authorization is not None:
            headers["Authorization"] = address.authorization
        trusted = ca or (DEFAULT_CA_BUNDLE_PATH if address.is_tls else None)
        self._session = Session(connect_timeout, read_timeout, headers=headers, ca=trusted)

    def value(
        self,
        method: str,
        path: str,
        read: Callable[[Any], T],
        body: JSONObject | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        base: str | None = None,
        timeout: float | None = None,
        accepted: tuple[int, ...] = (200,),
    ) -> T:
        """Return ``read(value)`` for the JSON value of the response; the value is None for a 404 that is ``accepted``.

        Raises ConfigError if the response is not JSON, or ``read`` raises ValueError, and the errors of `send`.
        """
        response = self.send(method, path, body, headers=headers, base=base, timeout=timeout, accepted=accepted)
        return self._read(response, read)

    def change(
        self, path: str, read: Callable[[Any], T], body: JSONObject, *, timeout: float
    ) -> tuple[T, Mapping[str, str]]:
        """Return ``read(value)`` and the headers of the answer to a POST that changes things; raises like `value`."""
        response = self.send("POST", path, body, timeout=timeout, changes=True)
        return self._read(response, read), response.headers

    def _read(self, response: Response, read: Callable[[Any], T]) -> T:
        with response:
            if response.status_code == _NOT_FOUND:
                return read(None)
            try:
                return read(response.json())
            except WorkerUnreachable as error:
                raise WorkerUnreachable(f"{self.url} broke off its answer: {reason_of(error)}") from error
            except ValueError:
                raise self.not_a_worker() from None

    def send(
        self,
        method: str,
        path: str,
        body: JSONObject | None = None,
        *,
        base: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        accepted: tuple[int, ...] = (200,),
        changes: bool = False,
    ) -> Response:
        """Return the response as soon as its headers have come; read it or close it.

        ``path`` is below ``base`` (default: the API's prefix). ``timeout`` is seconds of silence (default:
        ``read_timeout``). Raises the error that a status means which is not ``accepted``.
        """
        url = f"{base or self.url}/{path}"
        data = None if body is None else _encoded(body)
        times = (self._connect_timeout, self._read_timeout if timeout is None else timeout)
        ends = time.monotonic() + self._retry_seconds
        pause = FIRST_PAUSE
        for left in range(self._retries, -1, -1):
            cause: WorkerUnreachable | None = None
            try:
                # A change has a new connection: the server may be closing a kept one.
                response = self._session.request(
                    method, url, body=data, headers=headers, timeout=times, reuse=not changes
                )
                if response.status_code in accepted and not _is_of_proxy(response):
                    return response
                error = self._refusal(response)
                again = response.status_code == _UNAVAILABLE and not changes
            except WorkerUnreachable as fault:
                cause, error = fault, self._unreachable(fault, times)
                again = isinstance(fault, NotConnected) or not (changes or isinstance(fault, WorkerSilent))
            wait = max(_jittered(pause), error.retry_after if isinstance(error, Unavailable) and cause is None else 0)
            if not again or not left or time.monotonic() + wait > ends:
                break
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE)
        raise error from cause

    def bases(self) -> Iterator[str]:
        """Yield the address of the API, and then each address above it, up to the root."""
        return self._address.parents()

    def not_a_worker(self) -> ConfigError:
        """Return the error for a response that a worker does not give."""
        return ConfigError(f"{self.url} answers, but not like a worker")

    def close(self) -> None:
        """Close the connections of this process that no response uses."""
        self._session.close()

    def _refusal(self, response: Response) -> ModelyardError:
        """Read and close a response, and return the error that it means."""
        with response:
            body = response.content
        document = document_in(body)
        status, location = response.status_code, response.headers.get("Location")
        if location is not None and status in _REDIRECTS:
            return ConfigError(f"{self.url} redirects to {location[:200]}, which is not followed")
        if status in (_NOT_FOUND, _NOT_ALLOWED) and not str(document.get("type")).startswith("urn:"):
            return ConfigError(f"{self.url} answers with status {status}, and not like a worker")
        return error_of_document(status, response.headers, document, self.url)

    def _unreachable(self, fault: WorkerUnreachable, times: tuple[float, float]) -> WorkerUnreachable:
        """Return the error for a call without a response; its text names the service."""
        connect_timeout, read_timeout = times
        if isinstance(fault, WorkerSilent):
            return WorkerUnreachable(f"{self.url} did not answer within {read_timeout:g} s, and may still be at work")
        if not isinstance(fault, NotConnected):
            return WorkerUnreachable(f"no service answers at {self.url} ({reason_of(fault)})")
        if isinstance(fault.__cause__, TimeoutError):
            return NotConnected(f"{self.url} did not accept a connection within {connect_timeout:g} s")
        return NotConnected(f"no service answers at {self.url} ({reason_of(fault)})")


def _token_of_environment() -> str | None:
    if token := os.environ.get(TOKEN_VARIABLE):
        return token
    if not (file := os.environ.get(TOKEN_FILE_VARIABLE)):
        return None
    try:
        return Path(file).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: the home folder of ~ is unknown
        raise ConfigError(f"{TOKEN_FILE_VARIABLE}: {file} can't be read: {error}") from error


def _encoded(body: JSONObject) -> bytes:
    try:
        return json.dumps(body, allow_nan=False).encode()
    except ValueError as error:
        raise InvalidRequest(f"the request can't be sent: {error}") from None


def _is_of_proxy(response: Response) -> bool:
    """Return whether a response is the 503 of a proxy that reaches no service, and not that of a service."""
    return response.status_code == _UNAVAILABLE and "json" not in response.headers.get("Content-Type", "")


def _jittered(pause: float) -> float:
    return pause * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
