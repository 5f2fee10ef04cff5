"""Calls of OpenAI's API that go through to another server as they are: audio, images, moderations, files, batches.

The operator's table says which paths go where. A body is read whole, within `max_body_bytes`; an answer is passed on as
it comes. Of the headers few are passed on, in either direction: never a key, a cookie, or an address.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import quote

from flask import Blueprint, Response, g, request
from werkzeug.exceptions import NotFound
from werkzeug.formparser import FormDataParser
from werkzeug.http import dump_options_header, parse_options_header

from ...access.keys import Key
from ...access.token_store import OutgoingToken
from ...engines.openai_answers import is_of_account, refusal, words_of
from ...errors import Cancelled, EngineError, Forbidden, ModelyardError, UnknownModel
from ...sessions.response import Response as Answer
from ...sessions.session import Session
from ...settings.passthrough import PassThrough
from ...worker.protocol import Service
from ..request.access_log import AccessLine, current_line
from ..request.bodies import JSON_TYPE, json_response, read_bytes
from ..request.calls import Call
from ..request.fields import fault
from ..request.keys import check_model
from ..request.streaming import StreamResponse
from .blueprint import guarded_blueprint
from .errors import INVALID, shaped

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
MAX_REFUSAL = 1024 * 1024
"""Bytes of a refusal that are read."""

_SENT = ("Accept", "OpenAI-Beta")
_RETURNED = ("Content-Type", "Content-Length", "Content-Disposition")
_FORM = "multipart/form-data"
_MAX_PARTS = 1000
"""The most parts of a form: each costs time to read."""
_SAFE_IN_PATH = "/:@!$&'()*+,;=-._~"
_SAFE_IN_QUERY = "%?" + _SAFE_IN_PATH


class Backend:
    """One entry of the table, with the connections to its server."""

    def __init__(self, entry: PassThrough) -> None:
        """Make no connection yet. Raises ConfigError."""
        self.path = entry.path
        self.model = entry.model
        self.where = f"the server of {entry.path}"
        self._base = entry.base_url.rstrip("/")
        token = OutgoingToken(entry.api_key, entry.api_key_file)
        self._session = Session(entry.connect_timeout, entry.silence_timeout, token=token, ca=entry.ca)
        self.close = self._session.close

    def send(self, path: str, body: bytes, call: Call) -> Answer:
        """Return the answer to the current request, sent with ``body`` to ``path`` below the address."""
        url = f"{self._base}{quote(path, safe=_SAFE_IN_PATH)}"
        if request.query_string:
            url += "?" + quote(request.query_string, safe=_SAFE_IN_QUERY)
        headers = {name: request.headers[name] for name in _SENT if name in request.headers}
        if body:
            headers["Content-Type"] = _content_type(body)
        return self._session.request(request.method, url, body=body or None, headers=headers, cancel=call.cancel)


def passthrough_blueprint(
    service: Service, prefixes: Sequence[str], name: str = "modelyard_openai_passthrough"
) -> Blueprint:
    """Return the calls of the table of ``service`` under each of ``prefixes``. Raises ConfigError."""
    blueprint = guarded_blueprint(service, name)
    backends: dict[str, list[Backend]] = {}
    for entry in service.settings.passthrough:
        backend = Backend(entry)
        backends.setdefault(entry.path, []).append(backend)
        service.when_stopped(backend.close)
    for path, of_path in backends.items():
        view = _view_of(service, of_path)
        for prefix in prefixes:
            for rule in (f"{prefix}{path}", f"{prefix}{path}/<path:rest>"):
                blueprint.add_url_rule(
                    rule, path.strip("/").replace("/", "-"), view, methods=METHODS, provide_automatic_options=False
                )
                blueprint.add_url_rule(rule, "methods", _methods, methods=["OPTIONS"])
    return blueprint


def _view_of(service: Service, backends: Sequence[Backend]) -> Callable[..., Response]:
    # A function, not a partial: extensions of Flask read the names of views.
    def pass_on(rest: str = "") -> Response:
        return _passed_on(service, backends, rest)

    return pass_on


def _methods(rest: str = "") -> Response:
    """Return the methods of the calls: Flask's own answer would find that the rules of `Routes` take every method."""
    response = Response()
    response.allow.update([*METHODS, "OPTIONS"])
    return response


def _passed_on(service: Service, backends: Sequence[Backend], rest: str) -> Response:
    line = current_line()
    call = Call(service, line)
    try:
        body = read_bytes(request, service.settings.max_body_bytes)
        line.model = model = _model_in(body)
        _check_key(model, line.api_key)
        backend = _chosen(backends, model)
        path = f"{backend.path}/{rest}" if rest else backend.path
        if {".", ".."} & set(path.split("/")):
            raise NotFound(f"{request.path} is not a path of {backend.where}")
        call.admit(0)
        answer = backend.send(path, body, call)
        if not 200 <= answer.status_code < 300 or answer.headers.get("content-type", "").startswith("text/html"):
            with answer:
                refused = _refusal(answer, backend.where)
            call.close()
            return refused
        call.bound_writes(service.settings.write_timeout)
        headers = _returned(answer)
    except BaseException as error:
        call.close(error)
        raise
    kind = headers.pop("Content-Type", "application/octet-stream")
    g.modelyard_stream = response = StreamResponse(PassedBody(call, answer, line), kind, status=answer.status_code)
    response.headers.update(headers)
    return response


