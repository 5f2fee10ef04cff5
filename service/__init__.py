"""modelyard: a model-serving cluster for Flask, gunicorn, requests and threads.

Importing it starts nothing and loads no engine; the names below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .client.client import Client
    from .server.extension import Modelyard, create_app, current_modelyard

__all__ = ["Client", "Modelyard", "__version__", "create_app", "current_modelyard"]

_HOMES = {
    "Client": ".client.client",
    "create_app": ".server.extension",
    "Modelyard": ".server.extension",
    "current_modelyard": ".server.extension",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
