"""The token that a service says to others."""

from __future__ import annotations

import logging
import re
import stat
from pathlib import Path

from ..errors import ConfigError, ModelyardError
from ..settings.settings import Settings
from .watched_file import WatchedFile

log = logging.getLogger(__name__)

_SECRET = re.compile(r"[\x21-\x7e]{1,4096}")


class OwnToken:
    """The token that a service says to others: of the settings, or of a file that is read anew when it has changed."""

    def __init__(self, token: str | None, file: Path | None = None) -> None:
        """Read it; ``token`` is stronger than ``file``. Raises ConfigError."""
        self._file = None if token or file is None else WatchedFile(file)
        self._value = check_secret(token, "token") if token else None
        if self._file is not None:
            self._value = read_secret(self._file.path)

    @classmethod
    def of(cls, settings: Settings) -> OwnToken:
        """Return the one that the settings name. Raises ConfigError."""
        file = settings.token_file
        return cls(settings.token, Path(file).expanduser().absolute() if file else None)

    def __call__(self) -> str | None:
        """Return the token as it is now; None where there is none."""
        if self._file is not None and self._file.is_due() and self._file.has_changed():
            try:
                self._value = read_secret(self._file.path)
            except ModelyardError as error:
                log.error("%s; the token that was known before stays", error)  # noqa: TRY400 - nothing to trace
        return self._value


def read_secret(path: Path) -> str:
    """Return the token in a file that only its owner, or group, may read. Raises ConfigError."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode) and mode & stat.S_IRWXO:
            raise ConfigError(f"token_file {path} can be read by every user of this machine: chmod 600 {path}")
        with path.open("rb") as file:
            text = file.read(64 * 1024).decode()
    except OSError as error:
        raise ConfigError(f"token_file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"token_file {path}: is no text") from error
    return check_secret(text.strip(), f"token_file {path}")


def check_secret(text: str, place: str) -> str:
    """Return ``text`` if it can stand in a header; ConfigError names the place, never the text."""
    if not _SECRET.fullmatch(text):
        raise ConfigError(f"{place}: a token is one word of letters, digits and signs without blanks, and not empty")
    return text
