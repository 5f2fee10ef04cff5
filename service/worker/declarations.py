"""From a model's name to its engine with parameters: all that is said of it, layer by layer.

set over HTTP  >  --set  >  environment  >  configuration file or catalogue  >  the engine's defaults
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from ..engines import engine_class, load_class
from ..engines.base import Engine
from ..errors import ConfigError, FieldError, InvalidRequest, UnknownModel
from ..models import weights
from ..models.catalog import Catalog, CatalogEntry
from ..settings import params
from ..settings.settings import Settings, split_override
from ..types import JSONObject, WorkerType

ONLY_IN_CONFIGURATION = ("worker_class",)
"""Parameters that nobody sets over HTTP: they name code."""


class Declarations:
    """The models that this host may run, and how each is built."""

    def __init__(self, settings: Settings, catalog: Catalog, environ: Mapping[str, str] | None = None) -> None:
        """Read the environment once, from ``environ`` or this process."""
        self.settings = settings
        self.catalog = catalog
        self._environ = dict(os.environ if environ is None else environ)
        self._check_overrides()

    def _check_overrides(self) -> None:
        for item in self.settings.overrides:
            model = split_override(item)[0]
            if self.entry(model) is None:
                known = ", ".join(sorted(entry.name for entry in self.catalog.with_found()))
                raise ConfigError(f"--set {item}: there is no model {model!r}; known are {known}")

    def entry(self, name: str) -> CatalogEntry | None:
        """Return what the catalogue says of ``name``, or a weights file of that name."""
        entry = self.catalog.get(name)
        if entry is not None:
            return entry
        return next((found for found in self.catalog.with_found() if found.name == name), None)

    def engine(
        self, name: str, worker_type: WorkerType | None = None, over_http: Mapping[str, object] | None = None
    ) -> Engine:
        """Return the engine of ``name``, not started.

        Raises UnknownModel without a catalogue entry and a ``model_path``, InvalidRequest for parameters set over
        HTTP that do not fit, ConfigError for all others.
        """
        over_http = {k: v for k, v in (over_http or {}).items() if k not in ONLY_IN_CONFIGURATION}
        entry = self.entry(name)
        if entry is None:
            if not over_http.get("model_path"):
                raise UnknownModel(
                    f"model {name!r} is neither in the catalogue nor in the models folders, and no model_path "
                    f"is given; there are {', '.join(sorted(e.name for e in self.catalog.with_found())) or 'none'}"
                )
            entry = self._entry_of_path(name, str(over_http["model_path"]), over_http.get("engine"))
        found = self.engine_class(entry, over_http.get("engine"))
        said = self._layers(entry, found, over_http)
        kind = self._worker_type(entry, found, worker_type)
        fixed = {"model_name": name, "engine": found.name, "worker_type": kind.value}
        usual = {"limit_model_concurrency": found.default_slots[kind]} if kind in found.default_slots else {}
        return found(params.build(found.Params, fixed, *said, usual))

    def engine_class(self, entry: CatalogEntry, named: object = None) -> type[Engine]:
        """Return the class behind an entry; ``named`` is an engine of the table that a request asks for."""
        own = _own_class(entry)
        return own if named in (None, entry.engine, own.name) else _class_of_request(named)

    def _layers(
        self, entry: CatalogEntry, found: type[Engine], over_http: Mapping[str, object]
    ) -> tuple[JSONObject, ...]:
        prefix = params.environment_prefix(entry.name)
        # Another engine than the entry's has other parameters, and other weights.
        declared = entry.declared if found is _own_class(entry) else {}
        return (
            params.from_json(found.Params, over_http),
            params.from_text(found.Params, self.settings.overrides_of(entry.name), f"--set {entry.name}"),
            params.from_environ(found.Params, prefix, self._environ),
            params.from_plain(found.Params, declared, f"{entry.origin}, model {entry.name!r}"),
        )

    def _entry_of_path(self, name: str, path: str, engine: object) -> CatalogEntry:
        """Return an entry for a model that only a request knows of; InvalidRequest where it can't be one."""
        named = engine if isinstance(engine, str) else "llama.cpp" if path.endswith(".gguf") else None
        if named is None:
            raise InvalidRequest.of_fields(
                [{"field": "params.engine", "message": f"can't be told from {path!r}: name the engine"}]
            )
        _class_of_request(named)
        try:
            params.refuse_shared_prefixes([*(entry.name for entry in self.catalog.with_found()), name])
            return CatalogEntry(name=name, engine=named, worker_type=None, model_path=path, origin="request")
        except ConfigError as error:
            raise InvalidRequest.of_fields([{"field": "model", "message": str(error)}]) from error

    @staticmethod
    def _worker_type(entry: CatalogEntry, found: type[Engine], asked: WorkerType | None) -> WorkerType:
        kind = asked or (WorkerType(entry.worker_type) if entry.worker_type else found.default_worker_type)
        if kind not in found.worker_types:
            can = ", ".join(sorted(found.worker_types))
            fault: FieldError = {"field": "worker_type", "message": f"engine {found.name} can be {can}, not {kind}"}
            raise InvalidRequest.of_fields([fault])
        return kind

    def locate(self, engine: Engine) -> Path | None:
        """Return the weights of an engine; BadModelFile where they are absent or out of bounds."""
        path = engine.params.model_path
        if not path:
            return None
        hint = self.pull_command(self.entry(engine.params.model_name))
        return weights.resolve(path, self.settings.models_paths, hint=hint)

    def pull_command(self, entry: CatalogEntry | None) -> str:
        """Return the command that fetches the weights to where they are looked for here; empty where there is none."""
        command = entry.pull_command if entry is not None else None
        if command is None or not self.settings.models_dirs:
            return command or ""
        return f"{command} --models-dirs {shlex.quote(str(self.settings.models_paths[0]))}"


def _own_class(entry: CatalogEntry) -> type[Engine]:
    dotted = entry.params.get("worker_class")
    return engine_class(entry.engine) if dotted is None else load_class(str(dotted))


def _class_of_request(name: object) -> type[Engine]:
    try:
        return engine_class(str(name))
    except ConfigError as error:
        raise InvalidRequest.of_fields([{"field": "params.engine", "message": str(error)}]) from error
