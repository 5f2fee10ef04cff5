"""``modelyard serve``: gunicorn with our settings, from a checkout or an installed wheel."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import click

from .. import params
from .. import settings as settings_module
from ..errors import ConfigError, MissingLibrary
from ..params import Param
from ..runtime import Runtime
from ..settings import ENVIRONMENT_PREFIX, ROLES, SET_VARIABLE, Settings


def setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command one option for each declared setting but the role."""
    for declared in reversed(list(params.params_of(Settings).values())):
        if declared.name != "role":
            command = _option(declared)(command)
    return command


def _option(declared: Param) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    flag = "--" + declared.name.replace("_", "-")
    default = "" if declared.default in (None, []) else f"  [default: {declared.shown(declared.default)}]"
    text = declared.help + (f" ({', '.join(declared.choices)})" if declared.choices else "") + default
    if declared.type is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", declared.name, default=None, help=text)
    return click.option(flag, declared.name, metavar=declared.type.__name__.upper(), default=None, help=text)


def environment_of(role: str | None, options: dict[str, Any], overrides: tuple[str, ...]) -> dict[str, str]:
    """Return the variables that hand ``options`` on to the processes of gunicorn. Raises ConfigError."""
    spoken = {name: str(value) for name, value in options.items() if value is not None}
    if role is not None:
        spoken["role"] = role
    params.from_text(Settings, spoken, "command line")
    handed = {f"{ENVIRONMENT_PREFIX}_{name.upper()}": text for name, text in spoken.items()}
    if overrides:
        handed[SET_VARIABLE] = json.dumps(overrides)
    return handed


@click.command(short_help="Run a service.")
@click.argument("role", required=False, type=click.Choice(ROLES))
@click.option("--set", "overrides", multiple=True, metavar="MODEL.PARAM=VALUE", help="set a parameter of a model")
@setting_options
def serve(role: str | None, overrides: tuple[str, ...], **options: Any) -> None:
    """Run a service in ROLE (default: standalone) under gunicorn, until it is told to stop.

    Each option may also be said in the environment (MODELYARD_PORT) or in the configuration file ([service] port).
    """
    os.environ.update(environment_of(role, options, overrides))
    settings = settings_module.load()
    Runtime(settings)  # what does not fit is said here, before a server starts
    if importlib.util.find_spec("gunicorn") is None:
        raise MissingLibrary("serve needs gunicorn: pip install 'modelyard[server]'")
    _check_port(settings)
    click.echo(f"modelyard: {settings.role} on http://{settings.host}:{settings.port}{settings.prefix}", err=True)
    arguments = ["-m", "gunicorn", "-c", "python:modelyard.gunicorn_settings", "modelyard.wsgi:app"]
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 - our own interpreter


def _check_port(settings: Settings) -> None:
    """Raise ConfigError when the address can't be listened on, which gunicorn would try for five seconds."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host.strip("[]"), settings.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                hint = f"choose another with --port, or see who has it: ss -ltnp 'sport = :{settings.port}'"
                raise ConfigError(f"port {settings.port} of {settings.host} is in use: {hint}") from error
            raise ConfigError(f"{settings.host}:{settings.port} can't be listened on: {error.strerror}") from error
