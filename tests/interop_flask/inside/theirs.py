"""Applications that nobody here wrote, one of them as ``app``: that of the variable ``APPLICATION``.

Their sources are on the path. Their data are in the working folder. With ``MOUNTED`` each has Modelyard.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

from flask import Flask
from modelyard import Modelyard

DATA = Path.cwd()
PREFIX = "/ml/api"


def tutorial() -> Flask:
    """Return the application of Flask's tutorial."""
    from flaskr import create_app
    from flaskr.db import init_db

    app: Flask = create_app({"SECRET_KEY": "dev", "DATABASE": str(DATA / "flaskr.sqlite")})
    if not Path(app.config["DATABASE"]).exists():
        with app.app_context():
            init_db()
    return app


def login() -> Flask:
    """Return an example of Flask-Security: Flask-Login, Flask-SQLAlchemy, Flask-WTF, Flask-Babel.

    It has used its engine before a server forks.
    """
    os.environ["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{DATA}/users.db"
    from fsqlalchemy1 import app as example

    app: Flask = example.create_app()
    with app.app_context():
        example.create_users()
    return app


def admin() -> Flask:
    """Return an example of Flask-AppBuilder: also Flask-Limiter and Flask-JWT-Extended.

    Its module of extensions is not in the distribution; these are the lines of the documentation.
    """
    import config
    from flask_appbuilder import AppBuilder
    from flask_appbuilder.utils.legacy import get_sqla_class

    config.SQLALCHEMY_DATABASE_URI = f"sqlite:///{DATA}/app.db"
    config.RATELIMIT_ENABLED = True
    extensions = ModuleType("app.extensions")
    extensions.db, extensions.appbuilder = get_sqla_class()(), AppBuilder()  # type: ignore[attr-defined]
    sys.modules[extensions.__name__] = extensions
    made: Flask = import_module("app").app
    with made.app_context():
        manager = extensions.appbuilder.sm  # type: ignore[attr-defined]
        if manager.find_user("admin") is None:
            manager.add_user("admin", "Ada", "Admin", "admin@test.org", manager.find_role("Admin"), "password")
    return made


def httpbin() -> Flask:
    """Return httpbin: every method, status and encoding, streams, a hook before and one after each request."""
    app: Flask = import_module("httpbin").app
    return app


def guarded() -> Flask:
    """Return an example of Flask-Limiter within CSRFProtect, Compress and Talisman, as their pages add them.

    TLS ends in front of it.
    """
    from flask_compress import Compress
    from flask_talisman import Talisman
    from flask_wtf.csrf import CSRFProtect, generate_csrf

    app: Flask = import_module("kitchensink").app()
    app.secret_key = "dev"
    # One that a user adds: then a stream of events must pass it piece by piece all the same.
    app.config["COMPRESS_MIMETYPES"] = ["text/html", "application/json"]
    csrf = CSRFProtect(app)
    Compress(app)
    Talisman(app, force_https=False, session_cookie_secure=False)
    app.add_url_rule("/csrf", "csrf", lambda: {"token": generate_csrf(), "padding": "x" * 1000})
    if os.environ.get("MOUNTED"):
        mount(app)
        if not os.environ.get("NOT_EXEMPT"):
            # The lines of docs/flask.md.
            limiter = next(iter(app.extensions["limiter"]))
            for name, blueprint in app.blueprints.items():
                if name.startswith("modelyard_"):
                    csrf.exempt(blueprint)
                    limiter.exempt(blueprint)
    return app


def mount(app: Flask) -> None:
    """Put Modelyard into an application, as docs/flask.md shows it."""
    Modelyard(app, url_prefix=PREFIX, models=["script", "echo"], openai=True, metrics="open")


APPLICATIONS: dict[str, Callable[[], Flask]] = {
    each.__name__: each for each in (tutorial, login, admin, httpbin, guarded)
}
app = APPLICATIONS[os.environ["APPLICATION"]]()
if os.environ.get("MOUNTED") and "modelyard" not in app.extensions:
    mount(app)
