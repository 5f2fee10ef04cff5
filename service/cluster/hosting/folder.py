"""The folder that web processes share with their model host: it has a socket, the host's lock and its life line.

The host holds the lock while any of its processes lives. A web process that finds the lock free starts the next host
and passes the lock on to it, so there are never two hosts. Every web process holds a share of the life line; the host
ends when no process holds a share. Both are locks on files: they end with their processes, however those end.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import sys
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ...files import is_at, private_folder, state_folder, try_lock, write_atomically
from ...processes import began, pid_namespace
from ...settings.settings import Settings
from ...version import __version__

log = logging.getLogger(__name__)

MAX_SOCKET_PATH = 100
"""The most bytes of a socket's path: the system accepts 107."""


@dataclass(frozen=True)
class HostFolder:
    """The folder of one service's model host. Its socket is in another folder if the path would be too long."""

    path: Path
    socket: Path

    @classmethod
    def of(cls, settings: Settings) -> HostFolder:
        """Return the folder, and make it if it does not exist: in the state folder, or in a private temporary folder.

        Raises OSError if neither can be written.
        """
        path = service_folder(settings)
        socket = path / "host.sock"
        if len(os.fsencode(socket)) > MAX_SOCKET_PATH:
            socket = _private("sockets") / f"{_name_of(path)}.sock"
        return cls(path, socket)

    @property
    def url(self) -> str:
        """The address of the host's API."""
        return f"http+unix://{quote(str(self.socket), safe='')}/api"

    @property
    def lock(self) -> Path:
        """The file whose lock is the right to be the host."""
        return self.path / "host.lock"

    @property
    def life(self) -> Path:
        """The file that every web process holds a share of."""
        return self.path / "host.life"

    @property
    def address(self) -> str:
        """The address of the web side, at which the host registers its models; empty while no web process knows it."""
        try:
            return self._address_file.read_text(encoding="utf-8")
        except (OSError, ValueError):
            return ""

    def note_address(self, url: str) -> None:
        """Let the host register at ``url``, unless another web process has noted an address. Raises OSError."""
        if not self.address:
            write_atomically(self._address_file, url.encode())

    def forget_address(self) -> None:
        """Remove the address that an earlier run has noted. Raises OSError."""
        self._address_file.unlink(missing_ok=True)

    @property
    def _address_file(self) -> Path:
        return self.path / "host.url"


def service_folder(settings: Settings) -> Path:
    """Return the folder that the processes of one service share, made if need be: `HostFolder.of` has it.

    Raises OSError if neither the state folder nor a private temporary folder can be written.
    """
    try:
        path = state_folder(settings.state_path, settings.instance_name)
        _check_writable(path)
    except OSError as error:
        wanted, path = settings.state_path / settings.instance_name, _private(settings.instance_name)
        log.warning("the state folder %s can't be used (%s): %s is used", wanted, error, path)
    return path


def metrics_folder(settings: Settings) -> Path:
    """Return the folder for the metrics of all processes of a service; its parent is made if need be.

    That of a gateway or controller, which keeps no state, is a temporary one, and apart from that of a service of
    another container with the same name. Raises OSError, or ConfigError if there can be no state folder.
    """
    if settings.owns_models or settings.is_hosted:
        return service_folder(settings) / "metrics"
    name = f"{settings.state_path / settings.instance_name} {pid_namespace()}"
    return _private("metrics") / f"{zlib.crc32(name.encode()):08x}"


def _check_writable(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder):
        pass


def _private(name: str) -> Path:
    """Return a folder that only this user can enter; the same in every process. Raises OSError."""
    folder = private_folder() / name
    folder.mkdir(mode=0o700, exist_ok=True)
    _check_writable(folder)
    return folder


def _name_of(folder: Path) -> str:
    """Return the name that the first process gave a folder: in two containers, one path leads to two folders.

    The name is the target of a link, which is made at once or not at all, and never replaced. Raises OSError.
    """
    link = folder / "host.name"
    with contextlib.suppress(FileExistsError):
        link.symlink_to(secrets.token_hex(8))
    return str(link.readlink())


