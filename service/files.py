"""Make folders and write files that processes share: with the right mode, and each file whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def state_folder(root: Path, instance: str) -> Path:
    """Return (and make) the folder of one service below ``root``. Raises OSError."""
    folder = root / instance
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old or the new content, never a part; mode 0600. Raises OSError."""
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
