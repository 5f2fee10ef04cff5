"""The stores of the registry's figures: a file, a controller over HTTP, and those servers that are installed.

The servers are the ones that the tests start, from `tests/support/stores.py`: in temporary folders, on the loopback,
without fsync. `scripts/test-servers` installs them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from . import ours
from .places import ROOT, run_folder
from .processes import free_port

SERVERS = {"PostgreSQL": "postgresql", "MariaDB": "mariadb", "Redis": "redis"}
SQLITE = "SQLite"
CONTROLLER = "controller, SQLite"
NAMES = (SQLITE, *SERVERS, CONTROLLER)


class StoreMissing(Exception):
    """Its server is not installed, or its library."""


@dataclass(frozen=True)
class Store:
    """Where a registry is, and how to empty it."""

    name: str
    url: str


@contextlib.contextmanager
def opened(name: str) -> Iterator[Store]:
    """Give an empty store until left. Raises StoreMissing."""
    if name == SQLITE:
        yield Store(name, f"sqlite:///{run_folder('registry') / f'registry-{free_port()}.db'}")
    elif name == CONTROLLER:
        with ours.serving([], role="controller") as server:
            yield Store(name, f"http://127.0.0.1:{server.port}/api")
    else:
        servers = _servers()
        try:
            yield Store(name, servers(SERVERS[name]).url())
        except pytest.skip.Exception as error:
            raise StoreMissing(str(error)) from None
        finally:
            servers.close()


def _servers() -> Any:
    folder = str(ROOT / "tests" / "support")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    from stores import StoreServers  # noqa: PLC0415 - the tests' helpers are not a package

    return StoreServers()
