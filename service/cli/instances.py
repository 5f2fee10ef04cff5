"""``modelyard instances``: what is registered at a controller."""

from __future__ import annotations

from typing import Any

import click

from ..types import JSONObject
from .client import Refusal, ServiceClient, are_objects
from .connected import READ_TIMEOUT, talks
from .failures import Failure
from .tables import as_json, table, terminal_width


@click.command(short_help="List what is registered at a controller.")
@click.argument("name", required=False)
@click.option("--healthy", is_flag=True, help="only those that are healthy")
@talks(READ_TIMEOUT)
def instances(client: ServiceClient, name: str | None, healthy: bool, json_wanted: bool) -> None:
    """List the instances of all models, or of NAME (a model, or name@type), as a controller sees them.

    WorkerManager@service is a worker service itself: models can be started there (modelyard models start --at).
    """
    found = [row for row in _rows(client) if _is_named(row, name) and (row["healthy"] or not healthy)]
    if json_wanted:
        click.echo(as_json(found))
        return
    if not found:
        click.echo(f"nothing is registered{f' as {name}' if name else ''}")
        return
    heads = ("KEY", "ADDRESS", "HEALTHY", "LAST HEARTBEAT", "LOAD", "WEIGHT", "NOTE")
    lines = [
        (
            row["key"],
            row["url"],
            row["healthy"],
            row.get("last_heartbeat"),
            row.get("load"),
            row.get("weight"),
            None if row.get("enabled", True) else "disabled",
        )
        for row in found
    ]
    click.echo(table(heads, lines, terminal_width()))


def _rows(client: ServiceClient) -> list[JSONObject]:
    try:
        rows: Any = client.get_at("controller/instances")
    except Refusal as error:
        if error.status == 404:
            raise Failure(f"{client.shown} is no controller: ask the one that it is registered at") from error
        raise
    if not are_objects(rows, "key", "url", "healthy"):
        raise client.stranger()
    found: list[JSONObject] = rows
    return found


def _is_named(row: JSONObject, name: str | None) -> bool:
    return name is None or name in (row["key"], row["key"].rpartition("@")[0])
