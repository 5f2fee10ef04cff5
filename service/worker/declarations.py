"""Find the engine of a model, and its parameters from all layers, the strongest first.

over HTTP  >  --set  >  environment  >  configuration file  >  catalogue  >  the engine's defaults
"""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..engines import ENGINES, engine_class, load_class
from ..engines.base import Engine, ModelParams
from ..errors import BadModelFile, ConfigError, InvalidRequest, ModelyardError, UnknownModel
from ..models import weights
from ..models.catalog import Catalog, CatalogEntry
from ..sessions.address import URL_VARIABLE
from ..settings.layers import (
    Faults,
    Layer,
    LayerName,
    Origin,
    build,
    environment_prefix,
    from_environ,
    from_plain,
    from_text,
    merge,
    misspelt_variables,
    nearest,
    refuse_shared_prefixes,
    variables_of,
)
from ..settings.loading import ENVIRONMENT_PREFIX, HANDED_VARIABLE, SET_VARIABLE, Override
from ..settings.params import describe, from_json, params_of
from ..settings.settings import Settings
from ..types import JSONObject, SupportedModel, WorkerType

log = logging.getLogger(__name__)

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""The name of a variable of the environment."""

IDENTITY = ("model_name", "engine", "worker_type", "worker_class")
"""Parameters that define a model: only its table in the configuration file sets them."""


class Declaration(NamedTuple):
    """A model's catalogue entry, the class of its engine, and the layers of its parameters, the strongest first."""

    entry: CatalogEntry
    engine_class: type[Engine]
    layers: tuple[Layer, ...]


