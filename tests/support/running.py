"""Services as children: real gunicorn on a free port, in a folder of its own, measured through /proc, always ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import requests
from processes import children, kill_processes_of, processes_of

ROOT = Path(__file__).resolve().parents[2]
ENGINES = ROOT / "tests" / "process" / "engines"
"""The folder of the engines that only tests have: on the path of every service here."""

WORKER_CLASSES = ("gthread", "gevent")
"""The worker classes of gunicorn that a service with models is tested under: the default, with models inline, and one
with a loop, with models in a host. To try one more, name it here and in `_choose`."""

INLINE = ("gthread",)
"""Those whose process has the models: for what a host would change, as in loads, spans and hang-ups all at once."""

WITHOUT_PLUGINS = ("-p", "no:schemathesis", "-p", "no:hypothesispytest")
"""Options of a pytest within a test: plugins that it does not use, and that take a second to import."""

START_LIMIT = 60.0
T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str, timeout: float = 20.0, interval: float = 0.02) -> T:
    """Return the first true value of ``condition``; fail after ``timeout`` seconds, saying ``what`` did not come."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what} (last: {value!r})")
        time.sleep(interval)


def seconds_until(condition: Callable[[], object], timeout: float = 20.0, interval: float = 0.01) -> float:
    """Return how long it took until ``condition`` was true; infinity where it was not within ``timeout``."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout:
            return float("inf")
        time.sleep(interval)
    return time.monotonic() - began


RESERVED_PORTS = 256
_reserved: deque[int] = deque()


def free_port() -> int:
    """Return a port that is free at every address, and keep a socket bound to it, so that no other program is given it.

    The socket never listens: a connection to the port is refused until a server listens there. The last
    `RESERVED_PORTS` ports stay reserved.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("0.0.0.0", 0))
    port = int(holder.getsockname()[1])
    _reserved.append(holder.detach())
    if len(_reserved) > RESERVED_PORTS:
        os.close(_reserved.popleft())
    return port


class DidNotStart(Exception):
    """The process ended before it was ready; the text is its log."""


