"""What ``modelyard`` exports is exact, and each name is there."""

from __future__ import annotations

import importlib
import subprocess
import sys

import modelyard
import pytest
from modelyard.version import __version__


def test_the_exported_names_are_exact():
    assert modelyard.__all__ == ["Client", "Modelyard", "__version__", "create_app", "current_modelyard"]


@pytest.mark.parametrize(
    ("name", "home"),
    [
        ("Client", "client.client"),
        ("Modelyard", "server.extension"),
        ("current_modelyard", "server.extension"),
        ("create_app", "server.extension"),
        ("__version__", "version"),
    ],
)
def test_each_name_is_the_one_of_its_module(name, home):
    assert getattr(modelyard, name) is getattr(importlib.import_module(f"modelyard.{home}"), name)


def test_every_exported_name_can_be_imported_with_a_star():
    script = "from modelyard import *\nprint(sorted(name for name in dir() if name != '__builtins__'))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert set(modelyard.__all__) <= set(eval(ran.stdout))


def test_what_is_not_there_is_said_as_python_says_it():
    with pytest.raises(AttributeError, match="module 'modelyard' has no attribute 'nothing'"):
        modelyard.nothing  # noqa: B018 - the look-up is the test
    assert not hasattr(modelyard, "Runtime")


def test_the_version_is_one():
    assert modelyard.__version__ == __version__
    assert len(__version__.split(".")) >= 3
