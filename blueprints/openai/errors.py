"""Errors in the shape of OpenAI's API: ``{"error": {message, type, param, code}}``, and the status that clients act on.

A client shows ``message`` and nothing else. It repeats a request after a status of 408, 409, 429 or 500 and above,
unless ``x-should-retry`` is false: so that header stands where a model has begun to work, or a repetition never helps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from flask import Blueprint, Request, Response, g
from werkzeug.exceptions import HTTPException

from ...errors import (
    EngineError,
    Forbidden,
    InputTooLong,
    InvalidRequest,
    ModelyardError,
    Overloaded,
    PromptTooLong,
    RateLimited,
    RequestTooLarge,
    Unauthorized,
    UnknownModel,
    Unsupported,
    WorkerLost,
)
from ...types import JSONObject
from ...wire.errors import TOO_LONG
from ..request.bodies import json_response
from ..request.current import current_request
from ..request.problems import unforeseen, with_headers

INVALID = "invalid_request_error"
SERVER = "server_error"
ANTHROPIC_OVERLOADED = 529
"""The status that Anthropic's API has for `Overloaded`."""
CONTEXT_LENGTH = "context_length_exceeded"


class _Kind(NamedTuple):
    """The type, the code and the status of an error."""

    status: int
    type: str
    code: str | None


_KINDS: Mapping[type[ModelyardError], _Kind] = {
    InvalidRequest: _Kind(400, INVALID, None),
    PromptTooLong: _Kind(400, INVALID, CONTEXT_LENGTH),
    InputTooLong: _Kind(400, INVALID, CONTEXT_LENGTH),
    RequestTooLarge: _Kind(413, INVALID, "request_too_large"),
    Unauthorized: _Kind(401, INVALID, "invalid_api_key"),
    Forbidden: _Kind(403, INVALID, "permission_denied"),
    UnknownModel: _Kind(404, INVALID, "model_not_found"),
    Unsupported: _Kind(400, INVALID, "unsupported"),
    RateLimited: _Kind(429, "rate_limit_error", "rate_limit_exceeded"),
    Overloaded: _Kind(503, "overloaded_error", "overloaded"),
}
"""By the class of the error, or the nearest above it; all others are `SERVER` with their own status and code."""

_HAS_BEGUN = (EngineError, WorkerLost)
"""Errors after which a repetition would compute everything again."""


def install(blueprint: Blueprint) -> None:
    """Handle every error of the blueprint's views."""
    blueprint.register_error_handler(ModelyardError, response_to)
    blueprint.register_error_handler(HTTPException, response_to_http)
    blueprint.register_error_handler(Exception, lambda error: response_to(unforeseen(error)))


def document(error: ModelyardError) -> JSONObject:
    """Return the body for an error."""
    kind, message, param = _kind_of(type(error)), str(error), None
    if isinstance(error, UnknownModel | Unsupported):
        param = "model"
    if error.errors:
        param = error.errors[0]["field"]
    if kind.code == CONTEXT_LENGTH:
        message = f"{TOO_LONG}{message}"
    return shaped(message, kind.type, param, specific_code(error) or kind.code)


def specific_code(error: ModelyardError) -> str | None:
    """Return the code that the server behind the engine gave, or that of a prompt that is too long; None for others."""
    return CONTEXT_LENGTH if _kind_of(type(error)).code == CONTEXT_LENGTH else error.backend_code


def shaped(message: str, kind: str, param: str | None, code: str | None) -> JSONObject:
    """Return the body of an error in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _kind_of(error: type[ModelyardError]) -> _Kind:
    kinds = (_KINDS[cls] for cls in error.__mro__ if cls in _KINDS)
    return next(kinds, _Kind(error.status, SERVER, error.code))


_ANTHROPIC: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}
"""The types of Anthropic's errors by their status; 400 and others below 500 are invalid_request_error."""


def anthropic_document(error: JSONObject, status: int) -> JSONObject:
    """Return the body that Anthropic's clients read, for the ``error`` of a body of ours."""
    kind = _ANTHROPIC.get(status, INVALID if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error["message"]}}


def _shaped(body: JSONObject, status: int) -> JSONObject:
    """Return ``body`` in the shape of the API that the request speaks."""
    return anthropic_document(body["error"], status) if is_anthropic(current_request()) else body


def is_anthropic(call: Request) -> bool:
    """Return whether a request is of Anthropic's API: by its path, or at a path of both by the client's header."""
    return "HTTP_ANTHROPIC_VERSION" in call.environ or call.path.endswith(("/messages", "/messages/count_tokens"))


def status_of(error: type[ModelyardError]) -> int:
    """Return the status of an error, by its class."""
    return _kind_of(error).status


def anthropic_status_of(error: type[ModelyardError]) -> int:
    """Return the status that an error has for Anthropic's clients."""
    return ANTHROPIC_OVERLOADED if issubclass(error, Overloaded) else status_of(error)


def response_to(error: ModelyardError) -> Response:
    """Return the response for an error, and note the error in the access line."""
    line = g.get("modelyard_line")
    if line is not None:
        line.error = error.code
    status = (anthropic_status_of if is_anthropic(current_request()) else status_of)(type(error))
    response = json_response(_shaped(document(error), status), status)
    if isinstance(error, _HAS_BEGUN) or (isinstance(error, RateLimited) and error.is_hopeless):
        response.headers["x-should-retry"] = "false"
    return with_headers(response, error)


def response_to_http(error: HTTPException) -> Response:
    """Return the response for an error of the framework, or of the host application's ``abort``."""
    status = error.code or 500
    message = error.description or error.name
    kind = INVALID if status < 500 else SERVER
    body = shaped(message, kind, None, error.name.lower().replace(" ", "_"))
    response = json_response(_shaped(body, status), status)
    for name, value in error.get_headers():
        if name.lower() in ("allow", "retry-after", "www-authenticate"):
            response.headers[name] = value
    return response
