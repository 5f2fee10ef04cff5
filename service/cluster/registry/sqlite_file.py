"""The file of a SQLite registry: made, checked, and set aside where it is broken.

It is opened by SQLite alone: see `sqlite`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)

BROKEN = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
SUFFIXES = (".db", ".sqlite", ".sqlite3")
"""The ends of the names of files that are set aside if they are broken. By another name, it may be anything."""


def make(path: Path) -> int:
    """Return the number (inode) of a database in WAL mode; an empty one is made, only for this user, if there is none.

    Its other files get the same mode. It gets its name when it is complete and closed, so that no process sees it
    earlier, and no lock on it is lost. Raises OSError and sqlite3.Error.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}: make it")
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_ino
    descriptor, nameless = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    try:
        with contextlib.closing(sqlite3.connect(nameless)) as connection:
            prepare(connection)
        with contextlib.suppress(FileExistsError):
            os.link(nameless, path)
    finally:
        Path(nameless).unlink()
    return path.stat().st_ino


def prepare(connection: sqlite3.Connection) -> None:
    """Use WAL mode, without waiting for the disk: heartbeats repeat the rows that a machine loses when it dies."""
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise sqlite3.OperationalError(f"its folder can't hold a shared file (journal mode {mode})")
    connection.execute("PRAGMA synchronous = NORMAL")


def fault_of(path: Path) -> str:
    """Return why a file is not a sound database; empty if it is, or is not there. Nothing is changed."""
    if not path.is_file():
        return ""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        return str(error) if is_broken(error) else ""
    return ""


def is_broken(error: sqlite3.Error) -> bool:
    """Return whether an error means that the file is not a database, or a damaged one."""
    # Errors of the Python module itself have no code. The low byte is the kind of fault.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in BROKEN


def set_aside(path: Path, number: int, fault: sqlite3.Error) -> bool:
    """Rename a broken file; return whether there can be a new one in its place.

    Nothing is done where the file is no longer that of ``number``: another process was faster. Raises OSError.
    """
    if path.suffix not in SUFFIXES:
        return False
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_ino == number:
            # The files beside it first: they would be taken for those of the new one.
            for suffix in ("-wal", "-shm", ""):
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{path}{suffix}").replace(f"{path}.bad{suffix}")
            log.warning("%s can't be read (%s): set aside as %s.bad, a new one is made", path, fault, path.name)
    return True
