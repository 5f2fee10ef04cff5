"""A file that may change while it is used: looked at now and then, and read again only where it is another."""

from __future__ import annotations

import time
from pathlib import Path

LOOK_AGAIN = 1.0
"""Seconds between two looks at a file."""


class WatchedFile:
    """Make it before the file is first read, so that no change is missed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = self._look()
        self._look_at = time.monotonic() + LOOK_AGAIN

    def is_due(self) -> bool:
        """Return whether it is time to look again."""
        return time.monotonic() >= self._look_at

    def has_changed(self) -> bool:
        """Look; return whether it is another than at the last look."""
        self._look_at = time.monotonic() + LOOK_AGAIN
        before, self._seen = self._seen, self._look()
        return self._seen != before

    def _look(self) -> tuple[int, ...] | None:
        """Return what tells one content from another without reading it; None where the file is not there."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
