"""``modelyard check-config``: prints the configuration of a service, where each value comes from, and all faults."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import click

from ..engines import ENGINES, engine_class
from ..errors import ConfigError
from ..settings.layers import variables_of
from ..settings.loading import ENVIRONMENT_PREFIX, SET_VARIABLE
from ..settings.params import params_of
from ..settings.settings import ROLES, Settings
from ..types import JSONObject
from .examine import examine
from .failures import Failure, complain
from .options import SettingCommand, given_settings, service_options
from .tables import as_json, table, terminal_width


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
    warnings += _unread_variables(os.environ, click.get_current_context().find_root().command)
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
    width = terminal_width()
    click.echo(table(("SETTING", "VALUE", "FROM"), _rows(document["settings"]), width))
    for model in document["models"]:
        click.echo(f"\n{_heading(model)}")
        if model["params"]:
            click.echo(table(("PARAMETER", "VALUE", "FROM"), _rows(model["params"]), width))
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


def _unread_variables(environ: Mapping[str, str], group: click.Command) -> list[str]:
    """Return a warning for each ``MODELYARD_...`` that is not the variable of a setting, a parameter or an option."""
    names = {SET_VARIABLE, *_variables_of_options(group)}
    for declared in params_of(Settings).values():
        names.update(variables_of(declared, ENVIRONMENT_PREFIX))
    for engine in ENGINES:
        for declared in params_of(engine_class(engine).Params).values():
            names.update(variables_of(declared, ""))
    warnings = []
    for variable in sorted(environ):
        if variable.startswith(f"{ENVIRONMENT_PREFIX}_") and variable not in names:
            nearest = difflib.get_close_matches(variable, sorted(names), n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            warnings.append(f"environment, {variable}: nothing reads it{hint}")
    return warnings


def _variables_of_options(command: click.Command) -> Iterator[str]:
    for option in command.params:
        yield from [option.envvar] if isinstance(option.envvar, str) else option.envvar or ()
    if isinstance(command, click.Group):
        for below in command.commands.values():
            yield from _variables_of_options(below)
