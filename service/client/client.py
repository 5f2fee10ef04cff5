"""Client: the models of a service, called from anywhere: a script, cron, a Celery task, another application.

    with modelyard.Client("http://127.0.0.1:8000") as client:
        print(client.chat("Why is the sky blue?"))

It needs requests, and of this package only the error tree and plain values: no web framework, no engine.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import urlencode

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from ..errors import (
    ConfigError,
    EngineError,
    InvalidRequest,
    ModelyardError,
    NotConnected,
    StartFailed,
    Unavailable,
    UnknownModel,
    WorkerUnreachable,
)
from ..sessions.address import DEFAULT_URL, TOKEN_FILE_VARIABLE, TOKEN_VARIABLE, URL_VARIABLE, parse_address
from ..sessions.faults import Silent, reason_of
from ..sessions.response import Response
from ..sessions.session import Session
from ..types import ApplyOutcome, GenerateRequest, HostModels, JSONObject, ModelOutput, SupportedModel, known
from ..version import __version__
from ..wire.errors import error_of_document
from ..wire.messages import PEER_ROLES, text_of_content
from .stream import TextStream

CHANGE_TIMEOUT = 330.0
"""Seconds that a start, stop or apply may take: a model's own start_timeout, and a little more."""

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0
"""Seconds before a request is sent again that found nobody; what a 503 says in Retry-After counts if it is longer."""

_STREAM = {"Accept": "application/x-model-output-delta"}
_NOT_FOUND, _UNAVAILABLE = 404, 503
_REDIRECTS = (301, 302, 303, 307, 308)
_OPTIONS = frozenset(field.name for field in fields(GenerateRequest)) - {"model", "messages", "prompt"}


class ModelState(NamedTuple):
    """A model of a service: ``state`` is ready, starting, stopped, failed or stopping; ``reason`` says why."""

    name: str
    worker_type: str | None
    """``llm``, ``text2vec`` or ``reranker``; None for one that could not even be declared."""
    state: str
    reason: str | None

    @classmethod
    def of(cls, model: Mapping[str, Any]) -> ModelState:
        """Return one of the ``models`` of a `Client.status` as a value."""
        name, at, worker_type = str(model["model"]).rpartition("@")
        state, reason = str(model["state"]), model.get("reason")
        return cls(name, worker_type, state, reason) if at else cls(worker_type, None, state, reason)


