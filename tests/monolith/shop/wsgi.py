"""A monolith of somebody else, with a past of its own, that took Modelyard in. gunicorn runs one of these."""

from __future__ import annotations

import os
from pathlib import Path

from factory import create_app
from flask import Flask
from modelyard.server.extension import Modelyard
from werkzeug.middleware.dispatcher import DispatcherMiddleware

if imports := os.environ.get("SHOP_IMPORTS"):
    with Path(imports).open("a") as journal:
        journal.write(f"{os.getpid()}\n")

app = create_app(worker=not os.environ.get("SHOP_LEAVES_OUT_THE_WORKER"))

office = Flask("office")
Modelyard(office, url_prefix="/models", models=["echo-embed"])
both = DispatcherMiddleware(app.wsgi_app, {"/office": office.wsgi_app})
