"""Our application with one more route: it measures the library in the server's process, without HTTP for each stream.

For gunicorn: ``bench.embedded:app``. The route runs the model that the service has loaded, so that HTTP is the only
difference.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from flask import Flask, jsonify, request
from modelyard.server.extension import create_app

PATH = "/bench/library"


def _library(app: Flask, model: str) -> Any:
    workers = app.extensions["modelyard"].local.models.workers()
    return next(worker.engine._server for worker in workers if worker.name == model)


class _Stream:
    """One answer after the other from the library, with the calls of the engine."""

    def __init__(self, server: Any, body: dict[str, Any], answers: int) -> None:
        self._server, self._body, self._answers = server, body, answers
        self.tokens = 0
        self.firsts: list[float] = []

    def run(self) -> None:
        for _ in range(self._answers):
            self._server.handle_chat_completions(self._body, self._callback(time.monotonic()))

    def _callback(self, began: float) -> Callable[[dict[str, Any]], bool]:
        has_begun = False

        def callback(chunk: dict[str, Any]) -> bool:
            nonlocal has_begun
            self.tokens += (chunk.get("usage") or {}).get("completion_tokens", 0)
            if not has_begun and any(choice["delta"].get("content") for choice in chunk.get("choices", ())):
                has_begun = True
                self.firsts.append(time.monotonic() - began)
            return False

        return callback


def create() -> Flask:
    """Return the application. The route takes ``{model, body, streams, answers}``, and runs all streams at once."""
    app = create_app()

    @app.post(PATH)
    def library() -> Any:
        task = request.get_json()
        server = _library(app, task["model"])
        streams = [_Stream(server, task["body"], task["answers"]) for _ in range(task["streams"])]
        threads = [threading.Thread(target=stream.run) for stream in streams]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - began
        firsts = [first for stream in streams for first in stream.firsts]
        return jsonify(seconds=seconds, tokens=sum(stream.tokens for stream in streams), firsts=firsts)

    return app


app = create()
