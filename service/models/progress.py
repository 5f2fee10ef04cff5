"""Progress of a pull: its stages, and the callback that gets them."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TypeAlias


class Stage(StrEnum):
    """A part of a pull, as people read it."""

    WAITING = "waiting"
    """For another pull into the same folder."""
    DOWNLOADING = "downloading"
    EXTRACTING = "extracting"
    CONVERTING = "converting"
    CHECKING = "checking"
    """Reading a file for its checksum."""


Progress: TypeAlias = Callable[[Stage, int, int | None], None]
"""Gets the stage, the bytes done, and all bytes if known. It is called often, so it must be quick."""


def silent(stage: Stage, done: int, total: int | None) -> None:
    """Report nothing."""
