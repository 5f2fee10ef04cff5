"""The WSGI application, for ``gunicorn modelyard.server.wsgi:app``. Importing it starts nothing."""

from .extension import create_app

app = create_app()
