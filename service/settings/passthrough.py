"""PassThrough: the calls of OpenAI's API that modelyard does not have, and the server that gets them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from .layers import build, from_plain
from .params import param

SERVED = ("chat", "completions", "embeddings", "models", "messages", "responses", "rerank", "beta")
"""The first parts of the paths that modelyard answers itself."""

_PATH = re.compile(r"(/[A-Za-z0-9_-]+)+")


@dataclass
class PassThrough:
    """One ``[[passthrough]]`` of the configuration file: a path, and the server that answers all calls below it."""

    path: str = param(help="path below /v1 that goes to the server, with all paths below it, as in /audio or /files")
    base_url: str = param(help="the server's address with its /v1", tags=["privacy"])
    model: str | None = param(None, help="only requests whose model is this one; default: all")
    api_key: str | None = param(None, help="the key for the server", tags=["privacy"])
    api_key_file: str | None = param(
        None, help="file with the key for the server; read again when it changes", tags=["privacy"]
    )
    ca: str | None = param(None, help="file or folder of CA certificates for https")
    connect_timeout: float = param(3.0, help="seconds the server gets to accept a connection", min=0.05, max=600)
    silence_timeout: float = param(
        300.0, help="seconds of silence until an answer begins, and within it", min=0.1, max=86_400
    )

    @classmethod
    def of(cls, table: Mapping[str, Any], place: str) -> PassThrough:
        """Return the checked ``table`` at ``place``. Raises ConfigError."""
        values = from_plain(cls, table, place)
        try:
            made = build(cls, values)
        except ConfigError as error:  # it does not name the place
            raise ConfigError(f"{place}: {error}") from None
        if not _PATH.fullmatch(made.path):
            raise ConfigError(f"{place}: path {made.path!r} must be like /audio or /audio/transcriptions")
        if made.path.split("/")[1] in SERVED:
            raise ConfigError(f"{place}: path {made.path!r}: modelyard answers these calls itself")
        return made
