"""The notebook: people log in, ask a model, and find their questions and its answers again."""

from __future__ import annotations

import config
from flask import Flask, Response
from modelyard import Modelyard

from blueprints import auth, pages
from service import database


def create_app() -> Flask:
    app = Flask(__name__)
    app.config.from_object(config)
    database.create(app.config["DATABASE"])
    app.register_blueprint(auth.blueprint)
    app.register_blueprint(pages.blueprint)
    app.after_request(allow_own_scripts_only)
    Modelyard(app, url_prefix="/ml/api", models=[app.config["MODEL"]])
    return app


def allow_own_scripts_only(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = "default-src 'self'"
    return response
