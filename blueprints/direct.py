"""Streams of a model host, answered without Flask around them: that would be a quarter of what a short one costs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from flask import Flask, Request

from ..worker.protocol import Service
from .request.calls import AccessLine
from .worker import begin_stream

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class DirectStreams:
    """A WSGI application that answers generate_stream as its view does, and gives all else to Flask's.

    For a service that nobody else than its own user can reach: nobody is asked who comes. What is traced or logged goes
    through Flask, and so does what is refused.
    """

    def __init__(self, app: Flask, runtime: Service) -> None:
        """Stand before ``app.wsgi_app``, which goes through here from now on."""
        self._app = app
        self._runtime = runtime
        self._flask: WSGIApplication = app.wsgi_app
        self._path = f"{runtime.settings.prefix}/worker/generate_stream"
        app.wsgi_app = self  # type: ignore[method-assign]  # Flask's own way to put something before it

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        if environ["PATH_INFO"] != self._path or environ["REQUEST_METHOD"] != "POST" or self._is_noted(environ):
            return self._flask(environ, start_response)
        request = Request(environ)
        try:
            response = begin_stream(self._runtime, request, AccessLine(request, enabled=False))
        except Exception as error:  # noqa: BLE001 - the handlers of the blueprint answer it
            with self._app.request_context(environ):
                refusal = self._app.make_response(self._app.handle_user_exception(error))
            return refusal(environ, start_response)
        try:
            start_response(response.status, response.headers.to_wsgi_list())
        except BaseException:
            response.body.close()
            raise
        return response.body

    def _is_noted(self, environ: WSGIEnvironment) -> bool:
        runtime = self._runtime
        return runtime.settings.access_log or runtime.tracing.on or "HTTP_TRACEPARENT" in environ
