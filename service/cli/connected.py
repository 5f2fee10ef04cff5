"""Options and a `Client` for the commands that call a running service, and hints for their errors."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..access.token_store import OutgoingToken
from ..client.client import Client
from ..errors import ConfigError, ModelyardError, Unauthorized, WorkerSilent, WorkerUnreachable
from ..sessions.address import DEFAULT_URL, TOKEN_FILE_VARIABLE, TOKEN_VARIABLE, URL_VARIABLE
from .application import current_application
from .failures import Failure, Misuse

READ_TIMEOUT = 15.0
"""Seconds to wait for an answer that needs no loading."""
CONNECT_TIMEOUT = 5.0
"""Seconds to wait for a connection."""
COMPLETION_TIMEOUT = 1.0
"""Seconds to wait for an answer while a shell completes."""


def with_client(timeout: float) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command ``--url``, ``--timeout``, ``--token-file`` and ``--json``, and call it with a `Client`.

    ``timeout`` is the default of ``--timeout``, in seconds.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @click.option(
            "--url",
            envvar=URL_VARIABLE,
            default=_default_url,
            metavar="URL",
            help=f"address of the service's API  [default: {DEFAULT_URL}]",
        )
        @click.option(
            "--timeout",
            type=click.FloatRange(0, min_open=True),
            default=timeout,
            metavar="SECONDS",
            help=f"how long to wait for the answer  [default: {timeout:g}]",
        )
        @click.option(
            "--token-file",
            envvar=TOKEN_FILE_VARIABLE,
            metavar="FILE",
            type=click.Path(path_type=Path),
            help=f"file with the token to send; or the token itself in {TOKEN_VARIABLE}",
        )
        @click.option("--json", "json_wanted", is_flag=True, help="print the answer as JSON, and nothing else")
        @functools.wraps(command)
        def run(url: str, timeout: float, token_file: Path | None, json_wanted: bool, **words: Any) -> None:
            with client_for(url, timeout, token_file) as client:
                try:
                    command(client=client, json_wanted=json_wanted, **words)
                except ModelyardError as error:
                    raise Failure(f"{error}{_hint(error)}") from error

        return run

    return decorate


def _default_url() -> str:
    application = current_application()
    return DEFAULT_URL if application is None else application.url


def client_for(url: str, timeout: float, token_file: Path | None) -> Client:
    """Return a client that sends every request once, and waits ``timeout`` seconds for each answer.

    Raises Misuse for an address that is not valid, and ConfigError for a token that can't be read.
    """
    token = OutgoingToken(os.environ.get(TOKEN_VARIABLE), token_file)()
    try:
        connect_timeout = min(timeout, CONNECT_TIMEOUT)
        return Client(
            url,
            token=token or "",
            connect_timeout=connect_timeout,
            read_timeout=timeout,
            change_timeout=timeout,
            retries=0,
        )
    except ConfigError as error:
        raise Misuse(str(error)) from error


def _hint(error: ModelyardError) -> str:
    """Return what to append to the message of an error: the option that may help."""
    if isinstance(error, Unauthorized):
        return f" (give it with {TOKEN_VARIABLE}, or --token-file)"
    if isinstance(error, ConfigError):
        return f": is --url right? It ends with the prefix of the API, as in {DEFAULT_URL}"
    if isinstance(error.__cause__, WorkerSilent):
        return ": see modelyard models list, or wait longer with --timeout"
    if isinstance(error.__cause__, WorkerUnreachable):
        return f": start one with modelyard serve, or say where it is with --url or {URL_VARIABLE}"
    return ""
