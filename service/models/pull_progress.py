"""What a pull tells while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int | None], None]
"""Called with the stage, the bytes done, and the bytes in all where they are known; often, so be quick."""

WAITING = "waiting"
"""For another pull into the same folder."""
DOWNLOADING = "downloading"
EXTRACTING = "extracting"
CONVERTING = "converting"
CHECKING = "checking"
"""Reading what is there, for its checksum."""


def silent(stage: str, done: int, total: int | None) -> None:
    """Tell nobody."""
