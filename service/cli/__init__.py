"""The command line: ``modelyard``."""

from __future__ import annotations

import sys

import click

from ..errors import ModelyardError
from ..version import __version__
from .serve import serve


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="modelyard")
def cli() -> None:
    """Serve models with Flask, gunicorn and threads."""


cli.add_command(serve)


def main() -> None:
    """Run the command line; an error of ours is one line on standard error and exit status 1."""
    try:
        cli.main()
    except ModelyardError as error:
        click.echo(f"modelyard: {error}", err=True)
        sys.exit(1)
