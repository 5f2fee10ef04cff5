"""Measure two sides in turns, so that other work of the machine affects both."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """The results of the rounds, in their order. ``theirs`` is empty without another side."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self.ours: list[T] = []
        self.theirs: list[T] = []

    def median(self, value: Callable[[T], float]) -> tuple[float, float | None]:
        """Return the medians of ``value`` over our rounds and over theirs."""
        ours = statistics.median(map(value, self.ours))
        return ours, statistics.median(map(value, self.theirs)) if self.theirs else None

    def ratio(self, value: Callable[[T], float]) -> float | None:
        """Return the median of the rounds' ratios, ours to theirs; None if theirs are missing or 0."""
        pairs = [(value(ours), value(theirs)) for ours, theirs in zip(self.ours, self.theirs, strict=False)]
        ratios = [ours / theirs for ours, theirs in pairs if theirs]
        return statistics.median(ratios) if ratios else None


def in_turns(rounds: int, ours: Callable[[], T], theirs: Callable[[], T] | None) -> Turns[T]:
    """Call both ``rounds`` times in turns; the first side changes from round to round."""
    turns: Turns[T] = Turns()
    for number in range(rounds):
        order: Sequence[tuple[list[T], Callable[[], T] | None]] = ((turns.ours, ours), (turns.theirs, theirs))
        for kept, measure in order if number % 2 == 0 else reversed(order):
            if measure is not None:
                kept.append(measure())
    return turns


def all_in_turns(rounds: int, sides: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Call each of ``sides`` ``rounds`` times in turns, and return its results; each round begins with another side."""
    kept: dict[str, list[T]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(rounds):
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            kept[name].append(sides[name]())
    return kept
