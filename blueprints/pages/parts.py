"""A long list in parts, with what its visitor looks for: of the models of a cluster, of keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from flask import request

T = TypeVar("T")


class Part(NamedTuple, Generic[T]):
    """The part of a list that a page shows."""

    rows: Sequence[T]
    amount: int
    """All entries that were looked for."""
    number: int
    """The number of the part, from 1."""
    pages: int
    """How many parts there are; 0 for an empty list."""
    wanted: str
    """What the visitor looks for; empty for all."""


class Choice(NamedTuple):
    """What a request chooses of a list: the text that it looks for, and the number of the part."""

    wanted: str
    number: int

    @classmethod
    def of_request(cls) -> Choice:
        """Return the choice in the query of the current request."""
        return cls(request.args.get("find", "").strip(), request.args.get("part", 1, int))

    def part(self, entries: Sequence[T], size: int, fits: Callable[[T, str], bool]) -> Part[T]:
        """Return the part of ``entries``, of ``size`` at most, whose entries ``fits(entry, wanted)`` accepts.

        A number that is too large, or less than 1, is that of the nearest part.
        """
        wanted = [entry for entry in entries if fits(entry, self.wanted)] if self.wanted else entries
        pages = -(-len(wanted) // size)
        number = min(max(1, self.number), pages or 1)
        return Part(wanted[(number - 1) * size : number * size], len(wanted), number, pages, self.wanted)
