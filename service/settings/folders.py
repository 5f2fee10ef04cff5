"""Where a user's files lie: in the home folder, or, of a user without one, in a private folder for temporary files.

A container may run as a user that has neither an entry in the password database nor HOME.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ConfigError
from ..files import private_folder


def expanded(path: str | Path) -> Path:
    """Return a path with its ``~`` replaced, absolute. Raises ConfigError if that home folder is unknown."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(f"{path}: the home folder that ~ stands for is unknown: write the whole path") from error


def home_folder(variable: str, fallback: str, option: str) -> Path:
    """Return our folder in the folder that ``variable`` names, or in ``fallback`` below the home folder; absolute.

    A user without a home folder gets the private temporary folder; where that can't be made, raises ConfigError, which
    names ``option``.
    """
    if base := os.environ.get(variable):
        return Path(base).absolute() / "modelyard"
    try:
        return Path.home().absolute() / fallback / "modelyard"
    except RuntimeError:
        pass
    try:
        return private_folder()
    except OSError as error:
        raise ConfigError(f"this user has no home folder, and no temporary one ({error}): set {option}") from error
