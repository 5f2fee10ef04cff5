"""A Redis server that a registry, or a store of keys, is in: its connections, and the meaning of its errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ...errors import ConfigError, RegistryUnavailable
from ...processes import PerProcess
from . import schema
from .address import StoreAddress

CONNECT_TIMEOUT = 2.0
ANSWER_TIMEOUT = 4.0


class RedisServer:
    """A Redis server."""

    def __init__(self, address: StoreAddress, kind: str = schema.REGISTRY) -> None:
        """Use the Redis at ``address``; nothing is connected yet. Raises ConfigError.

        ``kind`` is what messages call it.
        """
        self.where = f"{kind} {address.shown}"
        self.prefix = address.prefix or schema.PREFIX
        self._address = address
        self._clients = PerProcess(self._make_client)
        self._check_address()

    def call(self, work: Callable[[redis.Redis], Any]) -> Any:
        """Return the result of ``work``. Raises RegistryUnavailable."""
        try:
            return work(self._clients.get())
        except redis.RedisError as error:
            raise RegistryUnavailable(f"the {self.where} can't be used: {self._address.hide(error)}") from error

    def close(self) -> None:
        """Close this process's connections; a later call opens them again."""
        if client := self._clients.pop():
            client.close()

    def _make_client(self) -> redis.Redis:
        return redis.Redis.from_url(
            self._address.url,
            decode_responses=True,
            socket_connect_timeout=CONNECT_TIMEOUT,
            socket_timeout=ANSWER_TIMEOUT,
            # Once: a connection of the pool may be stale. A silent server is not tried twice.
            retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        )

    def _check_address(self) -> None:
        path = self._address.url.partition("?")[0].split("://", 1)[-1].partition("/")[2]
        if not self._address.url.split(":", 1)[1].startswith("//") or not (path == "" or path.isdecimal()):
            raise ConfigError(
                f"{self.where}: not an address of a Redis, as in redis://:PASSWORD@host:6379/0; the "
                "slash is followed by the number of a database"
            )
        try:
            self._make_client()
        except (ValueError, TypeError, redis.RedisError) as error:
            raise ConfigError(f"{self.where}: {self._address.hide(error)}") from None
