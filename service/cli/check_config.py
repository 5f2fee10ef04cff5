"""``modelyard check-config``: what a service would be told, from where, and everything that is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import click

from ..errors import ConfigError
from ..settings.settings import ROLES
from ..types import JSONObject
from .examine import examine
from .failures import Failure, complain
from .options import SettingCommand, service_options, spoken
from .report import ModelReport, Report, Said
from .tables import as_json, table, terminal_width


@click.command("check-config", cls=SettingCommand, short_help="Show what a service would be told, and what is wrong.")
@click.argument("role", required=False, type=click.Choice(ROLES))
@service_options
@click.option("--json", "json_wanted", is_flag=True, help="print one JSON object, and nothing else")
def check_config(
    role: str | None, model: tuple[str, ...], overrides: tuple[str, ...], json_wanted: bool, **options: Any
) -> None:
    """Show every setting, and every parameter of the models that would be started, with where its value comes from.

    Takes the options of modelyard serve, and starts nothing. Exit status 1 where something is wrong: a value that
    does not fit, a name that nobody knows, weights that are not there.
    """
    report = examine(spoken(options, model, role), overrides, os.environ)
    try:
        report.settings.refuse_open_door()
    except ConfigError as error:
        report.faults.append(str(error))
    wrong = report.faults + report.missing
    if json_wanted:
        click.echo(as_json(_plain(report)))
    else:
        _print(report)
        for warning in report.warnings:
            complain(f"warning: {warning}")
    if not wrong:
        return
    if not json_wanted:
        for fault in wrong[:-1]:
            complain(fault)
    raise Failure(wrong[-1]) if not json_wanted else click.exceptions.Exit(1)


def _print(report: Report) -> None:
    width = terminal_width()
    click.echo(table(("SETTING", "VALUE", "FROM"), _rows(report.said), width))
    for model in report.models:
        click.echo(f"\n{_heading(model)}")
        if model.params:
            click.echo(table(("PARAMETER", "VALUE", "FROM"), _rows(model.params), width))
    if not report.models:
        click.echo("\nno model would be started")


def _rows(values: Iterable[Said]) -> list[tuple[str, Any, str]]:
    return [(said.name, said.value, said.origin) for said in values]


def _heading(model: ModelReport) -> str:
    parts = [model.key or model.name]
    if model.engine:
        parts.append(f"engine {model.engine}")
    if model.weights is not None:
        parts.append(f"weights {model.weights}{'' if model.weights_exist else ' (not there)'}")
    if model.note:
        parts.append(model.note)
    return ", ".join(parts)


def _plain(report: Report) -> JSONObject:
    return {
        "ok": not report.faults and not report.missing,
        "settings": _values(report.said),
        "models": [
            {
                "name": model.name,
                "key": model.key or None,
                "engine": model.engine or None,
                "weights": model.weights,
                "weights_exist": model.weights_exist,
                "note": model.note or None,
                "params": _values(model.params),
            }
            for model in report.models
        ],
        "faults": report.faults + report.missing,
        "warnings": report.warnings,
    }


def _values(values: Iterable[Said]) -> JSONObject:
    return {said.name: {"value": said.value, "from": said.layer, "where": said.where or None} for said in values}
