"""Parameters: each is declared once, as a dataclass field, and all uses of it derive from that.

    @dataclass
    class Params(ModelParams):
        n_ctx: int = param(2048, help="tokens of context a request may use", min=128, max=1_048_576)

The environment variable, ``--set``, the check of JSON values and the ParameterDescription of DB-GPT's pages derive
from that. A type is str, int, float, bool, list[str], dict[str, str] or dict[str, list[str]], also with ``| None``. The
text of a dict is ``NAME=VALUE,NAME=VALUE``, a list in it is ``VALUE+VALUE``. Tags: ``fixed`` (does not change while
the model exists), ``privacy`` (never shown), ``secret`` (not an option of a command line, which other users of the
machine can read), ``operator`` (never set over HTTP), ``shared`` (also read from ``MODELYARD_<NAME>``, for every model
at once), ``size`` (bytes, also as text with a unit: ``12GB``).
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Any

from ..errors import FieldError, InvalidRequest
from ..types import JSONObject
from .sizes import bytes_of

MASK = "******"
NOTHING: Mapping[str, Any] = types.MappingProxyType({})
_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def param(
    default: Any = MISSING,
    *,
    help: str,
    choices: Iterable[str] | None = None,
    retired: Mapping[str, str] | None = None,
    min: float | None = None,
    max: float | None = None,
    words: Mapping[str, int] | None = None,
    tags: Iterable[str] = (),
    form: Callable[[Any], object] | None = None,
) -> Any:
    """Return a dataclass field that is a parameter; without a default it is required.

    ``retired`` maps each former choice to a sentence that names the replacement. ``words`` maps words that may stand in
    place of a number to their numbers, which may be out of its range. ``form`` raises ValueError, with the reason, for
    a value of the right type that has not the form that is read later.
    """
    metadata = {
        "help": help,
        "choices": tuple(choices) if choices else None,
        "retired": retired or {},
        "min": min,
        "max": max,
        "words": words or {},
        "tags": frozenset(tags),
        "form": form,
    }
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata, kw_only=True)
    return field(default=default, metadata=metadata, kw_only=True)


@dataclass(frozen=True, slots=True)
class Param:
    """One declared parameter: `params_of` returns those of a class."""

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
    words: Mapping[str, int] = field(default_factory=dict)
    of_lists: bool = False
    """Whether the values of a dict are lists of strings, and not strings."""
    form: Callable[[Any], object] | None = None

    def parse(self, text: str) -> Any:
        """Return the value of ``text`` (environment, command line). Raises ValueError with the reason."""
        stripped = text.strip()
        if self.type is bool:
            if stripped.lower() not in _WORDS:
                raise ValueError(f"{text!r} is neither true nor false")
            return _WORDS[stripped.lower()]
        if self.type is list:
            return self.check(_parts(text, ","))
        if self.type is dict:
            return self.check(self._entries(text))
        if self.nullable and stripped == "":
            return None
        if self.type is str:
            return self.check(text)
        if stripped in self.words:
            return self.words[stripped]
        if "size" in self.tags:
            return self.check(text)
        try:
            number = self.type(stripped)
        except ValueError:
            raise ValueError(f"{text!r} is not {self._kind}") from None
        return self.check(number)

    def check(self, value: Any) -> Any:
        """Return ``value`` if it fits, an int for a float as float. Raises ValueError with the reason."""
        value = self._of_type(value)
        if self.form is not None and value is not None:
            self.form(value)
        return value

    def _of_type(self, value: Any) -> Any:
        if value is None:
            if self.nullable:
                return None
            raise ValueError("must not be null")
        if "size" in self.tags and isinstance(value, str):
            value = bytes_of(value)
        if type(value) is int and abs(value) >= 2**63:
            raise ValueError("must fit into 64 bits")
        if self.type is float and type(value) is int:
            value = float(value)
        if isinstance(value, str) and value in self.words:
            return self.words[value]
        if self.type is list:
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise ValueError("must be a list of strings")
            return value
        if self.type is dict:
            return self._checked_entries(value)
        if type(value) is not self.type:
            raise ValueError(f"must be {self._kind}, not {_an(type(value))}")
        if self.choices and value not in self.choices:
            raise ValueError(self.retired.get(str(value), f"{value!r} is not one of {', '.join(self.choices)}"))
        if isinstance(value, int | float) and value not in self.words.values():
            self._check_range(value)
        return value

    @property
    def _kind(self) -> str:
        return " or ".join([_an(self.type), *self.words])

    def _entries(self, text: str) -> JSONObject:
        """Return the entries of ``NAME=VALUE,NAME=VALUE``."""
        entries: JSONObject = {}
        for part in _parts(text, ","):
            name, equals, value = (word.strip() for word in part.partition("="))
            if not equals:
                raise ValueError(f"{part!r} is not NAME=VALUE")
            if name in entries:
                raise ValueError(f"{name!r} is there twice")
            entries[name] = _parts(value, "+") if self.of_lists else value
        return entries

    def _checked_entries(self, value: Any) -> JSONObject:
        kind = "a list of strings" if self.of_lists else "a string"
        if type(value) is not dict or not all(isinstance(name, str) for name in value):
            raise ValueError(f"must be a table, with {kind} for each name")
        for name, item in value.items():
            words = item if self.of_lists else [item]
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise ValueError(f"{name!r}: must be {kind}")
            if not name or not words or not all(words):
                raise ValueError(f"{name!r}: neither the name nor a value may be empty")
        return value

    def _check_range(self, value: float) -> None:
        if not math.isfinite(value):
            raise ValueError("must be a finite number")
        if self.min is not None and value < self.min:
            raise ValueError(f"{value} is less than {self.min}")
        if self.max is not None and value > self.max:
            raise ValueError(f"{value} is more than {self.max}")

    def describe(self, param_class: str, value: Any) -> JSONObject:
        """Return DB-GPT's ParameterDescription, with ``value`` masked if it is private."""
        ext: JSONObject = {"tags": ",".join(sorted(self.tags))} if self.tags else {}
        if self.type in (list, dict):
            ext["text_of"] = "lists" if self.of_lists else self.type.__name__
        for bound in ("min", "max"):
            if getattr(self, bound) is not None:
                ext[bound] = getattr(self, bound)
        if self.words:
            ext["words"] = dict(self.words)
        if not self.required and value != self.default:
            ext["default"] = self.shown(self.default)
        return {
            "param_class": param_class,
            "param_name": self.name,
            "param_type": "str" if self.type in (list, dict) else self.type.__name__,
            "description": self.help,
            "default_value": self.shown(value),
            "required": self.required,
            "valid_values": list(self.choices) if self.choices else None,
            "ext_metadata": ext,
        }

    def shown(self, value: Any) -> Any:
        """Return ``value`` as people may see it: masked if it is private and not empty, a list or a dict as text."""
        if "privacy" in self.tags and value not in (None, "", [], {}):
            return MASK
        if self.type is dict and value is not None:
            texts = {name: "+".join(item) if self.of_lists else item for name, item in value.items()}
            return ",".join(f"{name}={text}" for name, text in texts.items())
        return ",".join(value) if self.type is list and value is not None else value

    def word_of(self, value: Any) -> Any:
        """Return the word that stands for ``value``, as in a configuration file; without one, ``value``."""
        return next((word for word, number in self.words.items() if number == value), value)


