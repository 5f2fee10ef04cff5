"""Start the processes of this package without a fork in Python, and know their end.

Under gevent `subprocess` forks in Python. Until the child becomes the program, its greenlets are those of this process,
with the connections: it can read requests, and answer them. `os.posix_spawn` runs no Python in the child. gevent
replaces it and `os.waitpid`, so that other greenlets go on meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ...settings.settings import ALLOCATOR

_NOT_INHERITED = ("GUNICORN_", "LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_", "WERKZEUG_", "SERVER_SOFTWARE")
"""How the names of variables begin that are for the web server, and not for the processes that it starts."""
_FIRST_FREE = 3
"""The lowest number of a file that is not standard input, output or error."""
_OPEN_FILES = Path("/dev/fd")


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


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a connection: of this process, and of one to start. Raises OSError."""
    end, other = socket.socketpair()
    os.set_blocking(other.fileno(), True)  # gevent's do not block, nor those made with a default timeout
    return end, other


class Spawned:
    """A process that this process has started. Its calls may come from any thread."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], files: Mapping[int, int]) -> None:
        """Start ``command``, whose first item is a path, in a session of its own: no signal of a terminal ends it.

        ``files`` has the number of each file in the new process, and the file of this process that it is. Others are
        not inherited, but for standard input, output and error. No signal is blocked. Raises OSError.
        """
        self._lock = threading.Lock()
        self._status: int | None = None
        with contextlib.ExitStack() as copies:
            actions: list[tuple[int, ...]] = []
            # From numbers above all of the new process: else one could replace another before it is copied.
            lowest = max([_FIRST_FREE, *(number + 1 for number in files)])
            for number, file in files.items():
                copy = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, lowest)
                copies.callback(os.close, copy)
                actions.append((os.POSIX_SPAWN_DUP2, copy, number))
            actions += [(os.POSIX_SPAWN_CLOSE, number) for number in _inheritable() if number not in files]
            self.pid = os.posix_spawn(
                command[0],
                list(command),
                environ,
                file_actions=actions,
                setsid=True,
                setsigmask=(),  # uWSGI's threads block all signals
                setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),  # which Python ignores
            )

    def poll(self) -> int | None:
        """Return how it has ended, like `wait`; None while it runs."""
        with self._lock:
            if self._status is None:
                self._status = self._reaped(os.WNOHANG)
            return self._status

    def wait(self) -> int:
        """Wait for its end; return its exit status, or the number of the signal that killed it, negative.

        The status is 0 where it can't be known: this process ignores SIGCHLD. Called by one thread.
        """
        status = self._reaped(0)
        with self._lock:
            self._status = status
        return status or 0

    def _reaped(self, options: int) -> int | None:
        try:
            pid, status = os.waitpid(self.pid, options)
        except ChildProcessError:
            return 0
        return os.waitstatus_to_exitcode(status) if pid else None

    def kill(self) -> None:
        """Send SIGKILL, unless its end is known."""
        with self._lock:
            if self._status is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)


def _inheritable() -> Iterator[int]:
    """Yield the open files of this process that a program would inherit: Python opens none, C libraries may."""
    numbers = [int(path.name) for path in _OPEN_FILES.iterdir()] if _OPEN_FILES.is_dir() else []
    for number in numbers:
        with contextlib.suppress(OSError):  # closed by now
            if number >= _FIRST_FREE and os.get_inheritable(number):
                yield number
