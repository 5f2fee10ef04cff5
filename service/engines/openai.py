"""openai: a model of another server that speaks OpenAI's API: vLLM, SGLang, TGI, Ollama, llama-server, a cloud.

It has no weights. Address and key come from the operator's configuration alone, never over HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias

import orjson

from ..access.token_store import OutgoingToken
from ..errors import EngineError, ModelyardError, StartFailed
from ..sessions.response import Response
from ..sessions.session import Session
from ..settings.params import param
from ..streams import TICK, Cancel
from ..threads import WaitingThreads
from ..types import Burst, GenerateRequest, JSONObject, ModelMetadata, WorkerType
from ..wire.terms import ID_HEADER
from . import openai_answers
from .base import CancelEvent, Engine, ModelParams, OfTexts, Progress, Vectors
from .openai_backends import Backend, Backends, addresses_in
from .openai_fields import ALL_OPTIONS, Fields, fixed_fields, other_names, text_fields

TEXTS_A_CALL = 256
"""Texts of one call for embeddings: what servers take."""

Bursts: TypeAlias = Generator[Burst | None, None, None]

HEALTH_TIMEOUT = 10.0
"""Seconds that a server has to list its models while the model runs."""

_OPERATOR = ("fixed", "operator", "privacy")


@dataclass
class OpenAIParams(ModelParams):
    """Parameters of `OpenAI`."""

    base_url: str = param(
        help="the server's address with its /v1; or of several servers with the same model, comma-separated",
        tags=_OPERATOR,
        form=addresses_in,
    )
    backend_model: str | None = param(None, help="the server's name for the model; default: its name", tags=["fixed"])
    api_key: str | None = param(None, help="the key for the server", tags=[*_OPERATOR, "secret"])
    api_key_file: str | None = param(
        None, help="file with the key for the server; read again when it changes", tags=_OPERATOR
    )
    ca: str | None = param(None, help="file or folder of CA certificates for https", tags=_OPERATOR)
    connect_timeout: float = param(3.0, help="seconds the server gets to accept a connection", min=0.05, max=600)
    first_byte_timeout: float = param(300.0, help="seconds until an answer begins", min=0.1, max=86_400)
    whole_timeout: float = param(600.0, help="seconds until an answer that is not a stream begins", min=0.1, max=86_400)
    silence_timeout: float = param(60.0, help="seconds of silence within an answer", min=1, max=86_400)
    health_interval: float = param(
        15.0, help="seconds between two reads of the server's list of models", min=0.1, max=3600
    )
    strip_params: list[str] = param([], help="fields that are never sent, for a server that refuses them")
    rename_params: list[str] = param(
        [],
        help="fields that the server has under another name: NAME=OTHER, as in max_tokens=max_completion_tokens",
        form=other_names,
    )
    set_params: list[str] = param(
        [], help="fields that are always sent: NAME=JSON", tags=["operator", "privacy"], form=fixed_fields
    )
    template_params: list[str] = param(
        ["enable_thinking", "thinking"], help="keys of chat_template_kwargs that callers may set"
    )
    context_length: int | None = param(
        None, help="context length in the metadata; default: what the server says", min=1, max=100_000_000
    )


class BackendCall(NamedTuple):
    """A POST, for whichever server is called."""

    path: str
    body: bytes
    headers: Mapping[str, str]
    cancel: Cancel


class OpenAI(Engine):
    """One model behind the API of another server."""

    name = "openai"
    Params = OpenAIParams
    worker_types: ClassVar[frozenset[WorkerType]] = frozenset(WorkerType)
    needs_weights = False
    is_proxy = True
    passes_on = True
    default_slots: ClassVar[dict[WorkerType, int]] = dict.fromkeys(WorkerType, 64)
    ticks = True

    params: OpenAIParams

    def __init__(self, params: Any, path: Any = None) -> None:
        super().__init__(params, path)
        self._model = self.params.backend_model or self.params.model_name
        self._where = f"the backend of model {self.params.registered_name!r}"
        self._session: Session | None = None
        self._backends: Backends
        self._fields: Fields
        self._waiting: WaitingThreads
        self._context_length = self.params.context_length

    # Life

    def start(self, progress: Progress) -> None:
        """Ask the servers whether they have the model. Raises StartFailed if none does."""
        params = self.params
        try:
            self._backends = Backends(params.base_url, self._where, params.limit_model_concurrency)
            self._fields = Fields(
                self._model,
                stripped=params.strip_params,
                renamed=params.rename_params,
                always=params.set_params,
                template_params=params.template_params,
            )
            token = OutgoingToken(params.api_key, params.api_key_file)
            self._waiting = WaitingThreads(f"backend-{params.model_name}", params.limit_model_concurrency)
            self._session = Session(params.connect_timeout, params.first_byte_timeout, token=token, ca=params.ca)
            progress("asking for the list of models")
            trouble = self._look(Cancel(), params.silence_timeout)
        except ModelyardError as error:
            self.stop()
            raise StartFailed(f"model {params.registered_name!r}: {error}") from error
        if trouble:
            self.stop()
            raise StartFailed(f"model {params.registered_name!r}: {trouble}")

    @property
    def health_interval(self) -> float:
        """The parameter of that name."""
        return self.params.health_interval

    def health(self, cancel: CancelEvent) -> str:
        """Return why no server answers; empty if one does. A request is sent all the same."""
        assert isinstance(cancel, Cancel)
        return self._look(cancel, HEALTH_TIMEOUT)

    def _look(self, cancel: Cancel, timeout: float) -> str:
        """Ask each server for its models, note which of them can answer, and return the reasons if none can."""
        logs = len(self._backends) > 1  # else it is what is logged of the model
        for backend in self._backends:
            try:
                self._look_for_model(backend, cancel, timeout)
            except ModelyardError as error:
                if not cancel.is_set():
                    backend.note(str(error), logs=logs)
            else:
                backend.note("", logs=logs)
        troubles = [backend.trouble for backend in self._backends]
        return "; ".join(troubles) if all(troubles) else ""

    def _look_for_model(self, backend: Backend, cancel: Cancel, timeout: float) -> None:
        """Check that a server lists the model. One that has no list, or is busy, is believed."""
        assert self._session is not None
        until = time.monotonic() + self.params.connect_timeout + timeout
        with self._session.request("GET", f"{backend.url}/models", until=until, cancel=cancel) as response:
            body = response.content
        if response.status_code in (404, 405, 429):
            return
        if response.status_code != 200:
            raise openai_answers.refusal(response.status_code, response.headers, body, backend.where)
        entries = _list_in(_parsed(body, backend.where), "data", backend.where)
        entry = next((entry for entry in entries if entry.get("id") == self._model), None)
        if entry is None:
            names = ", ".join(str(entry.get("id")) for entry in entries[:20]) or "none"
            raise EngineError(f"{backend.where} has no model {self._model!r} (backend_model); it has {names}")
        if self._context_length is None and isinstance(entry.get("max_model_len"), int):
            self._context_length = entry["max_model_len"]

    def stop(self) -> None:
        """Close the connections."""
        if self._session is not None:
            self._waiting.stop()
            self._session.close()
            self._session = None

    @property
    def takes_images(self) -> bool | None:
        """Not known: the server refuses them where its model takes none."""
        return None

    def metadata(self) -> ModelMetadata:
        """Return the metadata of the model."""
        return ModelMetadata(self.params.registered_name, self._context_length, metadata={"proxy": True})

    @property
    def options(self) -> frozenset[str]:
        """All of OpenAI's chat: the server refuses what its model can't do."""
        return ALL_OPTIONS

    # Calls

    def generate_stream(self, request: GenerateRequest, cancel: CancelEvent) -> Iterator[Burst | None]:
        """Yield bursts as the server's events come, or the whole answer; a cancel closes the connection."""
        assert isinstance(cancel, Cancel)
        path, fields = "chat/completions" if request.uses_messages else "completions", text_fields(request)
        # Of several answers the best can't be streamed.
        is_streamed = not request.whole and fields.get("best_of", 1) == 1
        if is_streamed:
            fields |= {"stream": True, "stream_options": {"include_usage": True}}
        body = self._fields.body(fields, request.extra)
        answered = self._streamed if is_streamed else self._whole
        headers = {ID_HEADER: request.terms.request_id} if request.terms.request_id else {}
        call = BackendCall(path, body, headers, cancel)
        return self._backends.results(lambda backend: answered(backend, call), cancel, request.terms.session)

    def _whole(self, backend: Backend, call: BackendCall) -> Bursts:
        answer = openai_answers.BackendAnswer(backend.where)
        with self._sent(backend, call, self.params.whole_timeout) as response:
            # Some stream all the same.
            is_stream = _media_type(response) == "text/event-stream"
            burst = answer.read(response.content) if is_stream else answer.burst([response.content])
        yield answer.whole(burst)

    def _streamed(self, backend: Backend, call: BackendCall) -> Bursts:
        answer = openai_answers.BackendAnswer(backend.where)
        # A server may send its headers only after a line: until then there are signs of life too.
        sent = self._waiting.result(lambda: self._sent(backend, call), TICK, Response.close)
        with (yield from sent) as response:
            if _media_type(response) == "application/json":  # it does not stream
                yield answer.whole(answer.burst([response.content]))
                return
            quiet_since = time.monotonic()
            while (data := response.read1()) != b"":
                if data is None:
                    if answer.has_ended:
                        break  # all of it has come, and the server leaves the connection open
                    if time.monotonic() - quiet_since >= self.params.silence_timeout:
                        raise EngineError(
                            f"{backend.where} was silent for {self.params.silence_timeout:g} s (silence_timeout)"
                        )
                    yield None
                    continue
                quiet_since = time.monotonic()
                try:
                    burst = answer.read(data)
                except ValueError as error:
                    raise EngineError(f"{backend.where}: {error}") from None
                if burst is not None:
                    yield burst
        yield answer.ending()

    def embed(self, texts: Sequence[str], cancel: CancelEvent, extra: JSONObject | None = None) -> Vectors:
        """Return one row for each text; ``extra`` has the caller's other fields."""
        rows: list[Any] = []
        tokens: int | None = 0
        for first in range(0, len(texts), TEXTS_A_CALL):
            part = list(texts[first : first + TEXTS_A_CALL])
            answer = self._answer("embeddings", {"input": part, "encoding_format": "float"}, extra, cancel)
            rows += self._in_order(answer, "data", "embedding", len(part))
            count = _tokens_in(answer)
            tokens = None if tokens is None or count is None else tokens + count
        return OfTexts(rows, tokens=tokens)

    def rerank(
        self, query: str, texts: Sequence[str], cancel: CancelEvent, extra: JSONObject | None = None
    ) -> Sequence[float]:
        """Return a score for each text; ``extra`` has the caller's other fields."""
        answer = self._answer("rerank", {"query": query, "documents": list(texts)}, extra, cancel)
        scores = self._in_order(answer, "results", "relevance_score", len(texts))
        return OfTexts(scores, tokens=_tokens_in(answer))

    def _answer(self, path: str, fields: JSONObject, extra: JSONObject | None, cancel: CancelEvent) -> Any:
        """Return the answer to a POST as JSON."""
        assert isinstance(cancel, Cancel)
        call = BackendCall(path, self._fields.body(fields, extra or {}), {}, cancel)

        def ask(backend: Backend) -> Any:
            with self._sent(backend, call) as response:
                return _parsed(response.content, backend.where)

        return self._backends.result(ask, cancel)

    def _in_order(self, answer: Any, name: str, field: str, count: int) -> list[Any]:
        """Return ``field`` of ``count`` entries of a list, by their ``index``. Raises EngineError if one is missing."""
        values = {entry.get("index"): entry.get(field) for entry in _list_in(answer, name, self._where)}
        if set(values) != set(range(count)) or None in values.values():
            raise EngineError(f"{self._where} does not answer with one {field} for each of {count} texts")
        return [values[index] for index in range(count)]

    def _sent(self, backend: Backend, call: BackendCall, timeout: float | None = None) -> Response:
        """Return the response to a POST, whose status is 200. Raises what another status means.

        ``timeout`` is seconds until it begins, by default ``first_byte_timeout``.
        """
        assert self._session is not None
        times = (self.params.connect_timeout, timeout or self.params.first_byte_timeout)
        response = self._session.request(
            "POST",
            f"{backend.url}/{call.path}",
            body=call.body,
            headers=call.headers,
            timeout=times,
            cancel=call.cancel,
        )
        if response.status_code == 200 and _media_type(response) != "text/html":
            return response
        with response:
            if response.status_code == 200:
                raise EngineError(f"{backend.where} answers with a page of HTML")
            raise openai_answers.refusal(response.status_code, response.headers, response.content, backend.where)


def _media_type(response: Response) -> str:
    return response.headers.get("content-type", "").partition(";")[0].strip().lower()


def _parsed(body: bytes, where: str) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise EngineError(f"{where} answers with what is not JSON: {body[:60]!r}") from None


def _tokens_in(answer: Any) -> int | None:
    usage = answer.get("usage") if isinstance(answer, dict) else None
    counts = (usage.get("prompt_tokens"), usage.get("total_tokens")) if isinstance(usage, dict) else ()
    return next((count for count in counts if type(count) is int and count >= 0), None)


def _list_in(answer: Any, field: str, where: str) -> list[JSONObject]:
    entries = answer.get(field) if isinstance(answer, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise EngineError(f"{where} answers without a list of objects in {field!r}")
    return entries
