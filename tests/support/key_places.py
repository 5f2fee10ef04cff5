"""Every kind of store of keys, each empty: what the contract runs over. To join, add to `KEY_PLACES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from modelyard.cluster.keys import open_key_store
from modelyard.cluster.keys.base import LEASE, KeyStore
from stores import StoreServers


class KeyPlace:
    """An empty store. `open` returns it once more, as another process does; `close` closes all."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._opened: list[KeyStore] = []

    def open(self, lease: float = LEASE) -> KeyStore:
        if self.url == "memory:" and self._opened:
            return self._opened[0]
        self._opened.append(open_key_store(self.url, lease))
        return self._opened[-1]

    def close(self) -> None:
        for store in self._opened:
            store.close()


KEY_PLACES: Mapping[str, Callable[[Path, StoreServers], KeyPlace]] = {
    "memory": lambda folder, servers: KeyPlace("memory:"),
    "sqlite": lambda folder, servers: KeyPlace(f"sqlite:///{folder / 'keys.db'}"),
    "postgresql": lambda folder, servers: KeyPlace(servers("postgresql").url()),
    "mariadb": lambda folder, servers: KeyPlace(servers("mariadb").url()),
    "redis": lambda folder, servers: KeyPlace(servers("redis").url()),
}
