"""Room: the memory that the models of this process share, and the order in which they get it.

A model stands in line until its memory is free. For the first of the line, models that are idle make room: of these,
those that were used least recently. A model that is in use keeps its memory for a turn, so that the requests of one
model are computed one after the other (A A A B B, not A B A B). Then its new requests wait, those that run end, and it
makes room too. Pinned models never do. In its turn a model counts as in use for a moment after its last request: a
client that sends one request after the other would lose it each time.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from ..errors import NotReady, StartFailed
from ..settings.sizes import size as shown
from ..streams import Cancel

LINGER = 0.25
"""Seconds after its last request for which a model is not idle yet."""
LOOK = 1.0
"""Seconds between two looks of a model in line whether it has room: all that matters wakes it before."""
PAUSE = 0.05
"""Seconds until a model that could not be unloaded is tried again: it is just being stopped, or changed."""


class Guest(Protocol):
    """A model, as the room sees it. Its calls are short, but for `make_room`."""

    name: str
    last_used: float
    """When its last request ended, by the room's clock."""

    @property
    def pinned(self) -> bool:
        """Whether it never makes room."""

    @property
    def is_in_use(self) -> bool:
        """Whether requests of it run."""

    def hold(self) -> None:
        """Let new requests stand in line."""

    def let_go(self) -> None:
        """Let requests run again, unless it was unloaded."""

    def make_room(self) -> bool:
        """Unload it; return False if it is in use, or is being stopped or changed."""


class Lease:
    """The memory of one model, from before it is loaded until `release`."""

    def __init__(self, room: Room, guest: Guest, size: int) -> None:
        """Take ``size`` bytes of ``room``."""
        self.guest = guest
        self.size = size
        self.loaded_at = math.inf
        self._room = room

    def loaded(self) -> None:
        """Note that the model is loaded: from now on it may be asked to make room."""
        self.loaded_at = self._room.clock()
        self._room.notice()

    def release(self) -> None:
        """Give the memory back; a second call does nothing."""
        self._room._remove(self)


