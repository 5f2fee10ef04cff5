"""One module for each figure, with NAME, TITLE, LIMITS (why a target may be missed) and ``measure(plan)``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from ..plan import Plan
from ..report import Row
from . import (
    agent,
    busy,
    copies,
    detection,
    engines,
    engines_minilm,
    faces,
    gateway,
    gateway_added,
    gateway_streams,
    hop,
    hosted,
    isolation,
    joint,
    keys,
    memory,
    metrics,
    overload,
    paced,
    recovery,
    registry,
    requests,
    room,
    saturated,
    sessions,
    smollm2,
    tracing,
    uneven,
    unpaced,
)


class Figure(Protocol):
    """The protocol of the modules."""

    NAME: str
    TITLE: str
    LIMITS: str

    def measure(self, plan: Plan) -> Iterator[Row]:
        """Measure, and yield each row when it is ready. The servers end with the iterator."""


GATEWAYS: tuple[Figure, ...] = (gateway, gateway_added, gateway_streams)
"""Those that compare gateways; the others compare with DB-GPT."""

FIGURES: tuple[Figure, ...] = (
    paced,
    unpaced,
    requests,
    smollm2,
    engines,
    engines_minilm,
    joint,
    room,
    busy,
    overload,
    memory,
    recovery,
    hop,
    sessions,
    registry,
    keys,
    detection,
    uneven,
    agent,
    hosted,
    isolation,
    copies,
    saturated,
    tracing,
    metrics,
    faces,
    *GATEWAYS,
)
