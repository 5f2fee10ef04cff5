"""What a server with OpenAI's API answers: its events as bursts, and its errors as errors of ours."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from ..errors import EngineError, FieldError, InvalidRequest, ModelyardError, NotReady, Overloaded, PromptTooLong
from ..types import Burst, JSONObject, details_of
from ..wire.errors import TOO_LONG, code_in, detail_words
from .openai_events import EventDecoder, TextEvents, first_events

DONE = b"[DONE]"

_MAX_TEXT = 2000
_MAX_PAUSE = 9999
_PAUSE = re.compile(r"\d{1,4}(\.\d{1,9})?", re.ASCII)
_TOO_LONG = re.compile(
    r"context.{0,20}(length|size|window)|prompt is too long|maximum.{0,20}tokens|`inputs`.{0,30}tokens", re.IGNORECASE
)
"""What vLLM, SGLang, llama-server, Anthropic, OpenAI and TGI write of a prompt that is too long."""
_CONTEXT_LENGTH = "context_length_exceeded"
_OF_ACCOUNT = re.compile(r"api_?key|auth(ent|ori)|credential|permission|account|billing|quota|organi[sz]ation")
"""Codes that say something of this service at its backend: a client would take them for its own account here."""
_PARAM = re.compile(r"[\w.\[\]/-]{1,200}", re.ASCII)
_OVERLOADED = frozenset({429, 503, 529})
_FAULT_OF_CLIENT = frozenset({400, 413, 415, 422})


class BackendAnswer:
    """One streamed answer of a backend: its events in, bursts out."""

    def __init__(self, where: str) -> None:
        """``where`` names the backend in messages."""
        self._where = where
        self._decoder = EventDecoder()
        self._texts = TextEvents()
        self._has_begun = False
        self._finish_reason: str | None = None
        self._usage: JSONObject | None = None
        self._error: ModelyardError | None = None
        """The error of an event, kept until the pieces before it are on their way."""
        self.has_ended = False
        """Whether the backend has said that it is whole."""

    def read(self, data: bytes) -> Burst | None:
        """Return what the next bytes of a stream say, as `burst` does. Raises ValueError like the decoder."""
        self._check()
        pieces: list[str] = []
        deltas: dict[int, JSONObject] = {}
        if not self._decoder.is_within_event:
            if not self._has_begun:
                # One of the first two is the model of those that follow.
                first, data = first_events(data, 2)
                self._take(self._decoder.feed(first), pieces, deltas)
            if self._error is None:
                texts, data = self._texts.leading(data)
                pieces += texts
        if data and self._error is None:
            self._take(self._decoder.feed(data), pieces, deltas)
        return self._made(pieces, deltas)

    def burst(self, events: Iterable[bytes]) -> Burst | None:
        """Return what ``events`` say as one burst; None if that is nothing new. Raises the error of an event.

        An error at the beginning is raised at once, as another backend may answer; a later one after its burst, by the
        next call or by `ending`.
        """
        self._check()
        pieces: list[str] = []
        deltas: dict[int, JSONObject] = {}
        self._take(events, pieces, deltas)
        return self._made(pieces, deltas)

    def _take(self, events: Iterable[bytes], pieces: list[str], deltas: dict[int, JSONObject]) -> None:
        """Add the ``pieces`` of ``events``, and what comes with some of them: ``deltas``, by the index of the piece."""
        for event in events:
            if event == DONE:
                self.has_ended = True
                continue
            if text := self._texts.text_of(event):
                pieces.append(text)
                continue
            try:
                choice = self._choice(event)
            except ModelyardError as error:
                if not (self._has_begun and pieces):
                    raise
                self._error = error
                return
            if choice is None:
                continue
            piece, delta = _content_of(choice)
            if piece and not delta and self._finish_reason is None and self._usage is None:
                self._texts.learn(event, self._text_in)
            if "logprobs" in delta and (echoed := _before_tokens(piece, delta["logprobs"]["content"])):
                pieces.append(echoed)
                piece = piece.removeprefix(echoed)
            if delta:
                deltas[len(pieces)] = delta
            if piece or delta:
                pieces.append(piece)

    def _made(self, pieces: list[str], deltas: dict[int, JSONObject]) -> Burst | None:
        if not pieces:
            return None
        self._has_begun = True
        return Burst(pieces, deltas=[deltas.get(index, {}) for index in range(len(pieces))] if deltas else None)

    def whole(self, burst: Burst | None) -> Burst:
        """Return ``burst``, which is all that has come, as the last one. Raises like `ending`."""
        ending = self.ending()
        return ending if burst is None else ending._replace(pieces=burst.pieces, deltas=burst.deltas)

    def ending(self) -> Burst:
        """Return the last burst. Raises EngineError if the answer broke off."""
        self._check()
        if not self.has_ended and self._finish_reason is None:
            raise EngineError(f"{self._where} broke off its answer: it has no finish_reason")
        return Burst([], self._finish_reason or "stop", self._usage)

    def _text_in(self, event: bytes) -> str | None:
        choice = self._choice(event)
        return None if choice is None else _content_of(choice)[0]

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _choice(self, event: bytes) -> JSONObject | None:
        """Return the first choice of an event, None without one; keep its reason and the usage."""
        try:
            chunk = orjson.loads(event)
        except orjson.JSONDecodeError:
            raise EngineError(f"{self._where} sent what is not JSON: {event[:60]!r}") from None
        if not isinstance(chunk, dict):
            raise EngineError(f"{self._where} sent what is not an object: {event[:60]!r}")
        if chunk.get("error"):
            # After a piece it is too late for another backend, or another prompt.
            error = refusal(_status_of(chunk["error"]), {}, event, self._where)
            if self._has_begun:
                raise EngineError(str(error), error.errors, backend_code=error.backend_code)
            raise error
        if (usage := chunk.get("usage")) is not None:
            self._usage = _counts(usage) or self._usage
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                if isinstance(reason := choice.get("finish_reason"), str):
                    self._finish_reason = reason
                return choice
        return None


def _content_of(choice: JSONObject) -> tuple[str, JSONObject]:
    """Return the text of a choice, and what else it says by the keys of a `Burst`'s delta."""
    given = choice.get("delta") or choice.get("message")
    if not isinstance(given, dict):
        given = {"content": choice.get("text")}
    delta: JSONObject = {}
    # vLLM has renamed the first to the second.
    reasoning = given.get("reasoning_content") or given.get("reasoning")
    if isinstance(reasoning, str) and reasoning:
        delta["reasoning_content"] = reasoning
    if isinstance(given.get("refusal"), str) and given["refusal"]:
        delta["refusal"] = given["refusal"]
    if given.get("tool_calls"):
        delta["tool_calls"] = given["tool_calls"]
    if (logprobs := choice.get("logprobs")) and (content := _logprobs_in(logprobs)) is not None:
        delta["logprobs"] = {"content": content, "refusal": None}
    text = given.get("content")
    return text if isinstance(text, str) else "", delta


