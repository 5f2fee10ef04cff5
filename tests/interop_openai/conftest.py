"""The services that the suites run against, and the line of each suite at the end. No part of `make test`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import ROOT, Service, Services, services

sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]

import suites  # noqa: E402 - found by the path above

collect_ignore = ["inside"]
ANSWERS = Path(__file__).with_name("answers.toml")
SCRIPTED_NAMES = (
    *("gpt-6-astra", "gpt-5.4", "gpt-4o-mini", "gpt-3.5-turbo-instruct"),
    *("claude-opus-5-5", "claude-mythos-preview"),
)
"""The names of models that the suites ask for."""
EMBEDDER = """
[[models]]
name = "text-embedding-3-small"
engine = "echo"
worker_type = "text2vec"
"""
SCRIPTED = EMBEDDER + "".join(
    f"""
[[models]]
name = "{name}"
worker_class = "modelyard.engines.scripted:Scripted"
table = "{ANSWERS}"
"""
    for name in SCRIPTED_NAMES
)


@pytest.fixture(scope="session")
def run() -> Iterator[Services]:
    """Makes services that end with the session."""
    with services() as made:
        yield made


@pytest.fixture(scope="session")
def scripted(run: Services) -> Service:
    """A standalone service whose models answer from the table `ANSWERS`."""
    return run.start(SCRIPTED, role="standalone")


@pytest.fixture(scope="session")
def gateway(run: Services) -> Service:
    """A gateway over a worker that has the same models."""
    controller = run.start("", "controller", registry="memory:")
    registry = controller.url("/api").removesuffix("/")
    run.start(SCRIPTED, "worker", registry=registry)
    return run.start("", "gateway", registry=registry)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the line of each suite."""
    terminalreporter.section("suites")
    for line in suites.lines:
        terminalreporter.line(line)
