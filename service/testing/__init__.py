"""The pytest plugin: fixtures with which an application's tests need no model. See docs/testing.md.

pytest imports it by itself wherever modelyard is installed. It loads nothing until one of its fixtures is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flask import Flask

    from ..client.client import Client
    from ..engines.scripted import Answers
    from ..server.runtime import Runtime
    from ..worker.protocol import WorkerManager


def _part(name: str) -> Any:
    return importlib.import_module(f"modelyard.{name}")


@pytest.fixture
def modelyard_models() -> dict[str, str]:
    """The models of `modelyard_app`, type by name. Override it with those that your application asks for."""
    return {"echo": "llm", "echo-embed": "text2vec"}


@pytest.fixture
def modelyard_answers() -> Answers:
    """What the models of this test say (`say`, `hold`, `fail`, `refuse`), and what they were asked (`prompts`)."""
    answers: Answers = _part("engines.scripted").Answers()
    return answers


@pytest.fixture
def modelyard_take_over(
    modelyard_answers: Answers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Runtime]]:
    """A function that lets `modelyard_answers` speak for the models of an application, until the test ends.

    ``modelyard_take_over(app)`` is for one with ``Modelyard(app, models=[...])``; give ``models={"name": "llm"}``
    where it names none of its own. Returns the runtime, whose models are ready.
    """
    with ExitStack() as stack:

        def take_over(app: Flask, models: Mapping[str, str] | None = None) -> Runtime:
            folder = tmp_path_factory.mktemp("modelyard")
            entered = _part("testing.service").taken_over(app, models or {}, modelyard_answers, folder)
            runtime: Runtime = stack.enter_context(entered)
            return runtime

        yield take_over


@pytest.fixture
def modelyard_app(modelyard_models: dict[str, str], modelyard_take_over: Callable[..., Runtime]) -> Flask:
    """A Flask application with nothing in it but the models of `modelyard_models`, under ``/api``."""
    app: Flask = _part("testing.service").new_app()
    modelyard_take_over(app, modelyard_models)
    return app


@pytest.fixture
def modelyard_manager(modelyard_app: Flask) -> WorkerManager:
    """The manager of `modelyard_app`: what ``current_modelyard().manager`` is within it."""
    manager: WorkerManager = modelyard_app.extensions["modelyard"].manager
    return manager


@pytest.fixture
def modelyard_url(modelyard_app: Flask) -> Iterator[str]:
    """The address of `modelyard_app`, served over HTTP on a free port, with the API's prefix."""
    with _part("testing.service").serving(modelyard_app) as url:
        yield f"{url}/api"


@pytest.fixture
def modelyard_client(modelyard_url: str) -> Iterator[Client]:
    """A `modelyard.Client` of `modelyard_url`, which repeats nothing."""
    with _part("client.client").Client(modelyard_url, token="", retries=0) as client:
        yield client
