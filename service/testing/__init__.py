"""The pytest plugin: fixtures that let an application's tests run without a model. See docs/testing.md.

pytest imports it wherever modelyard is installed. It loads nothing until a test uses one of its fixtures.
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
    """The models of `modelyard_app`, type by name. Override it with the models that your application calls."""
    return {"echo": "llm", "echo-embed": "text2vec"}


@pytest.fixture
def modelyard_answers() -> Answers:
    """The script of this test's models (`say`, `hold`, `fail`, `refuse`), and the record of their calls (`prompts`)."""
    answers: Answers = _part("engines.scripted").Answers()
    return answers


@pytest.fixture
def modelyard_take_over(
    modelyard_answers: Answers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Runtime]]:
    """A function that lets `modelyard_answers` answer for the models of an application, until the test ends.

    ``modelyard_take_over(app)`` takes an application with ``Modelyard(app, models=[...])``. Give
    ``models={"name": "llm"}`` where the application lists no models. Returns the runtime, whose models are ready.
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
    """A Flask application that has the models of `modelyard_models` under ``/api``, and nothing else."""
    app: Flask = _part("testing.service").new_app()
    modelyard_take_over(app, modelyard_models)
    return app


@pytest.fixture
def modelyard_manager(modelyard_app: Flask) -> WorkerManager:
    """The manager of `modelyard_app`, which is ``current_modelyard().manager`` within it."""
    manager: WorkerManager = modelyard_app.extensions["modelyard"].manager
    return manager


@pytest.fixture
def modelyard_url(modelyard_app: Flask) -> Iterator[str]:
    """The URL of `modelyard_app`, served over HTTP on a free port, with the prefix of the API."""
    with _part("testing.service").serving(modelyard_app) as url:
        yield f"{url}/api"


@pytest.fixture
def modelyard_client(modelyard_url: str) -> Iterator[Client]:
    """A `modelyard.Client` for `modelyard_url`, without retries."""
    with _part("client.client").Client(modelyard_url, token="", retries=0) as client:
        yield client
