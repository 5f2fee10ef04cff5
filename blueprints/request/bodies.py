"""Reads what requests carry, JSON bodies within a limit, and writes JSON responses."""

from __future__ import annotations

from typing import Any

import orjson
from flask import Request, Response
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge, RequestTimeout
from werkzeug.wsgi import get_input_stream

from ...errors import InvalidRequest, RequestTooLarge
from ...types import JSONObject
from ...wire.messages import DELTA_TYPE

JSON_TYPE = "application/json"


def read_object(request: Request, limit: int) -> JSONObject:
    """Return the JSON object in the body, of any Content-Type: curl's default is that of a form.

    Raises RequestTooLarge over ``limit`` bytes, without reading if there is a Content-Length; InvalidRequest if it is
    not a JSON object. NaN, lone surrogates and deep nesting are not JSON either.
    """
    value = _read(request, limit, "a JSON object")
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {type(value).__name__}")
    return value


def read_list(request: Request, limit: int) -> list[Any]:
    """Return the JSON list in the body; the rest is as with `read_object`."""
    value = _read(request, limit, "a JSON list")
    if not isinstance(value, list):
        raise InvalidRequest(f"the body must be a JSON list, not {type(value).__name__}")
    return value


def _read(request: Request, limit: int, wanted: str) -> Any:
    length = request.content_length
    if length is not None and length > limit:
        raise _too_large(f"the body has {length} bytes", limit)
    try:
        # One byte more: without a Content-Length, read() stops at the limit and raises nothing.
        data = get_input_stream(request.environ, max_content_length=limit + 1).read()
    except RequestEntityTooLarge:
        raise _too_large("the body is larger", limit) from None
    except RequestTimeout as error:
        raise InvalidRequest(error.description or "the body did not arrive in time") from None
    except (ClientDisconnected, OSError):
        raise InvalidRequest("the body ended before its Content-Length") from None
    except Exception as error:  # of the server's parser, for example after a bad chunk
        raise InvalidRequest(f"the body can't be read: {error}") from error
    if len(data) > limit:
        raise _too_large("the body is larger", limit)
    if not data:
        raise InvalidRequest(f"the body is empty: send {wanted}")
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None


def _too_large(what: str, limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"{what}; at most {limit} are read (max_body_bytes)")


def wants_delta(request: Request) -> bool:
    """Return whether a client asks for new pieces instead of the whole text so far."""
    return DELTA_TYPE in request.headers.get("Accept", "")


def json_response(value: Any, status: int = 200, content_type: str = JSON_TYPE) -> Response:
    """Return ``value`` (also numpy arrays) as JSON, without the application's JSON provider."""
    return Response(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY), status, content_type=content_type)
