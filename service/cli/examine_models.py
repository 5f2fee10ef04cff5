"""What each model would be started with, found by adding it to a manager that starts none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..engines.base import Engine
from ..errors import BadModelFile, ConfigError
from ..models import weights
from ..models.catalog import Catalog, CatalogEntry
from ..settings import params
from ..telemetry.tracing import Tracing
from ..types import JSONObject, WorkerType, split_worker_key
from ..worker.admission import Budget
from ..worker.declarations import Declarations
from ..worker.local_models import LocalModels
from .report import Layer, ModelReport, Report, each, origins, tried

_HEADING = ("model_name", "engine", "worker_type")
_IDENTITY = (*_HEADING, "worker_class")
"""Parameters that say what a model is: only its table in the configuration file may."""


def refuse_identity(parameter: str, source: str) -> None:
    """Raise ConfigError for one of these, which would be read and have no effect."""
    if parameter in _IDENTITY:
        raise ConfigError(f"{source}: {parameter} can only be said in a [[models]] table of the configuration file")


class ModelsExamination:
    """Adds to a report what becomes of each model, and what is wrong with it."""

    def __init__(
        self, report: Report, catalog: Catalog, environ: Mapping[str, str], kept: Mapping[str, JSONObject]
    ) -> None:
        """Read ``environ``, and ``kept``: what `StateFile` remembers by key."""
        settings = report.settings
        self._report = report
        self._environ = environ
        self._kept = kept
        self._declarations = Declarations(settings, catalog, environ)
        self._models = LocalModels(self._declarations, Budget(settings.threads, settings.reserve), Tracing())

    def add(self, names: Iterable[str]) -> None:
        """Report on the models to start, and on those that were added over HTTP."""
        for name in names:
            self._add(name, None)
        there = {model.key for model in self._report.models}
        for key, entry in self._kept.items():
            if entry.get("added") and key not in there:
                self._add(str(entry.get("model")), split_worker_key(key)[1])

    def _add(self, name: str, worker_type: WorkerType | None) -> None:
        faults = self._report.faults
        before = len(faults)
        kept = self._kept_of(name, worker_type)
        over_http: JSONObject = kept.get("params", {})
        model = ModelReport(name, note=_note(kept))
        self._report.models.append(model)
        entry = self._declarations.entry(name)
        found = tried(lambda: self._declarations.engine_class(entry), None, faults) if entry is not None else None
        layers: list[Layer] = [("over HTTP", over_http, lambda name: "")]
        if entry is not None and found is not None:
            layers += self._layers(entry, found)
        values: Mapping[str, Any] = {k: v for layer in reversed(layers) for k, v in layer[1].items()}
        if len(faults) == before:
            worker = tried(lambda: self._models.add(name, worker_type, over_http), None, faults)
            if worker is not None:
                model.key, model.engine, values = worker.key, worker.params.engine, vars(worker.params)
                model.params = [said for said in origins(worker.params, layers) if said.name not in _HEADING]
        self._locate(model, entry, values.get("model_path"))

    def _kept_of(self, name: str, worker_type: WorkerType | None) -> JSONObject:
        found: JSONObject = {}
        for key, entry in self._kept.items():
            if entry.get("model") == name and worker_type in (None, split_worker_key(key)[1]):
                found = entry
        return found

    def _layers(self, entry: CatalogEntry, found: type[Engine]) -> list[Layer]:
        """Return what each layer says of a model, read value by value."""
        settings, environ, faults = self._report.settings, self._environ, self._report.faults
        variables = params.variables(found.Params, params.environment_prefix(entry.name), environ)
        source = f"{entry.origin}, model {entry.name!r}"
        told = params.from_text(found.Params, settings.overrides_of(entry.name), "--set")

        def hear(name: str, text: str) -> JSONObject:
            refuse_identity(name, f"environment, {variables[name]}")
            return params.from_text(found.Params, {name: text}, f"environment, {variables[name]}")

        heard = each({name: environ[variable] for name, variable in variables.items()}, hear, faults)
        declared = each(entry.declared, lambda n, v: params.from_plain(found.Params, {n: v}, source), faults)
        own = next((table for table in settings.model_tables if table.get("name") == entry.name), {})
        return [
            ("command line", told, lambda name: ""),
            ("environment", heard, lambda name: variables[name]),
            ("file", {k: v for k, v in declared.items() if k in own}, lambda name: settings.config or ""),
            ("catalogue", declared, lambda name: ""),
        ]

    def _locate(self, model: ModelReport, entry: CatalogEntry | None, path: object) -> None:
        if not isinstance(path, str) or not path:
            return
        hint = self._declarations.pull_command(entry)
        try:
            model.weights = str(weights.resolve(path, self._report.settings.models_paths, hint=hint))
        except BadModelFile as error:
            model.weights, model.weights_exist = path, False
            self._report.missing.append(f"model {model.name!r}: {error}")


def _note(kept: JSONObject) -> str:
    if kept.get("quarantined"):
        return "quarantined, not started: the process died each of the last times that it loaded"
    if kept.get("stopped"):
        return "stopped over HTTP, so not started (--fresh forgets that)"
    return "added over HTTP (--fresh forgets that)" if kept.get("added") else ""
