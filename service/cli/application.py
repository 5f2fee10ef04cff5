"""``flask modelyard``: the commands within a Flask application that has a `Modelyard`, with its settings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import click

from ..errors import ConfigError
from ..settings.layers import LayerName, Origin, from_text
from ..settings.loading import load
from ..settings.settings import UNKNOWN_PORT, Settings
from .commands import LazyGroup
from .failures import Misuse

_OF_THE_APPLICATION = ("role", "config", "prefix", "instance")
"""Settings that only the application itself sets."""


@dataclass(frozen=True)
class Application:
    """The Flask application that a command runs in: the settings of its `Modelyard`."""

    settings: Settings

    @property
    def url(self) -> str:
        """The address of its API: of its model host, or of the server that ``flask run`` starts."""
        from ..cluster.hosting.folder import HostFolder  # noqa: PLC0415 - needed within an application alone

        if self.settings.is_hosted:
            return HostFolder.of(self.settings).url
        port = self.settings.port if self.settings.port != UNKNOWN_PORT else os.environ.get("FLASK_RUN_PORT", "5000")
        return f"http://127.0.0.1:{port}{self.settings.prefix}"

    def with_options(self, options: Mapping[str, str], overrides: Sequence[str] = ()) -> Settings:
        """Return the settings with those, and the ``--set``, of a command line. Raises ConfigError and Misuse."""
        for name in _OF_THE_APPLICATION:
            if name in options:
                raise Misuse(f"{name} can't be given here: the application sets it")
        given = from_text(Settings, options, "command line")
        origins = dict.fromkeys(given, Origin(LayerName.COMMAND_LINE))
        if overrides:
            given["overrides"] = tuple(overrides)
        return replace(self.settings, **given, origins={**self.settings.origins, **origins})


def current_application() -> Application | None:
    """Return the application that the current command runs in; None for the command ``modelyard``."""
    context = click.get_current_context(silent=True)
    return None if context is None else context.find_object(Application)


def settings_with(options: Mapping[str, str]) -> Settings:
    """Return the settings of the application that the command runs in, or else of this environment, with ``options``.

    Raises ConfigError.
    """
    application = current_application()
    if application is not None:
        return application.with_options(options)
    return load(from_text(Settings, options, "command line"))


@click.group("modelyard", cls=LazyGroup, in_application=True)
@click.pass_context
def group(ctx: click.Context) -> None:
    """See and change the models of this application."""
    from flask.cli import ScriptInfo  # noqa: PLC0415 - the command `modelyard` does not need Flask

    from ..server.extension import KEY  # noqa: PLC0415

    application = ctx.ensure_object(ScriptInfo).load_app()
    runtime = application.extensions.get(KEY)
    if runtime is None:
        raise ConfigError(f"{application.import_name} has no Modelyard: Modelyard(app) first")
    ctx.obj = Application(runtime.settings)
