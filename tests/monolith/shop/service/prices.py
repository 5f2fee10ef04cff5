"""Prices."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Price:
    """So many euros."""

    euros: int

    def __str__(self) -> str:
        return f"{self.euros} EUR"
