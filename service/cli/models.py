"""``modelyard models``: what a running service hosts, and changing it, over HTTP."""

from __future__ import annotations

import click

from ..types import JSONObject, WorkerType
from .client import ServiceClient
from .connected import READ_TIMEOUT, talks
from .failures import Failure, Misuse
from .hosted import Hosted
from .tables import as_json, table, terminal_width
from .target import Target
from .values import allowed, param_of, tags_of

TELLING = 0.05
"""Seconds from which on it is said how long something took."""
CHANGE_TIMEOUT = 600.0
"""Seconds for an answer that waits for a model to load."""


@click.group(short_help="See and change the models of a running service.")
def models() -> None:
    """See and change the models of a running service, over HTTP.

    Which one: --url, or MODELYARD_URL in the environment. NAME is the name of a model, or name@type where two types
    share it.
    """


_name = click.argument("name")
_name_or_all = click.argument("name", required=False)
_pairs = click.argument("pairs", nargs=-1, metavar="[PARAM=VALUE]...")
_all = click.option("--all", "every", is_flag=True, help="every model that the service hosts")
_at = click.option(
    "--at", metavar="HOST:PORT", help="the host to do it on, where the service stands for several (modelyard instances)"
)
_type = click.option(
    "--type", "worker_type", type=click.Choice([t.value for t in WorkerType]), help="what the model is for"
)


@models.command("list", short_help="List the models and their states.")
@click.option("--supported", is_flag=True, help="also those that could be started there")
@talks(READ_TIMEOUT)
def list_models(client: ServiceClient, supported: bool, json_wanted: bool) -> None:
    """List the models that the service hosts, with their states and why they are in them."""
    hosted = Hosted.of(client)
    rows = hosted.rows if supported else [row for row in hosted.rows if row.state is not None]
    if json_wanted:
        found = [row.plain() for row in rows]
        click.echo(as_json({"ready": hosted.ready, "reason": hosted.reason, "models": found}))
        return
    if not rows:
        click.echo("no model is hosted there; those that could be started: modelyard models list --supported")
    elif supported:
        heads = ("NAME", "TYPE", "STATE", "WEIGHTS", "PATH", "REASON")
        whole = [(row.name, row.type, row.state, row.weights, row.path, row.reason) for row in rows]
        click.echo(table(heads, whole, terminal_width()))
    else:
        lines = [(row.name, row.type, row.state, row.weights, row.reason) for row in rows]
        click.echo(table(("NAME", "TYPE", "STATE", "WEIGHTS", "REASON"), lines, terminal_width()))
    if not hosted.ready:
        click.echo(f"not ready: {hosted.reason}")


@models.command(short_help="Start a model.")
@_name_or_all
@_pairs
@_type
@_at
@_all
@talks(CHANGE_TIMEOUT)
def start(
    client: ServiceClient,
    name: str | None,
    *,
    pairs: tuple[str, ...],
    worker_type: str | None,
    at: str | None,
    every: bool,
    json_wanted: bool,
) -> None:
    """Start a model that is stopped, or one that the service could host: from its catalogue, or a file in its folders.

    \b
    modelyard models start echo delay=0.1
    modelyard models start mine model_path=mine.gguf n_ctx=4096

    Values that are set here are kept: the model has them again after a restart of the service.
    """  # noqa: D301 - click's mark for lines that stay lines
    target = Target(client, name, worker_type, every=every, pairs=pairs, at=at)
    _say(target.start(), json_wanted)


@models.command(short_help="Stop a model.")
@_name_or_all
@_type
@_at
@_all
@click.option("--forget", is_flag=True, help="forget it too, with the parameters that were set over HTTP")
@talks(CHANGE_TIMEOUT)
def stop(
    client: ServiceClient,
    name: str | None,
    *,
    worker_type: str | None,
    at: str | None,
    every: bool,
    forget: bool,
    json_wanted: bool,
) -> None:
    """Stop a model: its answers are cut off, its memory is freed.

    It stays listed, and stays stopped when the service is restarted.
    """
    if forget and every:
        raise Misuse("--forget takes a NAME, not --all")
    if at and not forget:
        raise Misuse("--at goes with --forget; a stop without it is one of all instances")
    target = Target(client, name, worker_type, every=every, at=at)
    _say(target.forget() if forget else target.apply("stop"), json_wanted)


@models.command(short_help="Stop a model and start it again.")
@_name_or_all
@_pairs
@_type
@_all
@talks(CHANGE_TIMEOUT)
def restart(
    client: ServiceClient,
    name: str | None,
    *,
    pairs: tuple[str, ...],
    worker_type: str | None,
    every: bool,
    json_wanted: bool,
) -> None:
    """Stop a model and start it again, with other values where PARAM=VALUE are given."""
    target = Target(client, name, worker_type, every=every, pairs=pairs)
    _say(target.apply("restart"), json_wanted)


@models.command(short_help="Change parameters of a model.")
@_name
@click.argument("pairs", nargs=-1, required=True, metavar="PARAM=VALUE...")
@_type
@talks(CHANGE_TIMEOUT)
def update(
    client: ServiceClient, name: str, *, pairs: tuple[str, ...], worker_type: str | None, json_wanted: bool
) -> None:
    """Change parameters of a model. One that runs is restarted if a value really changes, a stopped one stays stopped.

    Where it does not start with the new values, it runs on with the old ones.
    """
    target = Target(client, name, worker_type, pairs=pairs)
    _say(target.apply("update_params"), json_wanted)


@models.command(short_help="Show the parameters of a model.")
@_name
@_type
@talks(READ_TIMEOUT)
def params(client: ServiceClient, name: str, worker_type: str | None, json_wanted: bool) -> None:
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
        value, kind = description.get("default_value"), description.get("param_type")
        default = "required" if declared.required else declared.default
        lines.append((declared.name, value, kind, default, allowed(declared), tags, declared.help))
    click.echo(table(("NAME", "VALUE", "TYPE", "DEFAULT", "ALLOWED", "TAGS", "HELP"), lines, terminal_width()))


def _say(outcome: JSONObject, json_wanted: bool) -> None:
    """Print an outcome of `apply`; one without success is the exit status as well."""
    if json_wanted:
        click.echo(as_json(outcome))
        if not outcome["success"]:
            raise click.exceptions.Exit(1)
    elif outcome["success"]:
        took = f" ({outcome['timecost']:.1f} s)" if outcome["timecost"] >= TELLING else ""
        click.echo(outcome["message"] + took)
    else:
        raise Failure(outcome["message"])
