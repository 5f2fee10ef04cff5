"""Attributes of the first span of a process: versions, the machine, and the settings, private ones masked."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from ..settings import params
from ..settings.settings import Settings
from ..types import JSONObject

_PACKAGES = ("flask", "gunicorn", "gevent", "gguf", "opentelemetry-sdk", "requests", "sqlalchemy", "xllamacpp")


def of_service(settings: Settings) -> JSONObject:
    """Return the attributes of a process."""
    # `platform.platform` would start a program: under gevent the fork runs the greenlets of this process in the child.
    system = os.uname()
    attributes: JSONObject = {
        "process.runtime.name": platform.python_implementation(),
        "process.runtime.version": platform.python_version(),
        "os.description": f"{system.sysname} {system.release} {system.version}",
        "host.arch": system.machine,
        "modelyard.host.cores": len(os.sched_getaffinity(0)),
        "modelyard.host.memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
    versions = {f"modelyard.package.{name}": version for name in _PACKAGES if (version := _version(name)) is not None}
    return attributes | versions | shown("modelyard.setting", settings)


def shown(prefix: str, values: Any) -> JSONObject:
    """Return declared values as attributes below ``prefix``: private ones masked, those without a value left out."""
    return {f"{prefix}.{name}": value for name, value in params.shown(values).items() if _has_value(value)}


def _has_value(value: Any) -> bool:
    return value is not None and not (isinstance(value, str | Sequence | Mapping) and not value)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