class HostLock:
    """The right to be the host. Notes in its file tell the pid of the host, and how many starts followed each other."""

    def __init__(self, path: Path, fd: int) -> None:
        """Hold the lock by the open file ``fd``."""
        self.path = path
        self.fd = fd

    @classmethod
    def take(cls, path: Path) -> HostLock | None:
        """Return the lock if it is free, None if a host holds it. Raises OSError."""
        fd = try_lock(path)
        return None if fd is None else cls(path, fd)

    @property
    def is_there(self) -> bool:
        """Whether the file is still the one at its path: the folder may have been deleted."""
        return is_at(self.path, self.fd)

    def note(self, **values: float) -> None:
        """Write notes for the next process that takes the lock."""
        text = json.dumps(values).encode()
        os.pwrite(self.fd, text, 0)
        os.ftruncate(self.fd, len(text))

    def close(self) -> None:
        """Close this copy; the lock is free when the last copy is closed."""
        os.close(self.fd)


def noted(path: Path) -> dict[str, float]:
    """Return the notes in the file of a lock.

    ``pid``, ``starts`` in a row, ``since`` (monotonic seconds of this machine), `digest` of its ``settings``, the
    ``run`` of the process that started it (`run_began`), and its ``namespace`` (`pid_namespace`).
    """
    try:
        notes = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in notes.items() if isinstance(v, int | float)} if isinstance(notes, dict) else {}


def digest(handed: str) -> int:
    """Return a checksum of the settings that are handed over, and of the version that reads them."""
    return zlib.crc32(f"{__version__} {handed}".encode())


class LifeLine:
    """One web process's share in the life of the host."""

    def __init__(self, path: Path) -> None:
        """Hold nothing yet."""
        self._path = path
        self._fd: int | None = None

    def hold(self) -> None:
        """Hold a share of the file that is at the path now. Raises OSError."""
        if self._fd is not None and is_at(self._path, self._fd):
            return
        self.release()
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Waits only while a host is checking the life line.
            fcntl.flock(fd, fcntl.LOCK_SH)
            server = _server_above()
            if server is not None:
                text = json.dumps(server).encode()
                os.pwrite(fd, text, 0)
                os.ftruncate(fd, len(text))
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def release(self) -> None:
        """Release the share; a second call does nothing."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def is_needed(life: Path) -> bool:
    """Return whether a web process holds the life line, or the web server runs that will start the next ones."""
    try:
        fd = os.open(life, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        # Not clear, for example without a free descriptor: the host must not end for that.
        return True
    try:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return _is_running(os.pread(fd, 200, 0))
        return True
    finally:
        os.close(fd)


def _server_above() -> dict[str, int] | None:
    """Return the master of the web server, with its start time; None without one.

    It replaces web processes that end. Minutes may pass between the end of one and the first request of the next.
    """
    pid = 0
    if os.environ.get("SERVER_SOFTWARE", "").startswith("gunicorn"):
        pid = os.getppid()
    elif "uwsgi" in sys.modules:
        pid = sys.modules["uwsgi"].masterpid()
    since = began(pid)
    if since is None or (pid == 1 and not _is_same_program(pid)):
        return None
    return {"pid": pid, "began": since}


def run_began() -> int:
    """Return when the web server of this process began, or else this process: the time identifies a run."""
    server = _server_above()
    return (server["began"] if server is not None else began(os.getpid())) or 0


def _is_same_program(pid: int) -> bool:
    """Return whether a process runs the same program as this one, as a server that is process 1 in a container does.

    Outside of containers process 1 adopts every process whose parent has ended, and never ends.
    """
    try:
        return Path(f"/proc/{pid}/exe").readlink() == Path("/proc/self/exe").readlink()
    except OSError:
        return False


def _is_running(text: bytes) -> bool:
    try:
        server = json.loads(text)
        since = began(server["pid"])
        return since is not None and bool(since == server["began"])
    except (ValueError, TypeError, KeyError):
        return False
