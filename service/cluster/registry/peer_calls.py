"""One controller of DB-GPT: a call an instance, hosts and ports for addresses, and no generations."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from ...types import ModelInstance, known, plain
from . import instance_url
from .base import Beaten, Instance, Receipt
from .controller_calls import ControllerCalls
from .peers import from_peer, to_peer

log = logging.getLogger(__name__)

INTERVAL = 20.0
"""Seconds between two heartbeats, as the peers' own workers send them."""


class PeerCalls:
    """The calls of `ControllerCalls`, as a controller of DB-GPT takes them."""

    def __init__(self, calls: ControllerCalls) -> None:
        self._calls = calls
        self._lock = threading.Lock()
        self._generation = 0
        self._untold: set[tuple[str, str]] = set()

    def beat(self, instances: Sequence[Instance], deadline: float) -> Beaten:
        """Register those without a generation, refresh the others; a heartbeat changes nothing else there."""
        receipts = []
        for one in instances:
            peer = self._peer_of(one)
            if peer is not None:
                path = "/models" if one.generation is None else "/heartbeat"
                self._calls.ask("POST", path, plain(peer), {}, deadline)
            generation = self._made_up() if one.generation is None else one.generation
            receipts.append(Receipt(one.key, one.url, generation))
        return Beaten(receipts, INTERVAL)

    def deregister(self, instances: Sequence[Instance], forget: bool, deadline: float) -> list[Receipt]:
        """Mark unhealthy, or remove."""
        for one in instances:
            peer = self._peer_of(one)
            if peer is not None:
                query = {"model_name": peer.model_name, "host": peer.host, "port": str(peer.port)}
                if forget:
                    query["remove_from_registry"] = "true"
                self._calls.ask("DELETE", "/models", None, query, deadline)
        return [Receipt(one.key, one.url, one.generation or 0) for one in instances]

    def instances(self, key: str | None, healthy_only: bool, deadline: float) -> list[Instance]:
        """Read rows; those that make no sense are left out."""
        query = {"model_name": key} if key is not None else {}
        if healthy_only:
            query["healthy_only"] = "true"
        answer = self._calls.ask("GET", "/models", None, query, deadline)
        if not isinstance(answer, list):
            raise self._calls.nonsense(ValueError("is no list"))
        rows = [row for entry in answer if (row := _row_in(entry)) is not None]
        return sorted(rows, key=lambda row: (row.key, row.url))

    def _made_up(self) -> int:
        """Return a generation: nobody issues them there, and nobody compares them."""
        with self._lock:
            self._generation = max(self._generation + 1, time.time_ns() // 1000)
            return self._generation

    def _peer_of(self, instance: Instance) -> ModelInstance | None:
        peer = to_peer(instance)
        if peer is None and (instance.key, instance.url) not in self._untold:
            self._untold.add((instance.key, instance.url))
            text = (
                "%s at %s can't be registered at %s: DB-GPT's controllers know addresses as http://HOST:PORT/api only"
            )
            log.error(text, instance.key, instance.url, self._calls.url)
        return peer


def _row_in(entry: Any) -> Instance | None:
    try:
        row = from_peer(ModelInstance(**{**known(ModelInstance, entry), "port": int(entry["port"])}))
        instance_url.check(row.url)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return row
