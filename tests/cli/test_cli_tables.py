from __future__ import annotations

import pytest
from modelyard.cli.tables import printable, shown, table
from modelyard.settings.sizes import size


def test_columns_are_as_wide_as_their_widest_cell_and_lines_do_not_end_in_blanks():
    assert table(("A", "LONG"), [("xyz", 1), ("x", None)]).splitlines() == ["A    LONG", "xyz  1", "x    -"]


def test_a_last_column_without_a_value_is_left_out():
    assert table(("NAME", "REASON"), [("x", None), ("y", "")]).splitlines() == ["NAME", "x", "y"]


def test_a_table_without_rows_has_its_headings():
    assert table(("NAME", "REASON"), []) == "NAME  REASON"


def test_without_a_width_nothing_is_cut_or_wrapped():
    long = "word " * 100
    assert table(("A",), [(long.strip(),)]).splitlines() == ["A", long.strip()]


@pytest.mark.parametrize("width", [20, 40, 80])
def test_no_line_is_wider_than_the_terminal_and_no_word_is_lost(width: int):
    text = "the quick brown fox jumps over the lazy dog " * 3
    printed = table(("NAME", "HELP"), [("smollm2-135m", text)], width)
    assert all(len(line) <= width for line in printed.splitlines())
    assert printed.replace("\n", " ").split().count("quick") == 3


def test_a_word_that_is_longer_than_its_column_is_broken():
    path = "/" + "x" * 100
    printed = table(("NAME", "PATH"), [("m", path)], 40)
    assert all(len(line) <= 40 for line in printed.splitlines())
    assert "".join(line[6:] for line in printed.splitlines()[1:]).replace(" ", "") == path[: 100 + 1]


def test_only_the_widest_column_is_wrapped():
    lines = table(("NAME", "HELP"), [("smollm2-135m", "help " * 30)], 60).splitlines()
    assert lines[1].startswith("smollm2-135m  help")


def test_wide_characters_take_two_cells_and_combining_ones_none():
    rows = [("模型", "x"), ("ab", "x"), ("e\u0301e\u0301e\u0301", "x")]
    assert [line.index("x") for line in table(("N", "V"), rows).splitlines()[1:]] == [4, 6, 9]


def test_what_would_move_the_cursor_is_not_printed():
    assert "\x1b" not in table(("NAME",), [("\x1b[2Jgone\r\n\ttext",)])
    assert printable("a\r\nb\x1b[31m\u202e") == "a  b\ufffd[31m\ufffd"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (True, "yes"),
        (False, "no"),
        (30.0, "30"),
        (0.1, "0.1"),
        (1e-7, "1e-07"),
        (["a", "b"], "a,b"),
        (7, "7"),
    ],
)
def test_values_are_shown_as_people_write_them(value: object, text: str):
    assert shown(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (98_362_432, "98.4 MB"), (5 * 10**15, "5000.0 TB")],
)
def test_sizes_have_a_unit(count: int, text: str):
    assert size(count) == text
