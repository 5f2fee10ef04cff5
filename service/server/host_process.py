"""The model host: the worker service on a private unix socket, for the web processes of one application.

Run as ``python -m modelyard.server.host_process FOLDER SOCKET FD``, with the settings on its standard input; ``FD`` is
the open file whose lock makes it the only one.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication

from ..cluster.hosting.folder import HostFolder, HostLock, is_needed, noted
from ..settings.loading import HANDED_VARIABLE
from .app import create_app

log = logging.getLogger(__name__)

LOOK_INTERVAL = 0.5
TOLD_WITHIN = 0.2
LINGER = 3.0
"""Seconds that a host stays when nobody needs it: the next web process may just be starting."""


def main() -> None:
    """Serve until nobody is left who needs it."""
    folder = HostFolder(Path(sys.argv[1]), Path(sys.argv[2]))
    lock = HostLock(folder.lock, int(sys.argv[3]))
    os.environ[HANDED_VARIABLE] = sys.stdin.read()
    # uWSGI's threads block all signals, and what they start inherits that.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    pid, since = os.getpid(), time.monotonic()
    said = {"starts": 1, **noted(lock.path), "since": since}
    lock.note(**said, pid=pid)
    was_told = False
    try:
        _serve(folder, lock)
    except SystemExit as end:
        was_told = not end.code
        raise
    finally:
        # gunicorn's workers leave through here too.
        if os.getpid() == pid:
            # One that can't even begin is a failure like a host that was killed: the next is started after a pause.
            if was_told:
                lock.note(**{**said, "starts": 0})
            # Where the lock is another's by now, so is what stands at that path.
            if lock.is_there:
                folder.socket.unlink(missing_ok=True)


def _serve(folder: HostFolder, lock: HostLock) -> None:
    from . import gunicorn as gunicorn_settings  # noqa: PLC0415 - it reads the settings, which came just now

    class Application(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
        """gunicorn, with our settings and none of the web server's: neither its file nor its variables are read."""

        def load_config(self) -> None:
            for name, value in vars(gunicorn_settings).items():
                if name in self.cfg.settings:
                    self.cfg.set(name, value)
            self.cfg.set("bind", f"unix:{folder.socket}")
            self.cfg.set("umask", 0o077)
            self.cfg.set("proc_name", "modelyard-host")
            self.cfg.set("on_starting", starting)
            self.cfg.set("post_worker_init", started)

        def load(self) -> Any:
            return create_app()

    def starting(server: Any) -> None:
        # As for a socket that systemd made: gunicorn leaves it, who knows whose it is by then removes it.
        server.systemd = True
        gunicorn_settings.on_starting(server)

    def started(worker: Any) -> None:
        # It has secrets in it, and engines start processes. The master keeps it for its next worker.
        os.environ.pop(HANDED_VARIABLE, None)
        gunicorn_settings.post_worker_init(worker)
        runtime = worker.wsgi.extensions["modelyard"]
        threading.Thread(target=_watch, args=(folder, lock, runtime), name="modelyard-life", daemon=True).start()

    Application().run()


def _watch(folder: HostFolder, lock: HostLock, runtime: Any) -> None:
    """End the host when nobody needs it, or when nobody can find it any more."""
    master = os.getppid()
    needed = time.monotonic()
    while True:
        time.sleep(LOOK_INTERVAL)
        is_found = lock.is_there and folder.socket.exists()
        # gunicorn takes the socket away just before it tells its worker to end.
        if runtime.wait_draining(0 if is_found else TOLD_WITHIN):
            return
        if not is_found:
            log.warning("the model host ends: its folder %s, or its socket in it, was deleted", folder.path)
            # Another may start at once, elsewhere: two must not hold the models for long.
            runtime.drain(0)
            break
        if os.getppid() != master:
            log.warning("the model host ends: its master, pid %d, was killed", master)
            # The next can't start before this one has ended.
            runtime.drain(0)
            break
        if is_needed(folder.life):
            needed = time.monotonic()
        elif time.monotonic() - needed >= LINGER:
            log.info("the model host ends: no process is left that needs it")
            break
    # gunicorn's quick end: nothing is left to answer, and its graceful one waits for connections without a request too.
    os.kill(master if os.getppid() == master else os.getpid(), signal.SIGQUIT)


if __name__ == "__main__":
    main()
