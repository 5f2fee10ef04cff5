"""Layers of values: what each source (command line, environment, file) gives for the parameters of a class.

A source is read value by value, so that all of its faults are found at once; each value keeps its origin. `Faults`
decides whether a fault is raised or collected, so that a service and ``modelyard check-config`` read in the same way.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

from ..errors import ConfigError, ModelyardError
from ..types import JSONObject
from .params import Param, params_of

T = TypeVar("T")


class Faults:
    """Raises each fault of a configuration, or collects it in ``messages``."""

    def __init__(self, *, collect: bool = False) -> None:
        """Raise faults, unless ``collect``."""
        self.collect = collect
        self.messages: list[str] = []

    def add(self, messages: Iterable[str]) -> None:
        """Take the faults of one source, if there are any. Raises ConfigError with all of them, unless collected."""
        faults = list(messages)
        if faults and not self.collect:
            raise ConfigError("; ".join(faults))
        self.messages += faults

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Take an error of the body as a fault: it ends the body, and is raised unless faults are collected."""
        try:
            yield
        except ModelyardError as error:
            if not self.collect:
                raise
            self.messages.append(str(error))


class LayerName(StrEnum):
    """A kind of source."""

    OVER_HTTP = "over HTTP"
    COMMAND_LINE = "command line"
    APPLICATION = "application"
    ENVIRONMENT = "environment"
    FILE = "file"
    CATALOGUE = "catalogue"
    DEFAULT = "default"


class Origin(NamedTuple):
    """Where a value comes from; ``place`` is the variable or the file, where there is one."""

    layer: LayerName
    place: str = ""


@dataclass(frozen=True)
class Layer:
    """The checked values of one source, by parameter, and the origin of each."""

    values: JSONObject
    origins: Mapping[str, Origin]

    @classmethod
    def of(cls, values: JSONObject, name: LayerName, place: str = "") -> Layer:
        """Return a layer of values that all come from one place."""
        return cls(values, dict.fromkeys(values, Origin(name, place)))


def from_text(
    cls: type[Any], texts: Mapping[str, str], place: str | Callable[[str], str], faults: Faults | None = None
) -> JSONObject:
    """Return the typed values of ``{name: text}``, without those that do not fit.

    ``place`` begins the messages; as a function, it gets the parameter's name. Raises ConfigError with every fault,
    unless ``faults`` collects them.
    """
    return _read(cls, texts, Param.parse, place, faults)


def from_plain(
    cls: type[Any], values: Mapping[str, Any], place: str | Callable[[str], str], faults: Faults | None = None
) -> JSONObject:
    """Return the checked ``values`` of TOML or of a caller in Python, as `from_text` does texts."""
    return _read(cls, values, Param.check, place, faults)


def _read(
    cls: type[Any],
    values: Mapping[str, Any],
    read: Callable[[Param, Any], Any],
    place: str | Callable[[str], str],
    faults: Faults | None,
) -> JSONObject:
    declared = params_of(cls)
    checked: JSONObject = {}
    messages = []
    for name, value in values.items():
        try:
            if name not in declared:
                raise ValueError(f"no such parameter{nearest(name, declared)}")
            checked[name] = read(declared[name], value)
        except ValueError as error:
            messages.append(f"{place if isinstance(place, str) else place(name)}: {name}: {error}")
    (faults or Faults()).add(messages)
    return checked


def nearest(name: str, declared: Iterable[str], prefix: str = "") -> str:
    """Return a hint at the name that is most like an unknown one; empty if none is. All begin with ``prefix``."""
    names = [other.removeprefix(prefix) for other in declared]
    close = difflib.get_close_matches(name.removeprefix(prefix), names, n=1)
    return f" (did you mean {prefix}{close[0]}?)" if close else ""


def from_environ(cls: type[Any], prefix: str, environ: Mapping[str, str], faults: Faults | None = None) -> Layer:
    """Return the values of the variables ``PREFIX_NAME``, and for shared parameters also ``MODELYARD_NAME``.

    Raises ConfigError with every fault, unless ``faults`` collects them.
    """
    variables = {}
    for declared in params_of(cls).values():
        present = [variable for variable in variables_of(declared, prefix) if variable in environ]
        if present:
            variables[declared.name] = present[0]
    texts = {name: environ[variable] for name, variable in variables.items()}
    values = from_text(cls, texts, lambda name: f"environment, {variables[name]}", faults)
    return Layer(values, {name: Origin(LayerName.ENVIRONMENT, variables[name]) for name in values})


def misspelt_variables(
    cls: type[Any], prefix: str, environ: Mapping[str, str], others: Iterable[str] = ()
) -> list[str]:
    """Return a fault for each variable ``PREFIX_NAME`` that is nearly one of a parameter's.

    A name that is like none may belong to another program. ``others`` are the prefixes of other models.
    """
    names = {declared.name.upper() for declared in params_of(cls).values()}
    longer = tuple(f"{other}_" for other in others if other.startswith(f"{prefix}_"))
    faults = []
    for variable in sorted(environ):
        name = variable.removeprefix(f"{prefix}_")
        if name == variable or name in names or (longer and variable.startswith(longer)):
            continue
        if close := difflib.get_close_matches(name, names, n=1, cutoff=0.8):
            faults.append(f"environment, {variable}: nothing reads it (did you mean {prefix}_{close[0]}?)")
    return faults


def variables_of(declared: Param, prefix: str) -> list[str]:
    """Return the environment variables that set a parameter, the strongest first."""
    prefixes = [prefix, *(["MODELYARD"] if "shared" in declared.tags else [])]
    return [f"{each}_{declared.name.upper()}" for each in prefixes]


def build(cls: type[T], *layers: Mapping[str, Any]) -> T:
    """Return an instance from layers of values; the first that has a parameter wins.

    Raises ConfigError with the required parameters that no layer has.
    """
    merged = merge(layers)
    missing = [p.name for p in params_of(cls).values() if p.required and p.name not in merged]
    if missing:
        raise ConfigError(f"missing: {', '.join(missing)}")
    return cls(**merged)


def merge(layers: Iterable[Mapping[str, T]]) -> dict[str, T]:
    """Return one mapping of several; the first that has a key wins."""
    merged: dict[str, T] = {}
    for layer in layers:
        merged = {**layer, **merged}
    return merged


def environment_prefix(model: str) -> str:
    """Return the prefix of a model's variables: ``smollm2-135m`` has ``SMOLLM2_135M``."""
    return re.sub(r"[^A-Z0-9]+", "_", model.upper()).strip("_")


def refuse_shared_prefixes(models: Iterable[str]) -> None:
    """Raise ConfigError when two of these models would read the same variables."""
    seen: dict[str, str] = {}
    for model in models:
        other = seen.setdefault(environment_prefix(model), model)
        if other != model:
            raise ConfigError(
                f"models {other!r} and {model!r} share the environment prefix {environment_prefix(model)}_: rename one"
            )
