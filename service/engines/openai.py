"""openai: a model of another server that speaks OpenAI's API: vLLM, SGLang, TGI, Ollama, llama-server, a cloud.

It has no weights. Address and key come from the operator's configuration alone, never over HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import orjson

from ..access.token_store import OutgoingToken
from ..errors import ConfigError, EngineError, InvalidRequest, ModelyardError, StartFailed
from ..sessions.response import Response
from ..sessions.session import Session
from ..settings.params import param
from ..streams import Cancel
from ..types import Burst, GenerateRequest, JSONObject, ModelMetadata, WorkerType
from ..wire.messages import openai_messages
from . import openai_answers
from .base import CancelEvent, Engine, ModelParams, Progress, Vectors

TEXTS_A_CALL = 256
"""Texts of one call for embeddings: what servers take."""

_OPERATOR = ("fixed", "operator", "privacy")
_OPTIONS = frozenset(
    {"messages", "tools", "tool_choice", "parallel_tool_calls", "response_format", "logprobs", "top_logprobs"}
    | {"logit_bias"}
)


@dataclass
class OpenAIParams(ModelParams):
    """Parameters of `OpenAI`."""

    base_url: str = param(help="the server's address with its /v1", tags=_OPERATOR)
    backend_model: str | None = param(None, help="the server's name for the model; default: its name", tags=["fixed"])
    api_key: str | None = param(None, help="the key for the server", tags=[*_OPERATOR, "secret"])
    api_key_file: str | None = param(
        None, help="file with the key for the server; read again when it changes", tags=_OPERATOR
    )
    ca: str | None = param(None, help="file or folder of CA certificates for https", tags=_OPERATOR)
    connect_timeout: float = param(3.0, help="seconds the server gets to accept a connection", min=0.05, max=600)
    first_byte_timeout: float = param(300.0, help="seconds until an answer begins", min=0.1, max=86_400)
    silence_timeout: float = param(60.0, help="seconds of silence within an answer", min=1, max=86_400)
    strip_params: list[str] = param([], help="fields that are never sent, for a server that refuses them")
    set_params: list[str] = param([], help="fields that are always sent: NAME=JSON", tags=["operator", "privacy"])
    context_length: int | None = param(
        None, help="context length in the metadata; default: what the server says", min=1, max=100_000_000
    )


class OpenAI(Engine):
    """One model behind the API of another server."""

    name = "openai"
    Params = OpenAIParams
    worker_types: ClassVar[frozenset[WorkerType]] = frozenset(WorkerType)
    needs_weights = False
    is_proxy = True
    default_slots: ClassVar[dict[WorkerType, int]] = dict.fromkeys(WorkerType, 64)
    ticks = True

    params: OpenAIParams

    def __init__(self, params: Any, path: Any = None) -> None:
        super().__init__(params, path)
        self._base = self.params.base_url.rstrip("/")
        self._model = self.params.backend_model or self.params.model_name
        self._where = f"the backend of model {self.params.registered_name!r}"
        self._session: Session | None = None
        self._always: JSONObject = {}
        self._context_length = self.params.context_length

    # Life

    def start(self, progress: Progress) -> None:
        """Ask the server whether it has the model. Raises StartFailed."""
        params = self.params
        progress(f"asking {self._base}")
        try:
            self._always = _fields_of(params.set_params)
            token = OutgoingToken(params.api_key, params.api_key_file)
            self._session = Session(params.connect_timeout, params.first_byte_timeout, token=token, ca=params.ca)
            self._look_for_model()
        except ModelyardError as error:
            self.stop()
            raise StartFailed(f"model {params.registered_name!r}: {error}") from error

    def _look_for_model(self) -> None:
        """Check that the server lists the model. One that has no list is believed."""
        assert self._session is not None
        params = self.params
        until = time.monotonic() + params.connect_timeout + params.silence_timeout
        with self._session.request("GET", f"{self._base}/models", until=until) as response:
            body = response.content
        if response.status_code in (404, 405):
            return
        if response.status_code != 200:
            raise openai_answers.refusal(response.status_code, response.headers, body, self._base)
        entries = _list_in(_parsed(body, self._base), "data", self._base)
        entry = next((entry for entry in entries if entry.get("id") == self._model), None)
        if entry is None:
            names = ", ".join(str(entry.get("id")) for entry in entries[:20]) or "none"
            raise StartFailed(f"{self._base} has no model {self._model!r} (backend_model); it has {names}")
        if self._context_length is None and isinstance(entry.get("max_model_len"), int):
            self._context_length = entry["max_model_len"]

    def stop(self) -> None:
        """Close the connections."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def metadata(self) -> ModelMetadata:
        """Return the metadata of the model."""
        return ModelMetadata(self.params.registered_name, self._context_length, metadata={"proxy": True})

    @property
    def options(self) -> frozenset[str]:
        """All of OpenAI's chat: the server refuses what its model can't do."""
        return _OPTIONS

    # Calls

    def generate_stream(self, request: GenerateRequest, cancel: CancelEvent) -> Iterator[Burst | None]:
        """Yield bursts as the server's events come; a cancel closes the connection."""
        assert isinstance(cancel, Cancel)
        if request.uses_messages:
            path, body = "chat/completions", self._chat_body(request)
        else:
            path, body = "completions", {**self._sampling(request), "prompt": request.prompt, "echo": request.echo}
        answer = openai_answers.Answer(self._where)
        with self._sent(path, {**body, "stream": True, "stream_options": {"include_usage": True}}, cancel) as response:
            decoder = openai_answers.EventDecoder()
            quiet_since = time.monotonic()
            while (data := response.read1()) != b"":
                if data is None:
                    if answer.has_ended:
                        break  # all of it has come, and the server leaves the connection open
                    if time.monotonic() - quiet_since >= self.params.silence_timeout:
                        raise EngineError(f"{self._where} was silent for {self.params.silence_timeout:g} s")
                    yield None
                    continue
                quiet_since = time.monotonic()
                if (burst := self._burst(answer, decoder, data)) is not None:
                    yield burst
        yield answer.ending()

    def _burst(self, answer: openai_answers.Answer, decoder: openai_answers.EventDecoder, data: bytes) -> Burst | None:
        try:
            return answer.burst(decoder.feed(data))
        except ValueError as error:
            raise EngineError(f"{self._where}: {error}") from None

    def _chat_body(self, request: GenerateRequest) -> JSONObject:
        return {**self._sampling(request), "messages": openai_messages(request.messages), **request.options}

    def _sampling(self, request: GenerateRequest) -> JSONObject:
        given = {
            "model": self._model,
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
            "min_p": request.min_p,
            "seed": request.seed,
            "stop": request.stop or None,
            "presence_penalty": request.presence_penalty,
            "frequency_penalty": request.frequency_penalty,
            "repetition_penalty": request.repetition_penalty,
        }
        return {name: value for name, value in given.items() if value is not None}

    def embed(self, texts: Sequence[str], cancel: CancelEvent) -> Vectors:
        """Return one row for each text."""
        rows: list[Any] = []
        for first in range(0, len(texts), TEXTS_A_CALL):
            part = list(texts[first : first + TEXTS_A_CALL])
            body = {"model": self._model, "input": part, "encoding_format": "float"}
            rows += self._in_order(self._entries("embeddings", body, "data", cancel), "embedding", len(part))
        return rows

    def rerank(self, query: str, texts: Sequence[str], cancel: CancelEvent) -> Sequence[float]:
        """Return a score for each text."""
        body = {"model": self._model, "query": query, "documents": list(texts)}
        return self._in_order(self._entries("rerank", body, "results", cancel), "relevance_score", len(texts))

    def _entries(self, path: str, body: JSONObject, field: str, cancel: CancelEvent) -> list[JSONObject]:
        """Return the list in ``field`` of the answer to a POST."""
        assert isinstance(cancel, Cancel)
        with self._sent(path, body, cancel) as response:
            return _list_in(_parsed(response.content, self._where), field, self._where)

    def _in_order(self, entries: Sequence[JSONObject], field: str, count: int) -> list[Any]:
        """Return ``field`` of ``count`` entries, by their ``index``. Raises EngineError if one is missing."""
        values = {entry.get("index"): entry.get(field) for entry in entries}
        if set(values) != set(range(count)) or None in values.values():
            raise EngineError(f"{self._where} does not answer with one {field} for each of {count} texts")
        return [values[index] for index in range(count)]

    def _sent(self, path: str, body: JSONObject, cancel: Cancel) -> Response:
        """Return the response to a POST, whose status is 200. Raises what another status means."""
        assert self._session is not None
        fields = {name: value for name, value in body.items() if name not in self.params.strip_params} | self._always
        try:
            data = orjson.dumps(fields)
        except orjson.JSONEncodeError as error:
            raise InvalidRequest(f"the request can't be sent on: {error}") from None
        response = self._session.request("POST", f"{self._base}/{path}", body=data, cancel=cancel)
        if response.status_code == 200:
            return response
        with response:
            raise openai_answers.refusal(response.status_code, response.headers, response.content, self._where)


def _fields_of(items: Sequence[str]) -> JSONObject:
    fields: JSONObject = {}
    for item in items:
        name, equals, text = item.partition("=")
        try:
            fields[name.strip()] = orjson.loads(text)
        except orjson.JSONDecodeError:
            equals = ""
        if not equals or not name.strip():
            raise ConfigError(f"set_params: {item!r} must be NAME=JSON, as in temperature=0.2")
    return fields


def _parsed(body: bytes, where: str) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise EngineError(f"{where} answers with what is not JSON: {body[:60]!r}") from None


def _list_in(answer: Any, field: str, where: str) -> list[JSONObject]:
    entries = answer.get(field) if isinstance(answer, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise EngineError(f"{where} answers without a list of objects in {field!r}")
    return entries
