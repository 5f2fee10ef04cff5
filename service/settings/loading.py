"""Loads settings: options, then environment, then the configuration file; the first that has a value wins.

One loader for services, which stop at the first source with a fault, and for ``modelyard check-config``, which
collects all faults and prints where each value comes from.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigError
from ..types import JSONObject
from .layers import Faults, Layer, LayerName, build, from_environ, from_plain, merge
from .params import params_of
from .passthrough import PassThrough
from .settings import Settings

ENVIRONMENT_PREFIX = "MODELYARD"
SET_VARIABLE = "MODELYARD_SET"
"""Variable with the ``--set`` options of `modelyard serve`: a JSON list of ``MODEL.PARAM=VALUE``."""
HANDED_VARIABLE = "MODELYARD_HANDED_OVER"
"""Variable with all settings of a model host: the text of `serialize`. Where it is set, nothing else is read."""


class Override(NamedTuple):
    """One ``--set MODEL.PARAM=VALUE``."""

    model: str
    parameter: str
    value: str

    @classmethod
    def parse(cls, item: str) -> Override:
        """Return the parts of an item; a model's name may have dots. Raises ConfigError."""
        target, equals, value = item.partition("=")
        model, _, parameter = target.rpartition(".")
        if not equals or not model or not parameter:
            raise ConfigError(f"--set {item}: expected MODEL.PARAM=VALUE, as in --set smollm2-135m.n_ctx=4096")
        return cls(model, parameter, value)

    def __str__(self) -> str:
        return f"--set {self.model}.{self.parameter}={self.value}"


def load(
    options: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    *,
    layer: LayerName = LayerName.COMMAND_LINE,
) -> Settings:
    """Return the settings from typed ``options``, the environment, the configuration file and ``defaults``.

    ``layer`` is what gives the options. Raises ConfigError with the place and every fault of the first source that has
    one.
    """
    environ = os.environ if environ is None else environ
    if HANDED_VARIABLE in environ:
        return deserialize(environ[HANDED_VARIABLE])
    given = Layer.of(from_plain(Settings, options or {}, "options"), layer)
    return load_layers(given, environ, Faults(), defaults=defaults)


def load_layers(
    options: Layer,
    environ: Mapping[str, str],
    faults: Faults,
    *,
    overrides: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> Settings:
    """Return the settings with their origins; ``overrides`` replace those of the environment.

    Raises ConfigError, unless ``faults`` collects: then a value that does not fit is left out.
    """
    variables = from_environ(Settings, ENVIRONMENT_PREFIX, environ, faults)
    path = options.values.get("config") or variables.values.get("config")
    table: JSONObject = {}
    if path:
        with faults.caught():
            table = read_config(Path(path))
    values = from_plain(Settings, table.get("service", {}), f"{path} [service]", faults)
    layers = [options, variables, Layer.of(values, LayerName.FILE, str(path))]
    models = {
        "model_tables": tuple(table.get("models", ())),
        "overrides": _checked(overrides or _overrides_in(environ, faults), faults),
        "passthrough": tuple(_passed_through(table.get("passthrough", ()), f"{path} [[passthrough]]", faults)),
    }
    settings = _settings(merge([*(layer.values for layer in layers), defaults or {}]), models, faults)
    settings.origins = merge(layer.origins for layer in layers)
    return settings


def _settings(values: JSONObject, models: JSONObject, faults: Faults) -> Settings:
    """Return the settings; if faults are collected, without the values that contradict others."""
    try:
        return build(Settings, values, models)
    except ConfigError:
        if not faults.collect:
            raise
    # One by one, in rounds while there is progress: a value may fit only beside another that comes later.
    accepted, remaining = models, values
    while remaining:
        rejected: dict[str, ConfigError] = {}
        for name, value in remaining.items():
            try:
                build(Settings, accepted, {name: value})
            except ConfigError as error:
                rejected[name] = error
            else:
                accepted = {**accepted, name: value}
        if len(rejected) == len(remaining):
            faults.add(str(error) for error in rejected.values())
            break
        remaining = {name: remaining[name] for name in rejected}
    return build(Settings, accepted)


def _passed_through(tables: Sequence[Mapping[str, Any]], place: str, faults: Faults) -> Iterator[PassThrough]:
    for number, table in enumerate(tables, 1):
        with faults.caught():
            yield PassThrough.of(table, f"{place} number {number}")


def _overrides_in(environ: Mapping[str, str], faults: Faults) -> Sequence[str]:
    try:
        items = json.loads(environ.get(SET_VARIABLE, "[]"))
    except ValueError:
        items = None
    if isinstance(items, list) and all(isinstance(item, str) for item in items):
        return items
    faults.add([f"environment, {SET_VARIABLE}: must be a JSON list of MODEL.PARAM=VALUE strings"])
    return ()


def _checked(overrides: Sequence[str], faults: Faults) -> tuple[str, ...]:
    checked = []
    for item in overrides:
        with faults.caught():
            Override.parse(item)
            checked.append(item)
    return tuple(checked)


def read_config(path: Path) -> JSONObject:
    """Return the tables of a configuration file: ``service``, and the lists ``models`` and ``passthrough``.

    Raises ConfigError.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    unknown = sorted(set(table) - {"service", "models", "passthrough"})
    if unknown and not isinstance(table[unknown[0]], dict | list):
        raise ConfigError(f"{path}: {unknown[0]}: stands outside of a table: put it below [service]")
    if unknown and unknown[0] in params_of(Settings):
        raise ConfigError(f"{path}: [{unknown[0]}]: is a setting of the service: write [service.{unknown[0]}]")
    if unknown:
        raise ConfigError(f"{path}: unknown table {unknown[0]!r}: expected [service], [[models]] and [[passthrough]]")
    models, passed = table.get("models", []), table.get("passthrough", [])
    if not isinstance(table.get("service", {}), dict) or not isinstance(models, list):
        raise ConfigError(f"{path}: expected [service] (once) and [[models]] (once a model)")
    if not isinstance(passed, list) or not all(isinstance(entry, dict) for entry in passed):
        raise ConfigError(f"{path}: expected [[passthrough]] (once a path)")
    for number, model in enumerate(models, 1):
        if not isinstance(model, dict) or not isinstance(model.get("name"), str) or not model["name"]:
            raise ConfigError(f'{path}: [[models]] number {number} has no name: add name = "..."')
    return table


def serialize(settings: Settings) -> str:
    """Return all ``settings``, secrets included, as text for a process that is to have the same."""
    values = {name: getattr(settings, name) for name in params_of(Settings)}
    passed = [vars(entry) for entry in settings.passthrough]
    models = {"model_tables": settings.model_tables, "overrides": settings.overrides, "passthrough": passed}
    return json.dumps({**values, **models}, default=str)


def deserialize(text: str) -> Settings:
    """Return the settings of a text from `serialize`."""
    values = json.loads(text)
    models = {name: tuple(values.pop(name)) for name in ("model_tables", "overrides", "passthrough")}
    models["passthrough"] = tuple(PassThrough(**entry) for entry in models["passthrough"])
    return build(Settings, values, models)
