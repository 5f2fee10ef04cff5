"""Reads the configuration as a service does, and collects its values, their origins and all faults."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..access.networks import TrustedNetworks, parse_networks
from ..access.token_store import TokenStore
from ..cluster.keys import check_key_store
from ..cluster.membership import check_registry, registry_url
from ..cluster.registry.address import sqlite_path
from ..cluster.registry.sqlite_file import fault_of
from ..engines.base import Engine
from ..errors import BadModelFile, ConfigError, ModelyardError, StartFailed
from ..models.catalog import Catalog
from ..server.state import StateFile
from ..settings.layers import Faults, Layer, LayerName, Origin, from_text, merge
from ..settings.loading import Override, load_layers
from ..settings.params import Param, params_of
from ..settings.settings import Settings
from ..telemetry.tracing import Tracing
from ..types import JSONObject, split_worker_key
from ..worker.admission import Budget
from ..worker.declarations import Declarations, names_to_start
from ..worker.local_models import LocalModels
from .application import Application

_IN_HEADING = ("model_name", "engine", "worker_type")


@dataclass(frozen=True)
class Effective:
    """The value of a parameter, its declaration, and where the value comes from."""

    declared: Param
    value: Any
    origin: Origin

    @property
    def place(self) -> str:
        """The layer of the value, and the variable or the file."""
        return f"{self.origin.layer} {self.origin.place}".strip()

    @property
    def shown(self) -> Any:
        """The value as people may see it."""
        return self.declared.shown(self.declared.word_of(self.value))

    def document(self) -> JSONObject:
        """Return the value as people may see it, with its layer and place."""
        return {"value": self.shown, "from": self.origin.layer, "where": self.origin.place or None}


@dataclass
class ExaminedModel:
    """A model of the configuration; without a ``key`` its declaration has a fault."""

    name: str
    note: str | None
    key: str | None = None
    engine: str | None = None
    weights: str | None = None
    weights_exist: bool = True
    memory: int = 0
    """Bytes that it takes while it is loaded; 0 if unknown."""
    params: Mapping[str, Effective] = field(default_factory=dict)

    def document(self) -> JSONObject:
        """Return the model as JSON."""
        return {**vars(self), "params": documents(self.params)}


@dataclass(frozen=True)
class Examination:
    """The settings and models of a service, each value with its origin, and what is wrong.

    With ``faults`` a service does not start; with ``missing`` weights it starts without these models; with ``unusable``
    state it starts, and forgets.
    """

    settings: Settings
    values: Mapping[str, Effective]
    models: list[ExaminedModel]
    declarations: Declarations
    unused_overrides: list[Override]
    faults: list[str]
    missing: list[str]
    unusable: list[str]


def documents(values: Mapping[str, Effective]) -> JSONObject:
    """Return each value as people may see it, with its layer and place."""
    return {name: value.document() for name, value in values.items()}


def examine(
    options: Mapping[str, str],
    overrides: Sequence[str],
    environ: Mapping[str, str],
    *,
    kept: bool = True,
    application: Application | None = None,
) -> Examination:
    """Return what the ``options`` of a command line, its ``--set``, the environment and the files come to.

    Nothing is started. With ``kept``, parameters set over HTTP in the last run count as well. In an ``application`` its
    own settings count in place of those of the environment and of a file.
    """
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)  # As gunicorn does: an engine of the operator may be in it.
    faults = Faults(collect=True)
    if application is not None:
        settings = application.with_options(options, overrides)
    else:
        given = Layer.of(from_text(Settings, options, "command line", faults), LayerName.COMMAND_LINE)
        settings = load_layers(given, environ, faults, overrides=overrides)
    _check_parts(settings, faults)
    catalog = Catalog.load(settings.model_tables, settings.models_paths, faults=faults)
    # Where the role does not fit, these would be the models of another.
    names = _names_to_start(settings, catalog, faults) if options.get("role", settings.role) == settings.role else []
    declarations = Declarations(settings, catalog, environ, faults)
    models = _Models(declarations, _state(settings) if kept else {}, faults)
    models.add_all(names)
    return Examination(
        settings,
        values=_effective(settings, catalog, names),
        models=models.models,
        declarations=declarations,
        unused_overrides=[override for override in declarations.overrides if override.model not in names],
        faults=faults.messages,
        missing=models.missing,
        unusable=_unusable_state(settings),
    )


def _check_parts(settings: Settings, faults: Faults) -> None:
    for check in (
        lambda settings: TokenStore(settings.tokens, settings.tokens_file),
        check_registry,
        check_key_store,
        lambda settings: TrustedNetworks(settings.trusted_networks),
        lambda settings: parse_networks(settings.allowed_networks, "allowed_networks"),
        Tracing,
    ):
        with faults.caught():
            check(settings)


def _names_to_start(settings: Settings, catalog: Catalog, faults: Faults) -> list[str]:
    if settings.models is None or settings.has_backends:
        with faults.caught():
            return names_to_start(settings, catalog, settings.models)
        return []
    names: list[str] = []
    for name in settings.models:
        with faults.caught():
            names += names_to_start(settings, catalog, [name])
    return list(dict.fromkeys(names))


def _state(settings: Settings) -> dict[str, JSONObject]:
    path = settings.state_path / settings.instance_name / "models.json"
    return StateFile(path).models() if path.exists() and not settings.fresh else {}


def _unusable_state(settings: Settings) -> list[str]:
    """Return what is wrong with the files that a service keeps: their folder, and its registry."""
    faults = []
    folder = settings.state_path / settings.instance_name
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        faults.append(f"the state folder {folder} can't be used: {nearest} can't be written; nothing is remembered")
    registry = registry_url(settings)
    with contextlib.suppress(ConfigError):  # another check has it
        if registry.startswith("sqlite:") and (fault := fault_of(sqlite_path(registry))):
            faults.append(f"registry {registry}: {fault}")
    return faults


def _effective(settings: Settings, catalog: Catalog, names: Sequence[str]) -> dict[str, Effective]:
    """Return the settings, those that are relative or derived as what they come to."""
    values = _values_of(settings, settings.origins)
    derived: JSONObject = {
        "models_dirs": [str(path) for path in settings.models_paths],
        "state_dir": str(settings.state_path),
        "instance": settings.instance_name,
    }
    for name, value in derived.items():
        values[name] = replace(values[name], value=value)
    if settings.models is None:
        origin = Origin(LayerName.FILE, settings.config or "") if catalog.configured else Origin(LayerName.CATALOGUE)
        values["models"] = replace(values["models"], value=[*names], origin=origin)
    return values


def _values_of(values: Any, origins: Mapping[str, Origin]) -> dict[str, Effective]:
    default = Origin(LayerName.DEFAULT)
    return {
        name: Effective(declared, getattr(values, name), origins.get(name, default))
        for name, declared in params_of(type(values)).items()
    }


class _Models:
    """Adds models to a process without starting them, and collects the values that each would have."""

    def __init__(self, declarations: Declarations, state: Mapping[str, JSONObject], faults: Faults) -> None:
        """Take ``state``: the entries of `StateFile` by worker key."""
        settings = declarations.settings
        self.models: list[ExaminedModel] = []
        self.missing: list[str] = []
        self._declarations = declarations
        self._local = LocalModels(declarations, Budget(settings.threads, settings.reserve), Tracing())
        self._state = state
        self._faults = faults

    def add_all(self, names: Sequence[str]) -> None:
        """Add the models to start, then those that were added over HTTP."""
        for name in names:
            kept = [entry for entry in self._state.values() if entry.get("model") == name]
            self._add(name, None, kept[-1] if kept else {})
        keys = {model.key for model in self.models}
        for key, entry in self._state.items():
            if entry.get("added") and key not in keys:
                self._add(str(entry.get("model")), key, entry)

    def _add(self, name: str, key: str | None, kept: JSONObject) -> None:
        model = ExaminedModel(name, _note(kept))
        self.models.append(model)
        params: JSONObject = kept.get("params", {})
        earlier = len(self._faults.messages)
        path: object = params.get("model_path")
        engine: Engine | None = None
        with self._faults.caught():
            layers = self._declarations.declaration(name, params, self._faults).layers
            path = merge(layer.values for layer in layers).get("model_path")
            if len(self._faults.messages) == earlier:
                worker = self._local.add(name, split_worker_key(key)[1] if key else None, params)
                values = _values_of(worker.params, merge(layer.origins for layer in layers))
                model.key, model.engine, engine = worker.key, worker.params.engine, worker.engine
                model.params = {n: value for n, value in values.items() if n not in _IN_HEADING}
        if isinstance(path, str) and path:
            self._locate(model, path, engine)

    def _locate(self, model: ExaminedModel, path: str, engine: Engine | None) -> None:
        try:
            located = self._declarations.resolve(model.name, path)
            model.weights = str(located)
        except BadModelFile as error:
            model.weights, model.weights_exist = path, False
            self.missing.append(f"model {model.name!r}: {error}")
        if engine is None:
            return
        try:
            engine.files = self._declarations.locate_files(engine)
        except StartFailed as error:
            self.missing.append(f"model {model.name!r}: {error}")
        if model.weights_exist:
            engine.path = located
            with contextlib.suppress(ModelyardError, OSError):  # the start reports it
                given = engine.params.memory
                model.memory = engine.memory_needed() if given is None else given


def _note(kept: JSONObject) -> str | None:
    if kept.get("quarantined"):
        return "quarantined, not started: the process died during each of its last loads"
    if kept.get("stopped"):
        return "stopped over HTTP, so not started (--fresh forgets that)"
    return "added over HTTP (--fresh forgets that)" if kept.get("added") else None
