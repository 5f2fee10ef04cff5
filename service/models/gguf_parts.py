"""The files of a model in several GGUF files, ``NAME-00001-of-00003.gguf``: by their names alone.

llama.cpp is given the first of them, and finds the others beside it. So is modelyard.
"""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE | re.ASCII)
MAX_PARTS = 1000


def stem_of(name: str) -> str:
    """Return the name of a file without ``.gguf``, and without its number if it is one of several."""
    match = _NAME.fullmatch(name)
    return match["stem"] if match else Path(name).stem


def is_later(name: str) -> bool:
    """Return whether a file is a part, and not the first."""
    match = _NAME.fullmatch(name)
    return match is not None and int(match["number"]) != 1


def paths_of(first: Path) -> list[Path]:
    """Return the paths of all parts whose first is at ``first``; itself alone if that is not the name of a first part.

    Nothing is looked up.
    """
    match = _NAME.fullmatch(first.name)
    if match is None or int(match["number"]) != 1 or not 1 <= int(match["count"]) <= MAX_PARTS:
        return [first]
    stem, count, suffix = match["stem"], match["count"], match["suffix"]
    return [first.with_name(f"{stem}-{number:05}-of-{count}{suffix}") for number in range(1, int(count) + 1)]


def versions_of(first: Path) -> tuple[tuple[int, int], ...]:
    """Return size and modification time (ns) of each part, (-1, -1) for a missing one: they change with the model."""
    return tuple(map(_version, paths_of(first)))


def _version(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns
