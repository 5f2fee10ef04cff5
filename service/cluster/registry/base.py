"""The protocol of a registry, and its rows: instances, each a worker key at an address.

A process calls `Registry.beat` with all of its instances, each of them complete: one call registers and refreshes. So
a store that lost everything is complete again after one interval. Health is computed at each read, by the store's
clock: there is no job that marks dead instances, and the clocks of other machines do not matter.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import unquote, urlsplit

MANAGER_KEY = "WorkerManager@service"
"""The key under which a worker manager registers itself: models are started on a machine through it."""

HEARTBEAT_TIMEOUT = 60.0
"""Seconds without a heartbeat until an instance counts as unhealthy."""

ANY_GENERATION = 0
"""The generation of a heartbeat whose client has none, such as DB-GPT's: it means the generation of the row."""


CONTEXT_LENGTH = "context_length="
"""The beginning of the capability that has the context length of a model, in tokens."""
IMAGES = "images"
"""The capability of an instance whose model takes images."""
_TOKENS = re.compile(r"[1-9]\d{0,8}", re.ASCII)


@dataclass(slots=True)
class Instance:
    """A model, or a worker manager, at an address. ``key`` and ``url`` together identify it.

    The last two fields are set by the store when a row is read; they are never sent.
    """

    key: str
    """The worker key, ``name@type``."""
    url: str
    """The address of its API, with the prefix: ``http://host:port/api``, ``https://...``, or for a unix socket
    ``http+unix://%2Frun%2Fworker.sock/api``."""
    weight: float = 1.0
    """Its share of the requests, relative to the other instances of the key."""
    enabled: bool = True
    check_healthy: bool = True
    """Whether it needs heartbeats to count as healthy."""
    capabilities: list[str] = field(default_factory=list)
    """What its server can do beyond DB-GPT's contract, ``delta``, and what its model is: ``context_length=TOKENS``,
    ``images``."""
    load: str | None = None
    """The value of ``Modelyard-Load`` at its last heartbeat."""
    prompt_template: str | None = None
    generation: int | None = None
    """Issued by the store at registration; None requests a new one, ANY_GENERATION means the one of the row."""
    last_heartbeat: float | None = None
    """Seconds since 1970 by the store's clock."""
    healthy: bool = False

    @property
    def context_length(self) -> int | None:
        """The context length of its model; None if its server has not reported one."""
        texts = [word.removeprefix(CONTEXT_LENGTH) for word in self.capabilities if word.startswith(CONTEXT_LENGTH)]
        return int(texts[0]) if texts and _TOKENS.fullmatch(texts[0]) else None


def place_of(url: str) -> tuple[str, int]:
    """Return the host and port of an address, as DB-GPT's clients name it; for a unix socket its path, and 0."""
    parts = urlsplit(url)
    if parts.scheme == "http+unix":
        return unquote(parts.netloc), 0
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


@dataclass(frozen=True, slots=True)
class Receipt:
    """The store's answer to the beat of one instance."""

    key: str
    url: str
    generation: int
    """The generation of the sender from now on; if it is ``superseded``, the one of its successor."""
    superseded: bool = False
    """Whether a newer registration has this key and address: then the beat changed nothing, nor will later ones."""


@dataclass(frozen=True, slots=True)
class Beaten:
    """The answer to a beat: a receipt for each instance, in their order, and the seconds until the next beat."""

    receipts: list[Receipt]
    interval: float


class Registry(Protocol):
    """A table of instances. Safe to use from many threads and processes at once; a forked child connects by itself.

    Every call may raise RegistryUnavailable, after a limited time.
    """

    def beat(self, instances: Sequence[Instance]) -> Beaten:
        """Register or refresh all instances. Instances without a generation are registered, and get a new one.

        A generation is greater than every earlier one of the same key and address, also after the store was emptied.
        An instance whose row has gone is stored with the generation that it has. An instance with ANY_GENERATION
        refreshes the heartbeat of its row and nothing else, is never superseded, and is registered if it has no row.

        A registration may remove the rows of processes that were silent for a day, see `forgetting`.

        Raises InvalidRequest if an instance is outside of `limits`, or occurs twice.
        """

    def deregister(self, instances: Sequence[Instance], *, forget: bool = False) -> list[Receipt]:
        """Mark instances unhealthy until they beat again; with ``forget`` remove their rows.

        An instance of an older generation changes nothing, and its receipt is ``superseded``. An instance without a
        generation, or with ANY_GENERATION, always counts. An instance without a row is not an error: its receipt has
        the generation that was sent.
        """

    def instances(self, key: str | None = None, *, healthy_only: bool = False) -> list[Instance]:
        """Return all rows, or those of one key, ordered by key and address."""

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
