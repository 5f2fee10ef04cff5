"""create_app: a Flask application that is nothing but the extension."""

from __future__ import annotations

from flask import Flask

from ..blueprints.request.problems import install_in_app
from ..settings import loading
from ..settings.settings import Settings
from .extension import attach
from .runtime import Runtime


def create_app(settings: Settings | None = None) -> Flask:
    """Return the WSGI application of the role that ``settings`` (default: environment and file) name.

    Builds objects only: models start with the first request, or when the server says so. Raises ConfigError.
    """
    app = Flask("modelyard", static_folder=None, template_folder=None)
    runtime = Runtime(settings or loading.load())
    install_in_app(app)
    attach(app, runtime, probes_prefix="")
    return app
