"""The request that is being answered, for hooks and views that read many of its attributes."""

from __future__ import annotations

from flask import Request, request


def current_request() -> Request:
    """Return the current request itself: one attribute of Flask's proxy takes as long as fifty of the request."""
    current = request.environ.get("werkzeug.request")
    # Others may read the environment by a request of their own, which then stands there.
    return current if isinstance(current, Request) else request
