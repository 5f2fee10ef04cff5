"""Prober: the thread that finds out whether addresses that failed answer again."""

from __future__ import annotations

import logging

from ..errors import ModelyardError
from ..sessions.session import Session
from ..threads import BackgroundThread
from .routing import Routes

log = logging.getLogger(__name__)

PROBE_TIMEOUT = (1.0, 2.0)
"""Seconds to connect, and of silence."""


class Prober(BackgroundThread):
    """Probes the addresses of `Routes` that are due, and notes the results there. Woken when an address has failed."""

    def __init__(self, routes: Routes, session: Session) -> None:
        """Probe by ``session``, which stays the caller's."""
        super().__init__("modelyard-probe", self._probe_due)
        self._routes = routes
        self._session = session

    def _probe_due(self) -> float | None:
        for url in self._routes.to_probe():
            self._routes.probed(url, self._probe(url))
        return self._routes.next_probe_in()

    def _probe(self, url: str) -> str:
        """Return why an address does not answer; empty where it does, with any status below 500."""
        try:
            with self._session.request("GET", f"{url}/health", timeout=PROBE_TIMEOUT) as response:
                response.read_whole()
        except ModelyardError as error:
            return str(error)
        except Exception as error:
            log.exception("probing %s failed", url)
            return type(error).__name__
        return f"it answers with {response.status_code}" if response.status_code >= 500 else ""