class Service:
    """A gunicorn master and its worker, in a process group of their own. `kill` it in the end."""

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        folder: Path,
        environ: Mapping[str, str],
        cwd: Path,
        probes: str = "",
    ) -> None:
        """Start ``command``; what it prints goes to ``folder/log``. Its health is asked below ``probes``."""
        self.port = port
        self.probes = probes
        self.folder = folder
        self.log_path = folder / "log"
        self.may_show_tracebacks = False
        """Whether a traceback in the log is what the test provokes."""
        self.session = requests.Session()
        self.session.trust_env = False
        # A service that ends waits a while for connections that are kept.
        self.session.headers["Connection"] = "close"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self.process.pid
        """Of the master."""

    # HTTP

    def url(self, path: str) -> str:
        """Return the address of a path; of one that does not start with a slash, below the worker API."""
        return f"http://127.0.0.1:{self.port}{path if path.startswith('/') else '/api/worker/' + path}"

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.session.get(self.url(path), timeout=options.pop("timeout", 30), **options)

    def post(self, path: str, body: Any = None, **options: Any) -> requests.Response:
        if body is not None:
            options["json"] = body
        return self.session.post(self.url(path), timeout=options.pop("timeout", 60), **options)

    def answers(self, path: str, timeout: float = 5.0) -> requests.Response | None:
        """Return the answer to a GET on a connection of its own; None where there is none."""
        try:
            return requests.get(self.url(path), timeout=timeout, headers={"Connection": "close"})
        except requests.RequestException:
            return None

    def status(self) -> dict[str, Any]:
        """Return what ``/readyz`` says; empty where nobody answers."""
        response = self.answers(f"{self.probes}/readyz")
        found: dict[str, Any] = response.json() if response is not None else {}
        return found

    def model(self, key: str) -> dict[str, Any]:
        """Return state and reason of one model; empty where it is not listed."""
        listed = self.status().get("models", [])
        return next((model for model in listed if model["model"] == key), {})

    def load(self, model: str) -> dict[str, int]:
        """Return slots, free and waiting as the answer to a request of one token says it; empty where it is refused."""
        answer = self.post(
            "generate", {"model": model, "prompt": "x", "max_new_tokens": 1}, headers={"Prefer": "wait=0"}
        )
        if answer.status_code == 503:
            return {}
        assert answer.status_code == 200, answer.text
        pairs = (item.split("=") for item in answer.headers["Modelyard-Load"].split(";"))
        return {name: int(value) for name, value in pairs}

    # Process

    def worker_pid(self) -> int:
        """Return the pid of the only worker process; 0 where there is none."""
        found = children(self.pid)
        return found[0] if len(found) == 1 else 0

    def is_running(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal to the master, as a person or systemd would."""
        self.process.send_signal(number)

    def wait_ended(self, timeout: float) -> int:
        """Return the exit status; AssertionError where it did not end in time."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {timeout:g} s; its log:\n{self.log()}") from None

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def access_lines(self) -> list[dict[str, Any]]:
        """Return the access lines so far: those of the log that are JSON objects."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{") and line.endswith("}")]

    def wait_for_line(self, count: int = 1, **wanted: Any) -> dict[str, Any]:
        """Wait until ``count`` access lines have the ``wanted`` values, and return the last of them."""

        def found() -> list[dict[str, Any]]:
            lines = self.access_lines()
            matching = [line for line in lines if all(line.get(key) == value for key, value in wanted.items())]
            return matching if len(matching) >= count else []

        return wait_until(found, f"{count} access lines with {wanted}")[-1]

    def wait_ready(self, timeout: float = START_LIMIT) -> Service:
        """Wait until ``/readyz`` says 200. Raises DidNotStart where the process ends before."""
        return self._wait(lambda: self.status().get("ready"), "ready", timeout)

    def wait_up(self, timeout: float = START_LIMIT) -> Service:
        """Wait until ``/healthz`` answers, whatever the models do."""
        return self._wait(lambda: self.answers(f"{self.probes}/healthz") is not None, "up", timeout)

    def _wait(self, condition: Callable[[], object], what: str, timeout: float) -> Service:
        def reached() -> bool:
            if not self.is_running():
                raise DidNotStart(self.log())
            return bool(condition())

        try:
            wait_until(reached, what, timeout, 0.05)
        except AssertionError as error:
            raise AssertionError(f"{error}; readyz: {self.status()}; its log:\n{self.log()}") from None
        return self

    def kill(self) -> None:
        """End the whole group at once. Safe to call twice."""
        self.session.close()
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(10)


class Services:
    """Makes services, each in a folder of its own, and ends them."""

    def __init__(self, models_dir: Path | None = None) -> None:
        """Let the models folder be ``models_dir``, or an empty one."""
        self._models_dir = models_dir
        self._folders: list[Path] = []
        self._running: list[Service] = []

    def folder(self) -> Path:
        """Return a new folder, of a short name: sockets lie in it."""
        made = Path(tempfile.mkdtemp(prefix="my-"))
        self._folders.append(made)
        return made

    def start(
        self,
        tables: str = "",
        *arguments: str,
        worker_class: str | None = None,
        folder: Path | None = None,
        port: int | None = None,
        environ: Mapping[str, str] | None = None,
        wait: str = "ready",
        command: Sequence[str] = (),
        cwd: Path | None = None,
        probes: str = "",
        **settings: Any,
    ) -> Service:
        """Run ``modelyard serve`` with the ``[[models]]`` in ``tables`` (TOML) and with ``settings``.

        ``wait`` until it is ``ready`` or ``up``, or for ``nothing``. Another ``command`` runs instead, its
        ``{port}`` filled in.
        """
        folder = folder or self.folder()
        (folder / "tmp").mkdir(exist_ok=True)
        config = folder / "config.toml"
        config.write_text(tables)
        port = port or free_port()
        given = {
            "config": config,
            "models_dirs": self._models_dir or folder / "models",
            "state_dir": folder / "state",
            "port": port,
            **settings,
        }
        variables = {f"MODELYARD_{name.upper()}": str(value) for name, value in given.items()}
        variables = {**surroundings_of(folder), **variables, **_choose(worker_class), **(environ or {})}
        line = [part.format(port=port) for part in command] or [console_script("modelyard"), "serve"]
        service = Service([*line, *arguments], port, folder, variables, cwd or folder, probes)
        self._running.append(service)
        if wait == "ready":
            return service.wait_ready()
        return service.wait_up() if wait == "up" else service

    def logs(self) -> dict[str, str]:
        """Return the log of each service whose folder is there, by port and folder."""
        present = [service for service in self._running if service.log_path.exists()]
        return {f"port {service.port}, {service.folder}": service.log() for service in present}

    def close(self) -> None:
        """End every service and remove every folder; fail where a log has a traceback that no test provokes.

        Nothing may be left of a service that ended by itself; what belongs to one that is killed, is killed with it.
        """
        logs = []
        killed = {service.folder for service in self._running if service.is_running()}
        for service in self._running:
            service.kill()
            if not service.may_show_tracebacks and "Traceback" in service.log():
                _, found, rest = service.log().partition("Traceback")
                logs.append(found + rest[:4000])
        for folder in killed:
            kill_processes_of(folder)
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
        left = [folder for folder in self._folders if not _is_deserted(folder)]
        assert not logs, "a log has a traceback:\n" + "\n".join(logs)
        assert not left, f"processes were left in {left}"


def _is_deserted(folder: Path) -> bool:
    """Wait for what may outlive its service, a model host, which ends with its folder; kill what does not."""
    if seconds_until(lambda: not processes_of(folder), 10, 0.05) < float("inf"):
        shutil.rmtree(folder, ignore_errors=True)
        return True
    kill_processes_of(folder)
    return False


@contextmanager
def services(models_dir: Path | None = None) -> Iterator[Services]:
    """Give a `Services`, and close it."""
    made = Services(models_dir)
    try:
        yield made
    finally:
        made.close()


def surroundings_of(folder: Path) -> dict[str, str]:
    """Return an environment without settings of ours or gunicorn's, whose temporary files lie in ``folder``.

    Spans leave at once.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MODELYARD_", "GUNICORN_", "PYTEST_")) and not name.lower().endswith("_proxy")
    }
    variables = {"TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(ENGINES), "PYTHONUNBUFFERED": "1"}
    return {**inherited, **variables, "OTEL_BSP_SCHEDULE_DELAY": "50"}


def _choose(worker_class: str | None) -> dict[str, str]:
    if worker_class is None:
        return {}
    if worker_class == "gthread":
        return {"MODELYARD_HTTP_THREADS": worker_class}
    # gevent's worker waits for kept connections when it ends, so they are not kept long.
    return {"GUNICORN_CMD_ARGS": f"--worker-class {worker_class} --keep-alive 2"}


def console_script(name: str) -> str:
    """Return the path of a command that is installed beside this interpreter."""
    return str(Path(sys.executable).with_name(name))
