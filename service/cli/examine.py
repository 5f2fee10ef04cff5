"""What a service would be told, where each value comes from, and everything that is wrong with it.

`settings.load` and `Declarations.engine` stop at the first fault; here each value is read by itself, so that a person
sees all faults at once.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from .. import params, weights
from ..admission import Budget
from ..catalog import Catalog, CatalogEntry
from ..declarations import Declarations
from ..engines import ENGINES, engine_class
from ..engines.base import Engine, ModelParams
from ..errors import BadModelFile, ConfigError, ModelyardError
from ..manager import LocalWorkerManager
from ..settings import ENVIRONMENT_PREFIX, SET_VARIABLE, Settings, overrides_in, read_config, split_override
from ..state import StateFile
from ..types import JSONObject, WorkerType, split_worker_key
from ..worker import ModelWorker

T = TypeVar("T")
Layer = Literal["http", "command line", "environment", "file", "catalogue", "default"]

OTHER_VARIABLES = (SET_VARIABLE, "MODELYARD_URL")


@dataclass(frozen=True)
class Said:
    """One effective value, as people may see it: private ones are masked. ``where`` names variable or file."""

    name: str
    value: Any
    layer: Layer
    where: str = ""

    @property
    def origin(self) -> str:
        """Layer and place in a few words."""
        return f"{self.layer} {self.where}".strip()


@dataclass
class ModelReport:
    """What one model would be started with; ``weights`` is None where it needs none."""

    name: str
    key: str = ""
    engine: str = ""
    weights: str | None = None
    weights_exist: bool = True
    note: str = ""
    params: list[Said] = field(default_factory=list)


@dataclass
class Report:
    """All of it. With ``faults`` a service is not started; with ``missing`` weights it is, without these models."""

    settings: Settings
    said: list[Said] = field(default_factory=list)
    models: list[ModelReport] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def examine(
    options: Mapping[str, str], overrides: Sequence[str], environ: Mapping[str, str], *, kept: bool = True
) -> Report:
    """Read every layer; ``kept``: also what was set over HTTP when the service last ran. Raises nothing of ours."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # As gunicorn does: an engine of the operator's may lie here.
    faults: list[str] = []
    settings, said = _settings(options, environ, faults)
    report = Report(settings, said, faults=faults)
    catalog = _catalog(settings, faults)
    given = tuple(overrides) or _tried(lambda: overrides_in(environ), (), faults)
    settings.overrides = tuple(item for item in given if _override_fits(item, settings, catalog, environ, faults))
    names = _names(settings, catalog, faults)
    report.warnings = _warnings(settings, names, environ)
    remembered = _kept(settings) if kept else {}
    _Models(report, catalog, environ, remembered).add(names)
    return report


def _tried(call: Callable[[], T], otherwise: T, faults: list[str]) -> T:
    try:
        return call()
    except ModelyardError as error:
        faults.append(str(error))
        return otherwise


# Settings


def _settings(options: Mapping[str, str], environ: Mapping[str, str], faults: list[str]) -> tuple[Settings, list[Said]]:
    def text(values: Mapping[str, str], source: Callable[[str], str]) -> JSONObject:
        return _each(values, lambda name, value: params.from_text(Settings, {name: value}, source(name)), faults)

    variables = params.variables(Settings, ENVIRONMENT_PREFIX, environ)
    told = text(options, lambda name: "command line")
    heard = text({n: environ[v] for n, v in variables.items()}, lambda name: f"environment, {variables[name]}")
    path = told.get("config") or heard.get("config")
    table = _tried(lambda: read_config(Path(path)) if path else {}, {}, faults)
    filed = _each(
        table.get("service", {}),
        lambda name, value: params.from_plain(Settings, {name: value}, f"{path} [service]"),
        faults,
    )
    settings = _built([told, heard, filed], faults)
    settings.model_tables = tuple(table.get("models", ()))
    layers: list[tuple[Layer, JSONObject, Callable[[str], str]]] = [
        ("command line", told, lambda name: ""),
        ("environment", heard, lambda name: variables[name]),
        ("file", filed, lambda name: str(path)),
    ]
    return settings, _origins(settings, layers)


