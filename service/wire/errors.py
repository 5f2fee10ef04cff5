"""Turn the error responses of other processes into our errors: by the code if there is one, else by the status.

No I/O: routers, hosts and `modelyard.Client` read responses with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import (
    Cancelled,
    Conflict,
    EngineError,
    Forbidden,
    InvalidRequest,
    ModelyardError,
    Overloaded,
    RequestTooLarge,
    Unauthorized,
    Unavailable,
    UnknownModel,
    WorkerLost,
    WorkerUnreachable,
)
from ..types import JSONObject
from .messages import output_from_wire

PROBLEM_TYPE = "urn:modelyard:error:"
TOO_LONG = "the prompt is too long (context_length_exceeded): "
"""The beginning of the message of OpenAI's error for a prompt, or a text, that does not fit into the model's context.

LangChain finds this error by words of its message alone. Who reads the message takes the beginning off again.
"""
_MAX_TEXT = 2000
_PAUSE = re.compile(r"\d{1,4}", re.ASCII)
_CODE = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_LOAD = re.compile(r"slots=\d{1,9};free=\d{1,9};waiting=\d{1,9}(;loaded=0)?", re.ASCII)
_UNKNOWN_AT_PEER = re.compile(
    r"(\*\*LLMServer Generate Error, Please CheckErrorInfo\.\*\*: )?"
    r"Cound not found worker instances for model name .+ and worker type \w+"
)
"""The text of a worker of DB-GPT, with ``error_code`` 1, for a model that it does not have."""


def _tree(root: type[ModelyardError]) -> Iterator[type[ModelyardError]]:
    yield root
    for branch in root.__subclasses__():
        yield from _tree(branch)


def _by_code() -> dict[str, type[ModelyardError]]:
    # The first class of a code wins: a subclass without a code, as in a test, has that of its parent.
    table: dict[str, type[ModelyardError]] = {}
    for kind in _tree(ModelyardError):
        table.setdefault(kind.code, kind)
    # The client of the worker, another hop, has gone, and not ours: for us the worker broke off.
    table[Cancelled.code] = WorkerLost
    return table


BY_CODE: Mapping[str, type[ModelyardError]] = _by_code()

_BY_STATUS: Mapping[int, type[ModelyardError]] = {
    400: InvalidRequest,
    401: Unauthorized,
    403: Forbidden,
    409: Conflict,
    413: RequestTooLarge,
    422: InvalidRequest,
    429: Overloaded,
    499: WorkerLost,
    502: WorkerUnreachable,
    503: Unavailable,
    504: WorkerUnreachable,
}


def load_in(headers: Mapping[str, str]) -> str | None:
    """Return the load of the model that answers: the value of ``Modelyard-Load``, None if it is absent or invalid."""
    load = headers.get("modelyard-load") or ""
    return load if _LOAD.fullmatch(load) else None


def code_in(value: Any) -> str | None:
    """Return the code of an error of another server; None for what is not a short word of plain characters."""
    return value if isinstance(value, str) and _CODE.fullmatch(value) else None


def error_of_response(status: int, headers: Mapping[str, str], body: bytes, where: str) -> ModelyardError:
    """Return the error that a response with a status other than 200 means; ``where`` names its server."""
    return error_of_document(status, headers, document_in(body), where)


def document_in(body: bytes) -> JSONObject:
    """Return the object in an error body; for other bodies an object with their beginning as ``detail``."""
    try:
        document = json.loads(body.rstrip(b"\0"))
    except (ValueError, RecursionError):  # a page of a proxy, or nothing
        document = None
    return document if isinstance(document, dict) else {"detail": body[:200].decode("utf-8", "replace")}


def error_of_document(status: int, headers: Mapping[str, str], document: JSONObject, where: str) -> ModelyardError:
    """Return the error that a response with a status other than 200 means; ``where`` names its server.

    ``document`` is the body, as `document_in` returns it.
    """
    if document.get("error_code"):
        return error_of_output(document, headers, status)
    kind = document.get("type")
    code = kind.removeprefix(PROBLEM_TYPE) if isinstance(kind, str) and kind.startswith(PROBLEM_TYPE) else ""
    detail = detail_words(document.get("detail"))
    if code in BY_CODE:
        return _made(BY_CODE[code], detail, document, headers)
    summary = f"{where} answers with status {status}"
    if location := headers.get("location"):
        # A redirect means that the registered address is wrong, or an attempt to divert requests.
        return WorkerUnreachable(f"{summary}, which leads to {location[:200]}: that is not followed")
    if status in (404, 405):
        reason = f" ({detail})" if detail else ""
        return WorkerUnreachable(f"{summary}: this call is not known there, its role is another, or its prefix{reason}")
    text = f"{summary}: {detail}" if detail else summary
    return _made(_BY_STATUS.get(status, EngineError), text, {}, headers)


def error_of_output(output: Mapping[str, Any], headers: Mapping[str, str], status: int = 200) -> ModelyardError:
    """Return the error that a ModelOutput with an ``error_code`` means; its text stays as it is."""
    context = output.get("model_context")
    details = context if isinstance(context, dict) else {}
    try:
        text = output_from_wire(output).text
    except ValueError:  # its content is not text
        text = ""
    name = details.get("error")
    if isinstance(name, str) and name in BY_CODE:
        return _made(BY_CODE[name], text, details, headers)
    code = output["error_code"] if status == 200 else status
    if not isinstance(code, int):
        return EngineError(text or EngineError.title)
    if code == 404 or (code == 1 and _UNKNOWN_AT_PEER.fullmatch(text)):
        return UnknownModel(text)
    return _made(_BY_STATUS.get(code, EngineError), text, {}, headers)


def _made(kind: type[ModelyardError], text: str, details: JSONObject, headers: Mapping[str, str]) -> ModelyardError:
    text = text or kind.title
    if issubclass(kind, Unavailable):
        pause = headers.get("retry-after") or ""
        return kind(text, int(pause) if _PAUSE.fullmatch(pause) else 1, load_in(headers))
    errors = details.get("errors")
    faults = [error for error in errors if _is_field_error(error)] if isinstance(errors, list) else []
    return kind(text, faults, backend_code=code_in(details.get("backend_code")))


def _is_field_error(error: Any) -> bool:
    return isinstance(error, dict) and set(error) == {"field", "message"} and _are_strings(error.values())


def _are_strings(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def detail_words(detail: Any) -> str:
    """Return a ``detail`` as text: a string, or FastAPI's list of faults of a body; empty for other values."""
    if isinstance(detail, list):
        return "; ".join(words for fault in detail if (words := _fault(fault)))[:_MAX_TEXT]
    return _fault(detail)[:_MAX_TEXT]


def _fault(fault: Any) -> str:
    if not isinstance(fault, dict):
        return fault if isinstance(fault, str) else ""
    message, place = fault.get("msg"), fault.get("loc")
    if not isinstance(message, str):
        return ""
    steps = [str(step) for step in place if isinstance(step, str | int)] if isinstance(place, list) else []
    return f"{'.'.join(steps)}: {message}" if steps else message
