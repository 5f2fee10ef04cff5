"""RemoteMachine: another worker service, on which models are started, stopped and listed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

from ..errors import EngineError
from ..sessions.session import Session
from ..settings.params import DESCRIPTION_KEYS
from ..types import ApplyOutcome, HostModels, JSONObject, SupportedModel, WorkerType
from ..wire.unsaved import unsaved_in
from .remote_calls import RemoteCalls

START_TIMEOUT = 330.0
"""Seconds that a start over HTTP may take by default: the default ``start_timeout`` of a model, and 30 seconds."""


class RemoteMachine:
    """The worker service at one address. All calls may raise WorkerUnreachable."""

    def __init__(self, url: str, session: Session) -> None:
        """Call the service at ``url``, which has the API's prefix, by ``session``."""
        self.url = url
        self._calls = RemoteCalls(url, session)

    def model_startup(
        self,
        model: str,
        worker_type: WorkerType | None,
        params: Mapping[str, Any],
        timeout: float = START_TIMEOUT,
    ) -> str:
        """Start a model and return when it is ready. Raises UnknownModel, Conflict, InvalidRequest, StartFailed.

        Return why this is not remembered, or an empty text. The request is sent once: if no answer comes, the model may
        have been started all the same.
        """
        body = self._named(model, worker_type, params)
        return unsaved_in(self._calls.change("models/startup", body, _longer(timeout, params))[1])

    def model_shutdown(self, model: str, worker_type: WorkerType | None, timeout: float = START_TIMEOUT) -> str:
        """Stop a model and forget it; return why this is not remembered, or an empty text. Raises UnknownModel."""
        return unsaved_in(self._calls.change("models/shutdown", self._named(model, worker_type, {}), timeout)[1])

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
        result, _ = self._calls.change("apply", body, _longer(timeout, params))
        if not isinstance(result, dict):
            raise EngineError(f"{self.url} does not answer {apply_type} with an outcome")
        seconds = result.get("timecost")
        return ApplyOutcome(
            message=_text(result.get("message")),
            success=result.get("success") is True,
            timecost=seconds if isinstance(seconds, int | float) else 0.0,
        )

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

    def parameter_descriptions(self, model: str, worker_type: WorkerType | None) -> list[JSONObject]:
        """Return the parameters of a model that it has, or can start. Raises UnknownModel."""
        query = {"model": model} if worker_type is None else {"model": model, "worker_type": worker_type.value}
        return _descriptions(self._calls.get(f"parameter/descriptions?{urlencode(query)}"))

    def supported_models(self) -> list[HostModels]:
        """Return the models that may run on the machine; a gateway returns several hosts."""
        return [
            HostModels(
                _text(host.get("host")),
                _port(host.get("port")),
                [_supported(model) for model in _objects(host.get("models"))],
            )
            for host in _objects(self._calls.get("models/supports"))
        ]


def _longer(timeout: float, params: Mapping[str, Any]) -> float:
    """Return ``timeout``, or the ``start_timeout`` among the parameters and 30 seconds, if that is more."""
    start_timeout = params.get("start_timeout")
    return max(timeout, start_timeout + 30.0) if isinstance(start_timeout, int | float) else timeout


def _objects(value: Any) -> list[JSONObject]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _descriptions(value: Any) -> list[JSONObject]:
    """Return ParameterDescriptions with the keys that all clients accept: DB-GPT 0.8 has more than 0.5."""
    return [{name: value for name, value in entry.items() if name in DESCRIPTION_KEYS} for entry in _objects(value)]


def _supported(model: JSONObject) -> SupportedModel:
    return SupportedModel(
        model=_text(model.get("model")),
        path=_text(model.get("path")),
        worker_type=_text(model.get("worker_type")),
        path_exist=model.get("path_exist") is True,
        proxy=model.get("proxy") is True,
        enabled=model.get("enabled") is True,
        params=_descriptions(model.get("params")),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _port(value: Any) -> int:
    """Return a port, which some peers send as text; 0 for other values."""
    text = str(value) if isinstance(value, int | str) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else 0
