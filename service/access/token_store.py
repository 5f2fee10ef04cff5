"""The tokens that a service accepts, and the token that it sends: from settings, or from files that may change."""

from __future__ import annotations

import hmac
import logging
import re
import stat
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from ..errors import ConfigError, ModelyardError
from ..settings.folders import expanded
from .tokens import Token, digest_of, parse_all, read_file

log = logging.getLogger(__name__)

LOOK_AGAIN = 1.0
"""Seconds between two checks of a file."""

_SECRET = re.compile(r"[\x21-\x7e]{1,4096}")
_LARGEST_SECRET_FILE = 64 * 1024


class WatchedFile:
    """Tells when a file has changed. Make it before the first read, so that no change is missed."""

    def __init__(self, path: str | Path) -> None:
        self.path = expanded(path)
        self._state = self._look()
        self._next_look = time.monotonic() + LOOK_AGAIN

    def is_due(self) -> bool:
        """Return whether it is time to look again."""
        return time.monotonic() >= self._next_look

    def has_changed(self) -> bool:
        """Check the file; return whether it has changed since the last check."""
        self._next_look = time.monotonic() + LOOK_AGAIN
        previous, self._state = self._state, self._look()
        return self._state != previous

    def _look(self) -> tuple[int, ...] | None:
        """Return what differs between two contents, without reading them; None without a file."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


class TokenStore:
    """Finds accepted tokens by secret: of the settings, and of a file that is read again when it changes."""

    def __init__(self, entries: Iterable[str] = (), file: str | Path | None = None) -> None:
        """Read the entries and the file. Raises ConfigError."""
        self._entries = parse_all((f"tokens, item {number}", entry) for number, entry in enumerate(entries, 1))
        self._file = None if file is None else WatchedFile(file)
        self._complaint = ""
        self._reading = threading.Lock()
        self._by_digest: dict[bytes, Token] = {}
        self._read()
        self.configured = bool(self._entries) or file is not None
        """Whether tokens are required: also with a file that has none."""

    def find(self, secret: str) -> Token | None:
        """Return the token of a secret, or None."""
        self._refresh_if_due()
        digest = digest_of(secret)
        # The time of a lookup by hash only tells about the hash of the caller's own guess.
        token = self._by_digest.get(digest)
        return token if token is not None and hmac.compare_digest(token.digest, digest) else None

    def named(self, name: str) -> Token | None:
        """Return the token of a name, or None."""
        self._refresh_if_due()
        return next((token for token in self._by_digest.values() if token.name == name), None)

    def _refresh_if_due(self) -> None:
        if self._file is not None and self._file.is_due():
            self._refresh(self._file)

    def _refresh(self, file: WatchedFile) -> None:
        """Read the file again if it has changed; if it is invalid or missing, keep the tokens."""
        if not self._reading.acquire(blocking=False):
            return
        try:
            if not file.has_changed() and not self._complaint:
                return
            try:
                self._read()
            except ModelyardError as error:
                self._complain(str(error))
            else:
                log.info("%s has changed: %d tokens are accepted", file.path, len(self._by_digest))
                self._complaint = ""
        finally:
            self._reading.release()

    def _read(self) -> None:
        named = [(f"tokens, {token.name}", token.line) for token in self._entries]
        if self._file is not None:
            path = self._file.path
            named += [(f"tokens_file {path}, {token.name}", token.line) for token in read_file(path)]
        self._by_digest = {token.digest: token for token in parse_all(named)}

    def _complain(self, reason: str) -> None:
        if reason != self._complaint:
            log.error("%s; the tokens read before stay accepted", reason)
        self._complaint = reason


class OutgoingToken:
    """The token that a service sends to others: of the settings, or of a file that is read again when it changes."""

    def __init__(self, token: str | None, file: str | Path | None = None) -> None:
        """Read the token; ``token`` is stronger than ``file``. Raises ConfigError."""
        self._file = None if token or file is None else WatchedFile(file)
        self._value = check_secret(token, "token") if token else None
        if self._file is not None:
            self._value = read_secret(self._file.path)

    def __call__(self) -> str | None:
        """Return the current token, or None."""
        if self._file is not None and self._file.is_due() and self._file.has_changed():
            try:
                self._value = read_secret(self._file.path)
            except ModelyardError as error:
                log.error("%s; the token read before stays in use", error)  # noqa: TRY400 - a traceback adds nothing
        return self._value


def read_secret(path: Path) -> str:
    """Return the token in a file that only its owner, or group, may read. Raises ConfigError."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode) and mode & stat.S_IRWXO:
            raise ConfigError(f"{path} can be read by every user of this machine: chmod 600 {path}")
        with path.open("rb") as file:
            text = file.read(_LARGEST_SECRET_FILE).decode()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not text") from error
    return check_secret(text.strip(), str(path))


def check_secret(text: str, place: str) -> str:
    """Return ``text`` if it can be sent in a header. Raises ConfigError with the place, never the text."""
    if not _SECRET.fullmatch(text):
        raise ConfigError(f"{place}: a token is one word of letters, digits and signs without blanks, and not empty")
    return text
