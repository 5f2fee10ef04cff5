"""The application with Modelyard in it, under gunicorn: its models inline in one process, or hosted for several."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from . import ours
from .application import PID
from .models import EchoModel
from .places import run_folder
from .processes import Server, ServerFailed, children, descendants, free_port, pss_of

INLINE = "inline"
HOSTED = "hosted"
THREADS = 160
"""Threads of each process that answers: enough for all streams of a figure in one process."""
PROCESSES = 4
HOST_ENDS = 15.0
"""Seconds until a host that no process needs must have ended; then it is killed."""

_SETTINGS = """
worker_class = "gthread"
workers = {workers}
threads = {threads}
bind = "127.0.0.1:{port}"
loglevel = "warning"
control_socket_disable = True
"""


class Monolith(Server):
    """A running application: gunicorn, its processes, and the model host if there is one."""

    def __init__(self, name: str, command: Sequence[str], port: int, environ: Mapping[str, str], log: Path) -> None:
        """Start it; like `Server`."""
        super().__init__(name, command, port, environ, log)
        self._host = 0

    def host_pid(self) -> int:
        """Return the pid of the model host; 0 without one."""
        status, body = self.ask("/api/readyz")
        if status == 200:
            self._host = int((json.loads(body).get("host") or {}).get("pid") or 0)
        return self._host

    def pids(self) -> list[int]:
        """Return all processes, also those of the host."""
        return list(dict.fromkeys([*super().pids(), *(descendants(self._host) if self._host else [])]))

    def web_pids(self) -> list[int]:
        """Return the processes that answer."""
        return [pid for pid in children(self.pid) if pid != self._host and _group_of(pid) == self.pid]

    def pss_of_web(self) -> float:
        """Return the memory of master and processes that answer, in bytes; like `pss`."""
        return sum(map(pss_of, [self.pid, *self.web_pids()]))

    def reload(self) -> None:
        """Tell gunicorn's master to replace its processes; return at once."""
        os.kill(self.pid, signal.SIGHUP)

    def answers(self, body: object) -> tuple[int, int]:
        """Return the status of one whole answer and the pid of its process; 0 without. Use a new connection."""
        status, headers = self._post("generate", body)
        return status, int(headers.get(PID, 0))

    def load_of(self, model: str) -> str:
        """Return the value of ``Modelyard-Load`` for a model; empty without the header."""
        return self._post("model_metadata", {"model": model})[1].get("Modelyard-Load", "")

    def _post(self, call: str, body: object) -> tuple[int, Mapping[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10.0)
        try:
            headers = {"Content-Type": "application/json", "Connection": "close"}
            connection.request("POST", f"/api/worker/{call}", json.dumps(body), headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status, dict(answer.headers)
        except (OSError, http.client.HTTPException):
            return 0, {}
        finally:
            connection.close()

    def stop(self) -> None:
        """End all; the host ends by itself, or is killed."""
        super().stop()
        deadline = time.monotonic() + HOST_ENDS
        while self._host and _is_there(self._host) and time.monotonic() < deadline:
            time.sleep(0.1)
        if self._host and _is_there(self._host):
            for pid in descendants(self._host):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def _is_there(pid: int) -> bool:
    try:
        # A zombie, whose parent has gone too, counts as ended.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def monolith(
    models: Sequence[EchoModel], *, placement: str, workers: int = 1, smollm2: bool = False
) -> Iterator[Monolith]:
    """Run the application with ``models``, and with SmolLM2 if ``smollm2``, in the body of a ``with``."""
    port = free_port()
    folder = run_folder(f"{placement}-{port}")
    settings = folder / "gunicorn.conf.py"
    settings.write_text(_SETTINGS.format(workers=workers, threads=THREADS, port=port))
    environ = {
        **ours.environ_of(models, folder, smollm2=smollm2),
        "MODELYARD_PLACEMENT": placement,
        "MODELYARD_THREADS": str(THREADS),
    }
    command = [sys.executable, "-m", "gunicorn", "-c", str(settings), "bench.application:app"]
    with Monolith(f"{ours.NAME}, {placement}", command, port, environ, folder / "log.txt") as server:
        server.wait_ready("/api/readyz", timeout=120)
        if bool(server.host_pid()) != (placement == HOSTED):
            raise ServerFailed(f"{server.name} has a model host without placement hosted, or none with it")
        yield server
