"""Prober: the thread that asks addresses that failed whether they are back."""

from __future__ import annotations

import logging
import threading

from ..errors import ModelyardError
from ..sessions.transport import Transport
from .routing import Routes

log = logging.getLogger(__name__)

PROBE_TIMEOUT = (1.0, 2.0)
"""Seconds to connect, and of silence."""

STOP_TIMEOUT = 5.0


class Prober:
    """`start` it, `stop` it; both twice are fine. `Routes` says which addresses are due, and hears what came of it."""

    def __init__(self, routes: Routes, transport: Transport) -> None:
        self._routes = routes
        self._transport = transport
        self._ended = threading.Event()
        self._failed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="modelyard-probe", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._ended.set()
        self._failed.set()
        if self._thread is not None:
            self._thread.join(STOP_TIMEOUT)

    def wake(self) -> None:
        """Tell that an address may have failed just now."""
        self._failed.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._failed.clear()
            for url in self._routes.to_probe():
                self._routes.probed(url, self._probe(url))
            self._failed.wait(self._routes.next_probe_in())

    def _probe(self, url: str) -> str:
        """Return why an address does not answer; empty where it does, with whatever status."""
        try:
            response = self._transport.request("GET", f"{url}/health", timeout=PROBE_TIMEOUT)
        except ModelyardError as error:
            return str(error)
        except Exception as error:
            log.exception("probing %s failed", url)
            return type(error).__name__
        return f"it answers with {response.status_code}" if response.status_code >= 500 else ""
