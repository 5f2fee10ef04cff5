"""Turn the exceptions of sockets, TLS, urllib3 and requests into our errors."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import time
from collections.abc import Iterator

import requests
from urllib3.exceptions import HTTPError, InvalidHeader, ReadTimeoutError

from ..errors import NotConnected, WorkerSilent, WorkerUnreachable
from .calls import Call

FOREIGN = (requests.RequestException, HTTPError, http.client.HTTPException, OSError)
"""The exceptions that a request may raise beside our errors."""


def why_not_connected(error: Exception, timeout: float) -> str:
    """Return why the connection failed, as the end of a sentence that begins with the server."""
    match error:
        case ssl.SSLCertVerificationError():
            return f"shows a certificate that is not trusted: {error.verify_message}"
        case ssl.SSLError():
            return f"does not speak TLS as expected: {error.reason or error}"
        case TimeoutError():
            return f"did not accept a connection within {timeout:g} s (connect_timeout)"
        case ConnectionRefusedError():
            return "refused the connection"
        case socket.gaierror() | UnicodeError():
            return f"has a name that can't be looked up: {error}"
        case _:
            return f"can't be connected to: {error}"


def fault_of(error: Exception, call: Call) -> WorkerUnreachable:
    """Return our error for an exception of requests or urllib3; ``call`` shows how far the request got."""
    origin, causes = call.origin, list(_causes(error))
    if isinstance(error, requests.ConnectTimeout):
        return NotConnected(f"{origin} did not accept a connection")
    if _is_one(causes, TimeoutError, requests.ReadTimeout, ReadTimeoutError):
        if call.until is not None and time.monotonic() >= call.until:
            return WorkerSilent(f"{origin} did not answer in time")
        if call.incoming is None and not _is_one(causes, requests.ReadTimeout, ReadTimeoutError):
            return WorkerSilent(f"{origin} did not accept the request: no byte of it for {call.read_timeout:g} s")
        return WorkerSilent(f"{origin} was silent for {call.read_timeout:g} s")
    if call.incoming is None or call.incoming.source.is_in_head:
        if call.received == 0 and _is_one(causes, ConnectionError, ssl.SSLError):
            return WorkerUnreachable(f"{origin} closed the connection before its answer")
        if _is_one(causes, http.client.HTTPException, InvalidHeader):
            return WorkerUnreachable(f"{origin} does not answer with HTTP: {_words(causes)}")
    return WorkerUnreachable(f"{origin} broke off its answer: {_words(causes)}")


def _is_one(causes: list[BaseException], *kinds: type[BaseException]) -> bool:
    return any(isinstance(cause, kinds) for cause in causes)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield ``error`` and its causes, which requests and urllib3 hide in arguments, reasons and causes."""
    seen: list[BaseException] = []
    inner: BaseException | None = error
    while inner is not None and inner not in seen:
        seen.append(inner)
        yield inner
        hidden = [*inner.args, getattr(inner, "reason", None)]
        context = None if inner.__suppress_context__ else inner.__context__
        inner = next((a for a in hidden if isinstance(a, BaseException)), inner.__cause__ or context)


def _words(causes: list[BaseException]) -> str:
    return str(causes[-1])[:200] or type(causes[-1]).__name__


def reason_of(error: BaseException) -> str:
    """Return the reason that the operating system gives, which requests hides four exceptions deep."""
    causes = list(_causes(error))
    for cause in causes:
        match cause:
            case ssl.SSLCertVerificationError():
                return f"its certificate is not trusted: {cause.verify_message}"
            case ssl.SSLError():  # its errno is not a number of the operating system
                return f"it does not speak TLS as expected: {cause.reason or cause}"
            case OSError(errno=int(number)) if number:
                return os.strerror(number) if number > 0 else str(cause.strerror)
    return _words(causes)