def _each(values: Mapping[str, T], read: Callable[[str, T], JSONObject], faults: list[str]) -> JSONObject:
    """Return those of ``values`` that can be read, each by itself."""
    taken: JSONObject = {}
    for name, value in values.items():
        try:
            taken |= read(name, value)
        except ModelyardError as error:
            faults.append(str(error))
    return taken


def _built(layers: list[JSONObject], faults: list[str]) -> Settings:
    """Return the settings; those that do not go together are left at their defaults."""
    try:
        return params.build(Settings, *layers)
    except ConfigError as error:
        faults.append(str(error))
    apart = ("threads", "reserve", "prefix")
    return params.build(Settings, *({k: v for k, v in layer.items() if k not in apart} for layer in layers))


def _origins(values: Any, layers: Iterable[tuple[Layer, JSONObject, Callable[[str], str]]]) -> list[Said]:
    layers = list(layers)
    found = []
    for declared in params.params_of(type(values)).values():
        value = declared.shown(getattr(values, declared.name))
        for layer, names, where in layers:
            if declared.name in names:
                found.append(Said(declared.name, value, layer, where(declared.name)))
                break
        else:
            found.append(Said(declared.name, value, "default"))
    return found


# Models


def _catalog(settings: Settings, faults: list[str]) -> Catalog:
    """Return the catalogue with those tables that fit."""
    good: list[JSONObject] = []
    catalog = Catalog.load((), settings.models_paths)
    for table in settings.model_tables:
        try:
            catalog = Catalog.load([*good, table], settings.models_paths)
            good.append(table)
        except ModelyardError as error:
            faults.append(str(error))
    return catalog


def _override_fits(
    item: str, settings: Settings, catalog: Catalog, environ: Mapping[str, str], faults: list[str]
) -> bool:
    try:
        model, parameter, value = split_override(item)
        declarations = Declarations(replace(settings, overrides=(item,)), catalog, environ)
        entry = declarations.entry(model)
        if entry is not None:
            params.from_text(declarations.engine_class(entry).Params, {parameter: value}, f"--set {item}")
    except ModelyardError as error:
        faults.append(str(error))
        return False
    return True


def _names(settings: Settings, catalog: Catalog, faults: list[str]) -> list[str]:
    if settings.models is None:
        return catalog.names_to_start()
    found: list[str] = []
    for name in settings.models:
        found += _tried(lambda name=name: catalog.names_to_start([name]), [], faults)  # type: ignore[misc]
    return list(dict.fromkeys(found))


def _kept(settings: Settings) -> dict[str, JSONObject]:
    path = settings.state_path / settings.instance_name / "models.json"
    return StateFile(path).models() if path.exists() and not settings.fresh else {}


