"""ModelHost: starts the model host from a web process, keeps it alive, watches it, and reports its status.

The host is the worker service in a process of its own, on a private unix socket (`host_process`). A web process that
finds its lock free starts it; it lives as long as any process holds its life line.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any

from ...errors import ModelyardError, NotConnected
from ...processes import pid_namespace
from ...sessions.response import Response
from ...sessions.session import Session
from ...settings.loading import serialize
from ...settings.settings import INLINE, UNKNOWN_PORT, Settings
from ...telemetry.tracing import Tracing, outgoing_headers
from ...threads import BackgroundThread
from ...types import JSONObject
from ...worker.protocol import ServiceState
from ..addresses import advertised_url
from ..membership import registry_url, session_options
from .folder import HostFolder, HostLock, LifeLine, digest, is_needed, noted, run_began
from .manager import HostedWorkerManager, HostEndpoint
from .spawn import Spawned, environ_of_child, python_command, socket_pair

log = logging.getLogger(__name__)

LOOK_INTERVAL = 0.5
"""Seconds between two checks whether the host runs."""
THREADS = 256
"""The least number of threads of a host: it answers for all web processes together."""
SILENCE = 600.0
"""Seconds of silence until a call to the host fails. They are many, as an answer may take long; a dead host is noticed
at once."""
IN_A_ROW = 60.0
"""Seconds after which the end of a host does not count as one more failure in a row."""
FEW_STARTS = 2
"""The number of starts in a row that only the log reports."""
LONGEST_PAUSE = 30.0
LOCK_FILE = 3
"""The number of the open file with the lock in the process of the host."""

_children: list[Spawned] = []
"""The hosts that this process has started, until they are reaped: they outlive the runtime that started them."""


class ModelHost:
    """The part of one web process in the host that it shares with others. Objects only, until `start`."""

    def __init__(self, settings: Settings, *, tracing: Tracing | None = None) -> None:
        """Use the ``settings`` of the web process; ``tracing`` makes the spans of calls to the host."""
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
        """The address of the web side, as the host registers it; empty before `start` and while its port is unknown."""
        self._folder: HostFolder | None = None
        self._life: LifeLine | None = None
        self._thread = BackgroundThread("modelyard-host", self._work)
        self.error = ""
        """Why a host can't be started; empty if it can."""

    # Life

    def start(self) -> None:
        """Hold the life line, and start the thread that keeps a host running."""
        self.url = advertised_url(self._settings)
        self._look_after()
        self._thread.start()

    def locate(self) -> None:
        """Find the address of the web side, and pass it on to the host."""
        self.url = advertised_url(self._settings)
        self._thread.wake()

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
        if self.url:
            self._folder.note_address(self.url)

    def _compare(self, folder: HostFolder) -> None:
        """End the host of an earlier run with other settings; warn where other processes still need it."""
        last, address = noted(folder.lock), folder.address
        # In another pid namespace there may be a server that needs the host: only the host can see it.
        is_visible = last.get("namespace", pid_namespace()) == pid_namespace()
        is_left = is_visible and not is_needed(folder.life)
        if is_left:
            folder.forget_address()
        is_other = last.get("settings") != digest(serialize(self._hosts_settings(folder)))
        is_other |= bool(address and self.url) and address != self.url
        forgets = self._settings.fresh and last.get("run") != run_began()
        if not last.get("pid") or not (is_other or forgets):
            return
        if is_left:
            # Without its socket the host ends.
            folder.socket.unlink(missing_ok=True)
        elif is_other and folder.socket.exists():  # else another of the new processes has just ended it
            log.warning(
                "the model host has other settings than this process: stop the whole service, and start it again"
            )

    def _ensure(self) -> None:
        """Start a host if none runs, with growing pauses while one host after the other ends."""
        assert self._folder is not None
        lock = HostLock.take(self._folder.lock)
        last = noted(self._folder.lock)
        now = time.monotonic()
        age = now - last.get("since", now)
        # A negative age means that the machine was restarted, and its clock with it.
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
            lock.note(
                starts=starts + 1,
                since=now,
                settings=digest(serialize(settings)),
                run=run,
                namespace=pid_namespace(),
            )
            # With --fresh the first host of a run forgets; the hosts after it bring back what ran.
            settings.fresh = self._settings.fresh and last.get("run") != run
            self._spawn(self._folder, lock, settings)
        finally:
            lock.close()

    def _spawn(self, folder: HostFolder, lock: HostLock, settings: Settings) -> None:
        order, other_end = socket_pair()
        with order, other_end:
            child = Spawned(
                python_command("modelyard.server.host_process", str(folder.path), str(folder.socket), str(LOCK_FILE)),
                environ_of_child(),
                {0: other_end.fileno(), 1: 2, LOCK_FILE: lock.fd},
            )
            _children.append(child)
            other_end.close()
            order.sendall(serialize(settings).encode())
        log.info("the model host is started: pid %d, on %s", child.pid, folder.socket)

    def _hosts_settings(self, folder: HostFolder) -> Settings:
        """Return the settings of the host: those of the web side, except for how the host is reached."""
        web = self._settings
        changed: dict[str, Any] = {
            "role": "worker",
            "placement": INLINE,
            "workers": 1,
            "http_threads": "gthread",
            "threads": max(web.threads, THREADS),
            "host": f"unix:{folder.socket}",
            "port": UNKNOWN_PORT,
            "prefix": "/api",
            "state_dir": str(folder.path.parent),
            "instance": folder.path.name,
            "fresh": False,
            "registry": self._registry,
            # The folder has the address of the web side, which may not know it yet.
            "advertise": None,
            # The web side checks who may call, and writes the access log.
            "insecure": False,
            "tokens": [],
            "tokens_file": None,
            "trusted_networks": [],
            "key_store": "none",
            "access_log": web.log_level == "debug",
            "on_load_failure": "stay",
        }
        return replace(web, **changed)

    @property
    def _registry(self) -> str | None:
        web = self._settings
        return registry_url(web) if web.routes else web.registry

    # Calls

    def request(self, method: str, path: str, **options: Any) -> Response:
        """Send a request to its API; like `Session.request`."""
        return self._session.request(method, self._endpoint.url + path, **options)

    def status(self) -> JSONObject:
        """Return the host's status and its ``pid``; if no host answers, a status with the reason."""
        pid = None if self._folder is None else noted(self._folder.lock).get("pid")
        host = {"pid": None if pid is None else int(pid)}
        if self.error:
            state, reason = ServiceState.FAILED, self.error
        else:
            try:
                status = {**self.manager.status(), "host": host}
            except NotConnected:
                is_failing = bool(self._endpoint.trouble)
                state = ServiceState.FAILED if is_failing else ServiceState.STARTING
                reason = self._endpoint.trouble or "models are starting: so is their host"
            except ModelyardError as error:
                state, reason = ServiceState.FAILED, f"the model host does not answer: {error}"
            else:
                return status
        return {"ready": False, "state": state.value, "reason": reason, "models": [], "unsaved": None, "host": host}


class Shortcut(Session):
    """A session that sends requests for the address of this service over its host's socket, and all others as usual."""

    def __init__(self, host: ModelHost, settings: Settings) -> None:
        """Take the place of the session of ``settings``."""
        super().__init__(**session_options(settings))
        self._host = host

    def request(self, method: str, url: str, **options: Any) -> Response:
        """Send a request; like `Session.request`."""
        base = self._host.url
        if base and url.startswith(f"{base}/"):
            return self._host.request(method, url.removeprefix(base), **options)
        return super().request(method, url, **options)
