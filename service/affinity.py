"""Order the servers that a session prefers: rendezvous hashing, bounded by load.

Nothing is stored: every process has the same order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

BOUND = 1.25
"""The load of a server, relative to the mean, at which sessions skip it."""

ALWAYS_ROOM = 0.5
"""The share of its slots that sessions may take at a server, whatever the mean is."""


class Candidate(NamedTuple):
    """A server that a request may go to."""

    url: str
    busy: int
    """The requests that run or wait there."""
    slots: int
    weight: float = 1.0
    """Its share of the sessions and of the load; over 0."""


def ranked(session: str, candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return the candidates in the order of a session. Each is the first of as many sessions as its weight says.

    A server that joins or leaves moves no session but those that it is the first of.
    """
    return sorted(candidates, key=lambda candidate: _rank(session, candidate))


def _rank(session: str, candidate: Candidate) -> float:
    """Return an exponential variate whose rate is the weight: the least of several is that of each in proportion."""
    digest = hashlib.blake2b(f"{session} {candidate.url}".encode(), digest_size=8).digest()
    chance = (int.from_bytes(digest, "big") + 0.5) / 2**64
    return -math.log(chance) / candidate.weight


def preferred(session: str, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates with room, in the order of a session.

    A candidate has room if one more request keeps its load within the bound, and it has a free slot where any
    candidate has one.
    """
    capacity = sum(candidate.slots * candidate.weight for candidate in candidates)
    requests = 1 + sum(candidate.busy for candidate in candidates)
    is_any_free = any(candidate.busy < candidate.slots for candidate in candidates)

    def has_room(candidate: Candidate) -> bool:
        share = candidate.slots * candidate.weight / capacity
        bound = max(BOUND * requests * share, ALWAYS_ROOM * candidate.slots)
        return candidate.busy < math.ceil(bound) and (candidate.busy < candidate.slots or not is_any_free)

    return ranked(session, filter(has_room, candidates))
