from __future__ import annotations

import io
import re

from modelyard.cli.progress import PullProgress

MB = 1_000_000


class Terminal(io.StringIO):
    """A text file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_elsewhere_than_on_a_terminal_every_tenth_is_a_line():
    out = io.StringIO()
    progress = PullProgress("m", out)
    for done in range(0, 101):
        progress("downloading", done * MB, 100 * MB)
    lines = out.getvalue().splitlines()
    assert lines == ["m: downloading 100.0 MB", *(f"m: downloading {tenth} %" for tenth in range(10, 101, 10))]


def test_tenths_that_were_jumped_over_are_not_made_up():
    out = io.StringIO()
    progress = PullProgress("m", out)
    for done in (0, 34, 35, 99, 100, 100):
        progress("downloading", done, 100)
    assert [line.split()[-2] for line in out.getvalue().splitlines()[1:]] == ["30", "90", "100"]


def test_more_than_was_expected_stays_at_100():
    out = io.StringIO()
    progress = PullProgress("m", out)
    progress("downloading", 150, 100)
    progress("downloading", 250, 100)
    assert out.getvalue().splitlines()[1:] == ["m: downloading 100 %"]


def test_without_a_total_a_stage_is_one_line():
    out = io.StringIO()
    progress = PullProgress("m", out)
    progress("waiting", 0, None)
    progress("downloading", 5, None)
    progress("downloading", 9, None)
    assert out.getvalue().splitlines() == ["m: waiting for another pull", "m: downloading"]


def test_checking_what_is_there_is_silent_elsewhere_than_on_a_terminal():
    out = io.StringIO()
    progress = PullProgress("m", out)
    for done in range(0, 101):
        progress("checking", done, 100)
    assert out.getvalue() == ""
    assert not progress.fetched


def test_on_a_terminal_one_line_is_drawn_again_and_again_and_removed_at_the_end(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    out = Terminal()
    progress = PullProgress("a-long-name-of-a-model", out)
    for stage in ("downloading", "extracting", "checking"):
        for done in range(0, 101):
            progress(stage, done * MB, 100 * MB)
    progress.close()
    assert "\n" not in out.getvalue()
    drawn = [text for text in out.getvalue().split("\r") if text]
    assert all(len(text) < 40 for text in drawn)
    assert drawn[0].startswith("a-long-name-of-a-model: downloading")
    assert drawn[-1].strip() == ""
    assert len(drawn[-1]) >= len(drawn[-2].rstrip())
    assert out.getvalue().endswith("\r")
    # Drawn ten times a second at most, and at once when a stage begins.
    assert 4 <= len(drawn) < 100


def test_percent_and_bytes_are_drawn(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    out = Terminal()
    PullProgress("m", out)("downloading", 25 * MB, 100 * MB)
    assert re.fullmatch(r"\rm: downloading +25 %  25.0 MB of 100.0 MB", out.getvalue())


def test_it_knows_whether_anything_was_fetched():
    progress = PullProgress("m", io.StringIO())
    assert not progress.fetched
    progress("downloading", 0, None)
    progress("extracting", 0, None)
    assert progress.fetched
