"""Tables and printable text, for the width of a terminal, or for a pipe, where nothing is cut or wrapped."""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import click

GAP = 2
"""Spaces between two columns."""
NARROWEST = 8
"""The least width of a column, however narrow the terminal is."""


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]], width: int | None = None) -> str:
    """Return a table; with ``width``, wide columns are wrapped so that a line has at most that many cells.

    None is shown as ``-``. A last column without a value is left out.
    """
    cells = [[shown(value) for value in row] for row in rows]
    if cells and all(row[-1] in ("", "-") for row in cells):
        headings, cells = headings[:-1], [row[:-1] for row in cells]
    lines = [list(headings), *cells]
    widths = [max(_width(line[column]) for line in lines) for column in range(len(headings))]
    if width is not None:
        widths = _narrowed(widths, width)
    return "\n".join(text for line in lines for text in _line(line, widths))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table, as wide as the terminal at most."""
    click.echo(table(headings, rows, terminal_width()))


def terminal_width() -> int | None:
    """Return the width of the terminal; None if standard output is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def as_json(value: Any) -> str:
    """Return ``value`` as indented JSON."""
    return json.dumps(value, ensure_ascii=False, indent=2)


def shown(value: Any) -> str:
    """Return a value as text for people."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, list | tuple | set | frozenset):
        return ",".join(shown(item) for item in value)
    return printable(str(value))


def printable(text: str) -> str:
    """Return ``text`` on one line, without characters that move a terminal's cursor or change its colours."""
    return "".join(char if char.isprintable() else " " if char.isspace() else "\ufffd" for char in text)


def safe_text(text: str) -> str:
    """Return ``text`` with its lines and tabs, without characters that steer a terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)


def _width(text: str) -> int:
    return sum(_cells(char) for char in text)


def _cells(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _narrowed(widths: list[int], width: int) -> list[int]:
    """Narrow the widest columns, one cell at a time, until all fit."""
    widths = list(widths)
    excess = sum(widths) + GAP * (len(widths) - 1) - width
    while excess > 0:
        widest = max(widths)
        if widest <= NARROWEST:
            break
        widths[len(widths) - 1 - widths[::-1].index(widest)] -= 1
        excess -= 1
    return widths


def _line(cells: Sequence[str], widths: Sequence[int]) -> Iterable[str]:
    columns = [wrapped(cell, width) for cell, width in zip(cells, widths, strict=True)]
    for number in range(max(len(column) for column in columns)):
        parts = [column[number] if number < len(column) else "" for column in columns]
        padded = [part + " " * (width - _width(part)) for part, width in zip(parts, widths, strict=True)]
        yield (" " * GAP).join(padded).rstrip()


def wrapped(text: str, width: int) -> list[str]:
    """Break ``text`` at spaces; a word that is too long is broken anywhere."""
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if _width(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for char in word:
            if lines[-1] and _width(lines[-1]) + _cells(char) > width:
                lines.append("")
            lines[-1] += char
    return lines