def _returned(answer: Answer) -> dict[str, str]:
    """Return the headers of an answer that are passed on, without characters that no header may have."""
    headers = {name: answer.headers[name] for name in _RETURNED if answer.headers.get(name)}
    cleaned = {name: "".join(c if c.isprintable() else " " for c in value) for name, value in headers.items()}
    return {**cleaned, "X-Content-Type-Options": "nosniff"}


def _check_key(model: str | None, key: Key | None) -> None:
    """Raise Forbidden if an API key has models, and ``model`` is not one of them."""
    if key is not None and key.models:
        if model is None:
            raise Forbidden(f"the key {key.name} may use {', '.join(key.models)} alone, and this call names no model")
        check_model(model, key)


def _chosen(backends: Sequence[Backend], model: str | None) -> Backend:
    """Return the server for the model of a request: the first that has it, or is for all.

    Raises InvalidRequest if none is named and there are several, UnknownModel if it is that of none.
    """
    models = [backend.model for backend in backends if backend.model is not None]
    if not models:
        return backends[0]
    if model is None and len(backends) > 1 and None not in [backend.model for backend in backends]:
        raise fault("model", f"is missing: give one of {', '.join(models)}")
    for backend in backends:
        if backend.model is None or backend.model == model or (model is None and len(backends) == 1):
            return backend
    raise UnknownModel(f"there is no model {model!r} at {request.path}; there are {', '.join(models)}")


def _content_type(body: bytes) -> str:
    """Return the type of a body as it was read, so that the server reads the same model in it."""
    given = request.headers.get("Content-Type", JSON_TYPE)
    mimetype, options = parse_options_header(given)
    if mimetype == _FORM:
        return dump_options_header(mimetype, options)
    return JSON_TYPE if mimetype != JSON_TYPE and _in_json(body) else given


def _model_in(body: bytes) -> str | None:
    """Return the field ``model`` of JSON, of a form or of the query; None without one.

    Raises InvalidRequest if there are several that differ: servers take the first, or the last, or that of one place.
    """
    named = [*_in_json(body), *_in_form(body), *(("model", model) for model in request.args.getlist("model"))]
    if any(model != named[0][1] for _, model in named):
        raise fault("model", "is given more than once, with different values: give one")
    model = dict(named).get("model")
    return model if isinstance(model, str) and model else None


def _in_json(body: bytes) -> list[tuple[str, Any]]:
    """Return the fields named ``model`` of a JSON object; some servers read ``Model`` as the same name."""
    try:
        document = json.loads(body, object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        return []
    return [field for field in document if field[0].lower() == "model"] if isinstance(document, tuple) else []


def _in_form(body: bytes) -> list[tuple[str, Any]]:
    """Return the fields ``model`` of a form. Raises RequestEntityTooLarge for one with too many parts."""
    mimetype, options = parse_options_header(request.headers.get("Content-Type"))
    if mimetype != _FORM:
        return []
    parser = FormDataParser(stream_factory=_no_file, max_form_parts=_MAX_PARTS)
    fields = parser.parse(io.BytesIO(body), mimetype, len(body), options)[1]
    return [("model", model) for model in fields.getlist("model")]


class _Discarded(io.BytesIO):
    """The file of a form, which is not kept."""

    def write(self, data: Any) -> int:
        return len(data)


def _no_file(
    total_content_length: int | None, content_type: str | None, filename: str | None, content_length: int | None = None
) -> _Discarded:
    return _Discarded()


def _refusal(answer: Answer, where: str) -> Response:
    """Return the answer to a request that the server refuses, in OpenAI's shape. Raises what is not for the client."""
    status, body = answer.status_code, answer.read_whole(MAX_REFUSAL)
    if status < 400:
        raise EngineError(f"{where} answers with {'a page of HTML' if status < 300 else f'a redirect ({status})'}")
    message, code, param = words_of(body)
    if status >= 429 or is_of_account(status, code):
        raise refusal(status, answer.headers, body, where)
    return json_response(shaped(message or f"{where} answers with status {status}", INVALID, param, code), status)


class PassedBody:
    """The body of an answer on its way, as it comes. `close` ends the request, once."""

    def __init__(self, call: Call, answer: Answer, line: AccessLine) -> None:
        """Pass on ``answer``; ``line`` is written at the end."""
        self._call = call
        self._answer = answer
        self._line = line
        self._has_ended = self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._has_ended:
            raise StopIteration
        try:
            while (data := self._answer.read1()) is None:
                pass
        except ModelyardError as error:
            self._has_ended = True
            self._line.error = error.code
            if isinstance(error, Cancelled):
                raise StopIteration from None
            raise  # the server closes the connection: the client sees that the answer is not whole
        if not data:
            self._has_ended = True
            raise StopIteration
        self._line.began_output()
        self._line.bytes += len(data)
        return data

    def close(self) -> None:
        """Release everything, and write the access line; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if not self._has_ended:
            self._line.error = self._line.error or self._call.cancel.error.code
        try:
            self._answer.close()
        finally:
            self._call.close()
            self._line.write()
