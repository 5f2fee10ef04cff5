"""Turns errors into HTTP responses: problem documents, and ModelOutputs for calls that generate text."""

from __future__ import annotations

import logging
import uuid

from flask import Blueprint, Flask, Response, g, request
from werkzeug.exceptions import HTTPException, NotFound

from ...errors import ModelyardError, Unauthorized, Unavailable
from ...telemetry import dbgpt
from ...types import JSONObject, ModelOutput
from ...wire.chunks import LOAD_HEADER, ROUTE_HEADER, ROUTE_LOCAL, STREAM_TYPE, encode_output
from ...wire.decoder import NUL
from ...wire.messages import DELTA_TYPE
from .bodies import JSON_TYPE, json_response, wants_delta

log = logging.getLogger(__name__)

PROBLEM_TYPE = "application/problem+json"
STREAM_CALL = "generate_stream"
GENERATION_CALLS = frozenset({"generate", STREAM_CALL})
_STATUS_OF_REFUSALS = frozenset({401, 403, 413, 422, 429, 503})


def install(blueprint: Blueprint) -> None:
    """Handle every error of the blueprint's views."""
    blueprint.register_error_handler(ModelyardError, _answer)
    blueprint.register_error_handler(HTTPException, _answer_http)
    blueprint.register_error_handler(Exception, _answer_unforeseen)


def install_in_app(app: Flask) -> None:
    """Handle the errors outside of views, unknown paths and methods, in an application of our own."""
    app.register_error_handler(HTTPException, _answer_http)
    app.register_error_handler(Exception, _answer_unforeseen)


def unforeseen(error: BaseException) -> ModelyardError:
    """Log an unexpected error with its traceback, and return one that has only an id of the log."""
    number = uuid.uuid4().hex[:12]
    log.error("error %s", number, exc_info=error)
    return ModelyardError(f"unexpected error; the log of the service has it as error {number}")


def error_output(error: ModelyardError, *, delta: bool = False) -> ModelOutput:
    """Return an error as DB-GPT's clients read it: the reason in ``text``, ``error_code`` not 0.

    With ``delta``, for our own clients, it also has the code of the error, and that of the server behind the engine.
    """
    output = ModelOutput(text=str(error), error_code=error.status)
    if delta:
        output.model_context = {"error": error.code, **_details(error)}
    return output


def _answer(error: ModelyardError) -> Response:
    line = g.get("modelyard_line")
    if line is not None:
        line.error = error.code
    if (call := _generation()) is not None:
        delta = call == STREAM_CALL and wants_delta(request)
        status = refusal_status(type(error))
        response = _refusal(error_output(error, delta=delta), status, call)
    else:
        document = problem(error)
        if request.headers.get(ROUTE_HEADER) == ROUTE_LOCAL:
            document |= _details(error)
        response = json_response(document, error.status, PROBLEM_TYPE)
    return with_headers(response, error)


def _details(error: ModelyardError) -> JSONObject:
    """Return what routers need of an error, beside its code and text, to raise the same one."""
    details = {"errors": error.errors, "backend_code": error.backend_code}
    return {name: value for name, value in details.items() if value}


def with_headers(response: Response, error: ModelyardError) -> Response:
    """Return the response for an error with its headers: when to repeat the request, the load, how to log in."""
    if isinstance(error, Unavailable):
        response.headers["Retry-After"] = str(error.retry_after)
        if error.load:
            response.headers[LOAD_HEADER] = error.load
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = 'Bearer realm="modelyard"'
    return response


def refusal_status(error: type[ModelyardError]) -> int:
    """Return the status of an error of a call that generates text, for all but clients of DB-GPT."""
    return error.status if error.status in _STATUS_OF_REFUSALS else 200


def _generation() -> str | None:
    """Return the call of the request if it generates text: its client reads every error as a `ModelOutput`."""
    call = (request.endpoint or "").rpartition(".")[2]
    return call if call in GENERATION_CALLS else None


def _refusal(output: ModelOutput, status: int, call: str) -> Response:
    # DB-GPT's client of streams ignores the status, and reads only chunks that end in NUL. Its client of whole answers
    # shows its user the text of an answer of status 200, and of others the body as it is.
    body = encode_output(output)
    if call != STREAM_CALL:
        if dbgpt.HEADER in request.headers or g.get("modelyard_has_span_id", False):
            status = 200
        return Response(body, status, content_type=JSON_TYPE)
    return Response(body + NUL, status, content_type=DELTA_TYPE if wants_delta(request) else STREAM_TYPE)


def problem(error: ModelyardError) -> JSONObject:
    """Return a problem document (RFC 9457)."""
    document: JSONObject = {
        "type": f"urn:modelyard:error:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": str(error),
    }
    if error.errors:
        document["errors"] = error.errors
    return document


def _answer_http(error: HTTPException) -> Response:
    status, detail = error.code or 500, error.description or error.name
    if isinstance(error, NotFound) and error is request.routing_exception:
        detail = f"{request.method} {request.path} is not served here: /openapi.json lists all calls"
    if (call := _generation()) is not None:
        response = _refusal(ModelOutput(text=detail, error_code=status), status, call)
    else:
        document = {"type": "about:blank", "title": error.name, "status": status, "detail": detail}
        response = json_response(document, status, PROBLEM_TYPE)
    for name, value in error.get_headers(request.environ):
        if name.lower() != "content-type":
            response.headers.add(name, value)
    return response


def _answer_unforeseen(error: Exception) -> Response:
    return _answer(unforeseen(error))
