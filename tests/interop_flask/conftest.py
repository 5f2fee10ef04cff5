"""The suites and services of the checks, and the line of each suite at the end. No part of `make test`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import ROOT, Services, services

sys.path.insert(0, str(ROOT))

from suites import Suites

collect_ignore = ["inside"]
SUITES = Suites(Path(__file__).parent)


@pytest.fixture(scope="session")
def suites() -> Suites:
    """Runs the suites of this folder."""
    return SUITES


@pytest.fixture
def run() -> Iterator[Services]:
    """Makes services that end with the check; their logs may have the tracebacks of the applications' own errors."""
    with services() as made:
        yield made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the line of each suite."""
    terminalreporter.section("suites")
    for line in SUITES.lines:
        terminalreporter.line(line)
