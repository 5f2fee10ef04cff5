"""The settings as options of a command: one option each, in groups, checked by the declaration of the setting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from ..settings import params
from ..settings.params import Param
from ..settings.settings import Settings
from .completion import model_of_catalogue
from .tables import shown

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Where it listens": ("host", "port", "prefix", "insecure"),
    "Access": (
        "tokens_file",
        "tokens",
        "key_store",
        "trusted_networks",
        "allowed_networks",
        "cors_origins",
        "token_file",
    ),
    "Cluster": (
        "registry",
        "advertise",
        "heartbeat_timeout",
        "registry_refresh",
        "connect_timeout",
        "read_timeout",
        "session_affinity",
        "remote_headers",
        "remote_ca",
    ),
    "Models": (
        "model",
        "models",
        "overrides",
        "models_dirs",
        "memory_budget",
        "memory_turn",
        "on_load_failure",
        "placement",
        "host_timeout",
    ),
    "Names of models": ("aliases", "default_models", "unknown_models", "fallbacks", "fallback_overloaded"),
    "Configuration and state": ("config", "state_dir", "instance", "fresh"),
    "Limits": (
        "workers",
        "threads",
        "reserve",
        "max_body_bytes",
        "drain_timeout",
        "write_timeout",
        "receive_timeout",
        "first_output_timeout",
        "silence_timeout",
        "http_threads",
    ),
    "Pages": ("pages", "pages_bodies"),
    "Log and metrics": ("log_level", "log_file", "access_log", "metrics"),
    "Tracing": ("tracing", "tracing_content", "tracing_sample"),
}
"""Headings of the help with the settings below each; settings that are not listed come last."""

SERVE_SETTINGS = tuple(
    name for name, declared in params.params_of(Settings).items() if name != "role" and "secret" not in declared.tags
)
"""The settings that are options of ``serve``: not ROLE, an argument, nor secrets: others can read a command line."""

_METAVARS: Mapping[str, str] = {
    "advertise": "URL",
    "aliases": "ALIAS=MODEL[,...]",
    "allowed_networks": "NETWORK[,...]",
    "config": "FILE",
    "cors_origins": "ORIGIN[,...]",
    "default_models": "TYPE=MODEL[,...]",
    "fallbacks": "MODEL=MODELS[,...]",
    "host": "ADDRESS",
    "instance": "NAME",
    "key_store": "URL",
    "log_file": "FILE",
    "models": "NAME[,...]",
    "models_dirs": "FOLDER[,...]",
    "prefix": "PATH",
    "registry": "URL",
    "remote_ca": "FILE",
    "remote_headers": "NAME=VALUE[,...]",
    "state_dir": "FOLDER",
    "token_file": "FILE",
    "tokens": "ENTRY[,...]",
    "tokens_file": "FILE",
    "tracing": "WHERE",
    "tracing_sample": "SHARE",
    "trusted_networks": "NETWORK=SCOPES[,...]",
}


class SettingCommand(click.Command):
    """A command whose options are settings: its help has them in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each group."""
        records = {
            param.name: record
            for param in self.get_params(ctx)
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)) is not None
        }
        for heading, names in GROUPS.items():
            below = [records.pop(name) for name in names if name in records]
            if below:
                with formatter.section(heading):
                    formatter.write_dl(below)
        if records:
            with formatter.section("Other"):
                formatter.write_dl(list(records.values()))


json_option = click.option("--json", "json_wanted", is_flag=True, help="print JSON, and nothing else")


def service_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of ``serve``: settings, ``--model``, ``--set``."""
    override = "set a parameter of a model, as in smollm2-135m.n_ctx=4096; may be repeated"
    single = "start this model; may be repeated; none: those of the configuration"
    command = click.option("--set", "overrides", multiple=True, metavar="MODEL.PARAM=VALUE", help=override)(command)
    command = setting_options(*SERVE_SETTINGS)(command)
    return click.option(
        "-m", "--model", "model", multiple=True, metavar="NAME", help=single, shell_complete=model_of_catalogue
    )(command)


def setting_options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command one option for each of the settings ``names``."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(names):
            command = _option(params.params_of(Settings)[name])(command)
        return command

    return add


def _option(declared: Param) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    flag = "--" + declared.name.replace("_", "-")
    if declared.type is bool:
        default = "on" if declared.default else "off"
        return click.option(
            f"{flag}/--no-{flag[2:]}", declared.name, default=None, help=f"{declared.help}  [default: {default}]"
        )
    default = "" if declared.default in (None, [], {}) else f"  [default: {shown(declared.shown(declared.default))}]"
    text = declared.help + default
    return click.option(
        flag,
        declared.name,
        metavar=_metavar(declared),
        default=None,
        help=text,
        callback=_checked_by(declared),
        shell_complete=_complete_choice(declared),
    )


def _checked_by(declared: Param) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    """Return a callback that refuses text which the declaration does not accept; it returns the text unchanged."""

    def check(ctx: click.Context, param: click.Parameter, text: str | None) -> str | None:
        try:
            if text is not None:
                declared.parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from error
        return text

    return check


def _complete_choice(declared: Param) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return a callback that gives the shell the choices of a parameter."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        return [choice for choice in declared.choices or () if choice.startswith(incomplete)]

    return complete


def _metavar(declared: Param) -> str:
    if declared.choices:
        return f"[{'|'.join(declared.choices)}]"
    if declared.name in _METAVARS:
        return _METAVARS[declared.name]
    if "size" in declared.tags:
        return "SIZE"
    if declared.name.endswith("_timeout"):
        return "SECONDS"
    return {int: "N", float: "NUMBER"}.get(declared.type, declared.type.__name__.upper())


def given_settings(options: Mapping[str, Any], models: tuple[str, ...] = (), role: str | None = None) -> dict[str, str]:
    """Return the settings that the command line gives, as text; ``models`` are added to ``--models``."""
    given = {name: str(value) for name, value in options.items() if value is not None}
    if models:
        given["models"] = ",".join([*models, *([given["models"]] if "models" in given else [])])
    if role is not None:
        given["role"] = role
    return given
