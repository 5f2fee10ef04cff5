"""Logging of a service that is ours. A monolith that takes the extension in keeps its own."""

from __future__ import annotations

import logging
import sys

from ..settings.settings import Settings

_FORMAT = "[%(asctime)s] [%(process)d] [%(levelname)s] %(message)s"


def configure(settings: Settings) -> None:
    """Send the log and the access lines to ``log_file``, or to standard error. Raises OSError."""
    root = logging.getLogger("modelyard")
    access = logging.getLogger("modelyard.access")
    tracing = logging.getLogger("opentelemetry")
    for logger, form in ((root, _FORMAT), (access, "%(message)s"), (tracing, _FORMAT)):
        handler = logging.FileHandler(settings.log_file) if settings.log_file else logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(form, "%Y-%m-%d %H:%M:%S %z"))
        logger.handlers[:] = [handler]
        logger.propagate = False
    root.setLevel(settings.log_level.upper())
    access.setLevel("DEBUG" if settings.log_level == "debug" else "INFO")
    # It logs every failed try of every batch; modelyard.telemetry.export logs a failure once, with the reason.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
