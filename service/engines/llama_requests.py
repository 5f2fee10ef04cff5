"""Translate between a `GenerateRequest` and the bodies and chunks of llama.cpp's server.

`LlamaHttp` sends the calls that it answers only over its own HTTP listener, which can't be switched off. The socket of
the listener is in a folder of mode 0700, so no other user can reach it.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
from jinja2 import Environment, TemplateSyntaxError

from ..errors import EngineError, InvalidRequest, ModelyardError, PromptTooLong, WorkerUnreachable
from ..sessions.session import Session
from ..types import Burst, GenerateRequest, JSONObject, counts_of
from ..wire.messages import openai_messages
from .base import CancelEvent, room_in_context
from .llama_schemas import with_schemas

_TIMEOUT = 10.0
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
SPARE_TOKENS = 3
"""Tokens that the library may compute over the limit: with them, a character that the limit would cut is whole.

The library holds back a token that ends within a character, with the letters before it, and drops it at its own limit.
"""


def chat_body(request: GenerateRequest, default_max_new_tokens: int) -> JSONObject:
    """Return the body of a chat completion."""
    body = _common(request, default_max_new_tokens)
    body["messages"] = openai_messages(request.messages)
    body |= with_schemas(request.options) | _thinking(request.extra)
    if request.stop_token_ids:
        body |= {"logprobs": True, "top_logprobs": 1}
    return body


def _thinking(extra: JSONObject) -> JSONObject:
    """Return what chat templates read of how much a model should think; other models ignore it."""
    fields: JSONObject = {}
    if extra.get("reasoning_effort") in _EFFORTS:
        fields["reasoning_effort"] = extra["reasoning_effort"]
    given = extra.get("chat_template_kwargs")
    if isinstance(given, dict) and isinstance(given.get("enable_thinking"), bool):
        fields["chat_template_kwargs"] = {"enable_thinking": given["enable_thinking"]}
    return fields


def completion_body(request: GenerateRequest, default_max_new_tokens: int) -> JSONObject:
    """Return the body of a completion of the raw prompt, or of token ids."""
    if not request.prompt and "prompt" not in request.options:
        raise InvalidRequest.of_field("prompt", "is empty, and there are no messages: give one of them")
    body = _common(request, default_max_new_tokens)
    body["prompt"] = request.prompt
    body |= with_schemas(request.options)
    if request.stop_token_ids or "logprobs" in request.options:
        body["logprobs"] = max(1, _others(request.options))
    return body


def _others(options: JSONObject) -> int:
    """Return the number of other tokens whose probabilities a completion has beside each of its own."""
    count = options.get("logprobs", 0)
    if type(count) is not int:
        raise InvalidRequest.of_field("logprobs", "must be an integer")
    return count


def _common(request: GenerateRequest, default_max_new_tokens: int) -> JSONObject:
    given = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "min_p": request.min_p,
        "seed": request.seed,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "repeat_penalty": request.repetition_penalty,
        "stop": request.stop or None,
    }
    body: JSONObject = {name: value for name, value in given.items() if value is not None}
    limit = request.max_new_tokens or default_max_new_tokens
    body["max_tokens"] = limit if request.options else limit + SPARE_TOKENS
    body["stream"] = body["return_progress"] = body["timings_per_token"] = True
    body["stream_options"] = {"include_usage": True}
    return body


class LlamaAnswer:
    """One answer: turns the library's chunks into bursts, and keeps its finish reason, usage and times."""

    def __init__(self, request: GenerateRequest, model: str, limit: int) -> None:
        """Prepare the answer of ``model`` to ``request``, of at most ``limit`` tokens."""
        self._model = model
        self._limit = limit
        self._field = "messages" if request.uses_messages else "prompt"
        self._context_len = request.context_len
        # With tools or a schema, the library gives the rest of a call at its own end.
        self._cuts = not request.options or request.context_len is not None
        self._stops = request.stop
        self._stop_ids = frozenset(request.stop_token_ids)
        self._wants_metrics = request.metrics
        self._options = request.options
        self._has_images = any(isinstance(m.get("content"), list) for m in request.options.get("messages") or ())
        self._error: Exception | None = None
        self._finish: str | None = None
        self._usage: JSONObject | None = None
        self._timings: JSONObject = {}
        self._has_begun = self._has_text = False
        self._prompt_tokens = 0
        self._cached: int | None = None
        """The tokens of the prompt that were computed before, in another request; None until the library reports it."""
        self._counted = 0
        self._started = self._first = _now_ms()

    def run(
        self,
        handle: Callable[[JSONObject, Callable[[JSONObject], bool]], object],
        body: JSONObject,
        put: Callable[[Burst], bool],
        cancel: CancelEvent,
    ) -> None:
        """Generate in this thread, until the end or a cancel. Raises the error that the library reports."""

        def callback(chunk: JSONObject) -> bool:
            # An exception here would cancel silently; SystemExit would hang the process.
            try:
                return cancel.is_set() or self._take(chunk, put)
            except BaseException as error:  # noqa: BLE001 - raised again below
                self._error = error if isinstance(error, Exception) else EngineError(repr(error))
                return True

        try:
            result = handle(body, callback)
        except (ValueError, RuntimeError, TypeError) as error:
            if not isinstance(error, RuntimeError) and (field := self._field_at_fault()):
                raise InvalidRequest.of_field(field, f"is refused: {error}") from error
            if not self._has_begun and not isinstance(error, RuntimeError):
                raise unfit(self._field, str(error)) from error
            raise EngineError(f"llama.cpp failed: {error}") from error
        if isinstance(result, dict) and "error" in result:
            self._error = self._error or self._refusal(result["error"])
        if self._error is not None:
            raise self._error
        if not cancel.is_set():
            put(Burst([], self._finish or "stop", self._usage, self._metrics() if self._wants_metrics else None))

    def _take(self, chunk: JSONObject, put: Callable[[Burst], bool]) -> bool:
        if "error" in chunk:
            self._error = self._refusal(chunk["error"])
            return True
        self._has_begun = True
        self._usage = _usage(chunk) or self._usage
        progress = chunk.get("prompt_progress", {})
        if (total := progress.get("total")) and not self._prompt_tokens:
            self._prompt_tokens, self._cached = total, progress.get("cache")
            if self._context_len is not None:
                self._limit = min(self._limit, room_in_context(self._context_len, total))
        timings = chunk.get("timings") or {}
        self._timings = timings or self._timings
        computed = timings.get("predicted_n", 0)
        for choice in chunk.get("choices", ()):
            self._finish = choice.get("finish_reason") or self._finish
            if self._stop_ids and self._at_stop_id(choice):
                return True
            piece = (choice["delta"].get("content") if "delta" in choice else choice.get("text")) or ""
            delta = self._delta(choice)
            if computed > self._limit:
                piece, delta = _before_half(piece, self._stops), {}
            if piece or delta:
                self._first = self._first if self._has_text else _now_ms()
                self._has_text = True
                if not put(Burst([piece], deltas=[delta] if delta else None)):
                    return True
        if computed > self._limit or (computed == self._limit and self._finish is None and self._cuts):
            self._end("length", self._limit)
            return True
        return False

    def _refusal(self, error: Any) -> ModelyardError:
        refused = refusal(error, self._model, self._field)
        if type(refused) is InvalidRequest and (field := self._field_at_fault()):
            # It is read when the answer begins: of what is wrong with a request, this is found last.
            return InvalidRequest.of_field(field, f"is refused: {refused}")
        if type(refused) is InvalidRequest and self._has_images:
            return InvalidRequest.of_field("messages", f"have an image that can't be read: {refused}")
        return refused

    def _field_at_fault(self) -> str | None:
        """Return the option whose schema or grammar the library has refused; None if no option has one."""
        names = ("response_format", "json_schema", "grammar", "tools")
        return next((name for name in names if name in self._options), None)

    def _delta(self, choice: JSONObject) -> JSONObject:
        """Return the part of a choice beside its text."""
        given = choice.get("delta", {})
        delta = {name: given[name] for name in ("reasoning_content", "tool_calls") if given.get(name)}
        if "logprobs" in self._options and choice.get("logprobs"):
            content = [_logprob(token) for token in choice["logprobs"]["content"]]
            if "text" in choice:
                most = _others(self._options)
                content = [{**token, "top_logprobs": token["top_logprobs"][:most]} for token in content]
            delta["logprobs"] = {"content": content, "refusal": None}
        return delta

    def _end(self, finish_reason: str, completion_tokens: int) -> None:
        self._finish = finish_reason
        self._usage = {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self._prompt_tokens + completion_tokens,
            **_details(self._cached),
        }

    def _at_stop_id(self, choice: JSONObject) -> bool:
        tokens = (choice.get("logprobs") or {}).get("content") or ()
        self._counted += len(tokens)
        if any(token.get("id") in self._stop_ids for token in tokens):
            self._end("stop", self._counted)
            return True
        return False

    def _metrics(self) -> JSONObject:
        """Return DB-GPT's inference metrics; times are milliseconds of the wall clock."""
        now = _now_ms()
        usage = counts_of(self._usage or {})
        seconds = max(now - self._started, 1) / 1000
        return {
            "start_time_ms": self._started,
            "first_token_time_ms": self._first,
            "current_time_ms": now,
            "end_time_ms": now,
            **usage,
            "speed_per_second": round(usage.get("completion_tokens", 0) / seconds, 2),
            "prefill_tokens_per_second": self._timings.get("prompt_per_second"),
            "decode_tokens_per_second": self._timings.get("predicted_per_second"),
        }


