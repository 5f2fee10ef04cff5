"""What gunicorn and ``flask --app wsgi`` run."""

from factory import create_app

app = create_app()
