"""Checksums of weights: a file is read in full once, then its checksum is trusted while the file is unchanged.

The checksum is kept in a small hidden file beside it, with the size and the modification time of the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from .progress import Progress, Stage

CHUNK = 1 << 20


def digest(path: Path, progress: Progress) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    checksum, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            checksum.update(chunk)
            done += len(chunk)
            progress(Stage.CHECKING, done, total)
    return checksum.hexdigest()


def is_verified(path: Path, size: int, sha256: str, progress: Progress) -> bool:
    """Return whether the file at ``path`` is present and has this size and checksum."""
    if not path.is_file() or path.stat().st_size != size:
        return False
    checksum = remembered(path)
    if checksum is None:
        checksum = digest(path, progress)
        if checksum == sha256:
            remember(path, checksum)
    return checksum == sha256


def remembered(path: Path) -> str | None:
    """Return the kept checksum of a file; None if there is none, or the file has changed since."""
    try:
        record = json.loads(_record(path).read_text(encoding="utf-8"))
        stat = path.stat()
        unchanged = (record["size"], record["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns)
        return str(record["sha256"]) if unchanged else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(path: Path, sha256: str) -> None:
    """Keep the checksum of a file, unless its folder is read-only: then it is read in full each time."""
    stat = path.stat()
    text = json.dumps({"sha256": sha256, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns})
    with contextlib.suppress(OSError):
        _record(path).write_text(text, encoding="utf-8")


def forget(path: Path) -> None:
    """Remove the kept checksum of a file that is gone. Raises OSError."""
    _record(path).unlink(missing_ok=True)


def _record(path: Path) -> Path:
    return path.with_name(f".{path.name}.pulled")
