"""RemoteCalls: calls the worker API at one address, each call in a span, and turns responses into values or errors."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import unquote, urlsplit

import orjson
from opentelemetry.trace import Span, SpanKind

from ..errors import InvalidRequest, WorkerUnreachable
from ..sessions.response import Response
from ..sessions.session import Session
from ..streams import Cancel
from ..telemetry import dbgpt
from ..telemetry.tracing import current_tracing
from ..types import JSONObject
from ..wire.chunks import ROUTE_HEADER, ROUTE_LOCAL
from ..wire.errors import error_of_response, load_in

LOCAL = {ROUTE_HEADER: ROUTE_LOCAL}


class RemoteCalls:
    """Calls one worker API, by paths below ``/worker/``. They raise WorkerUnreachable and the errors of the worker."""

    def __init__(self, url: str, session: Session, key: str | None = None) -> None:
        """Call the API at ``url``, which has the API's prefix; ``key`` is the model that is called, if any."""
        self._url = url
        self._session = session
        self._key = key
        self._base = f"{url.rstrip('/')}/worker"
        self.name = url if key is None else f"{key} at {url}"
        """The name of the worker in messages."""
        self.load: str | None = None
        """The load of the model at its last response: the value of ``Modelyard-Load``."""

    def stream(self, path: str, body: bytes, headers: Mapping[str, str], cancel: Cancel) -> Response:
        """Return the response to a POST as soon as its headers have come; close it."""
        return self._session.request("POST", f"{self._base}/{path}", body=body, headers=headers, cancel=cancel)

    def post(
        self, path: str, body: JSONObject, headers: Mapping[str, str] = LOCAL, cancel: Cancel | None = None
    ) -> Any:
        """Return the value that answers a POST."""
        return self.answer(path, body, headers, cancel)[0]

    def answer(
        self, path: str, body: JSONObject, headers: Mapping[str, str] = LOCAL, cancel: Cancel | None = None
    ) -> tuple[Any, Mapping[str, str]]:
        """Return the value that answers a POST, and the headers of the response."""
        with self._running("POST", path):
            if (span_id := dbgpt.span_id()) is not None:
                body["span_id"] = span_id
            return self._answer("POST", path, body=encoded(body), headers=headers, cancel=cancel)

    def change(self, path: str, body: JSONObject, timeout: float) -> tuple[Any, Mapping[str, str]]:
        """Return what `answer` does, for a POST that changes something: it has its own connection, and is sent once."""
        times = (self._session.connect_timeout, max(timeout, self._session.read_timeout))
        with self._running("POST", path):
            return self._answer("POST", path, body=encoded(body), headers=LOCAL, timeout=times, reuse=False)

    def get(self, path: str) -> Any:
        """Return the value that answers a GET."""
        with self._running("GET", path):
            return self._answer("GET", path, headers=LOCAL)[0]

    def _answer(self, method: str, path: str, **options: Any) -> tuple[Any, Mapping[str, str]]:
        with self._session.request(method, f"{self._base}/{path}", **options) as response:
            self.note_load(response)
            data = response.content
        if response.status_code != 200:
            raise error_of_response(response.status_code, response.headers, data, self.name)
        try:
            return orjson.loads(data), response.headers
        except orjson.JSONDecodeError:
            raise self.invalid(f"not JSON: {data[:60].decode('utf-8', 'replace')!r}") from None

    def invalid(self, fault: str) -> WorkerUnreachable:
        """Return the error for an answer that does not fit the call: another instance may answer."""
        return WorkerUnreachable(f"{self.name} sent an invalid answer: {fault}")

    def note_load(self, response: Response) -> None:
        """Keep the load in the headers of a response."""
        self.load = load_in(response.headers) or self.load

    def _running(self, method: str, path: str) -> AbstractContextManager[Span]:
        """Return a context manager for a call: in its body the span of the call is the current one."""
        return current_tracing().running(self.span(method, path))

    def span(self, method: str, path: str) -> Span:
        """Return the span of a call to ``path``, below the current span."""
        tracing, path = current_tracing(), path.partition("?")[0]
        attributes: JSONObject = {}
        if tracing.on:
            parts = urlsplit(self._base)
            attributes = {
                "http.request.method": method,
                "server.address": unquote(parts.hostname or ""),
                "server.port": parts.port,
                "url.full": f"{self._base}/{path}",
                "modelyard.model": self._key,
            }
        return tracing.span(f"{method} /worker/{path}", attributes, SpanKind.CLIENT)


def encoded(body: JSONObject) -> bytes:
    """Return a body as bytes. Raises InvalidRequest if it can't be encoded."""
    try:
        return orjson.dumps(body)
    except TypeError as error:  # half of a surrogate pair, or an object that JSON does not have
        raise InvalidRequest(f"the request can't be sent on: {error}") from None
