"""A service with web pages, in the test's own process, and what a browser sends to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from modelyard.access.tokens import Token, digest_of, parse_scopes
from modelyard.server.extension import KEY, create_app
from modelyard.server.runtime import Runtime
from modelyard.settings.settings import Settings

Build = Callable[..., Flask]

SECRETS = {"infer": "modelyard_infer", "admin": "modelyard_admin", "worker": "modelyard_worker"}
TOKENS = [Token(f"t-{scope}", parse_scopes(scope), digest_of(text)).line for scope, text in SECRETS.items()]
"""A token of each scope, by the secrets above."""
OWN = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
"""What a browser sends with a form of a page of this service."""


@contextmanager
def building(folder: Path) -> Iterator[Build]:
    """Give what makes applications, started, whose runtimes are stopped in the end."""
    with ExitStack() as stack:

        def build(**settings: Any) -> Flask:
            given = {"state_dir": str(folder / "state"), "models_dirs": [str(folder)], "registry": "memory:"}
            app = create_app(Settings(**{**given, "model_tables": ({"name": "echo"},), **settings}))
            runtime: Runtime = app.extensions[KEY]
            stack.callback(runtime.stop)
            runtime.start()
            assert runtime.wait_loaded(10)
            return app

        yield build


def sign_in(client: FlaskClient, secret: str, wanted: str = "", **headers: str) -> Any:
    """Send the form of the sign-in as a browser does."""
    form = {"key": secret, "next": wanted}
    return client.post("/ui/sign-in/send", data=form, headers={**OWN, **headers})


def read_keys(app: Flask) -> None:
    """Let a service see the keys of its store now, and not in two seconds."""
    keys = app.extensions[KEY].keys
    with keys._reading:
        keys._read()
