"""The tokens that a service knows, found by their secret."""

from __future__ import annotations

import hmac
import logging
import threading
from collections.abc import Iterable
from pathlib import Path

from ..errors import ModelyardError
from ..settings.settings import Settings
from .tokens import Token, digest_of, parse_all, read_file
from .watched_file import WatchedFile

log = logging.getLogger(__name__)


class Tokens:
    """The tokens that a service knows: of its settings, and of a file that is read anew when it has changed."""

    def __init__(self, entries: Iterable[str] = (), file: Path | None = None) -> None:
        """Read them. Raises ConfigError."""
        self._own = parse_all((f"tokens, item {number}", entry) for number, entry in enumerate(entries, 1))
        self._file = None if file is None else WatchedFile(file)
        self._complaint = ""
        self._looking = threading.Lock()
        self._known: dict[bytes, Token] = {}
        self._read()
        self.configured = bool(self._own) or file is not None
        """Whether tokens are asked for at all: also while none is in the file."""

    @classmethod
    def of(cls, settings: Settings) -> Tokens:
        """Return those that the settings name. Raises ConfigError."""
        file = settings.tokens_file
        return cls(settings.tokens, Path(file).expanduser().absolute() if file else None)

    def find(self, secret: str) -> Token | None:
        """Return the token of a secret; None where it is not known."""
        if self._file is not None and self._file.is_due():
            self._look(self._file)
        digest = digest_of(secret)
        # Found by hash: what the time of that tells is about the hash of the asker's own guess.
        token = self._known.get(digest)
        return token if token is not None and hmac.compare_digest(token.digest, digest) else None

    def _look(self, file: WatchedFile) -> None:
        """Read the file again if it has changed; one that does not fit, or has gone, changes nothing."""
        if not self._looking.acquire(blocking=False):
            return
        try:
            if not file.has_changed() and not self._complaint:
                return
            try:
                self._read()
            except ModelyardError as error:
                self._complain(str(error))
            else:
                log.info("%s has changed: %d tokens are known", file.path, len(self._known))
                self._complaint = ""
        finally:
            self._looking.release()

    def _read(self) -> None:
        named = [(f"tokens, {token.name}", token.line) for token in self._own]
        if self._file is not None:
            path = self._file.path
            named += [(f"tokens_file {path}, {token.name}", token.line) for token in read_file(path)]
        self._known = {token.digest: token for token in parse_all(named)}

    def _complain(self, reason: str) -> None:
        if reason != self._complaint:
            log.error("%s; the tokens that were known before stay", reason)
        self._complaint = reason
