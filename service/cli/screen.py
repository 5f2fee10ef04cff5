"""A screen of text in a terminal, redrawn without flicker by curses, which also leaves the terminal as it was."""

from __future__ import annotations

import contextlib
import curses
import os
import sys
from collections.abc import Callable, Sequence

LOOK_MS = 100
"""Milliseconds between two looks at the keyboard and at the lines."""
_DUMB = ("", "dumb", "unknown")
_STEPS = {curses.KEY_UP: -1, curses.KEY_DOWN: 1}


Line = tuple[str, bool]
"""The text of a line, and whether it is a heading, which is shown reversed."""


def is_possible() -> bool:
    """Return whether standard input and output are a terminal whose cursor can be moved."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM", "") in _DUMB:
        return False
    try:
        curses.setupterm()
    except curses.error:
        return False
    return curses.tigetstr("cup") is not None


def show(lines_for: Callable[[int], Sequence[Line]]) -> None:
    """Show ``lines_for(width)`` until the user presses q or Ctrl-C; longer screens scroll with the arrow keys."""
    with contextlib.suppress(KeyboardInterrupt):
        curses.wrapper(lambda window: _loop(window, lines_for))


def _loop(window: curses.window, lines_for: Callable[[int], Sequence[Line]]) -> None:
    with contextlib.suppress(curses.error):  # of a terminal without colours, or that always shows its cursor
        curses.use_default_colors()
        curses.curs_set(0)
    window.timeout(LOOK_MS)
    first = 0
    while True:
        height, width = window.getmaxyx()
        lines = lines_for(width)
        first = max(0, min(first, len(lines) - height))
        _draw(window, lines[first : first + height], width)
        key = window.getch()
        if key in (ord("q"), ord("Q")):
            return
        pages = {curses.KEY_PPAGE: -height, curses.KEY_NPAGE: height}
        first += {**_STEPS, **pages}.get(key, 0)


def _draw(window: curses.window, lines: Sequence[Line], width: int) -> None:
    window.erase()
    for row, (text, is_heading) in enumerate(lines):
        # The cursor has no place behind the last cell, and the terminal may have become smaller meanwhile.
        with contextlib.suppress(curses.error):
            attribute = curses.A_REVERSE if is_heading else curses.A_NORMAL
            window.addnstr(row, 0, text.ljust(width) if is_heading else text, width, attribute)
    window.refresh()
