"""The WSGI application, for ``gunicorn modelyard.wsgi:app``. Importing it starts nothing."""

from .app import create_app

app = create_app()
