"""DB-GPT's environment, made once, and the processes of both sides. These checks are no part of `make test`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import ROOT, Services, services

sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]

from both import PEER, Both, both  # noqa: E402 - found by the path above


@pytest.fixture(scope="session", autouse=True)
def peer() -> None:
    """The package is there."""
    PEER.install()


@pytest.fixture(scope="module")
def sides(run_module: Services) -> Iterator[Both]:
    """Starts processes of both sides, which end with the module."""
    with both(run_module) as made:
        yield made


@pytest.fixture
def own_sides() -> Iterator[Both]:
    """The same, for one test that ends some of them."""
    with services() as run, both(run) as made:
        yield made
