"""Let web pages of chosen origins call a blueprint (CORS). Off unless the setting ``cors_origins`` names some.

Cookies are never part of it: a page sends its key in a header, so ``Access-Control-Allow-Credentials`` is not sent.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from flask import Blueprint, Response, request

ANY = "*"
_REQUESTED = re.compile(r"[A-Za-z0-9-]+(\s*,\s*[A-Za-z0-9-]+)*")
_EXPOSED = (
    "x-request-id",
    "request-id",
    "openai-processing-ms",
    "Retry-After",
    "retry-after-ms",
    "x-should-retry",
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
    "Modelyard-Load",
    "Modelyard-Model",
    "Modelyard-Queue-Ms",
    "Modelyard-Tokens",
    "Modelyard-Truncated",
)
"""The headers that scripts may read, beside those that browsers always show."""
_PREFLIGHT_SECONDS = "600"
"""How long a browser keeps the answer to a preflight."""


def install(blueprint: Blueprint, origins: Collection[str]) -> None:
    """Answer pages of ``origins`` (``*``: of all) so that their browser lets them read it; without any do nothing.

    The routes answer a preflight, with the methods that they take; that answer gets its headers as every other does.
    """
    if not origins:
        return
    is_open = ANY in origins

    @blueprint.after_request
    def allow(response: Response) -> Response:
        if not is_open:
            response.vary.add("Origin")
        origin = request.headers.get("Origin", "")
        if not origin or not (is_open or origin in origins):
            return response
        headers = response.headers
        headers["Access-Control-Allow-Origin"] = ANY if is_open else origin
        headers["Access-Control-Expose-Headers"] = ", ".join(_EXPOSED)
        if request.method == "OPTIONS":
            requested = request.headers.get("Access-Control-Request-Headers", "")
            headers["Access-Control-Allow-Methods"] = response.headers.get("Allow", "")
            headers["Access-Control-Max-Age"] = _PREFLIGHT_SECONDS
            if _REQUESTED.fullmatch(requested):
                headers["Access-Control-Allow-Headers"] = requested
        return response
