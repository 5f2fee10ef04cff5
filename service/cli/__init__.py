"""The command line: ``modelyard``."""

from __future__ import annotations

import click

from ..version import __version__
from .chat import chat
from .check_config import check_config
from .failures import OneLineGroup
from .inspect import inspect
from .key import key
from .models import instances, models
from .pull import pull, remove
from .serve import serve
from .texts import complete, embed, rerank, tokens
from .token import token


@click.group(
    cls=OneLineGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="modelyard")
def cli() -> None:
    """Serve models with Flask, gunicorn and threads."""


_COMMANDS = (
    serve,
    pull,
    remove,
    inspect,
    models,
    instances,
    chat,
    complete,
    embed,
    rerank,
    tokens,
    key,
    token,
    check_config,
)

for command in _COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Run the command line."""
    cli.main(prog_name="modelyard")
