"""The settings of ``gunicorn wsgi:app`` in a checkout: those that the package ships."""

from modelyard.server.gunicorn import *  # noqa: F403 - every name is a setting or a hook of gunicorn
