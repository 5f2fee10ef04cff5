"""The answers of other processes that are errors, read."""

from __future__ import annotations

import orjson

from ..errors import ModelyardError
from ..sessions.answer import Answer
from ..sessions.http_parsing import Headers
from ..types import JSONObject
from ..wire.errors import error_of_document


def error_of_answer(answer: Answer, where: str) -> ModelyardError:
    """Return the error that an answer with a status other than 200 means; ``where`` names who gave it.

    Reads the body, so it may raise WorkerUnreachable.
    """
    return error_of(answer.status_code, answer.headers, answer.content, where)


def error_of(status: int, headers: Headers, body: bytes, where: str) -> ModelyardError:
    """The same, of an answer that was read."""
    return error_of_document(status, headers, _document(body), where)


def _document(body: bytes) -> JSONObject:
    try:
        document = orjson.loads(body.rstrip(b"\0"))
    except orjson.JSONDecodeError:
        document = None
    # A page of some proxy, or nothing: its beginning may tell a person what it is.
    return document if isinstance(document, dict) else {"detail": body[:200].decode("utf-8", "replace")}