class Client:
    """The models of one service. `close` it, or use it in a ``with``.

    Many threads may share one, and it may be made before a fork: each process has connections of its own.

    All calls block. They raise the errors of `modelyard.errors`, the same as in the service: InvalidRequest,
    UnknownModel, Overloaded (with ``retry_after``) ...; WorkerUnreachable where no service answers, ConfigError where
    something else does.

    A call is sent again where nothing of an answer has come: the connection failed, or the service said 503, that
    is that it computed nothing. It waits as long as the service asks for, but never beyond ``retry_seconds``. After the
    first piece of an answer nothing is repeated; `start`, `stop` and `apply` only if no connection could be made.
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
        """Store the address and the limits; connect to nothing yet.

        ``url`` is ``http://``, ``https://`` or ``http+unix://%2Fpath%2Fof.sock``, by default ``MODELYARD_URL``, or port
        8000 of this machine; without a path it gets ``/api``. ``token`` defaults to ``MODELYARD_TOKEN``, or the content
        of the file ``MODELYARD_TOKEN_FILE``; an empty one sends none. All limits are in seconds: ``read_timeout`` is
        one of silence, not of a whole answer; ``change_timeout`` is that of `start`, `stop` and `apply`. A call is
        repeated ``retries`` times at most, within ``retry_seconds``. https is checked against ``ca``, a file or folder.
        Proxy variables, ``.netrc`` and other variables of the environment are ignored. Raises ConfigError.
        """
        self._address = address = parse_address(url or os.environ.get(URL_VARIABLE) or DEFAULT_URL)
        self.url = address.base
        """Where it talks to, with the API's prefix."""
        self._times = (connect_timeout, read_timeout)
        self._change_timeout = change_timeout
        self._retries = retries
        self._retry_seconds = retry_seconds
        headers = {"User-Agent": f"modelyard-client/{__version__}"}
        if secret := _own_token() if token is None else token:
            headers["Authorization"] = f"Bearer {secret}"
        if address.authorization is not None:
            headers["Authorization"] = address.authorization
        trusted = ca or (DEFAULT_CA_BUNDLE_PATH if address.is_tls else None)
        self._session = Session(connect_timeout, read_timeout, headers=headers, ca=trusted)
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
        """Return the text of an answer; takes what `stream` takes."""
        return self.generate(messages, model=model, prompt=prompt, **options).text

    def generate(
        self,
        messages: str | Sequence[Mapping[str, Any]] | None = None,
        *,
        model: str | None = None,
        prompt: str | None = None,
        **options: Any,
    ) -> ModelOutput:
        """Return a whole answer: ``text``, ``finish_reason``, ``usage``, ``metrics``. Takes what `stream` takes."""
        # As a stream, so that the timeout is one of silence, and a break in the middle is seen.
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
        """Return the pieces of an answer as they come; see there for who closes it.

        ``messages`` is what a user says, or a list of ``{"role": ..., "content": ...}``; ``prompt`` is raw text
        instead. ``model`` may be left out where one model that generates text is there. ``options`` are
        ``max_new_tokens``, ``temperature``, ``top_p``, ``top_k``, ``min_p``, ``seed``, ``stop``, ``metrics`` and the
        other fields of `modelyard.types.GenerateRequest`. A refusal is raised here, before there is a stream.
        """
        if strange := set(options) - _OPTIONS:
            raise TypeError(f"unknown option {', '.join(sorted(strange))}: there are {', '.join(sorted(_OPTIONS))}")
        said = {name: value for name, value in options.items() if value is not None}
        body = {"model": self._model(model, "llm"), "echo": False, **_spoken(messages, prompt), **said}
        response = self._send("POST", "generate_stream", body, headers=_STREAM)
        if response.headers.get("Content-Type", "").startswith("text/html"):
            response.close()
            raise self._stranger()
        stream = TextStream(response, self.url)
        try:
            stream.begin()
        except UnknownModel:
            self._only.clear()
            raise
        return stream

    # Vectors and counts

    def embeddings(
        self, texts: Sequence[str], *, model: str | None = None, timeout: float | None = None
    ) -> list[list[float]]:
        """Return one row of floats a text.

        Nothing comes until all are computed: for many texts let ``timeout`` (default: ``read_timeout``) be longer.
        """
        body = {"model": self._model(model, "text2vec"), "input": _texts(texts)}
        rows = self._value(self._send("POST", "embeddings", body, read_timeout=timeout))
        if not _are_rows(rows) or len(rows) != len(texts):
            raise self._stranger()
        found: list[list[float]] = rows
        return found

    def rerank(
        self, query: str, texts: Sequence[str], *, model: str | None = None, timeout: float | None = None
    ) -> list[float]:
        """Return a score a text: how well it answers ``query``. A model that only embeds answers by cosine."""
        body = {"model": self._model(model, "reranker", "text2vec"), "input": _texts(texts), "query": query}
        rows = self._value(self._send("POST", "embeddings", body, read_timeout=timeout))
        if not _are_rows(rows) or len(rows) != 1 or len(rows[0]) != len(texts):
            raise self._stranger()
        scores: list[float] = rows[0]
        return scores

    def count_token(self, prompt: str, *, model: str | None = None) -> int:
        """Return how many tokens ``prompt`` has."""
        body = {"model": self._model(model, "llm"), "prompt": prompt}
        count = self._value(self._send("POST", "count_token", body))
        if not isinstance(count, int):
            raise self._stranger()
        return count

    # What runs

    def models(self) -> list[ModelState]:
        """Return the models that the service has, ready or not."""
        return [ModelState.of(model) for model in self.status()["models"]]

    def status(self) -> JSONObject:
        """Return the status of the service, ready or not: what its ``/readyz`` answers.

        It has ``ready``, the ``reason`` where that is false, and ``models``, a list of objects with ``model``
        (``name@type``), ``state`` and ``reason``. Raises ConfigError where the address has no ``/readyz`` of modelyard.
        """
        for base in self._address.parents():  # it stands at the root, in an application below its prefix
            response = self._send("GET", f"{base}/readyz", accepted=(200, 404, 503))
            if response.status_code == _NOT_FOUND:
                response.close()
                continue
            status = self._value(response)
            if isinstance(status, dict) and _are_objects(status.get("models"), "model", "state"):
                return status
        raise ConfigError(f"no /readyz of modelyard answers at {self.url} or above it")

    def supported_models(self) -> list[HostModels]:
        """Return the models that the service can start, by host, running or not; a gateway answers for several hosts.

        Each has its ``path``, whether that exists (``path_exist``), whether it can run there (``enabled``) and its
        ``params``, as `parameter_descriptions` returns them.
        """
        hosts = self._value(self._send("GET", "models/supports"))
        try:
            return [HostModels(host["host"], host["port"], [_supported(m) for m in host["models"]]) for host in hosts]
        except (TypeError, LookupError, AttributeError):  # an answer of another shape
            raise self._stranger() from None

    def parameter_descriptions(self, model: str, worker_type: str | None = None) -> list[JSONObject]:
        """Return the parameters of a model that the service has, or can start.

        Each has ``param_name``, ``param_type``, ``default_value`` (the current value; private ones are masked),
        ``required``, ``valid_values``, ``description``, and in ``ext_metadata`` its range and tags.
        Raises UnknownModel.
        """
        query = urlencode({"model": model, **({"worker_type": worker_type} if worker_type else {})})
        descriptions: list[JSONObject] = self._value(self._send("GET", f"parameter/descriptions?{query}"))
        if not _are_objects(descriptions, "param_name"):
            raise self._stranger()
        return descriptions

    def instances(self) -> list[JSONObject]:
        """Return the rows of the registry, where the service is a controller.

        Each has ``key`` (``name@type``), ``url``, ``healthy``, ``enabled``, ``weight``, ``load`` and
        ``last_heartbeat`` (ISO 8601, UTC). Raises ConfigError where the service is not a controller.
        """
        response = self._send("GET", f"{self._address.base}/controller/instances", accepted=(200, 404))
        if response.status_code == _NOT_FOUND:
            response.close()
            raise ConfigError(f"{self.url} is not a controller")
        rows: list[JSONObject] = self._value(response)
        if not _are_objects(rows, "key", "url", "healthy"):
            raise self._stranger()
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
    ) -> None:
        """Start a model and return when it is ready; one that is ready already is left as it is.

        ``params`` are for one that is not hosted yet. ``host`` and ``port`` name the host to start it on, where the
        service is a gateway for several. ``timeout`` in seconds defaults to ``change_timeout``.
        Raises UnknownModel, Conflict, StartFailed, InvalidRequest.
        """
        if not params and host is None:
            try:
                return self._succeed(self.apply(model, "start", worker_type, timeout=timeout), StartFailed)
            except UnknownModel:
                pass  # known perhaps, but not hosted
        body = {"model": model, "worker_type": worker_type, "params": params, **_place(host, port)}
        return self._change_silently("models/startup", body, timeout)

    def stop(
        self,
        model: str,
        worker_type: str | None = None,
        *,
        forget: bool = False,
        host: str | None = None,
        port: int | None = None,
        timeout: float | None = None,
    ) -> None:
        """Stop a model on all of its hosts; it stays known, and stopped.

        With ``forget`` it is forgotten too, on the one host that ``host`` and ``port`` name where there are several.
        ``timeout`` in seconds defaults to ``change_timeout``. Raises UnknownModel.
        """
        if forget:
            body = {"model": model, "worker_type": worker_type, **_place(host, port)}
            self._change_silently("models/shutdown", body, timeout)
        elif host is not None:
            raise TypeError("host goes with forget=True: a stop without it is one of all instances")
        else:
            self._succeed(self.apply(model, "stop", worker_type, timeout=timeout), EngineError)

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
        outcome = self._change("apply", body, timeout)
        if not isinstance(outcome, dict) or "success" not in outcome:
            raise self._stranger()
        return ApplyOutcome(**{"message": "", "timecost": 0.0, **known(ApplyOutcome, outcome)})

    @staticmethod
    def _succeed(outcome: ApplyOutcome, kind: type[ModelyardError]) -> None:
        if not outcome.success:
            raise kind(outcome.message)

    def _model(self, given: str | None, *kinds: str) -> str:
        """Return the model that is meant: the only one of the first of ``kinds`` that there is."""
        if name := given or self._only.get(kinds):
            return name
        states = self.models()
        for kind in kinds:
            there = [state for state in states if state.worker_type == kind]
            names = sorted({state.name for state in there if state.state == "ready"} or {state.name for state in there})
            if len(names) > 1:
                fault = f"say which: {', '.join(names)} are at {self.url}"
                raise InvalidRequest.of_fields([{"field": "model", "message": fault}])
            if names:
                self._only[kinds] = names[0]
                return names[0]
        raise UnknownModel(f"no model of the type {' or '.join(kinds)} is at {self.url}")

    # HTTP

    def _change_silently(self, path: str, body: JSONObject, timeout: float | None) -> None:
        """Send a change whose answer is null where it worked."""
        if self._change(path, body, timeout) is not None:
            raise self._stranger()

    def _change(self, path: str, body: JSONObject, timeout: float | None) -> Any:
        limit = self._change_timeout if timeout is None else timeout
        return self._value(self._send("POST", path, body, read_timeout=limit, changes=True))

    def _send(
        self,
        method: str,
        path: str,
        body: JSONObject | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        read_timeout: float | None = None,
        accepted: tuple[int, ...] = (200,),
        changes: bool = False,
    ) -> Response:
        """Return a response of which the headers have come; read it or close it.

        One that ``changes`` something has a connection of its own: one that was kept may be closed just now. It is only
        sent again where no connection could be made.
        """
        url = path if "://" in path else f"{self._address.base}/worker/{path}"
        data = None if body is None else _encoded(body)
        times = (self._times[0], self._times[1] if read_timeout is None else read_timeout)
        ends = time.monotonic() + self._retry_seconds
        pause = FIRST_PAUSE
        for left in range(self._retries, -1, -1):
            cause: WorkerUnreachable | None = None
            try:
                response = self._session.request(
                    method, url, body=data, headers=headers, timeout=times, reuse=not changes
                )
                if response.status_code in accepted and not _is_a_proxys(response):
                    return response
                error = self._refusal(response)
                again = response.status_code == _UNAVAILABLE and not changes
            except WorkerUnreachable as caught:
                cause, error = caught, self._unreachable(caught, times)
                again = isinstance(caught, NotConnected) or not (changes or isinstance(caught, Silent))
            wait = max(_jittered(pause), error.retry_after if isinstance(error, Unavailable) and cause is None else 0)
            if not again or not left or time.monotonic() + wait > ends:
                break
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE)
        if isinstance(error, UnknownModel):
            self._only.clear()
        raise error from cause

    def _value(self, response: Response) -> Any:
        try:
            return json.loads(response.content)
        except WorkerUnreachable as error:
            raise WorkerUnreachable(f"{self.url} broke off its answer: {reason_of(error)}") from error
        except ValueError:
            raise self._stranger() from None
        finally:
            response.close()

    def _refusal(self, response: Response) -> ModelyardError:
        """Return the error that an answer means; read and close it."""
        with response:
            body = response.content
        try:
            document = json.loads(body.rstrip(b"\0"))
        except ValueError:
            document = None
        if not isinstance(document, dict):
            document = {"detail": body[:200].decode("utf-8", "replace")}
        status, location = response.status_code, response.headers.get("Location")
        if location is not None and status in _REDIRECTS:
            return ConfigError(f"{self.url} redirects to {location[:200]}: where that is right, give it as the url")
        if status in (404, 405) and not str(document.get("type")).startswith("urn:"):
            return ConfigError(f"{self.url} answers {status}: is the url right? It ends with the prefix of the API")
        return error_of_document(status, response.headers, document, self.url)

    def _unreachable(self, error: WorkerUnreachable, times: tuple[float, float]) -> WorkerUnreachable:
        if isinstance(error, Silent):
            return WorkerUnreachable(f"{self.url} did not answer within {times[1]:g} s, and may still be at it")
        if isinstance(error, NotConnected) and isinstance(error.__cause__, TimeoutError):
            return WorkerUnreachable(f"{self.url} did not accept a connection within {times[0]:g} s")
        return WorkerUnreachable(f"no service answers at {self.url} ({reason_of(error)})")

    def _stranger(self) -> ConfigError:
        return ConfigError(f"{self.url} answers, but not like a worker")

    # The end

    def close(self) -> None:
        """Close the connections of this process; streams that are under way have their own."""
        self._session.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _own_token() -> str | None:
    if token := os.environ.get(TOKEN_VARIABLE):
        return token
    if not (file := os.environ.get(TOKEN_FILE_VARIABLE)):
        return None
    try:
        return Path(file).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{TOKEN_FILE_VARIABLE}: {file} can't be read: {error}") from error