class Room:
    """The memory of the models of one process. Safe to use from many threads; it has none of its own."""

    def __init__(
        self, budget: int | None = None, turn: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Share ``budget`` bytes; None is no limit. A model in use keeps its memory for ``turn`` seconds."""
        self.budget = budget
        self.turn = turn
        self.clock = clock
        self._changed = threading.Condition()
        self._leases: list[Lease] = []
        self._line: list[Guest] = []
        self._held: list[Lease] = []

    @property
    def taken(self) -> int:
        """The bytes that are taken."""
        return sum(lease.size for lease in list(self._leases))

    def notice(self) -> None:
        """Look again at once: a request has ended, or has left its line."""
        if self._line:
            self._wake()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _remove(self, lease: Lease) -> None:
        with self._changed:
            if lease in self._leases:
                self._leases.remove(lease)
                self._changed.notify_all()

    def enter(
        self, guest: Guest, size: int, cancel: Cancel, is_wanted: Callable[[], bool], timeout: float = math.inf
    ) -> Lease | None:
        """Return the lease of ``size`` bytes for ``guest``, once other models have made room for it.

        Return None as soon as there is no room and ``is_wanted`` returns False. Raises StartFailed if it can never
        fit, NotReady after ``timeout`` seconds, and the error of ``cancel``.
        """
        arrival = self.clock()
        cancel.on_set(self._wake)
        with self._changed:
            self._line.append(guest)
        try:
            while True:
                if cancel.is_set():
                    raise cancel.error
                with self._changed:
                    self._check_fits(guest, size)
                    lease, victims = self._step(guest, size, arrival)
                    if lease is not None or not is_wanted():
                        return lease
                    if self.clock() - arrival >= timeout:
                        raise NotReady(f"{self._wish(guest, size)}, but {self._users()} within {timeout:g} s")
                    if not victims:
                        self._changed.wait(min(LOOK, self._until_next_turn(arrival), timeout))
                        continue
                if not [victim for victim in victims if victim.guest.make_room()]:
                    with self._changed:
                        self._changed.wait(PAUSE)
        finally:
            cancel.forget(self._wake)
            with self._changed:
                if self._line[0] is guest:
                    self._hold(())
                self._line.remove(guest)
                self._changed.notify_all()

    def _step(self, guest: Guest, size: int, arrival: float) -> tuple[Lease | None, Sequence[Lease]]:
        """Return the lease if there is room now, or the leases of the models to unload now."""
        if self.budget is None or size == 0:
            return self._new_lease(guest, size), ()
        if self._line[0] is not guest:
            return None, ()
        missing = self.taken + size - self.budget
        if missing <= 0:
            return self._new_lease(guest, size), ()
        victims = self._victims(missing, arrival)
        self._hold(victims)
        return None, () if any(victim.guest.is_in_use for victim in victims) else victims

    def _new_lease(self, guest: Guest, size: int) -> Lease:
        lease = Lease(self, guest, size)
        self._leases.append(lease)
        return lease

    def _victims(self, missing: int, arrival: float) -> Sequence[Lease]:
        """Return the leases of models that make room for ``missing`` bytes; none if they do not suffice."""
        leases = [lease for lease in self._leases if lease.size and lease.loaded_at < math.inf]
        leases = [lease for lease in leases if not lease.guest.pinned and self._may_end(lease, arrival)]
        leases.sort(key=lambda lease: (lease.guest.is_in_use, lease.guest.last_used))
        victims: list[Lease] = []
        while missing > 0 and leases:
            victims.append(leases.pop(0))
            missing -= victims[-1].size
        if missing > 0:
            return ()
        for lease in victims[::-1]:
            if missing + lease.size <= 0:  # the others suffice
                victims.remove(lease)
                missing += lease.size
        return victims

    def _may_end(self, lease: Lease, arrival: float) -> bool:
        """Return whether a model is idle, or has had its turn since the other one stands in line."""
        return self.clock() >= self._end_of_turn(lease, arrival)

    def _end_of_turn(self, lease: Lease, arrival: float) -> float:
        end = max(arrival, lease.loaded_at) + self.turn
        return end if lease.guest.is_in_use else min(end, lease.guest.last_used + LINGER)

    def _until_next_turn(self, arrival: float) -> float:
        """Return the seconds until a turn ends that has not ended yet."""
        left = (self._end_of_turn(lease, arrival) - self.clock() for lease in self._leases)
        return min((seconds for seconds in left if seconds > 0), default=math.inf)

    def _hold(self, victims: Sequence[Lease]) -> None:
        """Let requests of exactly these models stand in line."""
        held, self._held = self._held, list(victims)
        for lease in held:
            if lease not in victims:
                lease.guest.let_go()
        for lease in victims:
            if lease not in held:
                lease.guest.hold()

    # What it says

    def _check_fits(self, guest: Guest, size: int) -> None:
        """Raise StartFailed for a model that can't fit: alone, or beside pinned models."""
        if self.budget is None:
            return
        pinned = [lease for lease in self._leases if lease.guest.pinned and lease.guest is not guest]
        rest = self.budget - sum(lease.size for lease in pinned)
        if size <= rest:
            return
        beside = f", of which {_names(pinned, 'keeps', 'keep')} {shown(self.budget - rest)} (pinned)" if pinned else ""
        raise StartFailed(
            f"{self._wish(guest, size)}, and memory_budget is {shown(self.budget)}{beside}: raise memory_budget, lower "
            "what the model takes (its context, its slots, smaller weights), or set its parameter memory"
        )

    def _wish(self, guest: Guest, size: int) -> str:
        return f"model {guest.name!r} needs {shown(size)} of memory"

    def _users(self) -> str:
        return f"{_names(self._leases, 'has', 'have')} {shown(self.taken)} of {shown(self.budget or 0)} (memory_budget)"


def _names(leases: Sequence[Lease], verb: str, verb_of_many: str) -> str:
    names = [repr(lease.guest.name) for lease in leases]
    return f"{', '.join(names) or 'nothing'} {verb if len(names) < 2 else verb_of_many}"