def _parts(text: str, separator: str) -> list[str]:
    return [part.strip() for part in text.split(separator) if part.strip()]


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
    """Return the declared parameters of a dataclass by name, in order."""
    return _params_of(cls)


@cache  # Not on `params_of`: mypy does not take every class as hashable.
def _params_of(cls: type[Any]) -> Mapping[str, Param]:
    hints = typing.get_type_hints(cls)
    declared: dict[str, Param] = {}
    for entry in fields(cls):
        if "help" not in entry.metadata:
            continue
        kind, of_lists, nullable = _plain(hints[entry.name])
        default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
        required = default is MISSING
        meta = dict(entry.metadata)
        declared[entry.name] = Param(
            name=entry.name,
            type=kind,
            of_lists=of_lists,
            nullable=nullable,
            required=required,
            default=None if required else default,
            **meta,
        )
    return declared


def _plain(hint: Any) -> tuple[type, bool, bool]:
    """Return the type of a hint without its parameters and ``None``, and whether it has lists, and may be None."""
    nullable = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        nullable = len(options) < len(typing.get_args(hint))
        hint = options[0]
    of_lists = any(typing.get_origin(arg) is list for arg in typing.get_args(hint))
    return typing.get_origin(hint) or hint, of_lists, nullable


def from_json(cls: type[Any], values: Mapping[str, Any], current: Mapping[str, Any] = NOTHING) -> JSONObject:
    """Return the checked values of a JSON object that are parameters of ``cls``.

    Null means absent, unknown keys are ignored. A mask that is sent back means unchanged, and so does the ``current``
    value of a parameter that is never set over HTTP, or its default where it has none: DB-GPT's command line sends the
    defaults of all parameters. Lists and tables may be the text that their descriptions have.
    Raises InvalidRequest with every field at fault.
    """
    declared = params_of(cls)
    checked: JSONObject = {}
    faults: list[FieldError] = []
    for name, value in values.items():
        if value is None or name not in declared:
            continue
        if value == MASK and "privacy" in declared[name].tags:
            continue
        if "operator" in declared[name].tags:
            unchanged = current.get(name, declared[name].default)
            if value in (unchanged, declared[name].shown(unchanged)):
                continue
            message = "can't be set over HTTP: only the configuration of the service sets it"
            faults.append({"field": f"params.{name}", "message": message})
            continue
        try:
            is_text = declared[name].type in (list, dict) and isinstance(value, str)
            checked[name] = declared[name].parse(value) if is_text else declared[name].check(value)
        except ValueError as error:
            faults.append({"field": f"params.{name}", "message": str(error)})
    if faults:
        raise InvalidRequest.of_fields(faults)
    return checked


DESCRIPTION_KEYS = (
    *("param_class", "param_name", "param_type", "description"),
    *("default_value", "required", "valid_values", "ext_metadata"),
)
"""The keys of a ParameterDescription; DB-GPT's clients refuse others."""


def describe(cls: type[Any], values: Any = None) -> list[JSONObject]:
    """Return the ParameterDescriptions of ``cls``, with the values of an instance as defaults if given."""
    # DB-GPT's command line imports the module of this class, and makes the class from the descriptions if the module
    # does not have it: so it has to be a module of Python itself.
    name = f"builtins.{cls.__name__}"
    return [p.describe(name, p.default if values is None else getattr(values, p.name)) for p in params_of(cls).values()]


def shown(values: Any) -> JSONObject:
    """Return an instance's parameters as people may see them, private ones masked."""
    return {p.name: p.shown(getattr(values, p.name)) for p in params_of(type(values)).values()}
