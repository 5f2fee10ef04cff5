"""Reads what requests carry, JSON bodies within a limit, and writes JSON responses."""

from __future__ import annotations

from typing import IO, Any

import orjson
from flask import Request, Response
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge, RequestTimeout
from werkzeug.wsgi import LimitedStream, get_input_stream

from ...errors import InvalidRequest, RequestTooLarge
from ...types import JSONObject
from ...wire.messages import DELTA_TYPE

JSON_TYPE = "application/json"
_REQUEST_HAS_LIMIT = getattr(Request.max_content_length, "fset", None) is not None
"""Whether a request can have a limit of its own: since Flask 3.1."""
_PART = 64 * 1024
"""The most bytes of one read."""
_BROKEN_OFF = "the body ended before its Content-Length"


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
    data = read_bytes(request, limit)
    if not data:
        raise InvalidRequest(_why_empty(request, wanted))
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        coding = request.headers.get("Content-Encoding", "")
        why = f"it is compressed (Content-Encoding {coding[:20]}): send it as it is" if coding else str(error)
        if request.mimetype == "multipart/form-data":
            why = f"it is a form (multipart/form-data): send {wanted}"
        raise InvalidRequest(f"the body is not valid JSON: {why}") from None


def read_bytes(request: Request, limit: int) -> bytes:
    """Return the body. Raises RequestTooLarge over ``limit`` bytes, InvalidRequest if it does not come."""
    length = request.content_length
    if length is not None and length > limit:
        raise _too_large(f"the body has {length} bytes", limit)
    try:
        data = _data_of(request, limit, length)
    except RequestEntityTooLarge:
        raise _too_large("the body is larger", limit) from None
    except RequestTimeout as error:
        raise InvalidRequest(error.description or "the body did not arrive in time") from None
    except (ClientDisconnected, OSError):
        raise InvalidRequest(_BROKEN_OFF) from None
    except Exception as error:  # of the server's parser, for example after a bad chunk
        raise InvalidRequest(f"the body can't be read: {error}") from error
    if len(data) > limit:
        raise _too_large("the body is larger", limit)
    # gunicorn reads what there is, and raises nothing; an empty body was read by the application.
    if data and length is not None and len(data) < length:
        raise InvalidRequest(_BROKEN_OFF)
    return data


def limit_form(request: Request, limit: int) -> None:
    """Let a form of more than ``limit`` bytes not be read. Raises RequestTooLarge if it says that it is longer."""
    if (request.content_length or 0) > limit:
        raise RequestTooLarge(f"the form has {request.content_length} bytes; at most {limit} are read")
    if _REQUEST_HAS_LIMIT:
        request.max_content_length = limit


def _data_of(request: Request, limit: int, length: int | None) -> bytes:
    """Return the body: the rest that the server has, or what Flask kept when a view of the application read it."""
    if length is not None and request.environ.get("wsgi.input_terminated") and "stream" not in vars(request):
        # Nobody has read it, and the server ends it: Flask's way to it is longer.
        return _rest_of(request.environ["wsgi.input"], limit, length) or request.get_data(cache=False)
    # The application's own limit is for its own requests; a larger one must not let more in here. One byte more: a
    # body of exactly the limit fits.
    if _REQUEST_HAS_LIMIT:
        request.max_content_length = limit + 1
    try:
        return _rest_of(request.stream, limit, length) or request.get_data(cache=False)
    except RequestEntityTooLarge:
        if _REQUEST_HAS_LIMIT or request.content_length is None:
            raise
        # The application's limit, which Flask has applied before it read anything.
        return _rest_of(get_input_stream(request.environ), limit, length)


def _rest_of(stream: IO[bytes], limit: int, length: int | None) -> bytes:
    """Return what is left of a stream, ``length`` bytes at most.

    Where the length is not known, raises RequestEntityTooLarge for more than one byte over ``limit``.
    """
    if length is None:
        return LimitedStream(stream, limit + 1, is_max=True).read()
    data = bytearray()
    while len(data) < length and (part := stream.read(min(length - len(data), _PART))):
        data += part
    return bytes(data)


def _why_empty(request: Request, wanted: str) -> str:
    if request.form or request.files:
        return (
            "the application has read the body as a form before this call could read it: send the header "
            "Content-Type: application/json"
        )
    if request.content_length:
        return (
            f"the body is empty, although its Content-Length is {request.content_length}: the client broke off, or "
            f"the application has read it and did not keep it; send {wanted}"
        )
    return f"the body is empty: send {wanted}"


def _too_large(what: str, limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"{what}; at most {limit} are read (max_body_bytes)")


def wants_delta(request: Request) -> bool:
    """Return whether a client asks for new pieces instead of the whole text so far."""
    return DELTA_TYPE in request.headers.get("Accept", "")


def json_response(value: Any, status: int = 200, content_type: str = JSON_TYPE) -> Response:
    """Return ``value`` (also numpy arrays) as JSON, without the application's JSON provider."""
    return Response(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY), status, content_type=content_type)
