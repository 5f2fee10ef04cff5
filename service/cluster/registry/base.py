"""The protocol of a registry, and what it holds: instances, each a worker key at an address.

A process says what it runs with `Registry.beat`: registration and heartbeat in one, for all its keys, each whole.
So a store that lost everything is right again after one interval. Health is a comparison made when read, by the
store's clock: nothing sweeps, and clocks of other machines mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import unquote, urlsplit

MANAGER_KEY = "WorkerManager@service"
"""The key under which a worker manager registers itself: models are started on a host through it."""

HEARTBEAT_TIMEOUT = 60.0
"""Seconds without a heartbeat until an instance counts as unhealthy."""

ANY_GENERATION = 0
"""The generation of a client that knows none and only says that an instance lives: DB-GPT's heartbeat."""


@dataclass(slots=True)
class Instance:
    """A model, or a worker manager, at an address. ``key`` and ``url`` together name it.

    The last two fields are what the store says when it is read; nobody sends them.
    """

    key: str
    """The worker key, ``name@type``."""
    url: str
    """Where its API stands, with the prefix: ``http://host:port/api``, ``https://...``, or for a unix socket
    ``http+unix://%2Frun%2Fworker.sock/api``."""
    weight: float = 1.0
    """How much work it takes beside others: twice the weight, twice the work."""
    enabled: bool = True
    check_healthy: bool = True
    """Whether it needs heartbeats to count as healthy."""
    capabilities: list[str] = field(default_factory=list)
    """What its server can do beyond the wire of the peers: ``delta``."""
    load: str | None = None
    """The value of ``Modelyard-Load`` when it last beat."""
    prompt_template: str | None = None
    generation: int | None = None
    """Issued by the store at registration; None asks for a new one, ANY_GENERATION means the one that the row has."""
    last_heartbeat: float | None = None
    """Seconds since 1970 by the store's clock."""
    healthy: bool = False


def place_of(url: str) -> tuple[str, int]:
    """Return host and port of an address, as DB-GPT's clients name it; of a unix socket its path, and 0."""
    parts = urlsplit(url)
    if parts.scheme == "http+unix":
        return unquote(parts.netloc), 0
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the store says to the beat of one instance."""

    key: str
    url: str
    generation: int
    """The one that the sender has from now on; where it is ``superseded``, that of its successor."""
    superseded: bool = False
    """A newer registration has this key and address: the beat changed nothing, and no other will."""


@dataclass(frozen=True, slots=True)
class Beaten:
    """The answer to one heartbeat: a receipt an instance, in their order, and the seconds until the next is wanted."""

    receipts: list[Receipt]
    interval: float


class Registry(Protocol):
    """A table of instances. Safe to use from many threads, and by many processes at once; not carried over a fork.

    Every call may raise RegistryUnavailable, after a time that is bounded.
    """

    def beat(self, instances: Sequence[Instance]) -> Beaten:
        """Register or refresh all of them. Those without a generation are registered anew, and issued one.

        A generation is greater than every earlier one of the same key and address, also after the store was emptied.
        An instance whose row has gone is taken in with the generation that it has. One with ANY_GENERATION refreshes
        its row's heartbeat and nothing else, is never superseded, and is registered where it has no row.

        A registration may forget the rows of others that nothing was heard of for a day, see `forgetting`.

        InvalidRequest where an instance does not fit, or is named twice.
        """

    def deregister(self, instances: Sequence[Instance], *, forget: bool = False) -> list[Receipt]:
        """Mark them unhealthy until they beat again; with ``forget`` remove their rows.

        One of an older generation changes nothing, and is told that it is superseded; one without a generation, or
        with ANY_GENERATION, always counts. What is not there is no error: its receipt has the generation it came with.
        """

    def instances(self, key: str | None = None, *, healthy_only: bool = False) -> list[Instance]:
        """Return all rows, or those of one key, ordered by key and address."""

    def close(self) -> None:
        """Let go of connections; a second call does nothing."""
