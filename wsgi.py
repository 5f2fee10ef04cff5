"""The WSGI application, for ``gunicorn wsgi:app`` in a checkout. Importing it starts nothing."""

from modelyard.server.extension import create_app

app = create_app()