def _logprob(token: JSONObject) -> JSONObject:
    """Return a token's probability with OpenAI's keys; one that is not finite as OpenAI's -9999."""
    logprob = token["logprob"]
    entry = {"token": token["token"], "logprob": -9999.0 if logprob is None else logprob, "bytes": token["bytes"]}
    if "top_logprobs" in token:
        entry["top_logprobs"] = [_logprob(other) for other in token["top_logprobs"]]
    return entry


def _now_ms() -> int:
    return int(time.time() * 1000)


def _usage(chunk: JSONObject) -> JSONObject | None:
    usage = chunk.get("usage")
    if not usage:
        return None
    counts: JSONObject = {key: usage[key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")}
    return counts | _details((usage.get("prompt_tokens_details") or {}).get("cached_tokens"))


def _details(cached: int | None) -> JSONObject:
    return {} if cached is None else {"prompt_tokens_details": {"cached_tokens": cached}}


def _before_half(piece: str, stops: list[str]) -> str:
    """Return the letters of the tokens within the limit, of a piece that has a few tokens more.

    The library held them back for the character that the limit cuts, or for what may become a stop text; then it does
    not tell where the limit is, and nothing is returned.
    """
    if any(stop[0] in piece for stop in stops):
        return ""
    match = re.match(r"(.*)[^\x00-\x7f]", piece, re.DOTALL)
    return match[1] if match else ""


def unfit(field: str, reason: str) -> InvalidRequest:
    """Return the error for messages or a prompt that the library refuses; of a chat template, its own sentence."""
    # After the place in the template there is a line "Error: Jinja Exception: SENTENCE".
    sentence = reason.rpartition("\nError: ")[2].removeprefix("Jinja Exception: ")
    return InvalidRequest.of_field(field, sentence.strip())


def template_fault(template: str | None) -> str:
    """Return why a chat template that the library refuses can't be read."""
    try:
        Environment().compile(template or "", raw=True)  # noqa: S701 - it renders nothing
    except TemplateSyntaxError as error:
        return f"{error.message} (line {error.lineno})"
    except RecursionError:
        return "it is nested too deeply"
    return "llama.cpp refuses it; see the log of the start"


def refusal(error: Any, model: str, field: str = "input") -> ModelyardError:
    """Return our error for the library's ``{code, message, type}``; ``field`` is the field of the text."""
    if error.get("type") == "exceed_context_size_error":
        count, limit = error.get("n_prompt_tokens"), error.get("n_ctx")
        return PromptTooLong(
            f"the prompt has {count} tokens, model {model!r} has a context of {limit} (n_ctx): shorten it",
            [{"field": field, "message": f"{count} tokens, at most {limit}"}],
        )
    message = str(error.get("message", error))
    return InvalidRequest(message) if error.get("code") == 400 else EngineError(f"llama.cpp: {message}")


def encoded(body: JSONObject) -> bytes:
    """Return a body as JSON. Raises InvalidRequest for text that UTF-8 does not have."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise InvalidRequest(f"the text can't be encoded as UTF-8: {error}") from error


class LlamaHttp:
    """The calls to one listener, each of which takes a fraction of a millisecond. Many threads may share it.

    They take turns on one connection: the listener has one thread, which keeps to a connection for five seconds after
    its last call, and lets others wait.
    """

    def __init__(self, path: Path) -> None:
        """Send to the socket at ``path``; connect at the first call."""
        self._session = Session(_TIMEOUT, _TIMEOUT)
        self._turn = threading.Lock()
        self._url = f"http+unix://{quote(str(path), safe='')}"

    def post(self, path: str, body: JSONObject) -> JSONObject:
        """Return the JSON object of the response. Raises InvalidRequest (a refusal), EngineError (no answer)."""
        try:
            with self._turn, self._session.request("POST", self._url + path, body=encoded(body)) as response:
                data = response.content
        except WorkerUnreachable as error:
            raise EngineError(f"llama.cpp did not answer {path}: {error}") from error
        answer: JSONObject = orjson.loads(data)
        if response.status_code >= 400:
            message = str(answer.get("error", {}).get("message", data[:200]))
            raise (InvalidRequest if response.status_code < 500 else EngineError)(message)
        return answer

    def close(self) -> None:
        """Close the connections."""
        self._session.close()
