"""Options and a client for the commands that talk to a running service."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..access.own_token import OwnToken
from ..sessions.address import DEFAULT_URL, TOKEN_FILE_VARIABLE, TOKEN_VARIABLE, URL_VARIABLE
from .client import ServiceClient

READ_TIMEOUT = 15.0


def talks(timeout: float) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command ``--url``, ``--timeout`` and ``--json``, and call it with a client."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @click.option(
            "--url",
            envvar=URL_VARIABLE,
            default=DEFAULT_URL,
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
        def run(url: str, timeout: float, token_file: Path | None, json_wanted: bool, **given: Any) -> None:
            token = OwnToken(os.environ.get(TOKEN_VARIABLE), token_file)
            client = ServiceClient(url, timeout, token())
            try:
                command(client=client, json_wanted=json_wanted, **given)
            finally:
                client.close()

        return run

    return decorate
