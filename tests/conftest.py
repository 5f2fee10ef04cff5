"""What all tests share: the default weights, services that end with the test, and no skips where it counts."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from modelyard.models.catalog import Catalog
from running import ROOT, Services, services
from stores import StoreServers

# A missing part skips a test on a laptop; where changes are judged it fails the run.
IN_CI = os.environ.get("CI") == "true"
# Not in the environment of the services: they refuse a variable that they do not read.
MODELS = Path(os.environ.pop("MODELYARD_TEST_MODELS", "") or ROOT / "models")
_skipped: list[str] = []
LOG_SHOWN = 6000
"""Characters of a service's log that the report of a failed test shows."""


def pytest_configure() -> None:
    # nohup and background shells start the run with signals ignored, and a child inherits that; a handler it does not.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, _ignore)


def _ignore(number: int, frame: object) -> None:
    """Ignore a signal in this process alone."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector out of what is collected: half of the time, and a second for each later pass."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note_skip(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note_skip(report)


def _note_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _skipped.append(f"{report.nodeid}: {reason}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the ends of the services' logs to the report of a failed test."""
    report = yield
    if report.failed:
        arguments = getattr(item, "funcargs", {})
        for made in {id(made): made for made in arguments.values() if isinstance(made, Services)}.values():
            report.sections += [(f"log of {name}", log[-LOG_SHOWN:]) for name, log in made.logs().items()]
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if IN_CI and _skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if IN_CI and _skipped:
        terminalreporter.section("skipped, which fails the run: CI is true", red=True)
        for line in _skipped:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The folder that ``modelyard pull`` fills, with the default weights in it."""
    folder = MODELS
    for entry in Catalog.load():
        if entry.model_path is not None and not (folder / entry.model_path).exists():
            pytest.skip(f"{entry.model_path} is not in {folder}: modelyard pull --models-dirs {folder}")
    return folder


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a full disk needs the right to mount one: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def run() -> Iterator[Services]:
    """Makes services that end with the test; their models folder is empty."""
    with services() as made:
        yield made


@pytest.fixture(scope="module")
def run_module() -> Iterator[Services]:
    """Makes services that end with the module."""
    with services() as made:
        yield made


@pytest.fixture(scope="session")
def store_server() -> Iterator[StoreServers]:
    """Gives the server of a kind (``store_server("redis")``), running and empty; the same all through the session."""
    servers = StoreServers()
    try:
        yield servers
    finally:
        servers.close()
