"""A plugin of pytest for the suites of Flask and its extensions: every application that a test makes has Modelyard."""

from __future__ import annotations

import itertools
from functools import wraps
from typing import Any

import pytest
from flask import Flask
from modelyard import Modelyard
from modelyard.server.runtime import Runtime

_numbers = itertools.count()
_runtimes: list[Runtime] = []
_make = Flask.__init__


@wraps(_make)
def _make_with_modelyard(self: Flask, *arguments: Any, **options: Any) -> None:
    _make(self, *arguments, **options)
    extension = Modelyard(models=["echo"], placement="inline", instance=f"app-{next(_numbers)}")
    _runtimes.append(extension.init_app(self, url_prefix="/modelyard/api", openai=True, metrics="open"))


Flask.__init__ = _make_with_modelyard  # type: ignore[method-assign]


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Stop the models of the test's applications, if it has sent them a request."""
    while _runtimes:
        _runtimes.pop().stop()
