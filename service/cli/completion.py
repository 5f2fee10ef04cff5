"""``modelyard completion``, and what the shell completes: names of models."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from ..errors import ModelyardError
from .failures import Failure

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_MODELYARD_COMPLETE"
"""The variable by which the script of a shell asks for completions."""


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script that lets SHELL complete commands, options and names of models.

    \b
    eval "$(modelyard completion bash)"         in ~/.bashrc
    eval "$(modelyard completion zsh)"          in ~/.zshrc, after compinit
    modelyard completion fish | source          in ~/.config/fish/config.fish
    """  # noqa: D301 - click's mark for lines that stay lines
    made_by = get_completion_class(shell)
    if made_by is None:
        raise Failure(f"this version of click has no completion for {shell}")
    click.echo(made_by(click.get_current_context().find_root().command, {}, "modelyard", VARIABLE).source())


def model_of_catalogue(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the models of the catalogue whose names begin with ``incomplete``."""
    from ..models.catalog import Catalog  # noqa: PLC0415 - heavy, and needed at a TAB alone

    try:
        return [entry.name for entry in Catalog.load() if entry.name.startswith(incomplete)]
    except ModelyardError:
        return []


def model_of_service(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the models of the running service whose names begin with ``incomplete``; none if it does not answer."""
    from .connected import COMPLETION_TIMEOUT, client_for  # noqa: PLC0415 - needed at a TAB alone

    try:
        with client_for(ctx.params["url"], COMPLETION_TIMEOUT, ctx.params.get("token_file")) as client:
            return sorted({model.name for model in client.models() if model.name.startswith(incomplete)})
    except (ModelyardError, click.ClickException):
        return []
