"""What settings must be together: values that a service can't work with are refused before it starts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..errors import ConfigError

if TYPE_CHECKING:
    from .settings import Settings

SHORTEST_SECRET = 32
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9.:\[\]_-]+")
"""The origin of a web page as browsers send it; ``null``, of a page without one, is not among them."""


def check_together(settings: Settings) -> None:
    """Raise ConfigError for values that are not valid, alone or beside the others."""
    if settings.reserve >= settings.threads:
        raise ConfigError(f"reserve ({settings.reserve}) must be less than threads ({settings.threads})")
    if settings.prefix and not settings.prefix.startswith("/"):
        raise ConfigError(f"prefix {settings.prefix!r} must start with a slash, or be empty")
    _check_origins(settings.cors_origins)
    if settings.pages_secret is not None and len(settings.pages_secret) < SHORTEST_SECRET:
        raise ConfigError(f"pages_secret: must have {SHORTEST_SECRET} characters at least")
    _check_placement(settings)
    if settings.has_backends and not settings.registry and not settings.model_tables:
        raise ConfigError(
            "a gateway needs --registry, the address of a controller or of a store, or models of other servers in "
            'its configuration ([[models]] with engine = "openai")'
        )
    if settings.registry and settings.registry.startswith("memory:"):
        if settings.workers > 1:
            raise ConfigError("registry memory: is in one process: with several workers, use another store")
        if settings.is_hosted and settings.routes:
            raise ConfigError("registry memory: is in one process: where models are hosted, use another store")


def _check_placement(settings: Settings) -> None:
    if settings.workers > 1 and settings.owns_models:
        raise ConfigError(
            f"workers ({settings.workers}): with placement inline a process owns its models, and each would load all "
            "of them: leave the placement out, or run one process"
        )
    if settings.http_threads == "gevent" and settings.owns_models:
        raise ConfigError(
            "http_threads gevent: with placement inline an engine would block its loop: leave the placement out, "
            "or use gthread"
        )


def _check_origins(origins: Sequence[str]) -> None:
    """Raise ConfigError for what no browser sends as the origin of a page."""
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"cors_origins {origin!r}: expected SCHEME://HOST[:PORT] in lower case and without a path, as in "
                "https://chat.example.com, or *"
            )
    if "*" in origins and len(origins) > 1:
        raise ConfigError("cors_origins: * stands for all origins: leave out the others")


def checked_tracing(value: str | None) -> str | None:
    """Return the destination of spans, None for ``off``. Raises ConfigError."""
    if value in (None, "off", "host", "otlp"):
        return None if value == "off" else value
    kind, _, place = (value or "").partition(":")
    if kind == "file" and place:
        return value
    if kind == "otlp":
        parts = urlsplit(place)
        if "@" in parts.netloc:
            raise ConfigError("tracing: an address without name and password: set them in OTEL_EXPORTER_OTLP_HEADERS")
        if parts.scheme in ("http", "https") and parts.netloc:
            return value
    elif kind != "file" and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value or ""):
        return value
    raise ConfigError(f"tracing {value!r}: expected file:PATH, otlp, otlp:http://HOST:PORT, host, module:Class, or off")
