"""The current request is Flask's, whatever else reads its environment."""

from __future__ import annotations

import werkzeug
from flask import Flask, request
from modelyard.blueprints.request.current import current_request


def test_it_is_the_request_itself() -> None:
    with Flask("app").test_request_context("/path"):
        assert current_request() is request._get_current_object()  # type: ignore[attr-defined]


def test_another_library_may_make_a_request_of_the_same_environment() -> None:
    app = Flask("app")
    app.add_url_rule("/path", "view", lambda: "text")
    with app.test_request_context("/path"):
        werkzeug.Request(request.environ)
        assert current_request().endpoint == "view"
