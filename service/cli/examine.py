"""Reads all that a service would be told, value by value, so that a person sees all faults at once.

`settings.load` and `Declarations.engine` stop at the first.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..access.networks import TrustedNetworks, parse_networks
from ..access.token_store import Tokens
from ..cluster.membership import check_registry
from ..engines import ENGINES, engine_class
from ..engines.base import ModelParams
from ..errors import ConfigError, ModelyardError
from ..models.catalog import Catalog
from ..server.state import StateFile
from ..sessions.address import URL_VARIABLE
from ..settings import params
from ..settings.settings import ENVIRONMENT_PREFIX, SET_VARIABLE, Settings, overrides_in, read_config, split_override
from ..telemetry.tracing import Tracing
from ..types import JSONObject
from ..worker.declarations import Declarations
from .examine_models import ModelsExamination, refuse_identity
from .report import Layer, Report, Said, each, origins, tried


def examine(
    options: Mapping[str, str], overrides: Sequence[str], environ: Mapping[str, str], *, kept: bool = True
) -> Report:
    """Return what the command line's ``options`` and ``--set``, the environment and the files come to.

    ``kept``: also what was set over HTTP when the service last ran. Faults are in the report, not raised.
    """
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # As gunicorn does: an engine of the operator's may lie here.
    faults: list[str] = []
    settings, said = _settings(options, environ, faults)
    _look_at_access(settings, faults)
    tried(lambda: Tracing(settings), None, faults)
    catalog = _catalog(settings, faults)
    given = tuple(overrides) or tried(lambda: overrides_in(environ), (), faults)
    settings.overrides = tuple(item for item in given if _fits(item, settings, catalog, environ, faults))
    names = _names(settings, catalog, faults)
    report = Report(settings, _effective(settings, catalog, said, names), faults=faults)
    report.warnings = _warnings(settings, names, environ)
    ModelsExamination(report, catalog, environ, _kept(settings) if kept else {}).add(names)
    return report


def _settings(options: Mapping[str, str], environ: Mapping[str, str], faults: list[str]) -> tuple[Settings, list[Said]]:
    def text(values: Mapping[str, str], source: Callable[[str], str]) -> JSONObject:
        return each(values, lambda name, value: params.from_text(Settings, {name: value}, source(name)), faults)

    variables = params.variables(Settings, ENVIRONMENT_PREFIX, environ)
    told = text(options, lambda name: "command line")
    heard = text({n: environ[v] for n, v in variables.items()}, lambda name: f"environment, {variables[name]}")
    path = told.get("config") or heard.get("config")
    nothing: JSONObject = {}
    table = tried(lambda: read_config(Path(path)) if path else nothing, nothing, faults)
    source = f"{path} [service]"
    filed = each(table.get("service", {}), lambda n, v: params.from_plain(Settings, {n: v}, source), faults)
    settings = _built([told, heard, filed], faults)
    settings.model_tables = tuple(table.get("models", ()))
    layers: list[Layer] = [
        ("command line", told, lambda name: ""),
        ("environment", heard, lambda name: variables[name]),
        ("file", filed, lambda name: str(path)),
    ]
    return settings, origins(settings, layers)


def _built(layers: list[JSONObject], faults: list[str]) -> Settings:
    """Return the settings; those that do not go together are left at their defaults."""
    try:
        return params.build(Settings, *layers)
    except ConfigError as error:
        faults.append(str(error))
    apart = ("threads", "reserve", "prefix", "role", "registry", "workers", "http_threads", "tracing")
    return params.build(Settings, *({k: v for k, v in layer.items() if k not in apart} for layer in layers))


def _look_at_access(settings: Settings, faults: list[str]) -> None:
    tried(lambda: Tokens.of(settings), None, faults)
    tried(lambda: check_registry(settings), None, faults)
    tried(lambda: TrustedNetworks(settings.trusted_networks), None, faults)
    tried(lambda: parse_networks(settings.allowed_networks, "allowed_networks"), None, faults)


def _effective(settings: Settings, catalog: Catalog, said: list[Said], names: list[str]) -> list[Said]:
    """Return ``said`` with what the settings come to that are relative, or that nobody said."""
    values = {
        "models_dirs": ",".join(str(path) for path in settings.models_paths),
        "state_dir": str(settings.state_path),
        "instance": settings.instance_name,
    }
    found = [replace(s, value=values.get(s.name, s.value)) for s in said]
    if settings.models is not None:
        return found
    configured = bool(catalog.configured)
    where = settings.config or "" if configured else ""
    models = Said("models", ",".join(names), "file" if configured else "catalogue", where)
    return [models if s.name == "models" else s for s in found]


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


def _fits(item: str, settings: Settings, catalog: Catalog, environ: Mapping[str, str], faults: list[str]) -> bool:
    """Return whether one ``--set`` can be followed."""
    try:
        model, parameter, value = split_override(item)
        declarations = Declarations(replace(settings, overrides=(item,)), catalog, environ)
        entry = declarations.entry(model)
        refuse_identity(parameter, f"--set {item}")
        if entry is not None:
            params.from_text(declarations.engine_class(entry).Params, {parameter: value}, f"--set {item}")
    except ModelyardError as error:
        faults.append(str(error))
        return False
    return True


def _names(settings: Settings, catalog: Catalog, faults: list[str]) -> list[str]:
    if not (settings.owns_models or settings.is_hosted):
        return []
    if settings.models is None:
        return catalog.names_to_start()
    found: list[str] = []
    for name in settings.models:
        found += tried(partial(catalog.names_to_start, [name]), [], faults)
    return list(dict.fromkeys(found))


def _kept(settings: Settings) -> dict[str, JSONObject]:
    path = settings.state_path / settings.instance_name / "models.json"
    return StateFile(path).models() if path.exists() and not settings.fresh else {}


def _warnings(settings: Settings, names: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    found = []
    for item in settings.overrides:
        model = split_override(item)[0]
        if model not in names:
            found.append(f"--set {item}: model {model!r} is not started")
    known = [f"{ENVIRONMENT_PREFIX}_{name.upper()}" for name in [*params.params_of(Settings), *_shared()]]
    known += [SET_VARIABLE, URL_VARIABLE]
    for variable in sorted(environ):
        if variable.startswith(f"{ENVIRONMENT_PREFIX}_") and variable not in known:
            close = difflib.get_close_matches(variable, known, n=1)
            found.append(f"environment, {variable}: nothing reads it{f'; did you mean {close[0]}?' if close else ''}")
    return found


def _shared() -> list[str]:
    """Return the parameters that ``MODELYARD_NAME`` sets for every model at once."""
    classes: list[type[ModelParams]] = [ModelParams, *(engine_class(name).Params for name in ENGINES)]
    return [p.name for found in classes for p in params.params_of(found).values() if "shared" in p.tags]
