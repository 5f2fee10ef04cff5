"""A small Flask application with Modelyard; for gunicorn: ``bench.application:app``.

Its settings come from the environment alone, the placement too, so that both sides run these same lines.
"""

from __future__ import annotations

import os

from flask import Flask, Response
from modelyard import Modelyard

VIEW = "/about"
PID = "Bench-Pid"
"""The header with the pid of the process that answers."""


def create() -> Flask:
    """Return the application, with one view of its own."""
    app = Flask(__name__)
    Modelyard(app)

    @app.get(VIEW)
    def about() -> dict[str, object]:
        return {"application": app.name, "lines": [f"line {number}" for number in range(20)]}

    @app.after_request
    def add_pid(response: Response) -> Response:
        response.headers[PID] = str(os.getpid())
        return response

    return app


app = create()