class Declarations:
    """The models that this machine may run, and the parameters of each."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        environ: Mapping[str, str] | None = None,
        faults: Faults | None = None,
    ) -> None:
        """Read the environment once, from ``environ`` or this process, and check its names and every ``--set``.

        Raises ConfigError for a ``MODELYARD_...`` that nothing reads, and a ``--set`` whose model does not exist, or
        whose value is not valid, unless ``faults`` collects.
        """
        self.settings = settings
        self.catalog = catalog
        self._environ = dict(os.environ if environ is None else environ)
        self.overrides: list[Override] = []
        (faults or Faults()).add(self._unread_variables())
        for item in settings.overrides:
            with (faults or Faults()).caught():
                self.overrides.append(self._checked(Override.parse(item)))

    def _unread_variables(self) -> list[str]:
        """Return a fault for each ``MODELYARD_...`` that neither a setting nor a parameter nor a command reads."""
        given = {variable for variable in self._environ if variable.startswith(f"{ENVIRONMENT_PREFIX}_")}
        names = {SET_VARIABLE, HANDED_VARIABLE, URL_VARIABLE}
        for declared in params_of(Settings).values():
            names.update(variables_of(declared, ENVIRONMENT_PREFIX))
        if given <= names:  # as usual: no engine is imported for it
            return []
        classes = [engine_class(engine).Params for engine in ENGINES]
        if given - names - _shared_variables(classes):  # only then is the operator's own code imported
            classes += [_class_of(entry).Params for entry in self.catalog if entry.params.get("worker_class")]
        for entry in self.catalog:
            prefix = environment_prefix(entry.name)
            names.update(variable for variable in given if variable.startswith(f"{prefix}_"))
        names |= _shared_variables(classes)
        return [
            f"environment, {name}: nothing reads it{nearest(name, names, f'{ENVIRONMENT_PREFIX}_')}"
            for name in sorted(given - names)
        ]

    def _checked(self, override: Override) -> Override:
        entry = self.entry(override.model)
        if entry is None:
            names = ", ".join(sorted(entry.name for entry in self.catalog.with_files()))
            raise ConfigError(f"{override}: there is no model {override.model!r}; known are {names}")
        _refuse_identity(override.parameter, str(override))
        from_text(_class_of(entry).Params, {override.parameter: override.value}, str(override))
        return override

    def entry(self, name: str) -> CatalogEntry | None:
        """Return the entry of ``name`` in the catalogue, or of a weights file of that name."""
        entry = self.catalog.get(name)
        if entry is not None:
            return entry
        return self.catalog.with_files().get(name)

    def engine(
        self, name: str, worker_type: WorkerType | None = None, over_http: Mapping[str, object] | None = None
    ) -> Engine:
        """Return the engine of ``name``, not started.

        Its type is the ``worker_type``, or that of the entry, or what the weights are for, or the engine's default.
        Raises UnknownModel without a catalogue entry and a ``model_path``, InvalidRequest for parameters set over
        HTTP that are not valid, ConfigError for all others.
        """
        entry, engine, layers = self.declaration(name, over_http)
        if worker_type is None and entry.worker_type is None:
            worker_type = self._type_of_weights(name, engine, layers)
        kind = _worker_type(entry, engine, worker_type)
        identity = {"model_name": name, "engine": engine.name, "worker_type": kind.value}
        by_type = {
            "limit_model_concurrency": engine.default_slots,
            "max_waiting": engine.default_waiting,
            "joint_texts": engine.default_joint_texts,
        }
        defaults = {name: values[kind] for name, values in by_type.items() if kind in values}
        try:
            params = build(engine.Params, identity, *(layer.values for layer in layers), defaults)
        except ConfigError as error:
            raise ConfigError(f"model {name!r}: {error}") from None
        _check_environment(params, over_http or {})
        return engine(params)

    def _type_of_weights(self, name: str, engine: type[Engine], layers: Iterable[Layer]) -> WorkerType | None:
        path = merge(layer.values for layer in layers).get("model_path")
        try:
            return engine.worker_type_of(self.resolve(name, path)) if path else None
        except BadModelFile:  # the start raises it
            return None

    def checked(self, name: str, params: Mapping[str, object]) -> JSONObject:
        """Return the parameters that a request to start ``name`` sets.

        Raises InvalidRequest if one is not valid, or only the operator sets it, or the weights are outside of the
        models folders; and the other errors of `engine`.
        """
        path = params.get("model_path")
        if isinstance(path, str):
            try:
                self.resolve(name, path)
            except BadModelFile as error:
                raise InvalidRequest.of_field("params.model_path", str(error)) from error
        return self.declaration(name, params).layers[0].values

    def declaration(
        self, name: str, over_http: Mapping[str, object] | None = None, faults: Faults | None = None
    ) -> Declaration:
        """Return the declaration of ``name``.

        Raises the errors of `engine`. If ``faults`` collects, it gets the values that are not valid instead.
        """
        over_http = over_http or {}
        named = over_http.get("engine")
        entry = self.entry(name)
        if entry is None:
            if not over_http.get("model_path"):
                names = ", ".join(sorted(entry.name for entry in self.catalog.with_files())) or "none"
                raise UnknownModel(
                    f"model {name!r} is neither in the catalogue nor in the models folders, and no model_path "
                    f"is given; there are {names}"
                )
            entry = self._entry_of_path(name, str(over_http["model_path"]), named)
        default = _class_of(entry)
        engine = default if named in (None, entry.engine, default.name) else _class_of_request(named)
        # Another engine than the entry's has other parameters, and other weights.
        declared = (self._declared(entry, default, faults),) if engine is default else ()
        configured = (self._command_line(name, engine, faults), self._environment(name, engine, faults), *declared)
        current = merge(layer.values for layer in configured)
        requested = Layer.of(from_json(engine.Params, over_http, current), LayerName.OVER_HTTP)
        return Declaration(entry, engine, (requested, *configured))

    def _command_line(self, name: str, engine: type[Engine], faults: Faults | None) -> Layer:
        texts = {override.parameter: override.value for override in self.overrides if override.model == name}
        return Layer.of(from_text(engine.Params, texts, f"--set {name}", faults), LayerName.COMMAND_LINE)

    def _environment(self, name: str, engine: type[Engine], faults: Faults | None) -> Layer:
        prefix = environment_prefix(name)
        layer = from_environ(engine.Params, prefix, self._environ, faults)
        others = [environment_prefix(entry.name) for entry in self.catalog]
        (faults or Faults()).add(misspelt_variables(engine.Params, prefix, self._environ, others))
        for parameter, origin in layer.origins.items():
            with (faults or Faults()).caught():
                _refuse_identity(parameter, f"environment, {origin.place}")
        return layer

    def _declared(self, entry: CatalogEntry, engine: type[Engine], faults: Faults | None) -> Layer:
        """Return the values of the model's entry, from its table in the configuration file, or from the catalogue."""
        values = from_plain(engine.Params, entry.declared, f"{entry.origin}, model {entry.name!r}", faults)
        table = next((table for table in self.settings.model_tables if table.get("name") == entry.name), {})
        file, catalogue = Origin(LayerName.FILE, self.settings.config or ""), Origin(LayerName.CATALOGUE)
        return Layer(values, {name: file if name in table else catalogue for name in values})

    def _entry_of_path(self, name: str, path: str, engine: object) -> CatalogEntry:
        """Return an entry for a model that only a request names. Raises InvalidRequest."""
        named = engine if isinstance(engine, str) else "llama.cpp" if path.endswith(".gguf") else None
        if named is None:
            raise InvalidRequest.of_field("params.engine", f"is not clear from {path!r}: name the engine")
        _class_of_request(named)
        try:
            refuse_shared_prefixes([*(entry.name for entry in self.catalog.with_files()), name])
            return CatalogEntry(name=name, engine=named, worker_type=None, model_path=path, origin="request")
        except ConfigError as error:
            raise InvalidRequest.of_field("model", str(error)) from error

    def locate(self, engine: Engine) -> Path | None:
        """Return the weights of an engine, None if it needs none. Raises BadModelFile."""
        path = engine.params.model_path
        return self.resolve(engine.params.model_name, path) if path else None

    def locate_files(self, engine: Engine) -> dict[str, Path]:
        """Return the path of each of `Engine.file_names`. Raises StartFailed, for all that are missing."""
        paths: dict[str, Path] = {}
        faults: list[str] = []
        for name in dict.fromkeys(engine.file_names):
            try:
                paths[name] = weights.resolve(name, self.settings.models_paths, named_by="the parameter")
            except BadModelFile as error:
                faults.append(str(error))
        if faults:
            raise BadModelFile("; ".join(faults))
        return paths

    def resolve(self, name: str, path: str) -> Path:
        """Return the weights of a model within the models folders.

        Raises BadModelFile if they are missing, with the command that fetches them, or outside of these folders.
        """
        return weights.resolve(path, self.settings.models_paths, hint=self._pull_command(self.entry(name)))

    def supported_models(self) -> list[SupportedModel]:
        """Return every entry of the catalogue and every weights file of the models folders, with its parameters."""
        return [self._supported(entry) for entry in self.catalog.with_files()]

    def _supported(self, entry: CatalogEntry) -> SupportedModel:
        try:
            engine = self.engine(entry.name)
        except ModelyardError as error:
            # An entry that can't be built must not hide the others.
            log.warning("model %s can't run here: %s", entry.name, error)
            return SupportedModel(entry.name, entry.model_path or "", entry.worker_type or "", False, False, False, [])
        path, exists = engine.params.model_path or "", not engine.needs_weights
        if path:
            try:
                path, exists = str(self.resolve(entry.name, path)), True
            except ModelyardError:
                exists = False
        return SupportedModel(
            model=entry.name,
            path=path,
            worker_type=engine.params.worker_type,
            path_exist=exists,
            proxy=engine.is_proxy,
            enabled=entry.enabled,
            params=describe(type(engine.params), engine.params),
        )

    def _pull_command(self, entry: CatalogEntry | None) -> str:
        command = entry.pull_command if entry is not None else None
        if command is None or not self.settings.models_dirs:
            return command or ""
        return f"{command} --models-dirs {shlex.quote(str(self.settings.models_paths[0]))}"


