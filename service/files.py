"""Make folders, lock them and write files that processes share: with the right mode, each file whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path


def state_folder(root: Path, instance: str) -> Path:
    """Return (and make) the folder of one service below ``root``. Raises OSError."""
    folder = root / instance
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def private_folder() -> Path:
    """Return the folder of this user below the one for temporary files, made if need be; the same in every process.

    Raises OSError if it can't be made, or belongs to another user, or others may enter it.
    """
    folder = Path(tempfile.gettempdir()) / f"modelyard-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    # In a folder that all may write, another user could have made it first.
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder of this user alone")
    return folder


def try_lock(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int | None:
    """Return the open file at ``path`` with its exclusive lock, None if another has it. Raises OSError.

    A lock that is held proves that its holder lives, in whichever container: it ends with the last process that has
    the file open. A pid proves nothing, as it may belong to another process, or to another pid namespace.
    """
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_at(path: Path, fd: int) -> bool:
    """Return whether an open file is still the one at ``path``: it may have been deleted, or replaced."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except OSError:
        return False


class SocketFolder:
    """A folder of this process, for one socket that other users can't reach.

    Folders that no process holds the lock of are removed when the next one is made.
    """

    def __init__(self, name: str) -> None:
        """Make the folder, and hold its lock; ``name`` says whose sockets are in such folders. Raises OSError."""
        # The underscore keeps it from versions that removed the folder of every process that they did not see.
        prefix, root = f"modelyard-{name}_", Path(tempfile.gettempdir())
        _sweep(root, prefix)
        self.path, self._fd = _locked_folder(root, prefix)
        self.socket = self.path / f"{name}.sock"

    def remove(self) -> None:
        """Remove the folder with its files; a second call does nothing."""
        fd, self._fd = self._fd, None
        if fd is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(fd)


def _locked_folder(root: Path, prefix: str) -> tuple[Path, int | None]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        with contextlib.suppress(FileNotFoundError):
            fd = try_lock(path, os.O_RDONLY | os.O_DIRECTORY)
            if fd is not None:
                if is_at(path, fd):
                    return path, fd
                os.close(fd)
        # Another process has removed it before it was locked: the next one.


def _sweep(root: Path, prefix: str) -> None:
    for path in root.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if path.lstat().st_uid != os.getuid():
                continue
            fd = try_lock(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            if fd is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(fd)


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file so that a reader sees the old or the new content, never a part; mode 0600. Raises OSError.

    Where it need not survive the machine's end (not ``durable``), the disk is not waited for.
    """
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
