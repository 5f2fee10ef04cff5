"""Whether a file is what its checksum says, read in full once and then trusted while it is unchanged.

What was found is kept beside the file, in a small hidden one, with the size and the time of
change that the file had then.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from .pull_progress import CHECKING, Progress

CHUNK = 1 << 20


def digest(path: Path, progress: Progress) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    found, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            found.update(chunk)
            done += len(chunk)
            progress(CHECKING, done, total)
    return found.hexdigest()


def is_verified(path: Path, size: int, sha256: str, progress: Progress) -> bool:
    """Return whether the file at ``path`` is there and is the one promised."""
    if not path.is_file() or path.stat().st_size != size:
        return False
    known = remembered(path)
    if known is None:
        known = digest(path, progress)
        if known == sha256:
            remember(path, known)
    return known == sha256


def remembered(path: Path) -> str | None:
    """Return the checksum that the file had when it was last read in full; None if it has changed since."""
    try:
        found = json.loads(_record(path).read_text(encoding="utf-8"))
        stat = path.stat()
        unchanged = (found["size"], found["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns)
        return str(found["sha256"]) if unchanged else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(path: Path, sha256: str) -> None:
    """Keep the checksum of a file; where the folder can't be written to, it is read in full each time."""
    stat = path.stat()
    text = json.dumps({"sha256": sha256, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns})
    with contextlib.suppress(OSError):
        _record(path).write_text(text, encoding="utf-8")


def _record(path: Path) -> Path:
    return path.with_name(f".{path.name}.pulled")
