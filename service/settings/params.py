"""A parameter is declared once, as a dataclass field; everything else is read off it.

    @dataclass
    class Params(ModelParams):
        n_ctx: int = param(2048, help="tokens of context a request may use", min=128, max=1_048_576)

From that come the environment variable, ``--set``, the check of JSON values, and the
ParameterDescription that DB-GPT's pages show. Types are str, int, float, bool and list[str], each
also as ``| None``. Tags: ``fixed`` (never changed while it exists), ``privacy`` (never
shown), ``secret`` (no option of a command line, which other users of the machine can read), ``shared`` (also
read from ``MODELYARD_<NAME>``, for every model at once).
"""

from __future__ import annotations

import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Any, TypeVar

from ..errors import ConfigError, FieldError, InvalidRequest
from ..types import JSONObject

T = TypeVar("T")

MASK = "******"
_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def param(
    default: Any = MISSING,
    *,
    help: str,
    choices: Iterable[str] | None = None,
    retired: Mapping[str, str] | None = None,
    min: float | None = None,
    max: float | None = None,
    tags: Iterable[str] = (),
) -> Any:
    """Declare a dataclass field as a parameter; without a default it is required.

    ``retired`` maps each former choice to a sentence that names the replacement.
    """
    metadata = {
        "help": help,
        "choices": tuple(choices) if choices else None,
        "retired": retired or {},
        "min": min,
        "max": max,
        "tags": frozenset(tags),
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata, kw_only=True)
    return field(default=default, metadata=metadata, kw_only=True)


@dataclass(frozen=True, slots=True)
class Param:
    """One declared parameter, as `params_of` reads it off its class."""

    name: str
    type: type
    nullable: bool
    required: bool
    default: Any
    help: str
    choices: tuple[str, ...] | None
    min: float | None
    max: float | None
    tags: frozenset[str]
    retired: Mapping[str, str] = field(default_factory=dict)

    def parse(self, text: str) -> Any:
        """Return the value that ``text`` (environment, command line) stands for; ValueError says why not."""
        stripped = text.strip()
        if self.type is bool:
            if stripped.lower() not in _WORDS:
                raise ValueError(f"{text!r} is neither true nor false")
            return _WORDS[stripped.lower()]
        if self.type is list:
            return self.check([part.strip() for part in text.split(",") if part.strip()])
        if self.nullable and stripped == "":
            return None
        if self.type is str:
            return self.check(text)
        try:
            number = self.type(stripped)
        except ValueError:
            raise ValueError(f"{text!r} is not {_an(self.type)}") from None
        return self.check(number)

    def check(self, value: Any) -> Any:
        """Return ``value`` if it fits (an int for a float becomes one); ValueError says why not."""
        if value is None:
            if self.nullable:
                return None
            raise ValueError("must not be null")
        if type(value) is int and abs(value) >= 2**63:
            raise ValueError("must fit into 64 bits")
        if self.type is float and type(value) is int:
            value = float(value)
        if self.type is list:
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise ValueError("must be a list of strings")
            return value
        if type(value) is not self.type:
            raise ValueError(f"must be {_an(self.type)}, not {_an(type(value))}")
        if self.choices and value not in self.choices:
            raise ValueError(self.retired.get(str(value), f"{value!r} is not one of {', '.join(self.choices)}"))
        if isinstance(value, int | float):
            self._check_range(value)
        return value

    def _check_range(self, value: float) -> None:
        if not math.isfinite(value):
            raise ValueError("must be a finite number")
        if self.min is not None and value < self.min:
            raise ValueError(f"{value} is less than {self.min}")
        if self.max is not None and value > self.max:
            raise ValueError(f"{value} is more than {self.max}")

    def describe(self, param_class: str, value: Any) -> JSONObject:
        """Return DB-GPT's ParameterDescription, ``value`` masked where it is private."""
        ext: JSONObject = {"tags": ",".join(sorted(self.tags))} if self.tags else {}
        for bound in ("min", "max"):
            if getattr(self, bound) is not None:
                ext[bound] = getattr(self, bound)
        if not self.required and value != self.default:
            ext["default"] = self.shown(self.default)
        return {
            "param_class": param_class,
            "param_name": self.name,
            "param_type": "str" if self.type is list else self.type.__name__,
            "description": self.help,
            "default_value": self.shown(value),
            "required": self.required,
            "valid_values": list(self.choices) if self.choices else None,
            "ext_metadata": ext,
        }

    def shown(self, value: Any) -> Any:
        """Return ``value`` as people may see it."""
        if "privacy" in self.tags and value not in (None, ""):
            return MASK
        return ",".join(value) if self.type is list and value is not None else value


def _an(kind: type) -> str:
    return {
        int: "an integer",
        float: "a number",
        bool: "true or false",
        str: "a string",
        list: "a list",
        dict: "an object",
    }.get(kind, kind.__name__)


def params_of(cls: type) -> Mapping[str, Param]:
    """Return the declared parameters of a dataclass, in order."""
    return _read_off(cls)


@cache
def _read_off(cls: type[Any]) -> Mapping[str, Param]:
    hints = typing.get_type_hints(cls)
    declared: dict[str, Param] = {}
    for entry in fields(cls):
        if "help" not in entry.metadata:
            continue
        kind, nullable = _plain(hints[entry.name])
        default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
        required = default is MISSING
        meta = dict(entry.metadata)
        declared[entry.name] = Param(
            name=entry.name,
            type=kind,
            nullable=nullable,
            required=required,
            default=None if required else default,
            **meta,
        )
    return declared


def _plain(hint: Any) -> tuple[type, bool]:
    nullable = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        nullable = len(options) < len(typing.get_args(hint))
        hint = options[0]
    return typing.get_origin(hint) or hint, nullable


def from_text(cls: type[Any], values: Mapping[str, str], source: str) -> JSONObject:
    """Return the typed values of ``{name: text}``; ConfigError names ``source`` and every fault."""
    return _collect(cls, values, lambda p, v: p.parse(v), source)


def from_plain(cls: type[Any], values: Mapping[str, Any], source: str) -> JSONObject:
    """Return ``values`` (of TOML) checked; ConfigError names ``source`` and every fault."""
    return _collect(cls, values, lambda p, v: p.check(v), source)


def _collect(cls: type[Any], values: Mapping[str, Any], read: Any, source: str) -> JSONObject:
    declared = params_of(cls)
    taken: JSONObject = {}
    faults = []
    for name, value in values.items():
        if name not in declared:
            faults.append(f"{name}: no such parameter{_nearest(name, declared)}")
            continue
        try:
            taken[name] = read(declared[name], value)
        except ValueError as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise ConfigError(f"{source}: " + "; ".join(faults))
    return taken


def from_json(cls: type[Any], values: Mapping[str, Any]) -> JSONObject:
    """Return the values of a JSON object that are parameters of ``cls``, checked.

    Null means absent, unknown keys are ignored, a mask sent back means unchanged. InvalidRequest names every
    field at fault.
    """
    declared = params_of(cls)
    taken: JSONObject = {}
    faults: list[FieldError] = []
    for name, value in values.items():
        if value is None or name not in declared:
            continue
        if value == MASK and "privacy" in declared[name].tags:
            continue
        try:
            taken[name] = declared[name].check(value)
        except ValueError as error:
            faults.append({"field": f"params.{name}", "message": str(error)})
    if faults:
        raise InvalidRequest.of_fields(faults)
    return taken


def from_environ(cls: type[Any], prefix: str, environ: Mapping[str, str]) -> JSONObject:
    """Return what the environment says: ``PREFIX_NAME``, for shared parameters also ``MODELYARD_NAME``."""
    return from_text(
        cls, {n: environ[v] for n, v in variables(cls, prefix, environ).items()}, f"environment, {prefix}_*"
    )


def variables(cls: type[Any], prefix: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variable that says each parameter, for those that ``environ`` says at all."""
    found: dict[str, str] = {}
    for name, declared in params_of(cls).items():
        names = [f"{prefix}_{name.upper()}"]
        if "shared" in declared.tags:
            names.append(f"MODELYARD_{name.upper()}")
        said = [variable for variable in names if variable in environ]
        if said:
            found[name] = said[0]
    return found


def build(cls: type[T], *layers: Mapping[str, Any]) -> T:
    """Return an instance from layers of values, the first that names a parameter wins.

    ConfigError names the required parameters that no layer has.
    """
    merged: JSONObject = {}
    for layer in layers:
        for name, value in layer.items():
            merged.setdefault(name, value)
    missing = [p.name for p in params_of(cls).values() if p.required and p.name not in merged]
    if missing:
        raise ConfigError(f"missing: {', '.join(missing)}")
    return cls(**merged)


DESCRIPTION_KEYS = (
    *("param_class", "param_name", "param_type", "description"),
    *("default_value", "required", "valid_values", "ext_metadata"),
)
"""What a ParameterDescription has; DB-GPT's clients refuse keys that they do not know."""


def describe(cls: type[Any], values: Any = None) -> list[JSONObject]:
    """Return the ParameterDescriptions of ``cls``, with the values of an instance as defaults if given."""
    # DB-GPT's command line imports the class's module, and makes a class of the descriptions where it is not in there:
    # so the module is one that every Python has.
    name = f"builtins.{cls.__name__}"
    return [p.describe(name, p.default if values is None else getattr(values, p.name)) for p in params_of(cls).values()]


def shown(values: Any) -> JSONObject:
    """Return an instance's parameters as people may see them: private ones masked."""
    return {p.name: p.shown(getattr(values, p.name)) for p in params_of(type(values)).values()}


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


def _nearest(name: str, declared: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(declared), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
