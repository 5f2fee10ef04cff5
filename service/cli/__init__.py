"""The command line: ``modelyard``."""

from __future__ import annotations

import click

from ..version import __version__
from .commands import LazyGroup


@click.group(cls=LazyGroup)
@click.version_option(__version__, prog_name="modelyard")
def cli() -> None:
    """Serve models with Flask, gunicorn and threads."""


def main() -> None:
    """Run the command line."""
    cli.main(prog_name="modelyard")
