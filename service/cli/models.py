"""``modelyard models`` and ``modelyard instances``: list and change the models of a running service, over HTTP."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import click

from ..client.answers import ModelState
from ..client.client import Client
from ..types import ApplyOutcome, JSONObject, WorkerType, plain
from .completion import model_of_service
from .connected import READ_TIMEOUT, with_client
from .failures import Failure, Misuse
from .hosted import load_of, rows, supported_models
from .tables import as_json, print_table
from .target import Target
from .values import allowed, param_of, tags_of

CHANGE_TIMEOUT = 600.0
"""Seconds to wait for an answer that comes when a model has loaded."""
WATCH_SECONDS = 2.0
"""Seconds between two tables of ``--watch``."""
SLOW = 0.05
"""Seconds: the duration of a change is printed if it is longer."""


@click.group()
def models() -> None:
    """See and change the models of a running service, over HTTP.

    --url, or MODELYARD_URL in the environment, is the address of the service. NAME is the name of a model, or name@type
    where two types share the name.
    """


_name = click.argument("name", shell_complete=model_of_service)
_name_or_all = click.argument("name", required=False, shell_complete=model_of_service)
_pairs = click.argument("pairs", nargs=-1, metavar="[PARAM=VALUE]...")
_all = click.option("--all", "every", is_flag=True, help="every model that the service hosts")
_at = click.option(
    "--at",
    metavar="HOST:PORT",
    help="the host to use, where the service is a gateway for several",
)
_watch = click.option("--watch", is_flag=True, help=f"print it again every {WATCH_SECONDS:g} seconds, until Ctrl-C")
_type = click.option(
    "--type", "worker_type", type=click.Choice([t.value for t in WorkerType]), help="what the model is for"
)


@models.command("list", short_help="List the models and their states.")
@click.option("--supported", is_flag=True, help="list the models that could be started too")
@_watch
@with_client(READ_TIMEOUT)
def list_models(client: Client, supported: bool, watch: bool, json_wanted: bool) -> None:
    """List the models that the service hosts, with their states and the reasons."""
    _show_again(lambda: _show_models(client, supported, json_wanted), watch=watch)


def _show_models(client: Client, supported: bool, json_wanted: bool) -> None:
    status = client.status()
    listed = rows(map(ModelState.of, status["models"]), supported_models(client))
    if not supported:
        listed = [row for row in listed if row.state is not None]
    loads = {ModelState.of(model)[:2]: load_of(model) for model in status["models"]}
    for row in listed:
        row.load = loads.get((row.name, row.type))
    ready, state, reason = bool(status.get("ready")), status.get("state"), status.get("reason")
    if json_wanted:
        models = [plain(row) for row in listed]
        document = {"ready": ready, "state": state, "reason": reason, "models": models}
        click.echo(as_json({**document, "unsaved": status.get("unsaved")}))
        return
    if not listed:
        click.echo("no model is hosted there; those that could be started: modelyard models list --supported")
    elif supported:
        heads = ("NAME", "TYPE", "STATE", "LOAD", "WEIGHTS", "PATH", "REASON")
        whole = [(row.name, row.type, row.state, row.load, row.weights, row.path, row.reason) for row in listed]
        print_table(heads, whole)
    else:
        lines = [(row.name, row.type, row.state, row.load, row.weights, row.reason) for row in listed]
        print_table(("NAME", "TYPE", "STATE", "LOAD", "WEIGHTS", "REASON"), lines)
    if not ready:
        click.echo(f"not ready{f' ({state})' if state else ''}: {reason}")
    if status.get("unsaved"):
        click.echo(f"changes are not remembered: {status['unsaved']}")


@models.command(short_help="Start a model.")
@_name_or_all
@_pairs
@_type
@_at
@_all
@with_client(CHANGE_TIMEOUT)
def start(
    client: Client,
    name: str | None,
    *,
    pairs: tuple[str, ...],
    worker_type: str | None,
    at: str | None,
    every: bool,
    json_wanted: bool,
) -> None:
    """Start a model that is stopped, or one that the service can host: of its catalogue, or a file in its folders.

    \b
    modelyard models start echo delay=0.1
    modelyard models start mine model_path=mine.gguf n_ctx=4096

    Values that are set here are kept: the model has them again after a restart of the service.
    """  # noqa: D301 - click's mark for lines that stay lines
    target = Target(client, name, worker_type, every=every, pairs=pairs, at=at)
    _print_outcome(target.start(), json_wanted)


@models.command(short_help="Stop a model.")
@_name_or_all
@_type
@_at
@_all
@click.option("--forget", is_flag=True, help="remove it from the list too, with the parameters that were set over HTTP")
@with_client(CHANGE_TIMEOUT)
def stop(
    client: Client,
    name: str | None,
    *,
    worker_type: str | None,
    at: str | None,
    every: bool,
    forget: bool,
    json_wanted: bool,
) -> None:
    """Stop a model: its running answers end with an error, its memory is freed.

    It stays listed, and stays stopped after a restart of the service.
    """
    if forget and every:
        raise Misuse("--forget takes a NAME, not --all")
    if at and not forget:
        raise Misuse("--at goes with --forget; a stop without it is one of all instances")
    target = Target(client, name, worker_type, every=every, at=at)
    _print_outcome(target.forget() if forget else target.apply("stop"), json_wanted)


@models.command(short_help="Stop a model and start it again.")
@_name_or_all
@_pairs
@_type
@_all
@with_client(CHANGE_TIMEOUT)
def restart(
    client: Client,
    name: str | None,
    *,
    pairs: tuple[str, ...],
    worker_type: str | None,
    every: bool,
    json_wanted: bool,
) -> None:
    """Stop a model and start it again, with the values that are given."""
    target = Target(client, name, worker_type, every=every, pairs=pairs)
    _print_outcome(target.apply("restart"), json_wanted)


@models.command(short_help="Change parameters of a model.")
@_name
@click.argument("pairs", nargs=-1, required=True, metavar="PARAM=VALUE...")
@_type
@with_client(CHANGE_TIMEOUT)
def update(client: Client, name: str, *, pairs: tuple[str, ...], worker_type: str | None, json_wanted: bool) -> None:
    """Change parameters of a model. One that runs is restarted if a value changes, a stopped one stays stopped.

    If it does not start with the new values, it runs on with the old ones.
    """
    target = Target(client, name, worker_type, pairs=pairs)
    _print_outcome(target.apply("update_params"), json_wanted)


@models.command(short_help="Show the parameters of a model.")
@_name
@_type
@with_client(READ_TIMEOUT)
def params(client: Client, name: str, worker_type: str | None, json_wanted: bool) -> None:
    """Show the parameters of a model with their values; private ones are masked.

    Tags: a fixed one can't be changed while the model exists, a shared one can also be set for all models at once.
    """
    descriptions = Target(client, name, worker_type).descriptions()
    if json_wanted:
        click.echo(as_json(descriptions))
        return
    lines = []
    for description in descriptions:
        declared = param_of(description)
        tags = " ".join(tags_of(description)) or None
        value, kind = declared.word_of(description.get("default_value")), description.get("param_type")
        default = "required" if declared.required else declared.word_of(declared.default)
        lines.append((declared.name, value, kind, default, allowed(declared), tags, declared.help))
    print_table(("NAME", "VALUE", "TYPE", "DEFAULT", "ALLOWED", "TAGS", "HELP"), lines)


def _show_again(show: Callable[[], None], *, watch: bool) -> None:
    """Call ``show`` once, or with ``watch`` again and again, each time on an empty screen where there is one."""
    show()
    while watch:
        time.sleep(WATCH_SECONDS)
        if sys.stdout.isatty():
            click.clear()
        show()


def _print_outcome(outcome: ApplyOutcome, json_wanted: bool) -> None:
    """Print the outcome of a change; the exit status is 1 if it failed."""
    if json_wanted:
        click.echo(as_json(outcome.to_dict()))
        if not outcome.success:
            raise click.exceptions.Exit(1)
    elif outcome.success:
        duration = f" ({outcome.timecost:.1f} s)" if outcome.timecost >= SLOW else ""
        click.echo(outcome.message + duration)
    else:
        raise Failure(outcome.message)


@click.command()
@click.argument("name", required=False, shell_complete=model_of_service)
@click.option("--healthy", is_flag=True, help="only those that are healthy")
@_watch
@with_client(READ_TIMEOUT)
def instances(client: Client, name: str | None, *, healthy: bool, watch: bool, json_wanted: bool) -> None:
    """List the instances of all models, or of NAME (a model, or name@type), as the service sees them.

    WorkerManager@service is a worker service itself: models can be started there (modelyard models start --at).
    """
    _show_again(lambda: _show_instances(client, name, healthy, json_wanted), watch=watch)


def _show_instances(client: Client, name: str | None, healthy: bool, json_wanted: bool) -> None:
    listed = [row for row in client.instances() if _is_named(row, name) and (row["healthy"] or not healthy)]
    if json_wanted:
        click.echo(as_json(listed))
        return
    if not listed:
        click.echo(f"nothing is registered{f' as {name}' if name else ''}")
        return
    heads = ("KEY", "ADDRESS", "HEALTHY", "LAST HEARTBEAT", "LOAD", "WEIGHT", "NOTE")
    print_table(heads, map(_instance, listed))


def _instance(row: JSONObject) -> tuple[object, ...]:
    """Return the cells of an instance; the time of its heartbeat to the second."""
    heartbeat = (row.get("last_heartbeat") or "").partition(".")
    at = f"{heartbeat[0]}Z" if heartbeat[1] else heartbeat[0] or None
    note = None if row.get("enabled", True) else "disabled"
    return (row["key"], row["url"], row["healthy"], at, row.get("load"), row.get("weight"), note)


def _is_named(row: JSONObject, name: str | None) -> bool:
    return name is None or name in (row["key"], row["key"].rpartition("@")[0])
