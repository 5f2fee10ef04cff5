"""RemoteModelWorker: a model at an address, called as one of this process; RemoteMachine: what its process does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit

import orjson
from opentelemetry.trace import Span, SpanKind

from ..engines.base import Vectors
from ..errors import EngineError, InvalidRequest
from ..sessions.answer import Answer
from ..sessions.transport import Transport
from ..settings.params import DESCRIPTION_KEYS
from ..streams import Cancel, OutputStream, whole_answer
from ..telemetry import dbgpt
from ..telemetry.tracing import attached, current_tracing, end
from ..types import (
    ApplyOutcome,
    GenerateRequest,
    HostModels,
    JSONObject,
    ModelMetadata,
    ModelOutput,
    SupportedModel,
    WorkerType,
    known,
    plain,
    split_worker_key,
)
from ..wire.chunks import ROUTE_HEADER, ROUTE_LOCAL
from ..wire.messages import DELTA_TYPE, dbgpt_messages
from .remote_answer import RemoteAnswer
from .remote_errors import error_of_answer

START_TIMEOUT = 330.0
"""Seconds that a start over HTTP may take, where its parameters do not say: a model's own, and a little more."""

_ALSO_FALSE = ("echo", "chat_model")
"""What is sent where it is false: its absence means true to some."""

_LOCAL = {ROUTE_HEADER: ROUTE_LOCAL}
_AT_ONCE = {**_LOCAL, "Prefer": "wait=0"}
_STREAM = {**_LOCAL, "Accept": DELTA_TYPE}
_STREAM_AT_ONCE = {**_AT_ONCE, "Accept": DELTA_TYPE}


class RemoteModelWorker:
    """One model at one address. All calls block, and may raise WorkerUnreachable and whatever the worker says."""

    def __init__(self, key: str, url: str, transport: Transport) -> None:
        """``key`` is its worker key, ``url`` where its API stands, with the prefix."""
        self.key = key
        self.url = url
        self.name = split_worker_key(key)[0]
        self.load: str | None = None
        """What its gate looked like in its last answer: the value of ``Modelyard-Load``."""
        self._transport = transport
        self._base = f"{url.rstrip('/')}/worker"

    def generate_stream(self, request: GenerateRequest, cancel: Cancel, *, wait: bool = True) -> OutputStream:
        """Return the stream of an answer; close it. The request leaves when its first burst is asked for.

        The stream raises WorkerUnreachable, WorkerLost, Cancelled, and what the worker says.
        """
        span = _span("POST", self._base, "generate_stream", self.key)
        context = current_tracing().context_of(span)

        def send() -> Answer:
            headers = _STREAM if wait else _STREAM_AT_ONCE
            url = f"{self._base}/generate_stream"
            with attached(context):
                return self._transport.send("POST", url, body=_prompt(request), headers=headers, cancel=cancel)

        bursts = RemoteAnswer(f"{self.key} at {self.url}", send, cancel, self._note_load)
        stream = OutputStream(bursts, cancel, lambda: None)
        if span.is_recording():
            stream.when_closed(partial(end, span))
        return stream

    def generate(self, request: GenerateRequest, cancel: Cancel, *, wait: bool = True) -> ModelOutput:
        """Return the whole answer, of a stream: so it can be watched and cancelled on its way. Raises like it."""
        with self.generate_stream(request, cancel, wait=wait) as stream:
            return whole_answer(stream)

    def embeddings(self, texts: Sequence[str], cancel: Cancel, *, wait: bool = True) -> Vectors:
        """Return one row a text.

        Nothing is sent until all are computed: the transport's read timeout must be longer than that takes.
        """
        rows = self._vectors({"model": self.name, "input": list(texts)}, cancel, wait=wait)
        if len(rows) != len(texts):
            raise EngineError(f"{self.key} at {self.url} answers {len(texts)} texts with {len(rows)} rows")
        return rows

    def rerank(self, query: str, texts: Sequence[str], cancel: Cancel, *, wait: bool = True) -> Sequence[float]:
        """Return a score a text; like `embeddings`."""
        # A worker of DB-GPT looks for an embedder of that name unless it is told the type.
        kind = self.key.rpartition("@")[2]
        body = {"model": self.name, "input": list(texts), "query": query, "worker_type": kind}
        rows = self._vectors(body, cancel, wait=wait)
        if len(rows) != 1 or len(rows[0]) != len(texts):
            raise EngineError(f"{self.key} at {self.url} does not answer with a score for each of {len(texts)} texts")
        return rows[0]

    def _vectors(self, body: JSONObject, cancel: Cancel, *, wait: bool) -> list[list[float]]:
        rows = self._post("embeddings", body, headers=_LOCAL if wait else _AT_ONCE, cancel=cancel)
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            raise EngineError(f"{self.key} at {self.url} answers with what are no vectors")
        return rows

    def count_token(self, prompt: str) -> int:
        """Return the tokens of ``prompt``."""
        count = self._post("count_token", {"model": self.name, "prompt": prompt})
        if not isinstance(count, int):
            raise EngineError(f"{self.key} at {self.url} answers with what is no count of tokens")
        return count

    def metadata(self) -> ModelMetadata:
        """Return what the model is."""
        said = self._post("model_metadata", {"model": self.name})
        if not isinstance(said, dict):
            raise EngineError(f"{self.key} at {self.url} answers with what is no metadata")
        template = (said.get("ext_metadata") or {}).get("prompt_chat_template")
        return ModelMetadata(**{"model": self.name, **known(ModelMetadata, said), "prompt_chat_template": template})

    def _post(
        self, path: str, body: JSONObject, headers: Mapping[str, str] = _LOCAL, cancel: Cancel | None = None
    ) -> Any:
        url = f"{self._base}/{path}"
        with _running("POST", self._base, path, self.key):
            if (span_id := dbgpt.span_id()) is not None:
                body["span_id"] = span_id
            with self._transport.request("POST", url, body=_encoded(body), headers=headers, cancel=cancel) as answer:
                if load := answer.headers.get("modelyard-load"):
                    self._note_load(load)
                return _value(answer, f"{self.key} at {self.url}")

    def _note_load(self, load: str) -> None:
        self.load = load


