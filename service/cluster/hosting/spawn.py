"""How processes of this package are started: the interpreter, and the environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ...settings.settings import ALLOCATOR

_NOT_INHERITED = ("GUNICORN_", "LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_", "WERKZEUG_", "SERVER_SOFTWARE")
"""How the names of variables begin that are for the web server, and not for the processes that it starts."""


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module in this environment: within uWSGI `sys.executable` is uWSGI.

    With -P, so that nothing of the web server's folder, where its application is, can be imported.
    """
    is_python = Path(sys.executable or "").name.startswith("python")
    python = sys.executable if is_python else str(Path(sys.exec_prefix, "bin", f"python{sys.version_info.major}"))
    return [python, "-P", "-m", module, *arguments]


def environ_of_child(without: Sequence[str] = ()) -> dict[str, str]:
    """Return the environment of a process that is started; names that begin with one of ``without`` are left out."""
    excluded = (*_NOT_INHERITED, *without)
    return {**ALLOCATOR, **{name: value for name, value in os.environ.items() if not name.startswith(excluded)}}
