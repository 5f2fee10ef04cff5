"""RemoteModelWorker: a model at an address, called as one of this process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ..engines.base import Vectors
from ..errors import EngineError
from ..sessions.response import Response
from ..sessions.session import Session
from ..streams import Cancel, OutputStream, whole_answer
from ..telemetry import dbgpt
from ..telemetry.tracing import attached, current_tracing, end
from ..types import GenerateRequest, JSONObject, ModelMetadata, ModelOutput, known, plain, split_worker_key
from ..wire.messages import DELTA_TYPE, dbgpt_messages
from .remote_answer import RemoteAnswer
from .remote_calls import LOCAL, RemoteCalls, encoded

_ALSO_FALSE = ("echo", "chat_model")
"""What is sent where it is false: its absence means true to some."""

_AT_ONCE = {**LOCAL, "Prefer": "wait=0"}
_STREAM = {**LOCAL, "Accept": DELTA_TYPE}
_STREAM_AT_ONCE = {**_AT_ONCE, "Accept": DELTA_TYPE}


class RemoteModelWorker:
    """One model at one address. All calls block, and may raise WorkerUnreachable and whatever the worker says."""

    def __init__(self, key: str, url: str, session: Session) -> None:
        """``key`` is its worker key, ``url`` has the API's prefix."""
        self.key = key
        self.url = url
        self.name = split_worker_key(key)[0]
        self._calls = RemoteCalls(url, session, key)

    @property
    def load(self) -> str | None:
        """What its gate looked like in its last answer: the value of ``Modelyard-Load``."""
        return self._calls.load

    def generate_stream(self, request: GenerateRequest, cancel: Cancel, *, wait: bool = True) -> OutputStream:
        """Return the stream of an answer; close it. The request leaves when its first burst is asked for.

        The stream raises WorkerUnreachable, WorkerLost, Cancelled, and what the worker says.
        """
        calls = self._calls
        span = calls.span("POST", "generate_stream")
        context = current_tracing().context_of(span)

        def send() -> Response:
            with attached(context):
                headers = _STREAM if wait else _STREAM_AT_ONCE
                response = calls.stream("generate_stream", _prompt(request), headers, cancel)
            calls.note_load(response)
            return response

        stream = OutputStream(RemoteAnswer(calls.name, send, cancel), cancel, lambda: None)
        if span.is_recording():
            stream.when_closed(partial(end, span))
        return stream

    def generate(self, request: GenerateRequest, cancel: Cancel, *, wait: bool = True) -> ModelOutput:
        """Return the whole answer, of a stream: so it can be watched and cancelled on its way. Raises like it."""
        with self.generate_stream(request, cancel, wait=wait) as stream:
            return whole_answer(stream)

    def embeddings(self, texts: Sequence[str], cancel: Cancel, *, wait: bool = True) -> Vectors:
        """Return one row a text.

        Nothing is sent until all are computed: the session's read timeout must be longer than that takes.
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
        rows = self._calls.post("embeddings", body, headers=LOCAL if wait else _AT_ONCE, cancel=cancel)
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            raise EngineError(f"{self.key} at {self.url} answers with something other than vectors")
        return rows

    def count_token(self, prompt: str) -> int:
        """Return the tokens of ``prompt``."""
        count = self._calls.post("count_token", {"model": self.name, "prompt": prompt})
        if not isinstance(count, int):
            raise EngineError(f"{self.key} at {self.url} answers with something other than a count of tokens")
        return count

    def metadata(self) -> ModelMetadata:
        """Return what the model is."""
        metadata = self._calls.post("model_metadata", {"model": self.name})
        if not isinstance(metadata, dict):
            raise EngineError(f"{self.key} at {self.url} answers with something other than metadata")
        template = (metadata.get("ext_metadata") or {}).get("prompt_chat_template")
        return ModelMetadata(**{"model": self.name, **known(ModelMetadata, metadata), "prompt_chat_template": template})


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
    return encoded(body)
