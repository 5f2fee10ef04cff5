"""Sign what a browser keeps: with a secret that all processes of a service have, and that is in no store.

The secret is a setting, or a file in the folder of the service. It is not derived from the hashes of keys: who can read
the store of keys could sign in as each of them.
"""

from __future__ import annotations

import fcntl
import hmac
import logging
import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from itsdangerous import BadSignature, URLSafeTimedSerializer

from ..errors import ConfigError
from ..files import private_folder
from ..settings.checks import SHORTEST_SECRET

log = logging.getLogger(__name__)

FILE = "pages.secret"


class Signer:
    """Signs values, and reads those that any process of the service has signed. Nothing is read before the first use.

    Services behind one balancer need the same ``secret``; without one the file in ``folder()`` counts, which is made.
    """

    def __init__(self, secret: str | None, folder: Callable[[], Path]) -> None:
        self._secret = secret
        self._folder = folder
        self._reading = threading.Lock()

    def sign(self, value: Any, purpose: str) -> str:
        """Return a JSON value with its signature and the time, as text for a cookie. The value can be read."""
        return str(self._serializer(purpose).dumps(value))

    def read(self, text: str | None, purpose: str, lifetime: float) -> Any | None:
        """Return the value that was signed for ``purpose`` at most ``lifetime`` seconds ago; None for other texts."""
        if not text:
            return None
        try:
            return self._serializer(purpose).loads(text, max_age=int(lifetime))
        except BadSignature:
            return None

    def mark(self, data: bytes) -> str:
        """Return what only a process with the secret can compute of ``data``, and that does not tell it."""
        return hmac.digest(self._read_secret().encode(), data, "sha256")[:16].hex()

    def _serializer(self, purpose: str) -> URLSafeTimedSerializer:
        return URLSafeTimedSerializer(self._read_secret(), salt=f"modelyard {purpose}")

    def _read_secret(self) -> str:
        with self._reading:
            if self._secret is None:
                self._secret = self._from_file()
            return self._secret

    def _from_file(self) -> str:
        try:
            try:
                path = self._folder() / FILE
            except (OSError, ConfigError):
                path = private_folder() / FILE
            return _kept(path)
        except OSError as error:
            log.warning("pages: %s: who signs in is known to this process alone; set pages_secret", error)
            return secrets.token_urlsafe(SHORTEST_SECRET)


def _kept(path: Path) -> str:
    """Return the secret in a file; the first process to ask makes it. Raises OSError, also for a symbolic link.

    A secret that others could read, or that is damaged, is replaced: all sign-ins end.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "r+", encoding="ascii", errors="replace") as file:
        fcntl.flock(fd, fcntl.LOCK_EX)
        secret, is_private = file.read().strip(), not os.fstat(fd).st_mode & 0o077
        if not is_private:
            log.warning("pages: %s could be read by others: it has a new secret, and who signed in has to again", path)
            os.fchmod(fd, 0o600)
        if len(secret) < SHORTEST_SECRET or not is_private or not secret.isascii():
            secret = secrets.token_urlsafe(SHORTEST_SECRET)
            file.seek(0)
            file.write(secret)
            file.truncate()
        return secret
