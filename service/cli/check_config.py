"""``modelyard check-config``: prints the configuration of a service, where each value comes from, and all faults."""

from __future__ import annotations

import os
from typing import Any

import click

from ..errors import ConfigError
from ..settings.settings import ROLES
from ..types import JSONObject
from .examine import examine
from .failures import Failure, complain
from .options import SettingCommand, given_settings, service_options
from .tables import as_json, print_table


@click.command("check-config", cls=SettingCommand, short_help="Show the configuration of a service, and its faults.")
@click.argument("role", required=False, type=click.Choice(ROLES))
@service_options
@click.option("--json", "json_wanted", is_flag=True, help="print one JSON object, and nothing else")
def check_config(
    role: str | None, model: tuple[str, ...], overrides: tuple[str, ...], json_wanted: bool, **options: Any
) -> None:
    """Show every setting, and every parameter of the models that would be started, with where its value comes from.

    Takes the options of modelyard serve, and starts nothing. Exit status 1 if something is wrong: a value that does
    not fit, an unknown name, missing weights.
    """
    report = examine(given_settings(options, model, role), overrides, os.environ)
    faults = [*report.faults]
    try:
        report.settings.refuse_open_door()
    except ConfigError as error:
        faults.append(str(error))
    faults += report.missing
    warnings = [f"{override}: model {override.model!r} is not started" for override in report.unused_overrides]
    warnings += report.unusable
    document = {"ok": not faults, "settings": report.values, "models": report.models}
    if json_wanted:
        click.echo(as_json({**document, "faults": faults, "warnings": warnings}))
        if faults:
            raise click.exceptions.Exit(1)
        return
    _print(document)
    for warning in warnings:
        complain(f"warning: {warning}")
    for fault in faults[:-1]:
        complain(fault)
    if faults:
        raise Failure(faults[-1])


def _print(document: JSONObject) -> None:
    print_table(("SETTING", "VALUE", "FROM"), _rows(document["settings"]))
    for model in document["models"]:
        click.echo(f"\n{_heading(model)}")
        if model["params"]:
            print_table(("PARAMETER", "VALUE", "FROM"), _rows(model["params"]))
    if not document["models"]:
        click.echo("\nno model would be started")


def _rows(values: JSONObject) -> list[tuple[str, Any, str]]:
    return [(name, it["value"], f"{it['from']} {it['where'] or ''}".strip()) for name, it in values.items()]


def _heading(model: JSONObject) -> str:
    parts = [model["key"] or model["name"]]
    if model["engine"]:
        parts.append(f"engine {model['engine']}")
    if model["weights"] is not None:
        parts.append(f"weights {model['weights']}{'' if model['weights_exist'] else ' (not there)'}")
    if model["note"]:
        parts.append(model["note"])
    return ", ".join(parts)
