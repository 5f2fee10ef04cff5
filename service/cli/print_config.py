"""``modelyard print-config``: the configuration of a service as one file, with where each value comes from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import click

from ..errors import ModelyardError
from ..settings.layers import LayerName, Origin
from ..settings.params import MASK, params_of
from ..settings.passthrough import PassThrough
from ..settings.settings import ROLES
from ..types import JSONObject, split_worker_key
from ..version import __version__
from ..worker.declarations import Declarations
from .application import current_application
from .check_config import heading, print_values
from .examine import Effective, Examination, ExaminedModel, documents, examine
from .failures import Failure
from .options import SettingCommand, given_settings, service_options
from .tables import as_json, printable

_OF_A_RUN = ("config", "fresh")
"""Settings that say how one service is started, and have no place in a file."""
_FILE = Origin(LayerName.FILE)


@click.command("print-config", cls=SettingCommand)
@click.argument("role", required=False, type=click.Choice(ROLES))
@service_options
@click.option("--toml", "toml_wanted", is_flag=True, help="print a configuration file with these values")
@click.option("--json", "json_wanted", is_flag=True, help="print one JSON object, and nothing else")
def print_config(
    role: str | None,
    model: tuple[str, ...],
    overrides: tuple[str, ...],
    *,
    toml_wanted: bool,
    json_wanted: bool,
    **options: Any,
) -> None:
    """Print the settings that a service would have, and the parameters of its models, with where each comes from.

    Takes the options of modelyard serve, and starts nothing. With --toml they are a configuration file with which a
    service has the same values; private ones are left out, and named in a comment. Exit status 1 if the configuration
    has a fault: modelyard check-config shows all.
    """
    given = given_settings(options, model, role)
    report = examine(given, overrides, os.environ, application=current_application())
    if report.faults:
        raise Failure(f"{report.faults[0]} (see modelyard check-config)")
    if json_wanted:
        models = [model.document() for model in report.models]
        click.echo(as_json({"settings": documents(report.values), "models": models}))
    elif toml_wanted:
        click.echo("\n".join(_lines(report)))
    else:
        print_values(report)


def _lines(report: Examination) -> Iterator[str]:
    yield f"# modelyard {__version__}: the values of one service, each with where it comes from."
    yield "\n[service]"
    left_out = {*_OF_A_RUN, *(("models",) if report.settings.models is None else ())}
    yield from _entries({name: value for name, value in report.values.items() if name not in left_out})
    for passed in report.settings.passthrough:
        declared = params_of(PassThrough)
        values = {name: Effective(declared[name], getattr(passed, name), _FILE) for name in declared}
        # Without its private values it is not valid.
        yield from ("\n# [[passthrough]]", *(f"# {line}" for line in _entries(values)))
    tables = {table["name"]: table for table in report.settings.model_tables}
    for model in report.models:
        yield from _started(model, tables.pop(model.name, {}))
    for name, table in tables.items():
        yield from _not_started(name, table, report.declarations)


def _started(model: ExaminedModel, table: JSONObject) -> Iterator[str]:
    yield f"\n# {heading(model)}\n[[models]]\nname = {_toml(model.name)}"
    if "worker_class" not in table:
        yield f"engine = {_toml(model.engine)}"
    if model.key is not None:
        yield f"worker_type = {_toml(split_worker_key(model.key)[1].value)}"
    yield from _entries(model.params)
    if "source" in table:
        yield f"source = {_toml(table['source'])}"


def _not_started(name: str, table: JSONObject, declarations: Declarations) -> Iterator[str]:
    try:
        declared = params_of(declarations.declaration(name).engine_class.Params)
    except ModelyardError as error:
        yield f"\n# model {name!r} is not started, and has a fault: {printable(str(error))}"
        return
    yield f"\n# not started\n[[models]]\nname = {_toml(name)}"
    for key, value in {**table, "start": False}.items():
        if key in declared and "privacy" in declared[key].tags:
            yield f"# {key} is private"
        elif key != "name":
            yield f"{key} = {_toml(value)}"


def _entries(values: Mapping[str, Effective]) -> Iterator[str]:
    for name, value in values.items():
        if value.value is None:
            yield f"# {name} is not set"
        elif value.shown == MASK:
            yield f"# {name} is private: {value.place}"
        else:
            yield f"{name} = {_toml(value.declared.word_of(value.value))}  # {printable(value.place)}"


def _toml(value: Any) -> str:
    """Return a string, number, truth value, list or dict as TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(name)} = {_toml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    # A string of JSON is one of TOML, but for one character that JSON does not escape.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
