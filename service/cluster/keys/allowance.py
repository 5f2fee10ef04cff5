"""The part of this process in the limits of a key.

To ask the store at each request would cost more than many answers, so a process takes more than it needs: as much as
the key has used within the last second, but at most a hundredth of the limit, of places an eighth. So limits below 200,
and less than 8 places, are counted one by one. What is not used goes back within about a second.

A request takes a place, one request, and the most tokens that it may use. At its end the place goes back, and the
tokens that it did not use.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

from ...access.keys import Key
from ...errors import ConfigError, ModelyardError, RateLimited, RegistryUnavailable
from .base import LEASE, MICROSECONDS, NOTHING, Amounts, Grant, KeyStore, Return, Use, current, grant

log = logging.getLogger(__name__)

TICK = 1.0
"""Seconds: what a key used in one of them is taken beside the need."""
LARGEST_SHARE = 100
LARGEST_SHARE_OF_PLACES = 8
"""The part of a limit that a process may hold unused: one in so many."""
IDLE = 1.0
"""Seconds without a request after which all that is unused goes back."""
REFUSED_FOR = 0.25
"""Seconds for which a refusal of the store holds, unless a request of this process ends earlier."""
OUTAGE_PAUSE = 5.0
"""Seconds without a call after one that the store did not answer."""


class Lender:
    """The store, as one process takes from it. While it can't be used it is left alone for some seconds."""

    def __init__(self, store: KeyStore, holder: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Take from ``store`` in the name of the process ``holder``."""
        self.clock = clock
        self._store = store
        self._holder = holder
        self._silent_until = 0.0

    def take(self, key: Key, held: int, need: Amounts, spare: Amounts) -> Grant | None:
        """Return what the store grants; None if it can't be used. Raises Unauthorized if the key has gone."""
        if self.clock() < self._silent_until:
            return None
        try:
            granted = self._store.take(key, self._holder, held, need, spare)
        except (RegistryUnavailable, ConfigError) as error:
            self._leave_alone(error)
            return None
        self._silent_until = 0.0
        return granted

    def settle(self, key: Key, back: Return) -> bool:
        """Give back, and renew the places; return whether the store has answered."""
        if self.clock() < self._silent_until:
            return False
        try:
            self._store.settle(self._holder, {key.id: back})
        except (RegistryUnavailable, ConfigError) as error:
            self._leave_alone(error)
            return False
        return True

    def _leave_alone(self, error: ModelyardError) -> None:
        if self._silent_until == 0.0:
            log.warning("limits of keys are counted in this process alone: %s", error)
        self._silent_until = self.clock() + OUTAGE_PAUSE


class Permit:
    """What one request has taken. `close` gives it back."""

    __slots__ = ("_allowance", "_is_closed", "reserved", "window")

    def __init__(self, allowance: Allowance, reserved: int, window: int) -> None:
        self._allowance = allowance
        self._is_closed = False
        self.reserved = reserved
        """The tokens that were taken for it."""
        self.window = window

    def close(self, used: int) -> None:
        """Give back the place, and the tokens beyond those ``used``; a second call does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._allowance.release(self, used)


class _Pace:
    """Counts what was used in the current tick, and in the one before."""

    def __init__(self) -> None:
        self._tick = 0
        self._requests = self._tokens = 0
        self._previous = (0, 0)

    def add(self, now: float, tokens: int) -> None:
        tick = int(now / TICK)
        if tick != self._tick:
            self._previous = (self._requests, self._tokens) if tick == self._tick + 1 else (0, 0)
            self._tick, self._requests, self._tokens = tick, 0, 0
        self._requests += 1
        self._tokens += tokens

    def recent(self) -> Amounts:
        requests, tokens = max(self._requests, self._previous[0]), max(self._tokens, self._previous[1])
        return Amounts(requests, tokens, places=requests)


class Allowance:
    """What this process holds of the limits of one key. Safe to use from many threads."""

    def __init__(self, lender: Lender, key: Key) -> None:
        """Hold nothing of ``key`` yet."""
        self.key = key
        self._lender = lender
        self._clock = lender.clock
        self._lock = threading.Lock()
        self._pace = _Pace()
        self._window = 0
        self._ends = 0.0
        """The end of the window by the clock of this process: never after the end in the store."""
        self._left: Amounts | None = None
        """What the store had left at the last call in this window."""
        self._requests = self._tokens = 0
        """What was taken and is unused; negative tokens were used beyond what was taken."""
        self._held = self._busy = 0
        """The places that were taken, and those in use."""
        self._refusal: tuple[str, int] | None = None
        """The amount that the store has refused, and how much of it."""
        self._refused_until = self._last_used = self._renewed = 0.0
        self._alone = Use()
        """What was used of the window while the store did not answer."""
        self._most = _shares(key)
        """What this process may hold unused."""

    # Requests

    def admit(self, tokens: int) -> Permit:
        """Take a place, a request and ``tokens``. Raises RateLimited."""
        limits = self.key.limits
        reserved = tokens if limits.tokens is not None else 0
        if reserved > (limits.tokens or 0):
            raise RateLimited(
                f"the limit of the key {self.key.name} is {limits.tokens} tokens a minute, and this request may use "
                f"{tokens}: send a shorter prompt, or ask for fewer tokens",
                is_hopeless=True,
            )
        with self._lock:
            now = self._clock()
            self._begin_window(now)
            requests, places = int(limits.requests is not None), int(limits.parallel is not None)
            if requests > self._requests or reserved > self._tokens or self._busy + places > self._held:
                need = (requests - self._requests, reserved - self._tokens, self._busy + places - self._held)
                self._take(Amounts(*(max(0, amount) for amount in need)), now)
            self._requests -= requests
            self._tokens -= reserved
            self._busy += places
            self._pace.add(now, reserved)
            self._last_used = now
            return Permit(self, reserved, self._window)

    def release(self, permit: Permit, used: int) -> None:
        """Free the place of a request that has ended, and count the tokens that it ``used``."""
        with self._lock:
            self._begin_window(self._clock())
            if self.key.limits.tokens is not None:
                unused = permit.reserved - used
                self._tokens += unused if permit.window == self._window else min(0, unused)
            self._busy -= self.key.limits.parallel is not None
            self._refusal = None
            if not self._most.places or self._tokens > self._most.tokens:
                self._give_back_surplus()

    def _begin_window(self, now: float) -> None:
        if now >= self._ends:
            self._requests, self._tokens = 0, min(0, self._tokens)
            self._left = self._refusal = None

    def _take(self, need: Amounts, now: float) -> None:
        if self._refusal is not None and now < self._refused_until:
            name, amount = self._refusal
            if getattr(need, name) >= amount:
                raise self._limited(name, now)
        granted = self._lender.take(self.key, self._held, need, self._spare()) or self._take_alone(need, now)
        # From before the call, so that the window never ends later here than in the store.
        self._window, self._ends = granted.window, now + granted.remaining / MICROSECONDS
        self._left = granted.left
        self._requests += granted.taken.requests
        self._tokens += granted.taken.tokens
        self._held += granted.taken.places
        if granted.taken.places:
            self._renewed = now
        if granted.lacking:
            self._refusal = (granted.lacking, getattr(need, granted.lacking))
            self._refused_until = now + REFUSED_FOR
            raise self._limited(granted.lacking, now)

    def _take_alone(self, need: Amounts, now: float) -> Grant:
        """Take within the limits of this process alone: the store does not answer."""
        moment = int(now * MICROSECONDS)
        use = current(self._alone, moment)
        granted = grant(self.key.limits, use, self._held, need, spare=NOTHING, now=moment)
        self._alone = Use(use.window, use.requests + granted.taken.requests, use.tokens + granted.taken.tokens)
        return granted

    def _spare(self) -> Amounts:
        requests, tokens, places = map(min, self._pace.recent(), self._most)
        return Amounts(
            max(0, requests - self._requests),
            max(0, tokens - max(0, self._tokens)),
            # Half, as the place of the request itself will be spare too: neither its end nor another request calls.
            places // 2,
        )

    def _limited(self, name: str, now: float) -> RateLimited:
        key, limits = self.key, self.key.limits
        if name == "places":
            return RateLimited(
                f"the limit of the key {key.name} is reached: {limits.parallel} requests at once; repeat it when one "
                "has ended"
            )
        seconds = max(1, math.ceil(self._ends - now))
        return RateLimited(
            f"the limit of the key {key.name} is reached: {getattr(limits, name)} {name} a minute; repeat it in "
            f"{seconds} s",
            seconds,
        )

    # What goes back

    def _give_back_surplus(self) -> None:
        """Give back what is more than this process may hold unused."""
        tokens = self._tokens - self._most.tokens // 2 if self._tokens > self._most.tokens else 0
        places = min(self._held, self._busy + self._most.places)
        if tokens or places != self._held:
            self._settle(Return(self._window, 0, tokens, places))

    def give_back_idle(self) -> None:
        """Give back what is unused: the surplus, or all if there was no request for a while; renew the places in time.

        The places of requests that have ended wait for it, or each end of a request would be a call of the store.
        """
        with self._lock:
            now = self._clock()
            if self._left is None and not self._held and not self._tokens:
                return
            self._begin_window(now)
            if now - self._last_used >= IDLE:
                self._give_back()
            elif self._held and now - self._renewed >= LEASE / 3:
                self._settle(Return(self._window, 0, 0, self._held))
            else:
                self._give_back_surplus()

    def give_back(self) -> None:
        """Give back all that is unused."""
        with self._lock:
            self._give_back()

    def _give_back(self) -> None:
        is_due = self._busy and self._clock() - self._renewed >= LEASE / 3
        if self._requests or self._tokens or self._held != self._busy or is_due:
            self._settle(Return(self._window, self._requests, self._tokens, self._busy))

    def _settle(self, back: Return) -> None:
        if self._lender.settle(self.key, back):
            self._requests -= back.requests
            self._tokens -= back.tokens
            self._held = back.places
            self._renewed = self._clock()
            if self._left is not None:
                left = self._left
                self._left = left._replace(requests=left.requests + back.requests, tokens=left.tokens + back.tokens)

    # What clients read

    def headers(self) -> list[tuple[str, str]]:
        """Return the ``x-ratelimit`` headers of the key, as this process sees its use."""
        limits = self.key.limits
        with self._lock:
            now = self._clock()
            self._begin_window(now)
            left = self._left
            reset = shown_duration(self._ends - now if left is not None else 0)
            requests, tokens = self._requests, self._tokens
        headers: list[tuple[str, str]] = []
        if limits.requests is not None:
            rest = limits.requests if left is None else left.requests + requests
            headers += _headers_of("requests", limits.requests, rest, reset)
        if limits.tokens is not None:
            rest = limits.tokens if left is None else left.tokens + tokens
            headers += _headers_of("tokens", limits.tokens, rest, reset)
        return headers


def _headers_of(name: str, limit: int, rest: int, reset: str) -> tuple[tuple[str, str], ...]:
    return (
        (f"x-ratelimit-limit-{name}", str(limit)),
        (f"x-ratelimit-remaining-{name}", str(min(limit, max(0, rest)))),
        (f"x-ratelimit-reset-{name}", reset),
    )


def _shares(key: Key) -> Amounts:
    """Return what a process may hold unused of each limit."""
    limits = key.limits
    return Amounts(
        (limits.requests or 0) // LARGEST_SHARE,
        (limits.tokens or 0) // LARGEST_SHARE,
        (limits.parallel or 0) // LARGEST_SHARE_OF_PLACES,
    )


def shown_duration(seconds: float) -> str:
    """Return a duration as OpenAI's headers have it: ``12ms``, ``6.5s``, ``1m0s``."""
    milliseconds = max(0, round(seconds * 1000))
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    shown = f"{rest / 1000:g}s"
    return f"{minutes}m{shown}" if minutes else shown
