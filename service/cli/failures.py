"""The errors of commands: one line on standard error, with exit status 1, or 2 if the command was called wrongly."""

from __future__ import annotations

from typing import IO, Any

import click

from ..errors import ModelyardError
from .tables import printable


class Failure(click.ClickException):
    """An error that ends the command with one line on standard error."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line."""
        complain(self.message)


class Misuse(Failure):
    """The command was called wrongly."""

    exit_code = 2


class Interrupted(Failure):
    """The user pressed Ctrl-C."""

    exit_code = 130


def complain(message: str) -> None:
    """Print one line to standard error."""
    click.echo(f"modelyard: {printable(' '.join(message.split()))}", err=True)


class OneLineGroup(click.Group):
    """The top of the command line: turns every error of its commands into one line."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the options before the command."""
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            raise _in_one_line(error) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Parse and run the command."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise _in_one_line(error) from error
        except ModelyardError as error:
            raise Failure(str(error)) from error
        except KeyboardInterrupt:
            raise Interrupted("interrupted") from None


def _in_one_line(error: click.UsageError) -> click.ClickException:
    if type(error).__name__ == "NoArgsIsHelpError":
        return error  # it prints the help; click has this class since 8.2
    hint = f" (see {error.ctx.command_path} --help)" if error.ctx is not None else ""
    return Misuse(error.format_message().rstrip(".") + hint)
