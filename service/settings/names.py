"""Names: what the model names of requests mean: aliases, defaults, and the models that answer where another can't."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import ConfigError
from ..types import WorkerType


@dataclass(frozen=True)
class Names:
    """The tables of the operator, checked: an alias stands for a model, and no other table names an alias."""

    aliases: Mapping[str, str] = field(default_factory=dict)
    """The model that each alias stands for. An alias hides a model of the same name."""
    defaults: Mapping[str, str] = field(default_factory=dict)
    """The model of requests that name none, by the worker type."""
    fallbacks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The models that answer instead of one, in their order. Their own fallbacks are not tried."""
    serves_unknown: bool = field(default=False, kw_only=True)
    """Whether the default of the type answers for a model that does not exist."""
    spills: bool = field(default=False, kw_only=True)
    """Whether the fallbacks answer for a model that is overloaded."""

    def __post_init__(self) -> None:
        """Raise ConfigError with the setting and the entry that does not fit."""
        for alias, model in self.aliases.items():
            self._check_models(f"aliases: {alias!r}", [model], but=alias)
        for kind, model in self.defaults.items():
            if kind not in set(WorkerType):
                raise ConfigError(f"default_models: {kind!r} is not one of {', '.join(WorkerType)}")
            self._check_models(f"default_models: {kind!r}", [model])
        for model, others in self.fallbacks.items():
            self._check_models("fallbacks", [model])
            self._check_models(f"fallbacks: {model!r}", others, but=model)
        if self.serves_unknown and not self.defaults:
            raise ConfigError("unknown_models: default needs default_models: name one for each type to serve")
        if self.spills and not self.fallbacks:
            raise ConfigError("fallback_overloaded needs fallbacks: name the models that answer")

    def _check_models(self, place: str, models: Sequence[str], but: str | None = None) -> None:
        """Raise ConfigError if one of ``models`` is an alias, is ``but``, or occurs twice."""
        for model in models:
            if model == but:
                raise ConfigError(f"{place} names itself: leave it out")
            if model in self.aliases:
                raise ConfigError(f"{place}: {model!r} is an alias: name its model, {self.aliases[model]!r}")
        if len(set(models)) < len(models):
            raise ConfigError(f"{place} names a model twice: {', '.join(models)}")

    def __bool__(self) -> bool:
        """Return whether any name has a meaning of its own."""
        return bool(self.aliases or self.defaults or self.fallbacks)

    def model_of(self, name: str) -> str:
        """Return the model that a name stands for."""
        return self.aliases.get(name, name)

    def with_fallbacks(self, model: str) -> list[str]:
        """Return a model and those that answer instead of it."""
        return [model, *self.fallbacks.get(model, ())]

    def default(self, types: Iterable[WorkerType]) -> str | None:
        """Return the default of the first of ``types`` that has one."""
        return next((self.defaults[kind] for kind in types if kind in self.defaults), None)