def names_to_start(settings: Settings, catalog: Catalog, models: Sequence[str] | None) -> list[str]:
    """Return those of ``models`` (None: of the configuration) that a service of ``settings`` starts.

    A gateway starts those that other servers compute; a controller none. Raises ConfigError.
    """
    if settings.owns_models or settings.is_hosted:
        return catalog.names_to_start(models)
    if not settings.has_backends:
        return []
    # A worker may have the same configuration: what this machine does not know is no fault of a gateway.
    chosen = None if models is None else [name for name in models if catalog.get(name) is not None]
    names = [name for name in catalog.names_to_start(chosen) if _is_backend(catalog.get(name))]
    if not names and not settings.registry:
        raise ConfigError(
            "this gateway has no --registry, and no model of another server in its configuration: give it one of them"
        )
    return names


def _is_backend(entry: CatalogEntry | None) -> bool:
    """Return whether another server computes a model. Code of the operator is not imported for it."""
    if entry is None or entry.model_path or entry.params.get("worker_class"):
        return False
    return _engine_of(entry).is_proxy


def _engine_of(entry: CatalogEntry) -> type[Engine]:
    try:
        return engine_class(entry.engine)
    except ConfigError as error:
        raise ConfigError(f"model {entry.name!r}: {error}") from None


def _shared_variables(classes: Iterable[type[ModelParams]]) -> set[str]:
    """Return the variables that are read for all models."""
    return {
        f"{ENVIRONMENT_PREFIX}_{declared.name.upper()}"
        for params_class in classes
        for declared in params_of(params_class).values()
        if "shared" in declared.tags
    }