def _spoken(messages: str | Sequence[Mapping[str, Any]] | None, prompt: str | None) -> JSONObject:
    if (messages is None) == (prompt is None):
        raise TypeError("give messages, or a raw prompt, and not both")
    if messages is None:
        return {"prompt": prompt, "messages": []}
    said = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    try:
        # In words that a worker of DB-GPT understands too.
        spoken = [
            {"role": PEER_ROLES.get(one["role"], one["role"]), "content": text_of_content(one["content"])}
            for one in said
        ]
    except (KeyError, ValueError) as error:
        fault = f"each is an object with role and content: {error}"
        raise InvalidRequest.of_fields([{"field": "messages", "message": fault}]) from None
    return {"messages": spoken}


def _texts(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError("texts are a list of strings, not one string")
    return list(texts)


def _encoded(body: JSONObject) -> bytes:
    try:
        return json.dumps(body, allow_nan=False).encode()
    except ValueError as error:
        raise InvalidRequest(f"the request can't be sent: {error}") from None


def _supported(model: Mapping[str, Any]) -> SupportedModel:
    if not _are_objects(model["params"], "param_name"):
        raise TypeError("params are a list of ParameterDescriptions")
    optional = {"path": "", "path_exist": False, "proxy": False}
    return SupportedModel(**{**optional, **known(SupportedModel, model)})


def _place(host: str | None, port: int | None) -> JSONObject:
    return {} if host is None else {"host": host, "port": port}


def _are_objects(value: Any, *keys: str) -> bool:
    """Return whether ``value`` is a list of objects that have these keys."""
    return isinstance(value, list) and all(isinstance(item, dict) and set(keys) <= item.keys() for item in value)


def _are_rows(rows: Any) -> bool:
    return isinstance(rows, list) and all(isinstance(row, list) for row in rows)


def _is_a_proxys(response: Response) -> bool:
    """Return whether a 503 is that of a proxy which finds no service, and no status of a service that is not ready."""
    is_refusal = response.status_code == _UNAVAILABLE
    return is_refusal and "json" not in response.headers.get("Content-Type", "")


def _jittered(pause: float) -> float:
    return pause * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
