"""Where the log of an application's process goes, and that it follows a rotation."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelyard.server import logs
from modelyard.settings.settings import Settings

NAMES = ("modelyard", "modelyard.access", "opentelemetry")


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """Loggers as in a new process, below a root without pytest's handlers; put back in the end."""
    made = logging.Logger("root", logging.WARNING)
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    monkeypatch.setattr(loggers[0], "parent", made)
    for logger in loggers:
        logger.handlers, logger.level, logger.propagate = [], logging.NOTSET, True
    yield made
    for logger, handlers, level, propagate in before:
        for handler in logger.handlers:
            handler.close()
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def write_both() -> None:
    logging.getLogger("modelyard.test").info("a record")
    logging.getLogger("modelyard.access").info("{access}")


def test_without_logging_of_its_own_an_application_has_the_log_on_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure_missing(Settings())
    write_both()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("a record")
    assert lines[1] == "{access}"


def test_log_file_and_log_level_count_in_an_application(
    root: logging.Logger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root.addHandler(logging.StreamHandler())
    logs.configure_missing(Settings(log_file=str(tmp_path / "log"), log_level="warning"))
    write_both()
    logging.getLogger("modelyard.test").warning("it is serious")
    text = (tmp_path / "log").read_text()
    assert "a record" not in text
    assert "{access}" in text
    assert "it is serious" in text
    assert capsys.readouterr().err == ""


def test_handlers_of_the_application_stay(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("theirs %(message)s"))
    root.addHandler(handler)
    logs.configure_missing(Settings())
    write_both()
    assert capsys.readouterr().err.splitlines() == ["theirs a record", "theirs {access}"]


def test_a_level_of_the_application_stays(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    root.addHandler(logging.StreamHandler())
    logging.getLogger("modelyard").setLevel("ERROR")
    logs.configure_missing(Settings())
    write_both()
    assert capsys.readouterr().err == ""


def test_a_file_that_can_not_be_written_is_told_and_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure_missing(Settings(log_file=str(tmp_path / "nowhere" / "log")))
    write_both()
    lines = capsys.readouterr().err.splitlines()
    assert "nowhere" in lines[0]
    assert lines[-1] == "{access}", "it goes to standard error"


def test_a_file_that_was_moved_away_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    logs.configure(Settings(log_file=str(path)))
    write_both()
    path.rename(tmp_path / "log.1")
    write_both()
    assert "a record" in path.read_text()
    assert (tmp_path / "log.1").read_text().count("a record") == 1


def test_each_file_that_takes_the_place_of_a_log_file_is_told_of_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("first")
    replaced = logs.FileReplaced(str(path))
    path.rename(tmp_path / "log.1")
    assert not replaced.check(), "nobody has made the next one yet"
    path.write_text("second")
    assert [replaced.check() for _ in range(2)] == [True, False]
    assert not logs.FileReplaced(None).check()
