"""Applications of other people, under the servers and settings that they choose."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from clients import Connection
from monoliths import host_pid
from running import ROOT, Service, Services, console_script, seconds_until, wait_until

from scripts import journal, script

APPLICATION = """
import json, os
from flask import Flask
from modelyard import Modelyard

app = Flask("app")
Modelyard(app, models=["script"], **json.loads(os.environ["OPTIONS"]))
"""
TABLES = """
[[models]]
name = "script"
worker_class = "scripted:Scripted"
journal = "{journal}"
limit_model_concurrency = 1
"""
GUNICORN = [console_script("gunicorn"), "theirs:app", "--bind", "127.0.0.1:{port}", "--no-control-socket"]
WAITRESS = [console_script("waitress-serve"), "--listen=127.0.0.1:{port}", "--channel-request-lookahead=1"]
UWSGI = [console_script("uwsgi"), "--enable-threads", "--threads=4", "--need-app", "--die-on-term"]
SERVERS = {
    "waitress": [*WAITRESS, "theirs:app"],
    "uwsgi": [*UWSGI, "--http-socket=127.0.0.1:{port}", "--module=theirs:app"],
    "uwsgi's router": [*UWSGI, "--master", "--http=127.0.0.1:{port}", "--module=theirs:app"],
}


def start(run: Services, command: list[str], options: dict[str, Any], *arguments: str, **more: Any) -> Service:
    """Run an application with ``options`` of `Modelyard` under another server."""
    folder = run.folder()
    (folder / "theirs.py").write_text(APPLICATION)
    environ = {"OPTIONS": json.dumps(options), **more.pop("environ", {})}
    tables = TABLES.format(journal=folder / "journal")
    return run.start(
        tables, *arguments, folder=folder, command=command, cwd=folder, probes="/api", environ=environ, **more
    )


@pytest.mark.parametrize("server", SERVERS)
def test_a_hang_up_is_noticed_within_a_second(run: Services, server: str) -> None:
    service = start(run, SERVERS[server], {"placement": "inline"}, environ={"PYTHONPATH": _path_of_tests()})
    with Connection(service.port) as client:
        client.send("POST", "/api/worker/generate_stream", script(before=60))
        wait_until(lambda: journal(service, "begin"), "the engine has begun")
        assert not journal(service, "end")
    assert seconds_until(lambda: journal(service, "end"), timeout=3) < 1
    wait_until(lambda: '"error":"cancelled"' in service.log(), "the access line")


def _path_of_tests() -> str:
    return f"{ROOT / 'tests' / 'process' / 'engines'}{os.pathsep}."


# Models inline and loops


def ours(run: Services, *arguments: str, **settings: Any) -> Service:
    command = [console_script("gunicorn"), "wsgi:app", "--bind", "127.0.0.1:{port}"]
    folder = run.folder()
    tables = TABLES.format(journal=folder / "journal")
    return run.start(tables, *arguments, folder=folder, command=command, cwd=ROOT, **settings)


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [(["-k", "gevent"], {}), (["-w", "2"], {"http_threads": "gevent"})],
    ids=["-k gevent", "-w 2"],
)
def test_where_an_engine_would_block_a_loop_the_models_are_hosted(
    run: Services, arguments: list[str], settings: dict[str, Any]
) -> None:
    service = ours(run, *arguments, **settings)
    assert host_pid(service)
    assert service.post("generate", script(pieces=2)).json()["text"] == "xx"


@pytest.mark.parametrize(
    ("arguments", "settings"), [(["-k", "gevent"], {}), ([], {"http_threads": "gevent"})], ids=["-k", "setting"]
)
def test_models_inline_in_a_loop_are_refused_with_what_to_do(
    run: Services, arguments: list[str], settings: dict[str, Any]
) -> None:
    service = ours(run, *arguments, placement="inline", wait="nothing", **settings)
    assert service.wait_ended(20) != 0
    assert "leave the placement" in service.log()
    assert "--placement" not in service.log(), "gunicorn has no such option"


# The log


@pytest.mark.parametrize("hooks", [False, True], ids=["", "with hooks"])
def test_the_log_file_of_an_application_takes_the_lines_of_all_processes_and_a_rotation(
    run: Services, tmp_path: Path, hooks: bool
) -> None:
    path = tmp_path / "models.log"
    arguments = ["-c", "python:modelyard.server.gunicorn", "-w", "2"] if hooks else ["-w", "2", "--threads", "8"]
    service = start(run, GUNICORN, {"log_file": str(path), "threads": 16}, *arguments)
    ask = {"model": "script", "apply_type": "restart"}
    assert service.post("apply", ask).json()["success"]
    wait_until(lambda: '"path":"/api/worker/apply"' in path.read_text(), "the access line of a web process")
    assert "script@llm is ready" in path.read_text()
    assert '"path":"/api/worker' not in service.log()
    path.rename(tmp_path / "models.log.1")
    service.signal(signal.SIGUSR1)

    def has_followed() -> bool:
        # gunicorn logs this signal and does nothing.
        os.kill(host_pid(service), signal.SIGWINCH)
        return path.exists() and "winch" in path.read_text()

    wait_until(has_followed, "the master of the model host writes into the new file", interval=0.1)
    assert service.post("apply", ask).json()["success"]
    wait_until(lambda: "script@llm is ready" in path.read_text(), "and so does its worker")


def test_a_worker_without_a_registry_says_so_once(run: Services) -> None:
    service = run.start(TABLES.format(journal="/dev/null"), "worker", workers=2)
    assert service.log().count("no registry is set") == 1
    gateway = run.start("", role="controller")
    assert "no registry is set" not in gateway.log()