class RemoteMachine:
    """The process at one address: what it runs, and may run. All calls may raise WorkerUnreachable."""

    def __init__(self, url: str, transport: Transport) -> None:
        """``url`` is where its API stands, with the prefix."""
        self.url = url
        self._transport = transport
        self._base = f"{url.rstrip('/')}/worker"

    def model_startup(
        self,
        model: str,
        worker_type: WorkerType | None,
        params: Mapping[str, Any],
        timeout: float = START_TIMEOUT,
    ) -> None:
        """Start a model and return when it is ready. Raises UnknownModel, Conflict, InvalidRequest, StartFailed.

        It is asked once: where no answer comes, it may have been started all the same.
        """
        self._change("models/startup", self._named(model, worker_type, params), _longer(timeout, params))

    def model_shutdown(self, model: str, worker_type: WorkerType | None, timeout: float = START_TIMEOUT) -> None:
        """Stop a model and forget it. Raises UnknownModel."""
        self._change("models/shutdown", self._named(model, worker_type, {}), timeout)

    def worker_apply(
        self,
        model: str,
        apply_type: str,
        worker_type: WorkerType | None,
        params: Mapping[str, Any],
        timeout: float = START_TIMEOUT,
    ) -> ApplyOutcome:
        """Start, stop, restart or update the parameters of a model. Raises UnknownModel, InvalidRequest."""
        body = {"model": model, "apply_type": apply_type, "params": dict(params)}
        if worker_type is not None:
            body["worker_type"] = worker_type.value
        said = self._change("apply", body, _longer(timeout, params))
        if not isinstance(said, dict):
            raise EngineError(f"{self.url} does not say what came of {apply_type}")
        outcome = {"message": "", "success": False, "timecost": 0.0}
        return ApplyOutcome(**{**outcome, **known(ApplyOutcome, said)})

    def _named(self, model: str, worker_type: WorkerType | None, params: Mapping[str, Any]) -> JSONObject:
        parts = urlsplit(self.url)
        unix = parts.scheme == "http+unix"
        body: JSONObject = {
            "host": "localhost" if unix else parts.hostname,
            "port": 0 if unix else parts.port or {"https": 443}.get(parts.scheme, 80),
            "model": model,
            "params": dict(params),
        }
        if worker_type is not None:
            body["worker_type"] = worker_type.value
        return body

    def _change(self, path: str, body: JSONObject, timeout: float) -> Any:
        """Return what the answer says. Not on a kept connection: what changes something is never sent twice."""
        times = (self._transport.connect_timeout, max(timeout, self._transport.read_timeout))
        url = f"{self._base}/{path}"
        with (
            _running("POST", self._base, path),
            self._transport.request(
                "POST", url, body=_encoded(body), headers=_LOCAL, timeout=times, reuse=False
            ) as answer,
        ):
            return _value(answer, self.url)

    def parameter_descriptions(self, model: str, worker_type: WorkerType | None) -> list[JSONObject]:
        """Return the parameters of a model that it knows. Raises UnknownModel."""
        query = {"model": model} if worker_type is None else {"model": model, "worker_type": worker_type.value}
        return _descriptions(self._get(f"parameter/descriptions?{urlencode(query)}"))

    def supported_models(self) -> list[HostModels]:
        """Return the models that may run there; a gateway tells of several hosts."""
        return [
            HostModels(
                str(host.get("host")), int(host.get("port") or 0), [_supported(m) for m in _objects(host.get("models"))]
            )
            for host in _objects(self._get("models/supports"))
        ]

    def _get(self, path: str) -> Any:
        url = f"{self._base}/{path}"
        with _running("GET", self._base, path), self._transport.request("GET", url, headers=_LOCAL) as answer:
            return _value(answer, self.url)


