"""One model (or all) of a running service, as the words on the command line name it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ..errors import Conflict
from ..types import JSONObject, split_worker_key
from ..worker.protocol import EVERY_MODEL
from .client import Refusal, ServiceClient, are_objects
from .failures import Failure, Misuse
from .hosted import registered_name, supported_models, value_of
from .values import split_pair, typed

_NOT_HERE = {
    "model_name": "NAME says it",
    "worker_type": "say --type",
    "worker_class": "only the configuration file of the service may name code",
}


class Target:
    """What a command is about. Every call may raise Refusal or Failure."""

    def __init__(
        self,
        client: ServiceClient,
        name: str | None,
        worker_type: str | None = None,
        *,
        every: bool = False,
        pairs: Sequence[str] = (),
        at: str | None = None,
    ) -> None:
        """Read the words: NAME or ``--all``, ``name@type``, ``PARAM=VALUE``, ``HOST:PORT``. Raises Failure (usage)."""
        self._client = client
        self._at = {} if at is None else _host_and_port(at)
        self.name, self.worker_type = _named(name, worker_type, every, pairs)
        self._pairs = dict(split_pair(pair) for pair in pairs)
        for param in self._pairs:
            if param in _NOT_HERE:
                raise Misuse(f"{param} can't be set here: {_NOT_HERE[param]}")

    def apply(self, apply_type: str) -> JSONObject:
        """Start, stop, restart or change what is hosted; return the outcome."""
        body = {"apply_type": apply_type, "worker_type": self.worker_type, "params": self.params()}
        outcome = self._at_its_name("apply", body)
        if not are_objects([outcome], "message", "success", "timecost"):
            raise self._client.stranger()
        told: JSONObject = outcome
        return told

    def start(self) -> JSONObject:
        """Start what is hosted, or host it; return an outcome like that of `apply`."""
        if self.name == EVERY_MODEL:
            return self.apply("start")
        if not self._pairs and not self._at:
            try:
                return self.apply("start")
            except Refusal as error:
                if not error.says_unknown:
                    raise
        return self._startup(self.params())

    def forget(self) -> JSONObject:
        """Stop the model and forget it; return an outcome like that of `apply`."""
        began = time.monotonic()
        if self._at_its_name("models/shutdown", {"worker_type": self.worker_type, **self._at}) is not None:
            raise self._client.stranger()
        return _outcome(f"model {self.name} stopped and forgotten", began)

    def descriptions(self) -> list[JSONObject]:
        """Return the ParameterDescriptions of the model."""
        found = self._client.get("parameter/descriptions", model=self.name, worker_type=self.worker_type)
        if not are_objects(found, "param_name"):
            raise self._client.stranger()
        told: list[JSONObject] = found
        return told

    def params(self) -> JSONObject:
        """Return the pairs with their values typed by the service's descriptions."""
        if not self._pairs:
            return {}
        try:
            descriptions = self._of_engine() or self.descriptions()
        except Refusal as error:
            if not error.says_unknown or "model_path" not in self._pairs:
                raise
            descriptions = []
        return typed(self._pairs, descriptions, self.name)

    def _of_engine(self) -> list[JSONObject]:
        """Return the descriptions of any model of the engine that the pairs ask for: this one may be new there."""
        engine = self._pairs.get("engine")
        if engine is None and self._pairs.get("model_path", "").endswith(".gguf"):
            engine = "llama.cpp"
        if engine is None:
            return []
        same = (model["params"] for model in supported_models(self._client) if value_of(model, "engine") == engine)
        return next(same, [])

    def _startup(self, params: JSONObject) -> JSONObject:
        began = time.monotonic()
        body = {"model": self.name, "worker_type": self.worker_type, "params": params, **self._at}
        try:
            if self._client.post("models/startup", body) is not None:
                raise self._client.stranger()
        except Refusal as error:
            if error.code == Conflict.code and " already" in str(error) and self._pairs:
                words = " ".join(f"{name}={value}" for name, value in self._pairs.items())
                raise Failure(f"{error}: modelyard models restart {self.name} {words}") from error
            if not error.says_unknown or not self._pairs:
                raise
            return self._restarted(error)
        return _outcome(f"model {self.name} started", began)

    def _restarted(self, unknown: Refusal) -> JSONObject:
        """Start one that is hosted under a name that is in no catalogue: an alias, or one started over HTTP."""
        try:
            return self.apply("restart")
        except Refusal:
            raise unknown from None

    def _at_its_name(self, path: str, body: JSONObject) -> Any:
        """Post about the model; where it is hosted under an alias, and its own name was given, at the alias."""
        try:
            return self._client.post(path, {"model": self.name, **body})
        except Refusal as error:
            alias = self._alias() if error.says_unknown else None
            if alias is None:
                raise
        return self._client.post(path, {"model": alias, **body})

    def _alias(self) -> str | None:
        named = (model for model in supported_models(self._client) if model["model"] == self.name)
        found = next((registered_name(model) for model in named), self.name)
        return found if found != self.name else None


def _named(name: str | None, worker_type: str | None, every: bool, pairs: Sequence[str]) -> tuple[str, str | None]:
    if every:
        if name is not None or worker_type is not None or pairs:
            raise Misuse("--all stands alone: without NAME, --type and PARAM=VALUE")
        return EVERY_MODEL, None
    if name is None or name == EVERY_MODEL:
        raise Misuse("name a model, or say --all")
    if "=" in name:
        raise Misuse(f"{name!r} is no name of a model: NAME stands before PARAM=VALUE")
    try:
        short, kind = split_worker_key(name)
    except ValueError:
        return name, worker_type
    if worker_type not in (None, kind.value):
        raise Misuse(f"{name} and --type {worker_type} contradict each other")
    return short, kind.value


def _host_and_port(at: str) -> JSONObject:
    host, colon, port = at.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise Misuse(f"--at {at}: expected HOST:PORT, as in 127.0.0.1:8001")
    return {"host": host.strip("[]"), "port": int(port)}


def _outcome(message: str, began: float) -> JSONObject:
    return {"message": message, "success": True, "timecost": round(time.monotonic() - began, 3)}
