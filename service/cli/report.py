"""What an examination of the configuration finds: values with where they come from, and faults."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

from ..errors import ModelyardError
from ..settings import params
from ..settings.settings import Settings
from ..types import JSONObject

T = TypeVar("T")

LayerName = Literal["over HTTP", "command line", "environment", "file", "catalogue", "default"]
Layer: TypeAlias = tuple[LayerName, Mapping[str, Any], Callable[[str], str]]
"""A layer's name, what it says, and the place (variable, file) that says a parameter."""

_DEFAULT: Layer = ("default", {}, lambda name: "")


@dataclass(frozen=True)
class Said:
    """One effective value, as people may see it: private ones are masked. ``where`` names variable or file."""

    name: str
    value: Any
    layer: LayerName
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


def origins(values: Any, layers: Sequence[Layer]) -> list[Said]:
    """Return every parameter of ``values`` with the first of ``layers`` that says it."""
    found = []
    for declared in params.params_of(type(values)).values():
        name, value = declared.name, declared.shown(getattr(values, declared.name))
        speaking = [layer for layer in layers if name in layer[1]]
        layer, _, where = speaking[0] if speaking else _DEFAULT
        found.append(Said(name, value, layer, where(name)))
    return found


def each(values: Mapping[str, T], read: Callable[[str, T], JSONObject], faults: list[str]) -> JSONObject:
    """Return those of ``values`` that can be read, each by itself; what is wrong with the others goes to ``faults``."""
    taken: JSONObject = {}
    for name, value in values.items():
        try:
            taken |= read(name, value)
        except ModelyardError as error:
            faults.append(str(error))
    return taken


def tried(call: Callable[[], T], otherwise: T, faults: list[str]) -> T:
    """Return what ``call`` returns, or ``otherwise``; what is wrong goes to ``faults``."""
    try:
        return call()
    except ModelyardError as error:
        faults.append(str(error))
        return otherwise