def _before_tokens(text: str, content: list[JSONObject]) -> str:
    """Return the part of a text before the tokens of ``content``: a prompt that is repeated without probabilities."""
    tokens = "".join(token["token"] for token in content if isinstance(token, dict))
    return text.removesuffix(tokens) if tokens and text.endswith(tokens) else ""


def _logprobs_in(logprobs: Any) -> list[JSONObject] | None:
    """Return the probabilities of a choice by the tokens, as chat has them; those of a completion stand in columns."""
    if not isinstance(logprobs, dict):
        return None
    if isinstance(logprobs.get("content"), list):
        return list(logprobs["content"])
    tokens, values, others = (logprobs.get(name) for name in ("tokens", "token_logprobs", "top_logprobs"))
    if not isinstance(tokens, list) or not isinstance(values, list):
        return None
    others = others if isinstance(others, list) else [None] * len(tokens)
    return [
        {
            "token": token,
            "logprob": value,
            "bytes": None,
            "top_logprobs": [
                {"token": name, "logprob": logprob, "bytes": None}
                for name, logprob in (other.items() if isinstance(other, dict) else ())
            ],
        }
        for token, value, other in zip(tokens, values, others, strict=False)
        if isinstance(token, str)
    ]


def _counts(usage: Any) -> JSONObject | None:
    if not isinstance(usage, dict) or not usage:
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    prompt = prompt if type(prompt) is int else 0
    completion = completion if type(completion) is int else 0
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return counts | details_of(usage)


def refusal(status: int, headers: Mapping[str, str], body: bytes, where: str) -> ModelyardError:
    """Return the error that a status other than 200 means; ``where`` names the backend."""
    message, code, param = words_of(body)
    text = f"{where} answers with status {status}" + (f": {message}" if message else "")
    if code == _CONTEXT_LENGTH or (status in _FAULT_OF_CLIENT and _TOO_LONG.search(message)):
        reason = message.removeprefix(TOO_LONG) or text
        return PromptTooLong(reason, [{"field": param or "messages", "message": reason}], backend_code=code)
    if status in _OVERLOADED:
        return Overloaded(text, _pause_in(headers.get("retry-after") or ""))
    if is_of_account(status, code):
        return EngineError(f"{where} refuses the key of this service (api_key): {message or status}")
    faults: list[FieldError] = [{"field": param, "message": message or text}] if param else []
    if status in _FAULT_OF_CLIENT:
        return InvalidRequest(message or text, faults, backend_code=code)
    if 300 <= status < 400:
        return EngineError(f"{text}, a redirect: that is not followed (base_url)")
    if status == 404:
        return NotReady(f"{text}; it may not have the model (backend_model), or this call (base_url)", retry_after=5)
    return EngineError(text, faults, backend_code=code)


def is_of_account(status: int, code: str | None) -> bool:
    """Return whether a refusal is one of this service's key or account at the backend, and not of the request."""
    return status in (401, 403) or (code is not None and _OF_ACCOUNT.search(code) is not None)


def _pause_in(text: str) -> int:
    """Return the seconds of a ``Retry-After``, which is a number or a date; 1 if it is neither."""
    if _PAUSE.fullmatch(text):
        return math.ceil(float(text))
    try:
        seconds = parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 1
    return min(max(1, math.ceil(seconds)), _MAX_PAUSE)


def _status_of(error: Any) -> int:
    """Return the status that an error within a stream stands for."""
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) and 400 <= code < 600:
        return code
    kind = error.get("type") if isinstance(error, dict) else None
    return 400 if kind == "invalid_request_error" else 500


def words_of(body: bytes) -> tuple[str, str | None, str | None]:
    """Return message, code and field at fault of an error's body: OpenAI's, FastAPI's, text, or a page of a proxy.

    Code and field are None unless they are short and of plain characters.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        text = body[:_MAX_TEXT].decode("utf-8", "replace").strip()
        return ("a page of HTML" if text.startswith("<") else text), None, None
    error = document.get("error", document) if isinstance(document, dict) else document
    if not isinstance(error, dict):
        return str(error)[:_MAX_TEXT], None, None
    message = error.get("message") or detail_words(error.get("detail")) or error
    text = message if isinstance(message, str) else json.dumps(message)
    code, param = error.get("code"), error.get("param")
    if code is None and error.get("type") == _CONTEXT_LENGTH:
        code = _CONTEXT_LENGTH
    is_plain = isinstance(param, str) and _PARAM.fullmatch(param)
    return text[:_MAX_TEXT], code_in(code), param if is_plain else None
