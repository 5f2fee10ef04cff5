"""The commands by name. Each is imported when it is called: the help and the completion of the shell need none."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from .failures import OneLineGroup


class _Place(NamedTuple):
    """Where a command is defined, and its line in the help."""

    module: str
    attribute: str
    help: str


_PLACES = {
    "serve": _Place("serve", "serve", "Run a service."),
    "pull": _Place("pull", "pull", "Fetch the weights of models."),
    "remove": _Place("pull", "remove", "Remove weights that were pulled."),
    "inspect": _Place("inspect", "inspect", "Show what weights hold and need."),
    "models": _Place("models", "models", "See and change the models of a running service."),
    "instances": _Place("models", "instances", "List what is registered in a cluster."),
    "top": _Place("top", "top", "Watch the models of a running service."),
    "chat": _Place("chat", "chat", "Talk to a model."),
    "complete": _Place("texts", "complete", "Continue a text."),
    "embed": _Place("texts", "embed", "Show the embeddings of texts."),
    "rerank": _Place("texts", "rerank", "Rank texts by a query."),
    "tokens": _Place("texts", "tokens", "Count the tokens of a text."),
    "key": _Place("key", "key", "Make and revoke API keys."),
    "token": _Place("token", "token", "Make and revoke tokens."),
    "check-config": _Place("check_config", "check_config", "Show the configuration of a service, and its faults."),
    "print-config": _Place("print_config", "print_config", "Print the configuration of a service as a file."),
    "doctor": _Place("doctor", "doctor", "Check a configuration, this machine and a running service."),
    "completion": _Place("completion", "completion", "Print the completion for a shell."),
}

_OF_A_SERVER = frozenset({"serve", "completion"})
"""The commands that have no meaning within a Flask application."""

OPTIONS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class _Commands(MutableMapping[str, click.Command]):
    """Commands by name, each imported at its first use."""

    def __init__(self, names: Iterator[str]) -> None:
        self._loaded: dict[str, click.Command | None] = dict.fromkeys(names)

    def __getitem__(self, name: str) -> click.Command:
        command = self._loaded[name]
        if command is None:
            place = _PLACES[name]
            command = getattr(import_module(f".{place.module}", __package__), place.attribute)
            assert isinstance(command, click.Command)
            self._loaded[name] = command
        return command

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded)

    def __len__(self) -> int:
        return len(self._loaded)


class LazyGroup(OneLineGroup):
    """A group of the commands of this module."""

    def __init__(self, name: str | None = None, *, in_application: bool = False, **attributes: Any) -> None:
        """Take the attributes of `click.Group`, and whether the commands run within a Flask application."""
        names = (name for name in _PLACES if not (in_application and name in _OF_A_SERVER))
        super().__init__(name, _Commands(names), context_settings=OPTIONS, **attributes)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the help."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the names with their lines."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _PLACES[name].help) for name in self.commands])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the names that begin with ``incomplete``, and the options of the group."""
        names = [name for name in self.commands if name.startswith(incomplete)]
        items = [CompletionItem(name, help=_PLACES[name].help) for name in names]
        return [*items, *click.Command.shell_complete(self, ctx, incomplete)]
