"""The model host, as a web process sees it: started if there is none, held alive, watched, reported.

It is this same worker service in a process of its own, on a private unix socket (`host_process`). A web process that
finds its lock free starts it; it lives as long as any process holds its life line.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import ModelyardError, NotConnected
from ...sessions.response import Response
from ...sessions.session import Session
from ...settings.loading import serialize
from ...settings.settings import ALLOCATOR, INLINE, Settings
from ...telemetry.tracing import Tracing, outgoing_headers
from ...threads import BackgroundThread
from ...types import JSONObject
from ...worker.protocol import ServiceState
from ..addresses import advertised_url
from ..membership import registry_url, session_options
from .folder import HostFolder, HostLock, LifeLine, digest, is_needed, noted, run_began
from .manager import HostedWorkerManager, HostEndpoint

log = logging.getLogger(__name__)

LOOK_INTERVAL = 0.5
"""Seconds between two looks whether the host is there."""
THREADS = 256
"""Threads of a host, at least: it answers for all web processes together."""
SILENCE = 600.0
"""Seconds until a host that says nothing is given up: that it has died shows at once, and what it computes may last."""
IN_A_ROW = 60.0
"""Seconds that a host must have lived for its end not to count as one more failure in a row."""
FEW_STARTS = 2
"""Starts in a row that only the log reports."""
LONGEST_PAUSE = 30.0

_NOT_INHERITED = ("GUNICORN_", "LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_", "WERKZEUG_", "SERVER_SOFTWARE")
"""Beginnings of variables that mean the web server, and not what it starts."""
_children: list[subprocess.Popen[bytes]] = []
"""The hosts that this process has started, until they are reaped: they outlive the runtime that started them."""


class ModelHost:
    """What one web process does for the host that it shares with others. Objects only, until `start`."""

    def __init__(self, settings: Settings, *, tracing: Tracing | None = None) -> None:
        """Use ``settings``, of the web process; ``tracing`` makes the spans of calls to the host."""
        self._settings = settings
        self._session = Session(settings.connect_timeout, SILENCE, current_headers=outgoing_headers)
        self._endpoint = HostEndpoint()
        self.manager = HostedWorkerManager(
            self._endpoint,
            self._session,
            settings.host_timeout,
            lambda: (settings.host, settings.port),
            tracing=tracing,
        )
        """Calls the models of the host."""
        self.url = ""
        """The address of the web side, as the host registers it; known once that listens."""
        self._folder: HostFolder | None = None
        self._life: LifeLine | None = None
        self._thread = BackgroundThread("modelyard-host", self._work)
        self.error = ""
        """Why there can't be a host; empty where there can."""

    # Life

    def start(self) -> None:
        """Hold the life line, and start the thread that keeps a host running."""
        self.url = advertised_url(self._settings)
        self._look_after()
        self._thread.start()

    def stop(self) -> None:
        """Release the host, which ends when no process holds it. A second call does nothing."""
        self._thread.stop()
        if self._life is not None:
            self._life.release()
        self._session.close()

    def _work(self) -> float:
        self._look_after()
        return LOOK_INTERVAL

    def _look_after(self) -> None:
        try:
            self._hold()
            self._ensure()
        except Exception as error:
            if str(error) != self.error:
                log.exception("the model host can't be looked after")
            self.error = self._endpoint.trouble = str(error)
        else:
            self.error = ""
        _children[:] = [child for child in _children if child.poll() is None]

    def _hold(self) -> None:
        """Hold the life line, in a new folder where the previous one was deleted."""
        if self._folder is None or not self._folder.path.is_dir() or not self._folder.socket.parent.is_dir():
            self._folder = HostFolder.of(self._settings)
            self._endpoint.url = self._folder.url
            if self._life is not None:
                self._life.release()
            self._life = LifeLine(self._folder.life)
            self._compare(self._folder)
        assert self._life is not None
        self._life.hold()

    def _compare(self, folder: HostFolder) -> None:
        """End the host of an earlier run with other settings; warn where other processes still need it."""
        last = noted(folder.lock)
        is_other = last.get("settings") != digest(serialize(self._hosts_settings(folder)))
        forgets = self._settings.fresh and last.get("run") != run_began()
        if not last.get("pid") or not (is_other or forgets):
            return
        if not is_needed(folder.life):
            # Without its socket the host ends.
            folder.socket.unlink(missing_ok=True)
        elif is_other and folder.socket.exists():  # else another of the new processes has just ended it
            log.warning("the model host runs with other settings than these: they count when the service is restarted")

    def _ensure(self) -> None:
        """Start a host if there is none, with growing pauses where one after the other has ended."""
        assert self._folder is not None
        lock = HostLock.take(self._folder.lock)
        last = noted(self._folder.lock)
        now = time.monotonic()
        age = now - last.get("since", now)
        # A negative age means that the machine was started in between, and its clock with it.
        starts = int(last.get("starts", 0)) if 0 <= age < IN_A_ROW else 0
        again = f"the model host was started {starts} times in a row: the log says what ended it"
        self._endpoint.trouble = again if starts > FEW_STARTS else ""
        if lock is None:
            return
        try:
            if starts and age < min(LONGEST_PAUSE, 2.0 ** (starts - 2)):
                return
            if last.get("pid"):
                log.warning("the model host, pid %d, has ended: another is started", last["pid"])
            settings, run = self._hosts_settings(self._folder), run_began()
            lock.note(starts=starts + 1, since=now, settings=digest(serialize(settings)), run=run)
            # In each run the first host forgets; the hosts after it bring back what ran.
            settings.fresh = self._settings.fresh and last.get("run") != run
            self._spawn(self._folder, lock, settings)
        finally:
            lock.close()

    def _spawn(self, folder: HostFolder, lock: HostLock, settings: Settings) -> None:
        environ = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_INHERITED)}
        child = subprocess.Popen(  # noqa: S603 - our own interpreter
            # Without the folder that the web server was started in: nothing of its application is imported.
            [
                _python(),
                "-P",
                "-m",
                "modelyard.server.host_process",
                str(folder.path),
                str(folder.socket),
                str(lock.fd),
            ],
            stdin=subprocess.PIPE,
            stdout=2,
            pass_fds=[lock.fd],
            env={**ALLOCATOR, **environ},
            # Not ended by what a terminal sends to the web server: it ends by its life line.
            start_new_session=True,
        )
        _children.append(child)
        assert child.stdin is not None
        with child.stdin as pipe:
            pipe.write(serialize(settings).encode())
        log.info("the model host is started: pid %d, on %s", child.pid, folder.socket)

    def _hosts_settings(self, folder: HostFolder) -> Settings:
        """Return the settings of the host: those of the web side, where it is not about the way in."""
        own = self._settings
        registry = registry_url(own) if own.routes else own.registry
        its_own: dict[str, Any] = {
            "role": "worker",
            "placement": INLINE,
            "workers": 1,
            "http_threads": "gthread",
            "threads": max(own.threads, THREADS),
            "host": f"unix:{folder.socket}",
            "prefix": "/api",
            "state_dir": str(folder.path.parent),
            "instance": folder.path.name,
            "fresh": False,
            "registry": registry,
            "advertise": self.url if registry else None,
            # The web side checks who may call, and writes the access log.
            "insecure": False,
            "tokens": [],
            "tokens_file": None,
            "trusted_networks": [],
            "access_log": own.log_level == "debug",
            "on_load_failure": "stay",
        }
        return replace(own, **its_own)

    # Calls

    def request(self, method: str, path: str, **options: Any) -> Response:
        """Send a request to its API; like `Session.request`."""
        return self._session.request(method, self._endpoint.url + path, **options)

    def status(self) -> JSONObject:
        """Return the host's status and its ``pid``; where no host answers, a status with the reason."""
        pid = None if self._folder is None else noted(self._folder.lock).get("pid")
        host = {"pid": None if pid is None else int(pid)}
        if self.error:
            state, reason = ServiceState.FAILED, self.error
        else:
            try:
                return {**self.manager.status(), "host": host}
            except NotConnected:
                is_failing = bool(self._endpoint.trouble)
                state = ServiceState.FAILED if is_failing else ServiceState.STARTING
                reason = self._endpoint.trouble or "models are starting: so is their host"
            except ModelyardError as error:
                state, reason = ServiceState.FAILED, f"the model host does not answer: {error}"
        return {"ready": False, "state": state.value, "reason": reason, "models": [], "host": host}


def _python() -> str:
    """Return the interpreter of this environment: within uWSGI `sys.executable` is uWSGI."""
    if Path(sys.executable or "").name.startswith("python"):
        return sys.executable
    return str(Path(sys.exec_prefix, "bin", f"python{sys.version_info.major}"))


class Shortcut(Session):
    """Sends requests for the address of this service over its host's socket, and all others as usual."""

    def __init__(self, host: ModelHost, settings: Settings) -> None:
        """Stand in for the session of ``settings``."""
        super().__init__(**session_options(settings))
        self._host = host

    def request(self, method: str, url: str, **options: Any) -> Response:
        """Send a request; like `Session.request`."""
        own = self._host.url
        if own and url.startswith(f"{own}/"):
            return self._host.request(method, url.removeprefix(own), **options)
        return super().request(method, url, **options)
