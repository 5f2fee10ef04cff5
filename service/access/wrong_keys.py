"""Count the tokens and keys that callers send and that are not known: for the log, and to slow down sign-ins."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

log = logging.getLogger(__name__)

LIMIT = 10
"""Wrong keys of one address within `SPAN` until it has to wait."""
SPAN = 60.0
"""Seconds from the first wrong key of an address until it may try again; and between two lines of the log."""
ADDRESSES_KEPT = 4096


class WrongKeys:
    """The wrong keys that one part of a process was sent lately, by address. Safe to use from many threads.

    A key has 256 random bits: nobody finds one by trying. What this bounds is the noise, and it shows who makes it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with none; ``clock`` returns seconds."""
        self._clock = clock
        self._lock = threading.Lock()
        self._of: OrderedDict[str, tuple[float, int]] = OrderedDict()
        """When the span of each address began, and the wrong keys in it; the youngest span last."""
        self._unlogged = 0
        self._logged_at = -math.inf

    def note(self, address: str) -> None:
        """Count a wrong key of ``address``. The log has a line a minute at most, with the number since the last."""
        with self._lock:
            now = self._clock()
            began, count = self._of.get(address, (now, 0))
            if now - began >= SPAN:
                began, count = now, 0
            self._of[address] = began, count + 1
            if not count:
                self._of.move_to_end(address)
                if len(self._of) > ADDRESSES_KEPT:
                    self._of.popitem(last=False)
            self._unlogged += 1
            if now - self._logged_at < SPAN:
                return
            number, self._unlogged, self._logged_at = self._unlogged, 0, now
        log.warning("tokens or keys that are not known here: %d, the last from %r", number, address)

    def pause(self, address: str) -> int:
        """Return the seconds until ``address`` may send another key; 0 if it may now."""
        with self._lock:
            began, count = self._of.get(address, (0.0, 0))
            return max(0, math.ceil(began + SPAN - self._clock())) if count >= LIMIT else 0
