"""Client: call the models of a service from a script, cron, a Celery task or another application.

    with modelyard.Client("http://127.0.0.1:8000") as client:
        print(client.chat("Why is the sky blue?"))

It needs requests, but no web framework and no engine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from http import HTTPStatus
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlencode

from ..errors import ConfigError, EngineError, InvalidRequest, ModelyardError, StartFailed, UnknownModel
from ..sessions.address import DEFAULT_URL, URL_VARIABLE
from ..types import ApplyOutcome, GenerateRequest, HostModels, JSONObject, ModelOutput, Terms
from ..wire.messages import DELTA_TYPE, dbgpt_messages
from ..wire.terms import headers_of_terms
from ..wire.unsaved import unsaved_in, with_note
from . import answers
from .answers import ModelState, only_model
from .calls import ServiceCalls
from .stream import TextStream

T = TypeVar("T")

CHANGE_TIMEOUT = 330.0
"""Seconds that a start, stop or apply may take: the default ``start_timeout`` of a model, and 30 seconds."""

_NOT_OPTIONS = {"model", "messages", "prompt", "terms", "whole"}
_OPTIONS = {field.name for field in fields(GenerateRequest)} - _NOT_OPTIONS | {"session", "batch"}


class Client:
    """The models of one service. `close` it, or use it in a ``with``.

    Many threads may share one, and it may be made before a fork: each process has connections of its own.

    All calls block. They raise the errors of `modelyard.errors`, the same as in the service: InvalidRequest,
    UnknownModel, Overloaded (with ``retry_after``) ...; WorkerUnreachable if no service answers, ConfigError if the
    address is not that of a service.

    A call is repeated if no part of an answer has come, and the service has computed nothing: a connection failed, or
    the answer is 503. The pause is ``Retry-After``, within ``retry_seconds``. After the first piece of an answer a call
    is not repeated; `start`, `stop` and `apply` are repeated only if no connection could be made.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        connect_timeout: float = 5.0,
        read_timeout: float = 60.0,
        change_timeout: float = CHANGE_TIMEOUT,
        retries: int = 2,
        retry_seconds: float = 20.0,
        ca: str | None = None,
    ) -> None:
        """Store the address and the limits, without connecting.

        ``url`` is ``http://``, ``https://`` or ``http+unix://%2Fpath%2Fof.sock``, by default ``MODELYARD_URL``, or port
        8000 of this machine; without a path it gets ``/api``. ``token`` defaults to ``MODELYARD_TOKEN``, or the content
        of the file ``MODELYARD_TOKEN_FILE``; an empty one sends none. All limits are in seconds: ``read_timeout`` is
        one of silence, not of a whole answer; ``change_timeout`` is that of `start`, `stop` and `apply`. A call is
        repeated ``retries`` times at most, within ``retry_seconds``. https is checked against ``ca``, a file or folder.
        Proxy variables, ``.netrc`` and other variables of the environment are ignored. Raises ConfigError.
        """
        self._calls = ServiceCalls(
            url or os.environ.get(URL_VARIABLE) or DEFAULT_URL,
            token=token,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            retries=retries,
            retry_seconds=retry_seconds,
            ca=ca,
        )
        self.url = self._calls.url
        """The address of the service, with the API's prefix."""
        self._change_timeout = change_timeout
        self._only: dict[tuple[str, ...], str] = {}

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    # Text

    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]] | None = None,
        *,
        model: str | None = None,
        prompt: str | None = None,
        **options: Any,
    ) -> str:
        """Return the text of an answer. Takes the arguments of `stream`."""
        return self.generate(messages, model=model, prompt=prompt, **options).text

    def generate(
        self,
        messages: str | Sequence[Mapping[str, Any]] | None = None,
        *,
        model: str | None = None,
        prompt: str | None = None,
        **options: Any,
    ) -> ModelOutput:
        """Return a whole answer: ``text``, ``finish_reason``, ``usage``, ``metrics``. Arguments as for `stream`."""
        # As a stream, so that the timeout is one of silence, and an answer that breaks off is an error.
        with self.stream(messages, model=model, prompt=prompt, **options) as stream:
            for _ in stream:
                pass
            return stream.output

    def stream(
        self,
        messages: str | Sequence[Mapping[str, Any]] | None = None,
        *,
        model: str | None = None,
        prompt: str | None = None,
        **options: Any,
    ) -> TextStream:
        """Return an answer as an iterator over its pieces of text, as they come. Read it to its end, or close it.

        ``messages`` is the text of a user, or a list of ``{"role": ..., "content": ...}``; ``prompt`` is raw text
        instead. ``model`` may be left out where the service has one model that generates text. ``options`` are
        ``max_new_tokens``, ``temperature``, ``top_p``, ``top_k``, ``min_p``, ``seed``, ``stop``, ``metrics``,
        ``session`` (the requests of one go to one worker), ``batch`` (stand in line behind interactive requests) and
        the other fields of `modelyard.types.GenerateRequest`. A refusal is raised here, not by the stream.
        """
        if unknown := set(options) - _OPTIONS:
            raise TypeError(f"unknown option {', '.join(sorted(unknown))}: there are {', '.join(sorted(_OPTIONS))}")
        given = {name: value for name, value in options.items() if value is not None}
        terms = headers_of_terms(Terms(session=given.pop("session", ""), batch=given.pop("batch", False)))
        with self._model(model, "llm") as name:
            body = {"model": name, "echo": False, **_prompt_fields(messages, prompt), **given}
            response = self._calls.send("POST", "worker/generate_stream", body, headers={"Accept": DELTA_TYPE, **terms})
            if response.headers.get("Content-Type", "").startswith("text/html"):
                response.close()
                raise self._calls.not_a_worker()
            stream = TextStream(response, self.url)
            stream.begin()
            return stream

    # Vectors and counts

    def embeddings(
        self, texts: Sequence[str], *, model: str | None = None, timeout: float | None = None, batch: bool = False
    ) -> list[list[float]]:
        """Return one row of floats for each text; a ``batch`` stands in line behind interactive requests.

        The answer comes when all are computed: give many texts a longer ``timeout`` (default: ``read_timeout``).
        """
        with self._model(model, "text2vec") as name:
            body = {"model": name, "input": _texts(texts)}
            return self._vectors(body, lambda rows: answers.vectors(rows, len(texts)), timeout, batch=batch)

    def rerank(
        self,
        query: str,
        texts: Sequence[str],
        *,
        model: str | None = None,
        timeout: float | None = None,
        batch: bool = False,
    ) -> list[float]:
        """Return one score for each text: how well it answers ``query``. An embedding model scores by cosine."""
        with self._model(model, "reranker", "text2vec") as name:
            body = {"model": name, "input": _texts(texts), "query": query}
            (scores,) = self._vectors(body, lambda rows: answers.vectors(rows, 1, len(texts)), timeout, batch=batch)
            return scores

    def _vectors(
        self, body: JSONObject, read: Callable[[Any], list[list[float]]], timeout: float | None, *, batch: bool
    ) -> list[list[float]]:
        headers = headers_of_terms(Terms(batch=batch))
        return self._calls.value("POST", "worker/embeddings", read, body, headers=headers, timeout=timeout)

    def count_token(self, prompt: str, *, model: str | None = None) -> int:
        """Return the number of tokens of ``prompt``."""
        with self._model(model, "llm") as name:
            body = {"model": name, "prompt": prompt}
            return self._calls.value("POST", "worker/count_token", answers.count, body)

    # The service

    def models(self) -> list[ModelState]:
        """Return the models that the service has, ready or not."""
        return [ModelState.of(model) for model in self.status()["models"]]

    def status(self) -> JSONObject:
        """Return the status of the service, ready or not: the answer of its ``/readyz``.

        It has ``ready``, the ``state`` of the service with its ``reason``, and ``models``, a list of objects with
        ``model`` (``name@type``), ``state`` and ``reason``. Raises ConfigError if no such ``/readyz`` answers.
        """
        for base in self._calls.bases():  # it stands at the root; in an application, below its prefix
            status = self._calls.value("GET", "readyz", answers.status, base=base, accepted=(200, 404, 503))
            if status is not None:
                return status
        raise ConfigError(f"no /readyz of modelyard answers at {self.url} or above it")

    def metrics(self) -> str:
        """Return the metrics of the service in the text format of Prometheus: the answer of its ``/metrics``.

        Raises ConfigError if no ``/metrics`` answers, as where they are off, and Unauthorized or Forbidden for a token
        without the scope ``metrics``.
        """
        for base in self._calls.bases():
            with self._calls.send("GET", "metrics", base=base, accepted=(200, 404)) as response:
                if response.status_code == HTTPStatus.OK:
                    return response.content.decode()
        raise ConfigError(f"no /metrics answers at {self.url} or above it: they may be off")

    def supported_models(self) -> list[HostModels]:
        """Return the models that the service can start, by host, running or not; a gateway answers for several hosts.

        Each has its ``path``, whether that exists (``path_exist``), whether it can run there (``enabled``) and its
        ``params``, as `parameter_descriptions` returns them.
        """
        return self._calls.value("GET", "worker/models/supports", answers.hosts)

    def parameter_descriptions(self, model: str, worker_type: str | None = None) -> list[JSONObject]:
        """Return the parameters of a model that the service has, or can start.

        Each has ``param_name``, ``param_type``, ``default_value`` (the current value; private ones are masked),
        ``required``, ``valid_values``, ``description``, and in ``ext_metadata`` its range and tags.
        Raises UnknownModel.
        """
        query = urlencode({"model": model, **({"worker_type": worker_type} if worker_type else {})})
        path = f"worker/parameter/descriptions?{query}"
        return self._calls.value("GET", path, lambda value: answers.objects(value, "param_name"))

    def instances(self) -> list[JSONObject]:
        """Return the rows of the registry, as a controller, a standalone or a gateway sees them.

        Each has ``key`` (``name@type``), ``url``, ``healthy``, ``enabled``, ``weight``, ``load`` and
        ``last_heartbeat`` (ISO 8601, UTC). Raises ConfigError if the service is none of these.
        """
        rows = self._calls.value("GET", "controller/instances", answers.rows, accepted=(200, 404))
        if rows is None:
            raise ConfigError(
                f"{self.url} has no list of instances: a controller, a standalone and a gateway have one, a worker not"
            )
        return rows

    def start(
        self,
        model: str,
        worker_type: str | None = None,
        *,
        host: str | None = None,
        port: int | None = None,
        timeout: float | None = None,
        **params: Any,
    ) -> ApplyOutcome:
        """Start a model and wait until it is ready; one that is ready already stays as it is. Return the outcome.

        ``params`` are for a model that is not hosted yet. For a gateway of several hosts, ``host`` and ``port`` name
        the host to start it on. ``timeout`` in seconds defaults to ``change_timeout``.
        Raises UnknownModel, Conflict, StartFailed, InvalidRequest.
        """
        if not params and host is None:
            try:
                return self._succeed(self.apply(model, "start", worker_type, timeout=timeout), StartFailed)
            except UnknownModel:
                pass  # it is not hosted yet
        body = {"model": model, "worker_type": worker_type, "params": params, **_place(host, port)}
        return self._change_list("startup", body, timeout, f"model {model} started")

    def stop(
        self,
        model: str,
        worker_type: str | None = None,
        *,
        forget: bool = False,
        host: str | None = None,
        port: int | None = None,
        timeout: float | None = None,
    ) -> ApplyOutcome:
        """Stop a model on all of its hosts; it stays listed, and stopped. Return the outcome.

        With ``forget`` it is removed from the list too; of several hosts, on the one that ``host`` and ``port`` name.
        ``timeout`` in seconds defaults to ``change_timeout``. Raises UnknownModel.
        """
        if forget:
            body = {"model": model, "worker_type": worker_type, **_place(host, port)}
            return self._change_list("shutdown", body, timeout, f"model {model} stopped and forgotten")
        if host is not None:
            raise TypeError("host goes with forget=True: a stop without it stops all instances")
        return self._succeed(self.apply(model, "stop", worker_type, timeout=timeout), EngineError)

    def apply(
        self,
        model: str,
        apply_type: str,
        worker_type: str | None = None,
        params: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
    ) -> ApplyOutcome:
        """Apply ``start``, ``stop``, ``restart`` or ``update_params`` to a model, or to all: ``"*"``.

        Return the outcome: ``success``, ``message`` and ``timecost`` in seconds; a failure is not raised. ``timeout``
        in seconds defaults to ``change_timeout``. Raises UnknownModel, InvalidRequest.
        """
        body = {"model": model, "apply_type": apply_type, "worker_type": worker_type, "params": dict(params or {})}
        return self._change("apply", body, timeout, answers.outcome)[0]

    def _change_list(self, call: str, body: JSONObject, timeout: float | None, message: str) -> ApplyOutcome:
        """Return an outcome with ``message`` for ``models/startup`` or ``models/shutdown``, whose answers have none."""
        began = time.monotonic()
        _, headers = self._change(f"models/{call}", body, timeout, answers.nothing)
        seconds = round(time.monotonic() - began, 3)
        return ApplyOutcome(with_note(message, unsaved_in(headers)), success=True, timecost=seconds)

    def _change(
        self, path: str, body: JSONObject, timeout: float | None, read: Callable[[Any], T]
    ) -> tuple[T, Mapping[str, str]]:
        limit = self._change_timeout if timeout is None else timeout
        return self._calls.change(f"worker/{path}", read, body, timeout=limit)

    @staticmethod
    def _succeed(outcome: ApplyOutcome, kind: type[ModelyardError]) -> ApplyOutcome:
        if not outcome.success:
            raise kind(outcome.message)
        return outcome

    @contextmanager
    def _model(self, model: str | None, *worker_types: str) -> Iterator[str]:
        """Yield the name of the model to call: ``model``, or the only one. Forget the only one once it is unknown."""
        name = model or self._only.get(worker_types)
        if name is None:
            name = self._only[worker_types] = only_model(self.models(), worker_types, self.url)
        try:
            yield name
        except UnknownModel:
            self._only.clear()
            raise

    # Closing

    def close(self) -> None:
        """Close the connections of this process, except those of streams: each stream closes its own."""
        self._calls.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _prompt_fields(messages: str | Sequence[Mapping[str, Any]] | None, prompt: str | None) -> JSONObject:
    """Return the fields of a request for its prompt, with the roles that DB-GPT's workers accept."""
    if (messages is None) == (prompt is None):
        raise TypeError("give messages or prompt, not both")
    if messages is None:
        return {"prompt": prompt, "messages": []}
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    try:
        return {"messages": dbgpt_messages(messages)}
    except (KeyError, ValueError) as error:
        fault = f"each is an object with role and content: {error}"
        raise InvalidRequest.of_field("messages", fault) from None


def _texts(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError("texts are a list of strings, not one string")
    return list(texts)


def _place(host: str | None, port: int | None) -> JSONObject:
    return {} if host is None else {"host": host, "port": port}
