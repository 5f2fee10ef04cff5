"""``modelyard serve``: run gunicorn with the settings of modelyard."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..cluster.keys import keys_exist
from ..errors import ConfigError, MissingLibrary
from ..settings.loading import ENVIRONMENT_PREFIX, SET_VARIABLE
from ..settings.settings import ALLOCATOR, ROLES, Settings
from .examine import examine
from .options import SettingCommand, given_settings, service_options


@click.command(cls=SettingCommand)
@click.argument("role", required=False, type=click.Choice(ROLES))
@service_options
def serve(role: str | None, model: tuple[str, ...], overrides: tuple[str, ...], **options: Any) -> None:
    """Run a service in ROLE (default: standalone) under gunicorn, until it receives SIGTERM or Ctrl-C.

    \b
    modelyard serve
    modelyard serve --port 9000 -m smollm2-135m --set smollm2-135m.n_ctx=4096

    An option may also be given in the environment (MODELYARD_PORT=9000) or in the configuration file (port = 9000 below
    [service]). The command line wins over the environment, the environment over the file. modelyard check-config shows
    the result, and every fault in it.
    """  # noqa: D301 - click's mark for lines that stay lines
    given = given_settings(options, model, role)
    report = examine(given, overrides, os.environ, kept=False)
    if report.faults:
        more = len(report.faults) - 1
        raise ConfigError(report.faults[0] + (f" (and {more} more: see modelyard check-config)" if more else ""))
    settings = report.settings
    settings.refuse_open_door(has_keys=settings.requires_keys and keys_exist(settings))
    if importlib.util.find_spec("gunicorn") is None:
        raise MissingLibrary("serve needs gunicorn: pip install 'modelyard[server]'")
    check_address(settings)
    address = settings.address if _socket_of(settings) else f"http://{settings.address}{settings.prefix}"
    click.echo(f"modelyard: {settings.role} on {address}", err=True)
    command = [
        sys.executable,
        "-m",
        "modelyard.server",
        "-c",
        "python:modelyard.server.gunicorn",
        "modelyard.server.wsgi:app",
    ]
    sys.stderr.flush()
    environ = {**ALLOCATOR, **os.environ, **environment_of(given, overrides)}
    os.execve(command[0], command, environ)  # noqa: S606 - our own interpreter


def environment_of(given: Mapping[str, str], overrides: Sequence[str]) -> dict[str, str]:
    """Return the environment variables that pass the command line on to the processes of gunicorn."""
    variables = {f"{ENVIRONMENT_PREFIX}_{name.upper()}": text for name, text in given.items()}
    if overrides:
        variables[SET_VARIABLE] = json.dumps(overrides)
    return variables


def check_address(settings: Settings) -> None:
    """Raise ConfigError when the address can't be listened on; gunicorn would retry for five seconds."""
    path = _socket_of(settings)
    if path is not None:
        _check_socket(path)
        return
    family = socket.AF_INET6 if ":" in settings.bind_host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.bind_host, settings.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                hint = f"choose another with --port, or see which process has it: ss -ltnp 'sport = :{settings.port}'"
                raise ConfigError(f"port {settings.port} of {settings.host} is in use: {hint}") from error
            raise ConfigError(f"{settings.address} can't be listened on: {error.strerror}") from error


def _socket_of(settings: Settings) -> Path | None:
    """Return the path of the unix socket to listen on; None for a host and a port."""
    return Path(settings.host.removeprefix("unix:")) if settings.host.startswith("unix:") else None


def _check_socket(path: Path) -> None:
    """Raise ConfigError when no socket can be made at a path. One that a service left behind is replaced."""
    if not path.is_absolute():
        raise ConfigError(f"host unix:{path}: expected a whole path, as in unix:/run/modelyard/gateway.sock")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"unix:{path} can't be listened on: {path.parent} is not a folder that this user may write")
    if os.path.lexists(path) and not path.is_socket():  # also a link that leads nowhere
        raise ConfigError(f"unix:{path} can't be listened on: there is a file that is not a socket")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except OSError as error:  # such as a path of more than 107 bytes
            raise ConfigError(f"unix:{path} can't be listened on: {error}") from error
    raise ConfigError(f"unix:{path} is in use: choose another path, or see which process has it: ss -lxp src {path}")
