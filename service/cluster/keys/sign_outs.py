"""The sign-ins of web pages that were ended before their time: a copy of such a cookie opens nothing any more.

They are in the store of keys, so that all gateways know them; where a service has none, in a file of its folder.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from ...errors import ConfigError, ModelyardError, RegistryUnavailable
from ...files import state_folder
from ...settings.settings import Settings
from . import file_url, key_store_url, open_key_store
from .base import KeyStore

log = logging.getLogger(__name__)

FILE = "sign-outs.db"
OUTAGE_PAUSE = 5.0
"""Seconds without a call after one that the store did not answer."""
KEPT = 1000
"""The sign-ins ended by this process that it knows without the store."""


class SignOuts:
    """The sign-ins that were ended, as one process sees them. Nothing is opened before the first use."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        """Use the store of keys of ``settings``; ``clock`` returns seconds."""
        self._settings = settings
        self._clock = clock
        self._opening = threading.Lock()
        self._opened: KeyStore | None = None
        self._own: deque[str] = deque(maxlen=KEPT)
        self._silent_until = 0.0

    def end(self, number: str, seconds: float) -> None:
        """End the sign-in of an id, whose cookie is valid for ``seconds`` more at most.

        Raises ModelyardError if the store can't be used: then it has ended in this process alone.
        """
        self._own.append(number)
        self._store().end_sign_in(number, seconds)

    def has_ended(self, number: str) -> bool:
        """Return whether the sign-in of an id was ended, in any process; while the store is silent, in this one."""
        if number in self._own:
            return True
        if self._clock() < self._silent_until:
            return False
        try:
            return self._store().has_ended(number)
        except ModelyardError as error:
            self._silent_until = self._clock() + OUTAGE_PAUSE
            log.warning("pages: sign-ins that were ended elsewhere are not known: %s", error)
            return False

    def close(self) -> None:
        """Close the store; a later call opens it again."""
        with self._opening:
            store, self._opened = self._opened, None
        if store is not None:
            store.close()

    def _store(self) -> KeyStore:
        with self._opening:
            if self._opened is None:
                self._opened = open_key_store(key_store_url(self._settings) or self._file())
            return self._opened

    def _file(self) -> str:
        try:
            folder = state_folder(self._settings.state_path, self._settings.instance_name)
        except (OSError, ConfigError) as error:
            raise RegistryUnavailable(f"the folder of this service can't be used: {error}") from error
        return file_url(folder / FILE)
