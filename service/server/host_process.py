"""The model host: the worker service on a private unix socket, for the web processes of one application.

Run as ``python -m modelyard.server.host_process FOLDER SOCKET FD``, with the settings on its standard input; ``FD`` is
the open file whose lock makes it the only host.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication

from ..cluster.hosting.folder import HostFolder, HostLock, is_needed, noted
from ..settings.loading import HANDED_VARIABLE
from .extension import create_app
from .logs import FileReplaced

log = logging.getLogger(__name__)

LOOK_INTERVAL = 0.5
LINGER = 3.0
"""Seconds that a host continues when no process needs it: the next web process may be starting."""
BACKLOG = 2048
"""Connections that may wait to be accepted: the default of gunicorn."""
_PASSED_FILE = 3
"""The number of the first open file that systemd's socket activation passes on (sd_listen_fds)."""


def main() -> None:
    """Serve until no process needs the host any more."""
    folder = HostFolder(Path(sys.argv[1]), Path(sys.argv[2]))
    # The lock moves to another number, and the socket gets its number before any other file is opened.
    lock = HostLock(folder.lock, fcntl.fcntl(int(sys.argv[3]), fcntl.F_DUPFD_CLOEXEC, _PASSED_FILE + 1))
    os.close(int(sys.argv[3]))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    os.environ[HANDED_VARIABLE] = sys.stdin.read()
    pid, since = os.getpid(), time.monotonic()
    notes = {"starts": 1, **noted(lock.path), "since": since}
    lock.note(**notes, pid=pid)
    ended_on_request = False
    try:
        _serve(folder, lock, listener)
    except SystemExit as end:
        ended_on_request = not end.code
        raise
    finally:
        # gunicorn's workers run this block too when they end.
        if os.getpid() == pid:
            # A host that can't begin counts as a failure, like one that was killed: a pause follows.
            if ended_on_request:
                lock.note(**{**notes, "starts": 0})
            # If the lock file belongs to another host by now, the socket does too.
            if lock.is_there:
                folder.socket.unlink(missing_ok=True)


def _serve(folder: HostFolder, lock: HostLock, listener: socket.socket) -> None:
    from . import gunicorn as gunicorn_settings  # noqa: PLC0415 - it reads the settings, which have just come

    class Application(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
        """gunicorn with our settings only: it reads neither the file nor the variables of the web server."""

        def load_config(self) -> None:
            for name, value in vars(gunicorn_settings).items():
                if name in self.cfg.settings:
                    self.cfg.set(name, value)
            self.cfg.set("bind", f"unix:{folder.socket}")
            self.cfg.set("proc_name", "modelyard-host")
            self.cfg.set("on_starting", starting)
            self.cfg.set("post_worker_init", started)

        def load(self) -> Any:
            return create_app(address=lambda: folder.address)

    def starting(server: Any) -> None:
        gunicorn_settings.on_starting(server)
        _listen(listener, folder.socket)

    def started(worker: Any) -> None:
        # It contains secrets, which processes that engines start must not inherit. The master keeps it for its next
        # worker.
        os.environ.pop(HANDED_VARIABLE, None)
        gunicorn_settings.post_worker_init(worker)
        runtime = worker.wsgi.extensions["modelyard"]
        threading.Thread(target=_watch, args=(folder, lock, runtime), name="modelyard-life", daemon=True).start()

    Application().run()


def _listen(listener: socket.socket, path: Path) -> None:
    """Listen at ``path``, and pass the socket to gunicorn by systemd's socket activation.

    gunicorn would remove the path of a socket of its own, at a time when the next host may listen there.
    """
    path.unlink(missing_ok=True)
    previous = os.umask(0o077)
    listener.bind(str(path))
    os.umask(previous)
    listener.listen(BACKLOG)
    os.dup2(listener.detach(), _PASSED_FILE)
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")


def _watch(folder: HostFolder, lock: HostLock, runtime: Any) -> None:
    """End the host when no process needs it, or can reach it; follow the web side's log rotation and its address."""
    master = os.getppid()
    needed = time.monotonic()
    log_file = FileReplaced(runtime.settings.log_file)
    while True:
        time.sleep(LOOK_INTERVAL)
        if os.getppid() == master and log_file.check():
            # The signal of a log rotation reaches the web server alone.
            os.kill(master, signal.SIGUSR1)
        if runtime.wait_draining(0):
            return
        if not (lock.is_there and folder.socket.exists()):
            log.warning("the model host ends: its folder %s, or its socket in it, was deleted", folder.path)
            # Another host may start at once, in a new folder: two must not hold the models for long.
            runtime.drain(0)
            break
        address = folder.address
        if runtime.cluster is not None and address and address != runtime.cluster.url:
            if runtime.cluster.url:
                log.warning("the model host ends: its application is at %s now", address)
                runtime.drain(0)
                break
            runtime.locate()
        if is_needed(folder.life):
            needed = time.monotonic()
        elif time.monotonic() - needed >= LINGER:
            log.info("the model host ends: no process needs it any more")
            break
    # No request is under way, and gunicorn's graceful end would wait for idle connections.
    os.kill(master if os.getppid() == master else os.getpid(), signal.SIGQUIT)


if __name__ == "__main__":
    main()