class _Models:
    """Adds the models of a report, one after the other, to a manager that starts none of them."""

    def __init__(
        self, report: Report, catalog: Catalog, environ: Mapping[str, str], kept: Mapping[str, JSONObject]
    ) -> None:
        settings = report.settings
        self._report = report
        self._environ = environ
        self._kept = kept
        self._declarations = Declarations(settings, catalog, environ)
        self._manager = LocalWorkerManager(self._declarations, Budget(settings.threads, settings.reserve))

    def add(self, names: Iterable[str]) -> None:
        """Report on the models to start, and on those that were added over HTTP."""
        for name in names:
            self._add(name, None)
        there = {model.key for model in self._report.models}
        for key, entry in self._kept.items():
            if entry.get("added") and key not in there:
                self._add(str(entry.get("model")), split_worker_key(key)[1])

    def _add(self, name: str, worker_type: WorkerType | None) -> None:
        kept = self._kept_of(name, worker_type)
        over_http: JSONObject = kept.get("params", {})
        entry = self._declarations.entry(name)
        report = ModelReport(name, note=_note(kept))
        self._report.models.append(report)
        faults = len(self._report.faults)
        found = _tried(lambda: self._declarations.engine_class(entry), None, self._report.faults) if entry else None
        layers = self._layers(entry, found) if entry is not None and found is not None else []
        if len(self._report.faults) > faults:
            self._locate(report, entry, {k: v for _, values, _ in reversed(layers) for k, v in values.items()})
            return
        worker = _tried(lambda: self._manager.add(name, worker_type, over_http), None, self._report.faults)
        if worker is not None:
            first: tuple[Layer, JSONObject, Callable[[str], str]] = ("http", over_http, lambda name: "kept")
            self._fill(report, worker, [first, *layers])
            self._locate(report, entry, vars(worker.params))

    def _kept_of(self, name: str, worker_type: WorkerType | None) -> JSONObject:
        found: JSONObject = {}
        for key, entry in self._kept.items():
            if entry.get("model") == name and worker_type in (None, split_worker_key(key)[1]):
                found = entry
        return found

    def _layers(
        self, entry: CatalogEntry, found: type[Engine]
    ) -> list[tuple[Layer, JSONObject, Callable[[str], str]]]:
        """Return what each layer says, value by value, so that each fault is found."""
        settings, faults = self._report.settings, self._report.faults
        prefix = params.environment_prefix(entry.name)
        variables = params.variables(found.Params, prefix, self._environ)
        told = params.from_text(found.Params, settings.overrides_of(entry.name), "--set")
        heard = _each(
            {name: self._environ[variable] for name, variable in variables.items()},
            lambda name, text: params.from_text(found.Params, {name: text}, f"environment, {variables[name]}"),
            faults,
        )
        declared = _each(
            entry.declared,
            lambda name, value: params.from_plain(
                found.Params, {name: value}, f"{entry.origin}, model {entry.name!r}"
            ),
            faults,
        )
        own = next((table for table in settings.model_tables if table.get("name") == entry.name), {})
        return [
            ("command line", told, lambda name: ""),
            ("environment", heard, lambda name: variables[name]),
            ("file", {k: v for k, v in declared.items() if k in own}, lambda name: settings.config or ""),
            ("catalogue", declared, lambda name: ""),
        ]

    def _fill(
        self,
        report: ModelReport,
        worker: ModelWorker,
        layers: list[tuple[Layer, JSONObject, Callable[[str], str]]],
    ) -> None:
        report.key, report.engine = worker.key, worker.params.engine
        # What the engine, the type and the name are is not a parameter's default: the entry says it.
        report.params = [said for said in _origins(worker.params, layers) if said.name not in _IDENTITY]

    def _locate(self, report: ModelReport, entry: CatalogEntry | None, values: Mapping[str, Any]) -> None:
        path = values.get("model_path")
        if not isinstance(path, str) or not path:
            return
        hint = (entry.pull_command if entry is not None else None) or ""
        try:
            report.weights = str(weights.resolve(path, self._report.settings.models_paths, hint=hint))
        except BadModelFile as error:
            report.weights, report.weights_exist = path, False
            self._report.missing.append(f"model {report.name!r}: {error}")


_IDENTITY = ("model_name", "engine", "worker_type")


def _note(kept: JSONObject) -> str:
    if kept.get("quarantined"):
        return "quarantined, not started: the process died each of the last times that it loaded"
    if kept.get("stopped"):
        return "stopped over HTTP, so not started (--fresh forgets that)"
    return "added over HTTP (--fresh forgets that)" if kept.get("added") else ""


def _warnings(settings: Settings, names: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    found = []
    for item in settings.overrides:
        model = split_override(item)[0]
        if model not in names:
            found.append(f"--set {item}: model {model!r} is not started")
    known = [f"{ENVIRONMENT_PREFIX}_{name.upper()}" for name in [*params.params_of(Settings), *_shared()]]
    known += OTHER_VARIABLES
    for variable in sorted(environ):
        if variable.startswith(f"{ENVIRONMENT_PREFIX}_") and variable not in known:
            close = difflib.get_close_matches(variable, known, n=1)
            found.append(f"environment, {variable}: nothing reads it{f'; did you mean {close[0]}?' if close else ''}")
    return found


def _shared() -> set[str]:
    """Return the parameters that ``MODELYARD_NAME`` sets for every model at once."""
    classes: list[type[ModelParams]] = [ModelParams, *(engine_class(name).Params for name in ENGINES)]
    return {p.name for found in classes for p in params.params_of(found).values() if "shared" in p.tags}