def _running(method: str, base: str, path: str, key: str | None = None) -> AbstractContextManager[Span]:
    """Return a context for a call to ``path`` below ``base``, in which the span of that call is the current one."""
    return current_tracing().running(_span(method, base, path, key))


def _span(method: str, base: str, path: str, key: str | None = None) -> Span:
    """Return the span of a call to ``path`` below ``base``, below the current span."""
    tracing, path = current_tracing(), path.partition("?")[0]
    attributes: JSONObject = {}
    if tracing.on:
        parts = urlsplit(base)
        attributes = {
            "http.request.method": method,
            "server.address": unquote(parts.hostname or ""),
            "server.port": parts.port,
            "url.full": f"{base}/{path}",
            "modelyard.model": key,
        }
    return tracing.span(f"{method} /worker/{path}", attributes, SpanKind.CLIENT)


def _prompt(request: GenerateRequest) -> bytes:
    """Return the body that asks for ``request``, without what is not set: each key more is work on the other side.

    In words that a worker of DB-GPT understands: it drops messages of OpenAI's roles, takes parts in a form of its own
    only, and repeats the prompt unless it is told not to.
    """
    body = {
        name: value
        for name, value in plain(request).items()
        if value is not None and value != [] and (value is not False or name in _ALSO_FALSE)
    }
    if request.messages:
        body["messages"] = dbgpt_messages(request.messages)
    if (span_id := dbgpt.span_id()) is not None:
        body["span_id"] = span_id
    return _encoded(body)


def _encoded(body: JSONObject) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError as error:  # half of a surrogate pair, or an object that is no JSON
        raise InvalidRequest(f"the request can't be sent on: {error}") from None


def _value(answer: Answer, where: str) -> Any:
    if answer.status_code != 200:
        raise error_of_answer(answer, where)
    try:
        return answer.json()
    except ValueError:
        raise EngineError(f"{where} answers with what is no JSON: {answer.text[:60]!r}") from None


def _longer(timeout: float, params: Mapping[str, Any]) -> float:
    """Return ``timeout``, or what the parameters allow the start, if that is more."""
    own = params.get("start_timeout")
    return max(timeout, own + 30.0) if isinstance(own, int | float) else timeout


def _objects(value: Any) -> list[JSONObject]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _descriptions(value: Any) -> list[JSONObject]:
    """Return ParameterDescriptions without the keys that not all clients know: DB-GPT 0.8 has more than 0.5."""
    return [{name: said for name, said in one.items() if name in DESCRIPTION_KEYS} for one in _objects(value)]


def _supported(model: JSONObject) -> SupportedModel:
    absent = SupportedModel("", "", "", path_exist=False, proxy=False, enabled=False, params=[])
    said = {**known(SupportedModel, model), "params": _descriptions(model.get("params"))}
    return SupportedModel(**{**plain(absent), **said})
