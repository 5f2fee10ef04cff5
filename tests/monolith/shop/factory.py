"""The factory of the shop: its own JSON, errors, login and headers, which nobody else may touch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from flask import Flask, Response, abort, jsonify, request
from flask.json.provider import DefaultJSONProvider
from modelyard.server.extension import Modelyard
from service.prices import Price

from blueprints.pages import pages


def note_start(manager: Any) -> None:
    """Write down that a process has started, and the models that it sees then."""
    if starts := os.environ.get("SHOP_STARTS"):
        models = sorted(instance.model_name for instance in manager.get_all_model_instances())
        with Path(starts).open("a") as journal:
            journal.write(f"{os.getpid()} {' '.join(models)}\n")


modelyard = Modelyard(after_start=note_start, models=os.environ.get("SHOP_MODELS", "echo,echo-embed,script").split(","))


class ShopJSON(DefaultJSONProvider):
    """Writes prices, and says that it was here."""

    def dumps(self, obj: Any, **kwargs: Any) -> str:
        return super().dumps({"shop": obj}, **kwargs)

    @staticmethod
    def default(value: Any) -> Any:
        return str(value) if isinstance(value, Price) else DefaultJSONProvider.default(value)


def create_app(**options: Any) -> Flask:
    app = Flask("shop")
    app.json = ShopJSON(app)
    app.config["MAX_CONTENT_LENGTH"] = 2000
    app.config["MODELYARD_SILENCE_TIMEOUT"] = 1.0
    app.before_request(log_in)
    app.after_request(sign)
    app.register_error_handler(404, lambda error: (jsonify("we have no such thing"), 404))
    app.register_error_handler(405, lambda error: (jsonify("not like that"), 405))
    app.register_error_handler(413, lambda error: (jsonify("too much"), 413))
    app.register_error_handler(Exception, lambda error: (jsonify(f"broken: {error}"), 500))
    app.register_error_handler(401, lambda error: (jsonify("who are you?"), 401))
    app.register_blueprint(pages)
    modelyard.init_app(app, url_prefix="/ml/api", **options)
    return app


def log_in() -> None:
    if request.headers.get("Shop-Login") != "bob" and not request.path.endswith(("/healthz", "/readyz", "/health")):
        abort(401)


def sign(response: Response) -> Response:
    response.headers["Shop"] = "yes"
    response.headers["Shop-Pid"] = str(os.getpid())
    return response
