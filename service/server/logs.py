"""Where the log of a process goes: a file, standard error, or the handlers of the application that it is part of."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from logging.handlers import WatchedFileHandler
from pathlib import Path

from ..settings.settings import Settings

log = logging.getLogger(__name__)

_FORMAT = "[%(asctime)s] [%(process)d] [%(levelname)s] %(message)s"
_ROOT = "modelyard"
_ACCESS = "modelyard.access"


def configure(settings: Settings) -> None:
    """Send the log and the access lines to ``log_file``, or to standard error. Raises OSError."""
    for name, text in ((_ROOT, _FORMAT), (_ACCESS, "%(message)s"), ("opentelemetry", _FORMAT)):
        # It follows a rotation of the file under any server; gunicorn's signal reopens it too.
        handler = WatchedFileHandler(settings.log_file) if settings.log_file else logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(text, "%Y-%m-%d %H:%M:%S %z"))
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
    _set_levels(settings)
    # This logger reports every try of every batch; modelyard.telemetry.export logs a failure once, with the reason.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)


def configure_missing(settings: Settings) -> None:
    """Configure what the application's own logging leaves open; a second call does nothing.

    Handlers of the logger ``modelyard`` stay as they are. Without them the log goes to ``log_file``, else to the
    handlers of the application, else to standard error. A level that is set stays.
    """
    root = logging.getLogger(_ROOT)
    if root.handlers:
        return
    if settings.log_file or not root.hasHandlers():
        try:
            configure(settings)
        except OSError as error:
            configure(replace(settings, log_file=None))
            log.warning("log_file can't be written, so the log goes to standard error: %s", error)
    elif root.level == logging.NOTSET:
        _set_levels(settings)


def _set_levels(settings: Settings) -> None:
    logging.getLogger(_ROOT).setLevel(settings.log_level.upper())
    logging.getLogger(_ACCESS).setLevel("DEBUG" if settings.log_level == "debug" else "INFO")


class FileReplaced:
    """Tells once of each file that has taken the place of a log file: a rotation."""

    def __init__(self, path: str | None) -> None:
        """Note the file at ``path``, if there is one."""
        self._path = None if path is None else Path(path)
        self._identity = self._current()

    def check(self) -> bool:
        """Return whether another file stands at the path since the last call. A file that is absent is waited for."""
        current = self._current()
        if current is None or current == self._identity:
            return False
        self._identity = current
        return True

    def _current(self) -> tuple[int, int] | None:
        if self._path is None:
            return None
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino
