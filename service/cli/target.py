"""Target: the model, or all models, of a running service that the arguments of a command name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from ..client.client import Client
from ..errors import Conflict, ModelyardError, UnknownModel
from ..types import ApplyOutcome, JSONObject, split_worker_key
from ..worker.protocol import EVERY_MODEL
from .failures import Failure, Misuse
from .hosted import name_of, supported_models, value_of
from .values import split_pair, typed

T = TypeVar("T")

_NOT_PAIRS = {
    "model_name": "it is NAME",
    "worker_type": "use --type",
    "worker_class": "only the configuration file of the service may name code",
}
"""Parameters that PARAM=VALUE can't set, with the reason."""


class Target:
    """The model that a command is about. Its methods raise the errors of `Client`, and Failure."""

    def __init__(
        self,
        client: Client,
        name: str | None,
        worker_type: str | None = None,
        *,
        every: bool = False,
        pairs: Sequence[str] = (),
        at: str | None = None,
    ) -> None:
        """Parse NAME or ``--all``, ``NAME@TYPE``, ``PARAM=VALUE`` and ``HOST:PORT``. Raises Misuse."""
        self._client = client
        self._place: JSONObject = {} if at is None else _host_and_port(at)
        self.name, self.worker_type = _named(name, worker_type, every, pairs)
        self._pairs = dict(split_pair(pair) for pair in pairs)
        for param in self._pairs:
            if param in _NOT_PAIRS:
                raise Misuse(f"{param} can't be set here: {_NOT_PAIRS[param]}")

    def apply(self, apply_type: str) -> ApplyOutcome:
        """Start, stop, restart or change a model that is hosted; return the outcome."""
        params = self.params()
        return self._by_name(lambda name: self._client.apply(name, apply_type, self.worker_type, params))

    def start(self) -> ApplyOutcome:
        """Start a model that is hosted, or else host it; return the outcome."""
        if self.name == EVERY_MODEL:
            return self.apply("start")
        if not self._pairs and not self._place:
            try:
                return self.apply("start")
            except UnknownModel:
                pass  # it is not hosted yet
        return self._start_new(self.params())

    def forget(self) -> ApplyOutcome:
        """Stop the model and forget it; return the outcome."""
        return self._by_name(lambda name: self._client.stop(name, self.worker_type, forget=True, **self._place))

    def params(self) -> JSONObject:
        """Return the pairs, their values typed by the service's descriptions."""
        if not self._pairs:
            return {}
        try:
            descriptions = self._descriptions_of_engine() or self.descriptions()
        except UnknownModel:
            if "model_path" not in self._pairs:
                raise
            descriptions = []
        return typed(self._pairs, descriptions, self.name)

    def descriptions(self) -> list[JSONObject]:
        """Return the ParameterDescriptions of the model."""
        return self._client.parameter_descriptions(self.name, self.worker_type)

    def _descriptions_of_engine(self) -> list[JSONObject]:
        """Return the descriptions of any model with the engine that the pairs name: the model itself may be new."""
        engine = self._pairs.get("engine")
        if engine is None and self._pairs.get("model_path", "").endswith(".gguf"):
            engine = "llama.cpp"
        if engine is None:
            return []
        same = (model.params for model in supported_models(self._client) if value_of(model, "engine") == engine)
        return next(same, [])

    def _start_new(self, params: JSONObject) -> ApplyOutcome:
        try:
            return self._client.start(self.name, self.worker_type, **self._place, **params)
        except Conflict as error:
            if not params or not self._runs():
                raise
            words = " ".join(f"{name}={value}" for name, value in self._pairs.items())
            raise Failure(f"{error}: modelyard models restart {self.name} {words}") from error
        except UnknownModel as error:
            if not params:
                raise
            return self._restart_unlisted(error)

    def _runs(self) -> bool:
        """Return whether the service hosts the model in a state other than stopped or failed."""
        states = [model.state for model in self._client.models() if model.name == self.name]
        return any(state not in ("stopped", "failed") for state in states)

    def _restart_unlisted(self, unknown: UnknownModel) -> ApplyOutcome:
        """Start a model that is hosted under a name that is not in the catalogue: an alias, or one set over HTTP."""
        try:
            return self.apply("restart")
        except ModelyardError:
            raise unknown from None

    def _by_name(self, call: Callable[[str], T]) -> T:
        """Call with the given name; if the service does not have it, with the alias of the model of that name."""
        try:
            return call(self.name)
        except UnknownModel:
            alias = self._alias()
            if alias is None:
                raise
        return call(alias)

    def _alias(self) -> str | None:
        names = (name_of(model) for model in supported_models(self._client) if model.model == self.name)
        name = next(names, self.name)
        return name if name != self.name else None


def _named(name: str | None, worker_type: str | None, every: bool, pairs: Sequence[str]) -> tuple[str, str | None]:
    if every:
        if name is not None or worker_type is not None or pairs:
            raise Misuse("--all stands alone: without NAME, --type and PARAM=VALUE")
        return EVERY_MODEL, None
    if name is None or name == EVERY_MODEL:
        raise Misuse("name a model, or say --all")
    if "=" in name:
        raise Misuse(f"{name!r} is not the name of a model: NAME stands before PARAM=VALUE")
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
