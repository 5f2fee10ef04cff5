"""Reads the configuration as a service does, and collects its values, their origins and all faults."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..access.networks import TrustedNetworks, parse_networks
from ..access.token_store import TokenStore
from ..cluster.keys import check_key_store
from ..cluster.membership import check_registry, registry_url
from ..cluster.registry.address import sqlite_path
from ..cluster.registry.sqlite_file import fault_of
from ..errors import BadModelFile, ConfigError
from ..models.catalog import Catalog
from ..server.state import StateFile
from ..settings.layers import Faults, Layer, LayerName, Origin, from_text, merge
from ..settings.loading import Loaded, Override, load_layers
from ..settings.params import params_of
from ..settings.settings import Settings
from ..telemetry.tracing import Tracing
from ..types import JSONObject, split_worker_key
from ..worker.admission import Budget
from ..worker.declarations import Declarations, names_to_start
from ..worker.local_models import LocalModels

_IN_HEADING = ("model_name", "engine", "worker_type")


@dataclass(frozen=True)
class Examination:
    """The settings and models of a service, each value as ``{value, from, where}``, and what is wrong.

    With ``faults`` a service does not start; with ``missing`` weights it starts without these models; with ``unusable``
    state it starts, and forgets.
    """

    settings: Settings
    values: JSONObject
    models: list[JSONObject]
    unused_overrides: list[Override]
    faults: list[str]
    missing: list[str]
    unusable: list[str]


def examine(
    options: Mapping[str, str], overrides: Sequence[str], environ: Mapping[str, str], *, kept: bool = True
) -> Examination:
    """Return what the ``options`` of a command line, its ``--set``, the environment and the files come to.

    Nothing is started. With ``kept``, parameters set over HTTP in the last run count as well.
    """
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)  # As gunicorn does: an engine of the operator may be in it.
    faults = Faults(collect=True)
    given = Layer.of(from_text(Settings, options, "command line", faults), LayerName.COMMAND_LINE)
    loaded = load_layers(given, environ, faults, overrides=overrides)
    settings = loaded.settings
    _check_parts(settings, faults)
    catalog = Catalog.load(settings.model_tables, settings.models_paths, faults=faults)
    names = _names_to_start(settings, catalog, faults)
    declarations = Declarations(settings, catalog, environ, faults)
    models = _Models(declarations, _state(settings) if kept else {}, faults)
    models.add_all(names)
    return Examination(
        settings,
        values=_effective(loaded, catalog, names),
        models=models.documents,
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
    if settings.models is None:
        with faults.caught():
            return names_to_start(settings, catalog, None)
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


def _effective(loaded: Loaded, catalog: Catalog, names: Sequence[str]) -> JSONObject:
    """Return the settings, those that are relative or derived as what they come to."""
    settings = loaded.settings
    values = _shown(settings, loaded.origins)
    values["models_dirs"]["value"] = ",".join(str(path) for path in settings.models_paths)
    values["state_dir"]["value"] = str(settings.state_path)
    values["instance"]["value"] = settings.instance_name
    if settings.models is None:
        origin = Origin(LayerName.FILE, settings.config or "") if catalog.configured else Origin(LayerName.CATALOGUE)
        values["models"] = _document(",".join(names), origin)
    return values


def _shown(values: Any, origins: Mapping[str, Origin]) -> JSONObject:
    default = Origin(LayerName.DEFAULT)
    return {
        name: _document(declared.shown(getattr(values, name)), origins.get(name, default))
        for name, declared in params_of(type(values)).items()
    }


def _document(value: Any, origin: Origin) -> JSONObject:
    return {"value": value, "from": origin.layer, "where": origin.place or None}


class _Models:
    """Adds models to a process without starting them, and collects the values that each would have."""

    def __init__(self, declarations: Declarations, state: Mapping[str, JSONObject], faults: Faults) -> None:
        """Take ``state``: the entries of `StateFile` by worker key."""
        settings = declarations.settings
        self.documents: list[JSONObject] = []
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
        keys = {document["key"] for document in self.documents}
        for key, entry in self._state.items():
            if entry.get("added") and key not in keys:
                self._add(str(entry.get("model")), key, entry)

    def _add(self, name: str, key: str | None, kept: JSONObject) -> None:
        document: JSONObject = dict.fromkeys(("name", "key", "engine", "weights"))
        document |= {"name": name, "weights_exist": True, "note": _note(kept), "params": {}}
        self.documents.append(document)
        params: JSONObject = kept.get("params", {})
        earlier = len(self._faults.messages)
        path: object = params.get("model_path")
        with self._faults.caught():
            layers = self._declarations.declaration(name, params, self._faults).layers
            path = merge(layer.values for layer in layers).get("model_path")
            if len(self._faults.messages) == earlier:
                worker = self._local.add(name, split_worker_key(key)[1] if key else None, params)
                values = _shown(worker.params, merge(layer.origins for layer in layers))
                document |= {"key": worker.key, "engine": worker.params.engine}
                document["params"] = {n: value for n, value in values.items() if n not in _IN_HEADING}
        if isinstance(path, str) and path:
            self._locate(document, path)

    def _locate(self, document: JSONObject, path: str) -> None:
        try:
            document["weights"] = str(self._declarations.resolve(document["name"], path))
        except BadModelFile as error:
            document |= {"weights": path, "weights_exist": False}
            self.missing.append(f"model {document['name']!r}: {error}")


def _note(kept: JSONObject) -> str | None:
    if kept.get("quarantined"):
        return "quarantined, not started: the process died during each of its last loads"
    if kept.get("stopped"):
        return "stopped over HTTP, so not started (--fresh forgets that)"
    return "added over HTTP (--fresh forgets that)" if kept.get("added") else None
