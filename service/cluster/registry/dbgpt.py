"""The calls of DB-GPT's controllers, and their form of an instance, which is named by host and port."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...types import ModelInstance, WorkerType, known, plain
from . import limits
from .base import Beaten, Instance, Receipt, Registry
from .controller_calls import ControllerCalls
from .row_json import iso, seconds

log = logging.getLogger(__name__)

INTERVAL = 20.0
"""Seconds between two heartbeats, as DB-GPT's workers send them."""

PREFIX = "/api"
"""The prefix under which DB-GPT's clients look for the API of every worker."""

_URL = re.compile(rf"http://(?P<host>\[[^\]]+\]|[^/:]+)(:(?P<port>\d+))?{PREFIX}")


def url_of(host: str, port: int) -> str:
    """Return the address of a worker of DB-GPT."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    return f"http://[{bare}]:{port}{PREFIX}" if ":" in bare else f"http://{bare}:{port}{PREFIX}"


def host_and_port(url: str) -> tuple[str, int] | None:
    """Return the host and port of an address that DB-GPT can reach; None for TLS, another prefix and unix sockets."""
    match = _URL.fullmatch(url)
    return None if match is None else (match["host"].strip("[]"), int(match["port"] or 80))


def to_dbgpt(instance: Instance) -> ModelInstance | None:
    """Return DB-GPT's form of an instance; None for an address that it can't reach, see `host_and_port`."""
    address = host_and_port(instance.url)
    if address is None:
        return None
    return ModelInstance(
        model_name=instance.key,
        host=address[0],
        port=address[1],
        weight=instance.weight,
        check_healthy=instance.check_healthy,
        healthy=instance.healthy,
        enabled=instance.enabled,
        prompt_template=instance.prompt_template,
        last_heartbeat=iso(instance.last_heartbeat),
    )


def listed(registry: Registry, key: str | None, *, healthy_only: bool) -> list[ModelInstance]:
    """Return the instances of a key, or all, that DB-GPT's clients can reach. Raises RegistryUnavailable.

    Clients of DB-GPT 0.5 have no rerankers: they look for one as an embedder of that name. If no embedder has the name,
    they get the rerankers under the key that they look for.
    """
    rows = registry.instances(key, healthy_only=healthy_only)
    name, at, kind = (key or "").rpartition("@")
    if key is not None and not rows and kind == WorkerType.TEXT2VEC:
        rerankers = registry.instances(f"{name}{at}{WorkerType.RERANKER}", healthy_only=healthy_only)
        rows = [replace(row, key=key) for row in rerankers]
    return [model for row in rows if (model := to_dbgpt(row)) is not None]


def from_dbgpt(row: ModelInstance) -> Instance:
    """Return the instance, which has no generation. Raises ValueError if its heartbeat is not a time."""
    return Instance(
        key=row.model_name,
        url=url_of(row.host, row.port),
        weight=row.weight,
        enabled=row.enabled,
        check_healthy=row.check_healthy,
        prompt_template=row.prompt_template,
        last_heartbeat=seconds(row.last_heartbeat),
        healthy=row.healthy,
    )


class DbgptCalls:
    """The calls of `ControllerCalls` for a controller of DB-GPT: one for each instance, without generations.

    At a controller of DB-GPT 0.5 a reranker has a second row, as the embedder that 0.5's clients look for.
    """

    def __init__(self, calls: ControllerCalls) -> None:
        self._calls = calls
        self._lock = threading.Lock()
        self._generation = 0
        self._refused: set[tuple[str, str]] = set()
        self._registered_twice: set[tuple[str, str]] = set()
        """Key and address of the rerankers with a second row."""

    def beat(self, instances: Sequence[Instance], deadline: float) -> Beaten:
        """Register instances without a generation, refresh the others; a heartbeat changes nothing else there."""
        receipts = []
        for instance in instances:
            row = self._row_of(instance)
            if row is not None:
                path = "/models" if instance.generation is None else "/heartbeat"
                self._calls.ask("POST", path, plain(row), {}, deadline)
                if instance.generation is None and self._is_second_needed(row, deadline):
                    self._registered_twice.add((instance.key, instance.url))
                for second in self._second_rows(instance, row):
                    self._calls.ask("POST", path, plain(second), {}, deadline)
            generation = self._next_generation() if instance.generation is None else instance.generation
            receipts.append(Receipt(instance.key, instance.url, generation))
        return Beaten(receipts, INTERVAL)

    def deregister(self, instances: Sequence[Instance], forget: bool, deadline: float) -> list[Receipt]:
        """Mark instances unhealthy, or remove their rows."""
        for instance in instances:
            first = self._row_of(instance)
            for row in [] if first is None else [first, *self._second_rows(instance, first)]:
                query = {"model_name": row.model_name, "host": row.host, "port": str(row.port)}
                if forget:
                    query["remove_from_registry"] = "true"
                self._calls.ask("DELETE", "/models", None, query, deadline)
        return [Receipt(instance.key, instance.url, instance.generation or 0) for instance in instances]

    def instances(self, key: str | None, healthy_only: bool, deadline: float) -> list[Instance]:
        """Return the valid rows."""
        query = {"model_name": key} if key is not None else {}
        if healthy_only:
            query["healthy_only"] = "true"
        answer = self._calls.ask("GET", "/models", None, query, deadline)
        if not isinstance(answer, list):
            raise self._calls.nonsense(ValueError("is not a list"))
        rows = [row for entry in answer if (row := _read(entry)) is not None]
        rerankers = rows
        if rows and key is not None and (reranker := _counterpart(key, WorkerType.TEXT2VEC, WorkerType.RERANKER)):
            rerankers = self.instances(reranker, False, deadline)
        second = {(_counterpart(row.key, WorkerType.RERANKER, WorkerType.TEXT2VEC), row.url) for row in rerankers}
        return sorted((row for row in rows if (row.key, row.url) not in second), key=lambda row: (row.key, row.url))

    def _is_second_needed(self, row: ModelInstance, deadline: float) -> bool:
        """Return whether a registered reranker needs a second row: at a controller whose rows have no field of 0.8."""
        if _counterpart(row.model_name, WorkerType.RERANKER, WorkerType.TEXT2VEC) is None:
            return False
        rows = self._calls.ask("GET", "/models", None, {"model_name": row.model_name}, deadline)
        return isinstance(rows, list) and not any(isinstance(r, dict) and "remove_from_registry" in r for r in rows)

    def _second_rows(self, instance: Instance, row: ModelInstance) -> list[ModelInstance]:
        key = _counterpart(instance.key, WorkerType.RERANKER, WorkerType.TEXT2VEC)
        if key is None or (instance.key, instance.url) not in self._registered_twice:
            return []
        return [replace(row, model_name=key)]

    def _next_generation(self) -> int:
        """Return a generation of this process: DB-GPT's controllers neither issue nor compare generations."""
        with self._lock:
            self._generation = max(self._generation + 1, time.time_ns() // 1000)
            return self._generation

    def _row_of(self, instance: Instance) -> ModelInstance | None:
        row = to_dbgpt(instance)
        if row is None and (instance.key, instance.url) not in self._refused:
            self._refused.add((instance.key, instance.url))
            text = "%s at %s can't be registered at %s: DB-GPT's controllers accept only http://HOST:PORT/api"
            log.error(text, instance.key, instance.url, self._calls.url)
        return row


def _counterpart(key: str, kind: WorkerType, other: WorkerType) -> str | None:
    """Return the key of the same name with the type ``other``, for a key with the type ``kind``; None for others."""
    name, _, suffix = key.rpartition("@")
    return f"{name}@{other}" if name and suffix == kind else None


def _read(entry: Any) -> Instance | None:
    """Return the instance of a row; None if it is not valid."""
    try:
        instance = from_dbgpt(ModelInstance(**{**known(ModelInstance, entry), "port": int(entry["port"])}))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return None if limits.url_fault(instance.url) else instance
