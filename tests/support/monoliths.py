"""Monoliths of several processes, each process asked by itself, and the processes of their model hosts."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from clients import Connection, Head
from processes import children, processes_of, state_of
from running import ROOT, Service, Services, console_script, wait_until

SHOP = ROOT / "tests" / "monolith" / "shop"
LOGIN = {"Shop-Login": "bob"}
PREFIX = "/ml/api"
API = f"{PREFIX}/worker/"
TABLES = """
[[models]]
name = "script"
worker_class = "scripted:Scripted"
journal = "{journal}"
limit_model_concurrency = {slots}

[[models]]
name = "vectors"
worker_class = "scripted:Scripted"
worker_type = "text2vec"
journal = "{journal}"
"""


def monolith(
    run: Services,
    *arguments: str,
    workers: int = 4,
    worker_class: str = "gthread",
    slots: int = 2,
    tables: str = TABLES,
    models: str = "script,vectors",
    folder: Path | None = None,
    cwd: Path = SHOP,
    environ: Mapping[str, str] | None = None,
    **options: Any,
) -> Service:
    """Run the shop under gunicorn with several processes; it is asked as somebody who is logged in."""
    folder = folder or run.folder()
    command = [console_script("gunicorn"), "wsgi:app", "--bind", "127.0.0.1:{port}"]
    command += ["--workers", str(workers), "--worker-class", worker_class, "--keep-alive", "30"]
    command += ["--threads", "32"] if worker_class == "gthread" else []
    service = run.start(
        tables.format(journal=journal_of(folder), slots=slots, folder=folder),
        *arguments,
        folder=folder,
        command=command,
        cwd=cwd,
        probes=PREFIX,
        environ={"SHOP_MODELS": models, "SHOP_IMPORTS": str(folder / "imports"), **(environ or {})},
        **options,
    )
    service.session.headers.update(LOGIN)
    return service


def journal_of(folder: Path) -> Path:
    return folder / "journal"


# Processes


def web_pids(service: Service) -> list[int]:
    """Return the processes that answer; a model host in a session of its own is none of them."""
    return sorted(pid for pid in children(service.pid) if os.getpgid(pid) == service.pid)


def wait_workers(service: Service, count: int, without: set[int] | None = None) -> list[int]:
    """Wait until ``count`` processes answer, none of those ``without``, and return them."""

    def found() -> list[int]:
        # One that is just ending has no group any more.
        with suppress(ProcessLookupError):
            pids = web_pids(service)
            return pids if len(pids) == count and not set(pids) & (without or set()) else []
        return []

    return wait_until(found, f"{count} processes that answer")


@contextmanager
def only(service: Service, pid: int) -> Iterator[None]:
    """Stop all processes that answer but one: what comes meanwhile, that one takes."""
    others = [other for other in web_pids(service) if other != pid]
    try:
        for other in others:
            os.kill(other, signal.SIGSTOP)
        wait_until(lambda: all(state_of(other) == "T" for other in others), "the others stand still")
        yield
    finally:
        for other in others:
            with suppress(ProcessLookupError):
                os.kill(other, signal.SIGCONT)


def ask(
    service: Service, pid: int, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> tuple[Head, bytes]:
    """Send one request to one process, and return its answer."""
    with only(service, pid), Connection(service.port, 60) as client:
        client.send(method, path, body, {**LOGIN, "Connection": "close", **(headers or {})})
        head, said = client.read_answer()
    assert int(head.headers["shop-pid"]) == pid
    return head, said


def begin(service: Service, pid: int, body: Any, headers: Mapping[str, str] | None = None) -> Connection:
    """Begin a stream in one process; its first piece has come. Close it."""
    with only(service, pid):
        client = Connection(service.port, 60)
        try:
            client.send("POST", f"{API}generate_stream", body, {**LOGIN, **(headers or {})})
            head = client.read_head()
            assert (head.status, int(head.headers["shop-pid"])) == (200, pid)
            assert client.read_http_chunk()
        except BaseException:
            client.close()
            raise
    return client


# The host


def host_pid(service: Service) -> int:
    """Return the pid of the model host as the service tells it; 0 where there is none."""
    return int(service.status().get("host", {}).get("pid") or 0)


def host_processes(folder: Path) -> list[int]:
    """Return all processes of model hosts that were started by what ran in ``folder``."""
    return processes_of(folder, "modelyard.server.host_process")


def wait_host(service: Service, other_than: int = 0) -> int:
    """Wait until a model host is there and its models are ready, another one if said; return its pid."""

    def found() -> int:
        status = service.status()
        pid = int(status.get("host", {}).get("pid") or 0)
        return pid if status.get("ready") and pid != other_than else 0

    return wait_until(found, "a model host that is ready", 30)


def wait_gone(folder: Path, timeout: float = 10.0) -> None:
    """Wait until nothing is left that was started in ``folder``: 3 s after the last web process, and its own end."""
    wait_until(lambda: not processes_of(folder), "nothing is left", timeout)


def kill(*pids: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