def _refuse_identity(parameter: str, place: str) -> None:
    """Raise ConfigError for a parameter that has no effect at this place."""
    if parameter in IDENTITY:
        raise ConfigError(f"{place}: {parameter} can only be set in a [[models]] table of the configuration file")


def _worker_type(entry: CatalogEntry, engine: type[Engine], requested: WorkerType | None) -> WorkerType:
    """Return the type of a model: the requested one, or its entry's, or the engine's default. Raises InvalidRequest."""
    kind = requested or (WorkerType(entry.worker_type) if entry.worker_type else engine.default_worker_type)
    if kind not in engine.worker_types:
        types = ", ".join(sorted(engine.worker_types))
        raise InvalidRequest.of_field("worker_type", f"engine {engine.name} can be {types}, not {kind}")
    return kind


def _check_environment(params: ModelParams, over_http: Mapping[str, object]) -> None:
    """Raise ConfigError for variables that no process can have, or no process of the model is there for.

    Raises InvalidRequest where a request takes that process away.
    """
    if params.environment and params.isolation != "process":
        fault = "must be process: the model has an environment, which only a process of its own can have"
        if "isolation" in over_http:
            raise InvalidRequest.of_field("params.isolation", fault)
        raise ConfigError(f"model {params.model_name!r}: isolation {fault}")
    for name, value in params.environment.items():
        if not _VARIABLE.fullmatch(name) or name.startswith(f"{ENVIRONMENT_PREFIX}_"):
            fault = f"is not a name of letters, digits and underscores, or begins with {ENVIRONMENT_PREFIX}_"
            raise ConfigError(f"model {params.model_name!r}: environment: {name!r} {fault}")
        if "\0" in value:
            raise ConfigError(f"model {params.model_name!r}: environment: the value of {name} has a zero character")


def _class_of(entry: CatalogEntry) -> type[Engine]:
    path = entry.params.get("worker_class")
    return _engine_of(entry) if path is None else load_class(str(path))


def _class_of_request(name: object) -> type[Engine]:
    try:
        return engine_class(str(name))
    except ConfigError as error:
        raise InvalidRequest.of_field("params.engine", str(error)) from error
