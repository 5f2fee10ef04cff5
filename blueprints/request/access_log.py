"""The access log: one line of JSON a request, and the span of the request, which is as long."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote

import orjson
from flask import Blueprint, Request, Response, g

from ...access.keys import Key
from ...engines.base import Vectors, cut_texts, other_model_of, tokens_of
from ...errors import Unavailable
from ...sockets import HELD, hold_writes
from ...streams import OutputStream
from ...telemetry.metrics import HTTP_REQUESTS, HTTP_SECONDS, REFUSED, Metrics
from ...telemetry.recent import LONGEST_BODY, RecentRequests
from ...telemetry.tracing import Tracing
from ...types import JSONObject
from ...wire.chunks import CUT_HEADER, MODEL_HEADER, TOKENS_HEADER
from ...wire.errors import BY_CODE
from ...wire.terms import ID_HEADER, QUEUE_HEADER, checked_id
from ...worker.protocol import Keys, Service
from .bodies import json_response, read_object
from .current import current_request
from .keys import add_headers, check_model
from .traces import CallTrace, arrived, read_body

log = logging.getLogger("modelyard.access")
_REFUSALS = {code for code, error in BY_CODE.items() if issubclass(error, Unavailable)}
"""The codes of errors after which the request may be sent again."""
_OF_CALLER = ("error", "caller", "key", "request_id")
R = TypeVar("R", bound=Response)


class AccessLine:
    """The facts of one request: never its prompt or answer. They are set while the request goes on."""

    __slots__ = (
        *("_began", "_call", "_enabled", "_metrics", "_routine", "answered_by", "bytes", "caller", "error", "request"),
        *("finish_reason", "first", "instance", "model", "pieces", "prompt_tokens", "queued", "request_id"),
        *("_answer", "_prompt", "_recent", "api_key", "status", "trace", "usage"),
    )

    def __init__(
        self,
        request: Request,
        *,
        enabled: bool,
        routine: bool = False,
        trace: CallTrace | None = None,
        metrics: Metrics | None = None,
        recent: RecentRequests | None = None,
    ) -> None:
        """Begin a line; ``routine`` successes are logged at debug level.

        When it is written, ``trace`` ends, ``metrics`` count the request, and ``recent`` keeps the line.
        """
        self._enabled = enabled
        self._metrics = metrics
        self._call = (request.endpoint or "none").removeprefix("modelyard_")
        self._routine = routine
        self._recent = recent
        self._prompt: str | None = None
        self._answer: list[str] | None = [] if recent is not None and recent.bodies else None
        self._began = time.monotonic()
        self.request = request
        self.trace = trace
        self.status = 0
        self.bytes = 0
        self.pieces: int | None = None
        self.queued = 0.0
        """Seconds that the request stood in line; 0 if a slot was free."""
        self.first: float | None = None
        self.model: str | None = None
        self.answered_by: str | None = None
        """The model that has answered, where it is not the ``model`` of the request."""
        self.instance: str | None = None
        """The address of the instance that the request was sent to; None for a model of this process."""
        self.finish_reason: str | None = None
        self.prompt_tokens: int | None = None
        """The tokens of texts that were embedded or ranked; None if they are not known."""
        self.usage: Callable[[], Mapping[str, Any] | None] = lambda: None
        """Returns the tokens of an answer of text, None if they are not known."""
        self.error: str | None = None
        self.caller: str | None = None
        """The name of the request's token or API key."""
        self.api_key: Key | None = None
        """The API key that the guard has found; None for a request without one."""
        self.request_id = checked_id(request.headers.get(ID_HEADER, ""))
        """The id of the request; empty without one."""

    @property
    def key(self) -> str | None:
        """The id of its API key."""
        return None if self.api_key is None else self.api_key.id

    def milliseconds(self) -> float:
        """Return the milliseconds since the request began."""
        return round((time.monotonic() - self._began) * 1000, 1)

    @property
    def keeps_bodies(self) -> bool:
        """Whether the pages show prompts and answers of the last requests."""
        return self._answer is not None

    def keep_prompt(self, body: JSONObject) -> None:
        """Keep the beginning of the body of the request, where `keeps_bodies`."""
        if self.keeps_bodies:
            self._prompt = orjson.dumps(body).decode()[:LONGEST_BODY]

    def keep_answer(self, pieces: Iterable[str]) -> None:
        """Keep the beginning of the answer, of which ``pieces`` are next, where `keeps_bodies`."""
        if self._answer is not None and sum(map(len, self._answer)) < LONGEST_BODY:
            self._answer.append("".join(pieces)[:LONGEST_BODY])

    def began_output(self) -> None:
        """Note that the first piece is ready."""
        if self.first is None:
            self.first = time.monotonic()

    def note_answer(self, stream: OutputStream) -> None:
        """Keep how the answer of a stream began and ended."""
        if self.first is None:
            self.first = stream.first
        self.finish_reason = stream.finish_reason
        if self.usage() is None:
            self.usage = lambda: stream.usage

    def write(self) -> None:
        """Write the line, when the server has the last byte of the answer or the client has disconnected."""
        if self.trace is not None:
            self.trace.end(self)
        if self._metrics is not None:
            self._count(self._metrics)
        if not self._enabled and self._recent is None:
            return
        line = self._facts()
        if self._recent is not None:
            answer = None if self._answer is None else "".join(self._answer)[:LONGEST_BODY]
            self._recent.note(line, self._prompt, answer)
        if self._enabled:
            level = logging.DEBUG if self._routine and self.status < HTTPStatus.BAD_REQUEST else logging.INFO
            line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **line}
            log.log(level, orjson.dumps(line).decode())

    def _facts(self) -> JSONObject:
        line: JSONObject = {
            "method": self.request.method,
            "path": self.request.path,
            "status": self.status,
            "ms": self.milliseconds(),
            "bytes": self.bytes,
            "remote": self.request.remote_addr,
        }
        if self.first is not None:
            line["first_ms"] = round((self.first - self._began) * 1000, 1)
        if self.queued:
            line["queue_ms"] = round(self.queued * 1000, 1)
        for name in ("model", "answered_by", "instance", "pieces", "prompt_tokens", "finish_reason", *_OF_CALLER):
            value = getattr(self, name)
            if value not in (None, ""):
                line[name] = value
        if usage := self.usage():
            line |= {name: usage[name] for name in ("prompt_tokens", "completion_tokens") if name in usage}
        return line

    def _count(self, metrics: Metrics) -> None:
        seconds = time.monotonic() - self._began
        metrics.note((HTTP_REQUESTS, (self._call, str(self.status)), 1), (HTTP_SECONDS, (self._call,), seconds))
        if self.error in _REFUSALS:
            metrics.add(REFUSED, self.error)


