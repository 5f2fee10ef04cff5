"""The rows of figures, and their table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Row:
    """One figure in one case. ``met`` is None without a target, or without a peer to compare with."""

    figure: str
    case: str
    ours: str
    peer: str = ""
    measured: str = ""
    """The number that is compared with the target, if it is not ``ours`` itself: mostly a ratio."""
    target: str = ""
    met: bool | None = None
    missed_by: str = ""
    """By how much the target is missed."""

    @property
    def verdict(self) -> str:
        """Return the last column."""
        if self.met is None:
            return "-"
        return "met" if self.met else f"MISSED ({self.missed_by})" if self.missed_by else "MISSED"


def at_least(row: Row, value: float | None, bound: float, unit: str = "x") -> Row:
    """Set the verdict of ``row``: ``value`` must be at least ``bound``. None leaves it open."""
    row.target = f">= {bound:g} {unit}"
    if value is not None:
        row.measured = row.measured or f"{value:.3g} {unit}"
        row.met = value >= bound
        row.missed_by = f"{(bound - value) / bound:.0%} short"
    return row


def at_most(row: Row, value: float | None, bound: float, unit: str) -> Row:
    """Set the verdict of ``row``: ``value`` must be less than ``bound``."""
    row.target = f"< {bound:g} {unit}"
    if value is not None:
        row.measured = row.measured or f"{value:.3g} {unit}"
        row.met = value < bound
        row.missed_by = f"{(value - bound) / bound:.0%} over"
    return row


HEADS = ("figure", "case", "ours", "peer", "measured", "target", "verdict")


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table with aligned columns."""
    cells = [HEADS, *((r.figure, r.case, r.ours, r.peer, r.measured, r.target, r.verdict) for r in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def count(value: float | None) -> str:
    """Return a number for the table, with thousands set apart; empty for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def of_clients(number: int) -> str:
    """Return the number of clients for the table."""
    return "1 client" if number == 1 else f"{number} clients"


def milliseconds(seconds: float | None) -> str:
    """Return a time for the table; empty for None."""
    return "" if seconds is None else f"{seconds * 1000:.3g} ms"


def kilobytes(size: float | None) -> str:
    """Return a size for the table; empty for None."""
    return "" if size is None else f"{size / 1000:,.1f} KB"


def megabytes(size: float | None) -> str:
    """Return a size for the table; empty for None."""
    return "" if size is None else f"{size / 1e6:.1f} MB"
