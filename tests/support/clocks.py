"""A clock for tests that set the time."""

from __future__ import annotations


class Clock:
    """A clock that stands still: a test changes ``now``, in seconds."""

    def __init__(self, now: float) -> None:
        """Show ``now``."""
        self.now = now

    def __call__(self) -> float:
        """Return the time."""
        return self.now
