"""The keys as one process holds them: all keys of the store, read again when they change, and its part of the limits.

A thread reads the stamp of the keys every two seconds, and the keys if it is another, so that to find a key costs no
call of the store, and a revoked one is refused after two seconds. It also gives back what is idle, and renews leases.
"""

from __future__ import annotations

import hmac
import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import astuple

from ...access.keys import Key, Limits, shown_time
from ...access.tokens import digest_of
from ...errors import ModelyardError, NotReady, Unauthorized
from ...threads import BackgroundThread
from ...types import JSONObject
from .allowance import Allowance, Lender, Permit
from .base import NOTHING, KeyStore

log = logging.getLogger(__name__)

REFRESH = 2.0
"""Seconds between two looks whether the keys have changed."""
LOOK_AGAIN = 0.5
"""Seconds after a look until an unknown secret leads to another: a new key can be used at once."""
KEPT_FOR = 600.0
"""Seconds for which the keys stay in force while the store does not answer."""
TICK = 0.5
"""Seconds between two returns of what is idle."""

_LOOKER = "looker"
"""The process that holds no places, by whose name the store is asked what is left."""


class KeyRing:
    """All keys of a store, and the part of this process in their limits. Objects only, until `start` or the first use.

    ``clock`` returns seconds for intervals, ``wall_clock`` seconds since 1970.
    """

    def __init__(
        self,
        store: KeyStore,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Hold the keys of ``store``, which is closed by `stop`."""
        self.store = store
        self.error = ""
        """Why the store could not be read; empty if it could."""
        self._clock = clock
        self._wall_clock = wall_clock
        self._reading = threading.Lock()
        self._stamp: str | None = None
        self._keys: dict[bytes, Key] = {}
        self._has_keys = False
        """Whether the store has, or had, a key. A store that has lost its keys opens nothing."""
        self._read_at: float | None = None
        self._looked_at: float | None = None
        self._lender: Lender | None = None
        self._allowances: dict[str, Allowance] = {}
        self._making = threading.Lock()
        self._thread = BackgroundThread("modelyard-keys", self._work, self._give_back)

    # Life

    def start(self) -> None:
        """Start the thread. Raises Overloaded."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, give back what is unused, and close the store."""
        self._thread.stop()
        self.store.close()

    def _work(self) -> float:
        if self._looked_at is None or self._clock() - self._looked_at >= REFRESH:
            self._refresh()
        for allowance in list(self._allowances.values()):
            allowance.give_back_idle()
        return TICK

    def _give_back(self) -> None:
        for allowance in self._allowances.values():
            allowance.give_back()

    # Keys

    def is_required(self) -> bool:
        """Return whether requests need a key: whether there is, or was, any.

        Raises NotReady if the store was never read, and does not answer.
        """
        self._check_read()
        return self._has_keys

    def find(self, secret: str) -> Key | None:
        """Return the key of a secret, None for an unknown one.

        Raises Unauthorized for one that is expired or revoked, and NotReady if the store does not answer for long.
        """
        self._check_read()
        digest = digest_of(secret)
        key = self._keys.get(digest)
        if key is None and self._clock() - (self._looked_at or 0.0) >= LOOK_AGAIN:
            self._refresh()
            key = self._keys.get(digest)
        self._check_age()
        # The time of a lookup by hash only tells about the hash of the caller's own guess.
        if key is None or not hmac.compare_digest(key.digest, digest):
            return None
        return self._valid(key)

    def with_id(self, number: str) -> Key | None:
        """Return the key of an id, None if there is none. Raises like `find`."""
        self._check_read()
        self._check_age()
        key = next((key for key in self._keys.values() if key.id == number), None)
        return None if key is None else self._valid(key)

    def _valid(self, key: Key) -> Key:
        """Return a key that is neither revoked nor expired. Raises Unauthorized."""
        if key.revoked is not None:
            raise Unauthorized(f"the key {key.name} was revoked at {shown_time(key.revoked)}")
        if key.has_expired(self._wall_clock()):
            raise Unauthorized(f"the key {key.name} has expired at {shown_time(key.expires)}")
        return key

    def status(self) -> JSONObject:
        """Return the number of keys that are valid, None before they were read, and why the store can't be read."""
        now = self._wall_clock()
        valid = sum(key.state(now) == "valid" for key in self._keys.values())
        return {"count": None if self._read_at is None else valid, "error": self.error or None}

    def _check_read(self) -> None:
        if self._read_at is not None:
            return
        if self._looked_at is None or self._clock() - self._looked_at >= LOOK_AGAIN:
            with self._reading:
                if self._looked_at is None or self._clock() - self._looked_at >= LOOK_AGAIN:
                    self._read()
        if self._read_at is None:
            raise NotReady(f"whether keys are needed is not known: {self.error}", retry_after=2)

    def _check_age(self) -> None:
        if self._read_at is None or self._clock() - self._read_at > KEPT_FOR:
            raise NotReady(f"the keys can't be checked: {self.error}", retry_after=5)

    def _refresh(self) -> None:
        """Read the keys if they have changed, unless another thread does."""
        if self._reading.acquire(blocking=False):
            try:
                self._read()
            finally:
                self._reading.release()

    def _read_after_change(self) -> None:
        """Read the keys after a change, and after a look of another thread, which may have been before the change."""
        with self._reading:
            self._read()

    def _read(self) -> None:
        try:
            stamp = self.store.stamp()
            if stamp != self._stamp:
                keys = {key.digest: key for key in self.store.all()}
                self._has_keys = self._has_keys or bool(keys)
                self._keys, self._stamp = keys, stamp
                self._forget_allowances()
        except ModelyardError as error:
            if not self.error:
                log.warning("the keys can't be read, those read before stay in force: %s", error)
            self.error = str(error)
        else:
            self.error = ""
            self._read_at = self._clock()
        self._looked_at = self._clock()

    # Changes

    def all(self) -> list[Key]:
        """Return all keys of the store. Raises RegistryUnavailable."""
        return self.store.all()

    def add(self, key: Key) -> None:
        """Keep a new key. Raises ConfigError for a name that is taken, and RegistryUnavailable."""
        self.store.add(key)
        self._read_after_change()

    def revoke(self, name: str, *, forget: bool = False) -> Key:
        """Revoke the key of an id or name. Raises ConfigError if there is none, and RegistryUnavailable."""
        gone = self.store.revoke(name, forget=forget)
        self._read_after_change()
        return gone

    # Limits

    def admit(self, key: Key, tokens: int) -> Permit:
        """Take one request of ``tokens`` from the limits of a key. Raises RateLimited."""
        return self._allowance(key).admit(tokens)

    def headers(self, key: Key) -> list[tuple[str, str]]:
        """Return the ``x-ratelimit`` headers of a key."""
        return self._allowance(key).headers()

    def left(self, key: Key) -> Limits:
        """Return what all processes have left of the limits of a key now; None: no limit.

        Raises RegistryUnavailable, and Unauthorized if the key has gone.
        """
        rest = self.store.take(key, _LOOKER, 0, NOTHING, NOTHING).left
        limits = astuple(key.limits)
        return Limits(*(None if limit is None else amount for limit, amount in zip(limits, rest, strict=True)))

    def _allowance(self, key: Key) -> Allowance:
        allowance = self._allowances.get(key.id)
        if allowance is None:
            with self._making:
                if self._lender is None:  # in the process that uses it, and not in one that it was forked from
                    self._lender = Lender(self.store, uuid.uuid4().hex, self._clock)
                allowance = self._allowances.setdefault(key.id, Allowance(self._lender, key))
        return allowance

    def _forget_allowances(self) -> None:
        valid = {key.id for key in self._keys.values() if key.revoked is None}
        for number in set(self._allowances) - valid:
            self._allowances.pop(number).give_back()
