"""The protocol of a store of keys, and the arithmetic of their limits.

A process borrows from the store what it may use of a key's limits. Requests and tokens are counted in windows of a
minute, by the store's clock; the window of a key begins with its first use after the last one. Places, for requests at
once, are leased: those of a process that does not renew them are free again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from ...access.keys import Key, Limits

KIND = "store of keys"
"""What messages call it."""
SETTING = "key_store"
MICROSECONDS = 1_000_000
WINDOW = 60 * MICROSECONDS
LEASE = 30.0
"""Seconds after which places that are not renewed are free."""
MAX_KEYS = 10_000
"""The most keys of one store: every process holds them all."""


class Amounts(NamedTuple):
    """Requests, tokens and places."""

    requests: int = 0
    tokens: int = 0
    places: int = 0


NOTHING = Amounts()


class Use(NamedTuple):
    """What is used of a key's limits in a window, which begins at ``window``, in microseconds since 1970."""

    window: int = 0
    requests: int = 0
    tokens: int = 0


class Grant(NamedTuple):
    """The answer of a store to a process that takes."""

    taken: Amounts
    left: Amounts
    """What is left after it, of what is limited."""
    window: int
    remaining: int
    """Microseconds until the window ends."""
    lacking: str = ""
    """The first of the amounts of which there was not enough: then nothing is taken. Empty if there was."""


class Return(NamedTuple):
    """What a process gives back: unused requests and tokens of a window (negative: used beyond what was taken).

    ``places`` are all that it still holds: their lease is renewed.
    """

    window: int
    requests: int
    tokens: int
    places: int


class KeyStore(Protocol):
    """The keys, and the use of their limits. Safe to use from many threads and processes.

    Every call may raise RegistryUnavailable, after a limited time. Reading makes no tables.
    """

    def add(self, key: Key) -> None:
        """Keep a key. Raises ConfigError if its name is that of a valid key, or there are `MAX_KEYS`."""

    def revoke(self, name: str, *, forget: bool = False) -> Key:
        """Revoke the key of an id or name, and return it; with ``forget`` nothing of it is kept.

        Raises ConfigError if there is none.
        """

    def all(self) -> list[Key]:
        """Return all keys, revoked ones too, in the order of their making."""

    def stamp(self) -> str:
        """Return a text that is another after each change of the keys; empty for a store that never had any."""

    def take(self, key: Key, holder: str, held: int, need: Amounts, spare: Amounts) -> Grant:
        """Take ``need`` and, where there is more left, up to ``spare`` beside it; nothing if one of the needs lacks.

        ``held`` are the places that the process ``holder`` has. Amounts without a limit must be 0.
        Raises Unauthorized if the key has gone.
        """

    def settle(self, holder: str, returns: Mapping[str, Return]) -> None:
        """Take back what a process does not need, by the id of the key, and renew its places. Others are skipped."""

    def end_sign_in(self, number: str, seconds: float) -> None:
        """Keep for ``seconds`` that the sign-in of an id has ended. A second call does no harm."""

    def has_ended(self, number: str) -> bool:
        """Return whether the sign-in of an id has ended."""

    def close(self) -> None:
        """Close the connections; a second call does nothing."""


def current(use: Use, now: int) -> Use:
    """Return the use of the window at ``now``: a new one if the window of ``use`` has ended."""
    return use if now - use.window < WINDOW else Use(now)


def grant(limits: Limits, use: Use, occupied: int, need: Amounts, *, spare: Amounts, now: int) -> Grant:
    """Return what is granted in the window of ``use``; ``occupied`` are the places of all processes."""
    caps = Amounts(limits.requests or 0, limits.tokens or 0, limits.parallel or 0)
    used = Amounts(use.requests, use.tokens, occupied)
    left = Amounts(*(max(0, cap - amount) for cap, amount in zip(caps, used, strict=True)))
    remaining = max(0, use.window + WINDOW - now)
    for name, amount, available in zip(Amounts._fields, need, left, strict=True):
        if amount > available:
            return Grant(NOTHING, left, use.window, remaining, name)
    wanted = zip(need, spare, left, strict=True)
    taken = Amounts(*(min(amount + more, available) for amount, more, available in wanted))
    rest = Amounts(*(available - amount for available, amount in zip(left, taken, strict=True)))
    return Grant(taken, rest, use.window, remaining)


def after_return(use: Use, back: Return) -> Use:
    """Return the use after a return. What is unused counts in its own window alone, what was used beyond in any."""
    is_same = use.window == back.window
    requests = back.requests if is_same else min(0, back.requests)
    tokens = back.tokens if is_same else min(0, back.tokens)
    return Use(use.window, max(0, use.requests - requests), max(0, use.tokens - tokens))
