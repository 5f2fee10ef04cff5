"""What a check of `modelyard doctor` finds: ok, a warning or a failure, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is, the worst last."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    level: Level
    result: str
    """What was found, and what it means."""
    advice: str | None = None
    """What to do; None if all is well."""

    @classmethod
    def ok(cls, check: str, result: str) -> Finding:
        """Return the finding that all is well."""
        return cls(check, Level.OK, result)

    @classmethod
    def warning(cls, check: str, result: str, advice: str) -> Finding:
        """Return a finding that may do harm."""
        return cls(check, Level.WARNING, result, advice)

    @classmethod
    def failure(cls, check: str, result: str, advice: str) -> Finding:
        """Return a finding that does harm."""
        return cls(check, Level.FAILURE, result, advice)


def worst(findings: list[Finding]) -> Level:
    """Return the worst level; ok without findings."""
    order = list(Level)
    return max((finding.level for finding in findings), key=order.index, default=Level.OK)
