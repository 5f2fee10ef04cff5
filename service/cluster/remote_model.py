"""RemoteModelWorker: a model at an address, with the same calls as a model of this process."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial

from ..engines.base import OfTexts, Vectors, cut_texts, tokens_of
from ..errors import Unsupported
from ..sessions.response import Response
from ..sessions.session import Session
from ..streams import Cancel, OutputStream, whole_answer
from ..telemetry import dbgpt
from ..telemetry.tracing import attached, current_tracing, end
from ..types import (
    DEFAULT_TERMS,
    GenerateRequest,
    JSONObject,
    ModelMetadata,
    ModelOutput,
    Terms,
    known,
    plain,
    split_worker_key,
)
from ..wire.chunks import CUT_HEADER, TOKENS_HEADER
from ..wire.messages import DELTA_TYPE, dbgpt_messages
from ..wire.terms import headers_of_terms, queued_in
from .remote_answer import RemoteAnswer
from .remote_calls import LOCAL, RemoteCalls, encoded

_ALSO_FALSE = ("echo", "chat_model")
"""Fields that are sent when they are false too: some workers take an absent field for true."""

_NOT_IN_BODY = ("terms", "whole")
"""Fields of a request that DB-GPT's wire does not have: the terms are headers, and answers between processes are
streams, whatever the third says."""

_COUNT = re.compile(r"\d{1,12}", re.ASCII)

_METADATA: Mapping[str, type] = {
    "model": str,
    "context_length": int,
    "chat_model": bool,
    "metadata": dict,
    "prompt_chat_template": str,
}
"""The types of the fields of a ModelMetadata."""


class RemoteModelWorker:
    """One model at one address. All calls block, and may raise WorkerUnreachable and each error of the worker."""

    def __init__(self, key: str, url: str, session: Session) -> None:
        """Call the model with the worker key ``key`` at ``url``, which has the API's prefix."""
        self.key = key
        self.url = url
        self.name = split_worker_key(key)[0]
        self._calls = RemoteCalls(url, session, key)

    @property
    def load(self) -> str | None:
        """The state of its gate in its last answer: the value of ``Modelyard-Load``."""
        return self._calls.load

    def generate_stream(self, request: GenerateRequest, cancel: Cancel) -> OutputStream:
        """Return the stream of an answer; close it. The request is sent when its first burst is read.

        The stream raises WorkerUnreachable, WorkerLost, Cancelled, and the errors of the worker.
        """
        calls = self._calls
        headers = _headers(request.terms) | {"Accept": DELTA_TYPE}
        span = calls.span("POST", "generate_stream")
        context = current_tracing().context_of(span)

        def send() -> Response:
            with attached(context):
                response = calls.stream("generate_stream", _prompt(request), headers, cancel)
            calls.note_load(response)
            is_peer = response.status_code == 200 and response.headers.get("content-type") != DELTA_TYPE
            if request.options and is_peer:
                response.close()
                fields = ", ".join(sorted(request.options))
                raise Unsupported(f"{calls.name} is a worker of DB-GPT, which does not know {fields}")
            return response

        stream = RemoteAnswer(calls.name, send, cancel)
        if span.is_recording():
            stream.when_closed(partial(end, span))
        return stream

    def generate(self, request: GenerateRequest, cancel: Cancel) -> ModelOutput:
        """Return the whole answer; raises like the stream.

        It is requested as a stream, so that it can be cancelled at any time.
        """
        with self.generate_stream(request, cancel) as stream:
            return whole_answer(stream)

    def embeddings(
        self,
        texts: Sequence[str],
        cancel: Cancel,
        terms: Terms = DEFAULT_TERMS,
        *,
        extra: JSONObject | None = None,
    ) -> Vectors:
        """Return one row for each text; ``extra`` has the caller's other fields.

        The worker sends nothing until all rows are computed, so the session's read timeout must be longer than that.
        """
        body = {"model": self.name, "input": list(texts)}
        rows = self._vectors(body, cancel, extra, _headers(terms))
        if len(rows) != len(texts):
            raise self._calls.invalid(f"{len(rows)} rows for {len(texts)} texts")
        return rows

    def rerank(
        self,
        query: str,
        texts: Sequence[str],
        cancel: Cancel,
        terms: Terms = DEFAULT_TERMS,
        *,
        extra: JSONObject | None = None,
    ) -> Sequence[float]:
        """Return a score for each text; like `embeddings`."""
        # A worker of DB-GPT looks for an embedder of that name unless the body has the type.
        kind = self.key.rpartition("@")[2]
        body = {"model": self.name, "input": list(texts), "query": query, "worker_type": kind}
        rows = self._vectors(body, cancel, extra, _headers(terms))
        if len(rows) != 1 or len(rows[0]) != len(texts):
            raise self._calls.invalid(f"not a score for each of {len(texts)} texts")
        return OfTexts(rows[0], cut=cut_texts(rows), tokens=tokens_of(rows))

    def _vectors(
        self, body: JSONObject, cancel: Cancel, extra: JSONObject | None, headers: Mapping[str, str]
    ) -> OfTexts:
        if extra:
            body["extra"] = extra
        rows, headers = self._calls.answer("embeddings", body, headers=headers, cancel=cancel)
        cancel.queued = queued_in(headers)
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            raise self._calls.invalid("not a list of vectors")
        if not all(set(map(type, row)) <= {float, int} for row in rows):
            raise self._calls.invalid("a vector with a value that is not a number")
        cut, tokens = (_count(headers.get(name)) for name in (CUT_HEADER, TOKENS_HEADER))
        return OfTexts(rows, cut=cut or 0, tokens=tokens)

    def count_token(self, prompt: str, cancel: Cancel | None = None, terms: Terms = DEFAULT_TERMS) -> int:
        """Return the number of tokens of ``prompt``."""
        count = self._calls.post("count_token", {"model": self.name, "prompt": prompt}, _headers(terms), cancel)
        if type(count) is not int:
            raise self._calls.invalid("not a count of tokens")
        return count

    def metadata(self) -> ModelMetadata:
        """Return the metadata of the model."""
        metadata = self._calls.post("model_metadata", {"model": self.name})
        if not isinstance(metadata, dict):
            raise self._calls.invalid("not metadata of a model")
        details = metadata.get("ext_metadata") or {}
        template = details.get("prompt_chat_template") if isinstance(details, dict) else details
        values = known(ModelMetadata, {**metadata, "prompt_chat_template": template})
        for name, value in values.items():
            if not isinstance(value, _METADATA[name]):
                raise self._calls.invalid(f"metadata whose {name} is not of type {_METADATA[name].__name__}")
        return ModelMetadata(**{"model": self.name, **values})


def _count(text: str | None) -> int | None:
    return int(text) if text and _COUNT.fullmatch(text) else None


def _headers(terms: Terms) -> dict[str, str]:
    """Return the headers of a call that computes."""
    return {**LOCAL, **headers_of_terms(terms)}


def _prompt(request: GenerateRequest) -> bytes:
    """Return the body of ``request``, without the fields that are not set: each one is work for the worker.

    Its form is DB-GPT's: a worker of DB-GPT drops messages with OpenAI's roles, accepts parts in its own form only, and
    repeats the prompt unless ``echo`` is false. Version 0.5 requires ``messages``, and accepts one ``stop`` only, as a
    string.
    """
    body = {
        name: value
        for name, value in plain(request).items()
        if name not in _NOT_IN_BODY
        and value is not None
        and value not in ([], {})
        and (value is not False or name in _ALSO_FALSE)
    }
    body["messages"] = dbgpt_messages(request.messages)
    if len(request.stop) == 1:
        body["stop"] = request.stop[0]
    if (span_id := dbgpt.span_id()) is not None:
        body["span_id"] = span_id
    return encoded(body)
