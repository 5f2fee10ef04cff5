"""Progress of a pull: one line that is redrawn on a terminal, one line for every tenth elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

from ..models.progress import Stage
from ..settings.sizes import size

REDRAW = 0.1
"""Seconds between two redraws."""

_WORDS: dict[str, str] = {Stage.WAITING: "waiting for another pull"}


class PullProgress:
    """Prints the progress of pulling one model; pass it to `pull` as ``progress``, and `close` it."""

    def __init__(self, name: str, out: TextIO | None = None) -> None:
        """Write to ``out``, or to standard error."""
        self._name = name
        self._out = out or sys.stderr
        self._redraws = self._out.isatty()
        self._stage = ""
        self._tenth = 0
        self._drawn = ""
        self._next = 0.0
        self.fetched = False
        """Whether anything was downloaded."""

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Print that ``done`` bytes of ``total`` are through a stage."""
        self.fetched = self.fetched or stage == Stage.DOWNLOADING
        entered = stage != self._stage
        if entered:
            self._stage, self._tenth = stage, 0
        if self._redraws:
            self._draw(stage, done, total, at_once=entered)
        elif entered and stage != Stage.CHECKING:
            self._print_line(stage, f" {size(total)}" if total else "")
        if not self._redraws and total and stage != Stage.CHECKING:
            self._print_tenth(stage, min(10, 10 * done // total))

    def close(self) -> None:
        """Erase the line that was drawn."""
        if self._drawn:
            self._write("\r" + " " * len(self._drawn) + "\r")
            self._drawn = ""

    def _draw(self, stage: str, done: int, total: int | None, *, at_once: bool) -> None:
        now = time.monotonic()
        if now < self._next and not at_once:
            return
        self._next = now + REDRAW
        text = f"{self._name}: {_WORDS.get(stage, stage)}"
        if total:
            text += f" {min(100, 100 * done // total):3d} %  {size(min(done, total))} of {size(total)}"
        text = text[: shutil.get_terminal_size().columns - 1]
        self._write("\r" + text.ljust(len(self._drawn)))
        self._drawn = text

    def _print_tenth(self, stage: str, tenth: int) -> None:
        if tenth > self._tenth:
            self._tenth = tenth
            self._print_line(stage, f" {10 * tenth} %")

    def _print_line(self, stage: str, rest: str) -> None:
        self._write(f"{self._name}: {_WORDS.get(stage, stage)}{rest}\n")

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