def current_line() -> AccessLine:
    """Return the access line of the current request."""
    line: AccessLine = g.modelyard_line
    return line


def _hold_until_sent(environ: Mapping[str, Any]) -> None:
    """Let the headers of an answer leave with its body, where the server says when it has written both."""
    held, sock = environ.get(HELD), environ.get("gunicorn.socket")
    if held is not None and hold_writes(sock):
        held.append(sock)


def read_call(service: Service, line: AccessLine, *, keeps_body: bool = True) -> JSONObject:
    """Return the body of the request of ``line``, which notes its model and span.

    Without ``keeps_body`` no page ever shows it: it may have private parameters.
    Raises InvalidRequest, RequestTooLarge, and Forbidden for a model that the request's API key may not use.
    """
    body = read_object(line.request, service.settings.max_body_bytes)
    model = body.get("model")
    line.model = model if isinstance(model, str) else None
    if keeps_body:
        line.keep_prompt(body)
    line.trace = read_body(service.tracing, line.request, line.trace, body)
    if line.model is not None:
        check_model(line.model, line.api_key)
    return body


def naming(model: str | None, response: R) -> R:
    """Return the response to a request that ``model`` has answered; None if it is the one that was asked for."""
    if model is not None:
        g.modelyard_line.answered_by = model
        response.headers[MODEL_HEADER] = quote(model, safe="/:@+=, ")
    return response


def vectors_response(value: Any, vectors: Vectors) -> Response:
    """Return ``value`` as JSON, the answer to a request that has computed ``vectors``.

    Headers have the number of texts that were cut, their tokens, and the model if it is not the one that was asked for;
    the access line has the last two.
    """
    response = json_response(value)
    if cut := cut_texts(vectors):
        response.headers[CUT_HEADER] = str(cut)
    if (tokens := tokens_of(vectors)) is not None:
        g.modelyard_line.prompt_tokens = tokens
        response.headers[TOKENS_HEADER] = str(tokens)
    return naming(other_model_of(vectors), response)


def log_access(
    blueprint: Blueprint,
    *,
    enabled: bool,
    tracing: Tracing | None = None,
    metrics: Metrics | None = None,
    recent: RecentRequests | None = None,
    keys: Keys | None = None,
    routine: Collection[str] = (),
    begun: Callable[[AccessLine], object] | None = None,
    ended: Callable[[AccessLine, Response], object] | None = None,
) -> None:
    """Write an access line for every request of a blueprint; that of a stream is written by its body at the end.

    With ``tracing`` each request also has a span; ``metrics`` count them, and ``recent`` keeps the last of each model.
    Each answer to one of the ``keys`` with limits says what is left of them. Successes of the views in ``routine`` are
    logged at debug level. Each line is given to ``begun`` when it is new, and
    to ``ended`` with the response.
    """

    @blueprint.before_request
    def begin() -> None:
        call = current_request()
        is_routine = bool(routine) and (call.endpoint or "").rpartition(".")[2] in routine
        trace = arrived(tracing, call) if tracing is not None else None
        g.modelyard_line = line = AccessLine(
            call, enabled=enabled, routine=is_routine, trace=trace, metrics=metrics, recent=recent
        )
        if begun is not None:
            begun(line)

    @blueprint.after_request
    def note(response: Response) -> Response:
        # `begin` is not called if an earlier before_request of the application has answered.
        if (line := g.get("modelyard_line")) is not None:
            line.status = response.status_code
            if line.queued:
                response.headers[QUEUE_HEADER] = str(math.ceil(line.queued * 1000))
            if not response.is_streamed:
                line.bytes = response.content_length or 0
                _hold_until_sent(line.request.environ)
                if line.keeps_bodies:
                    line.keep_answer([response.get_data()[:LONGEST_BODY].decode("utf-8", "replace")])
            if keys is not None and line.api_key is not None:
                add_headers(response, keys, line.api_key)
            if ended is not None:
                ended(line, response)
        return response

    @blueprint.teardown_request
    def end(error: BaseException | None) -> None:
        line, response = g.get("modelyard_line"), g.pop("modelyard_stream", None)
        if line is not None and line.trace is not None:
            line.trace.leave()
        if response is None:
            if line is not None:
                line.write()
        elif not response.taken:
            # An after_request of the application failed, or replaced the response.
            response.close()
