"""How a service starts: nothing at import, ready when its models are, and a word of why where it can't."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from processes import is_alive
from running import ROOT, Services, console_script, free_port, surroundings_of, wait_until

ECHO = '[[models]]\nname = "echo"\n'


def scripted(name: str, **params: object) -> str:
    lines = [f"{key} = {str(value)!r}" for key, value in params.items()]
    return "\n".join(["[[models]]", f'name = "{name}"', 'worker_class = "scripted:Scripted"', *lines, ""])


LOOK = """
import os, sys, threading
before = len(os.listdir("/proc/self/fd"))
import {module}
opened = len(os.listdir("/proc/self/fd")) - before
print(threading.active_count(), opened, *[name for name in sys.modules if name in {libraries!r}])
"""


@pytest.mark.parametrize("module", ["modelyard", "modelyard.server.wsgi", "wsgi"])
def test_an_import_starts_no_thread_and_opens_no_file(module: str, run: Services) -> None:
    folder = run.folder()
    (folder / "config.toml").write_text('[[models]]\nname = "smollm2-135m"\n')
    environ = {
        **surroundings_of(folder),
        "MODELYARD_CONFIG": str(folder / "config.toml"),
        "MODELYARD_STATE_DIR": str(folder / "state"),
    }
    libraries = ["xllamacpp", "gevent", "sqlalchemy", "redis", "psycopg", "numpy", "gguf", "transformers"]
    code = LOOK.format(module=module, libraries=libraries)
    said = subprocess.run([sys.executable, "-c", code], env=environ, cwd=ROOT, capture_output=True, text=True)
    assert (said.stdout.split(), said.stderr) == (["1", "0"], "")
    assert not (folder / "state").exists()


def test_it_answers_at_once_and_is_ready_when_its_models_are(run: Services) -> None:
    folder = run.folder()
    tables = ECHO + scripted("late", start_when=folder / "go")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(30)
        systemd.bind(str(folder / "notify"))
        service = run.start(tables, folder=folder, environ={"NOTIFY_SOCKET": str(folder / "notify")}, wait="up")
        assert systemd.recv(4096).startswith(b"READY=1"), "the unit is of Type=notify"
    wait_until(lambda: service.model("late@llm").get("reason") == "reading the script", "its progress")
    answer = service.get("/readyz")
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.json()["ready"] is False
    assert service.model("echo@llm")["state"] == "ready"
    assert service.post("generate", {"model": "echo", "prompt": "x"}).status_code == 200, "one need not wait for all"
    early = service.post("generate", {"model": "late", "prompt": "x"})
    assert early.status_code == 503
    assert int(early.headers["Retry-After"]) >= 1
    assert "starting" in early.json()["text"]
    (folder / "go").touch()
    service.wait_ready()
    idle = {"running": 0, "waiting": {"interactive": 0, "batch": 0}}
    assert service.model("late@llm").items() >= {"model": "late@llm", "state": "ready", "reason": None, **idle}.items()
    assert service.post("generate", {"model": "late", "prompt": "x"}).status_code == 200


def test_a_model_that_fails_is_listed_with_its_reason_and_the_others_live(run: Services) -> None:
    folder = run.folder()
    (folder / "broken").touch()
    missing = '[[models]]\nname = "smollm2-135m"\n'
    service = run.start(scripted("bad", fail_while=folder / "broken") + missing + ECHO, folder=folder)
    service.may_show_tracebacks = True
    bad = service.model("bad@llm")
    assert bad["state"] == "failed"
    assert "the script says so" in bad["reason"]
    assert "modelyard pull smollm2-135m" in service.model("smollm2-135m@llm")["reason"]
    refused = service.post("generate", {"model": "bad", "prompt": "x"})
    assert refused.status_code == 503
    assert "failed" in refused.json()["text"]
    assert service.post("generate", {"model": "echo", "prompt": "x"}).status_code == 200
    (folder / "broken").unlink()
    assert service.post("apply", {"model": "bad", "apply_type": "start"}).json()["success"] is True
    assert service.post("generate", {"model": "bad", "prompt": "x"}).status_code == 200


def test_it_is_not_ready_where_every_model_failed(run: Services) -> None:
    service = run.start('[[models]]\nname = "smollm2-135m"\n', wait="up")
    # The model has failed a moment before the start of the service is over.
    wait_until(lambda: service.status().get("state") == "failed", "the failure")
    assert service.model("smollm2-135m@llm")["state"] == "failed"
    answer = service.get("/readyz")
    assert (answer.status_code, answer.json()["reason"]) == (503, "no model is ready")


def test_it_is_ready_without_models(run: Services) -> None:
    service = run.start(models="")
    status = service.status()
    assert status.pop("cluster")["error"] is None
    assert status.pop("keys") == {"count": 0, "error": None}
    assert status == {"ready": True, "state": "ready", "reason": None, "models": [], "unsaved": None}
    answer = service.post("generate", {"model": "echo", "prompt": "x"})
    assert answer.json()["error_code"] == 404


def test_a_start_that_takes_too_long_is_given_up(run: Services) -> None:
    tables = '[[models]]\nname = "slow"\nworker_class = "scripted:Stubborn"\nstart_timeout = 0.5\n' + ECHO
    service = run.start(tables)
    assert service.model("slow@llm")["state"] == "failed"
    assert "start_timeout" in service.model("slow@llm")["reason"]


@pytest.mark.parametrize("fault", ["a start that fails", "missing weights"])
def test_a_failed_start_can_end_the_process(run: Services, fault: str) -> None:
    folder = run.folder()
    (folder / "broken").touch()
    missing = '[[models]]\nname = "smollm2-135m"\n'
    tables = missing if fault == "missing weights" else scripted("bad", fail_while=folder / "broken")
    service = run.start(ECHO + tables, folder=folder, on_load_failure="exit", wait="nothing")
    service.may_show_tracebacks = True
    assert service.wait_ended(30) != 0, "who watches the service must see that it failed"
    assert "on_load_failure" in service.log()


def test_the_checkout_runs_under_plain_gunicorn(run: Services) -> None:
    service = run.start(ECHO, command=[console_script("gunicorn"), "wsgi:app"], cwd=ROOT)
    assert service.post("generate", {"model": "echo", "prompt": "x"}).status_code == 200


@pytest.mark.parametrize("arguments", [[], ["--preload"]], ids=["", "preloaded"])
def test_the_port_that_gunicorn_is_told_is_the_one_its_folder_and_registry_are_named_after(
    run: Services, arguments: list[str]
) -> None:
    command = [console_script("gunicorn"), "wsgi:app", "--bind", "127.0.0.1:{port}"]
    service = run.start(
        "", *arguments, command=command, cwd=ROOT, models="echo", environ={"MODELYARD_PORT": str(free_port())}
    )
    registered = wait_until(lambda: service.status()["cluster"]["registered"], "it has a registry")
    assert registered == ["WorkerManager@service", "echo@llm"]
    assert [path.name for path in (service.folder / "state").iterdir()] == [f"standalone-{service.port}"]


def test_several_processes_are_refused_with_the_reason(run: Services) -> None:
    for command in ([], [console_script("gunicorn"), "wsgi:app"]):
        environ = {"GUNICORN_CMD_ARGS": "--workers 4", "MODELYARD_PLACEMENT": "inline"}
        service = run.start(ECHO, command=command, cwd=ROOT, environ=environ, wait="nothing")
        assert service.wait_ended(30) != 0
        assert "4 workers" in service.log()
        assert "--threads" in service.log()


def test_a_number_of_workers_meant_for_other_services_changes_nothing(run: Services) -> None:
    service = run.start(ECHO, environ={"WEB_CONCURRENCY": "4"})
    assert is_alive(service.worker_pid())


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_open_door_is_refused_unless_it_is_meant(run: Services, host: str) -> None:
    service = run.start(ECHO, host=host, wait="nothing")
    assert service.wait_ended(30) != 0
    assert "--insecure" in service.log()


def test_an_open_door_that_is_meant_is_open(run: Services) -> None:
    service = run.start(ECHO, "--insecure", host="0.0.0.0")
    assert service.status()["ready"] is True


def test_a_port_in_use_is_told(run: Services) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        service = run.start(ECHO, port=port, wait="nothing")
        assert service.wait_ended(30) != 0
    assert f"port {port}" in service.log()
    assert "--port" in service.log()


@pytest.mark.parametrize(
    ("tables", "arguments", "told"),
    [
        ('[[models]]\nname = "nobody"\n', [], "nobody"),
        ('[[models]]\nname = "echo"\ndelya = 1\n', [], "delay"),
        ('[[models]]\nname = "echo"\ndelay = "long"\n', [], "delay"),
        ("[[models]]\nname = \n", [], "config.toml"),
        ("[modles]\n", [], "modles"),
        (ECHO, ["--set", "echo.delay=long"], "delay"),
        (ECHO, ["--set", "echo"], "MODEL.PARAM=VALUE"),
        (ECHO, ["--set", "nobody.delay=1"], "nobody"),
        (ECHO, ["--threads", "4"], "threads"),
        (ECHO, ["--models", "nobody"], "nobody"),
        ('[[models]]\nname = "x"\nworker_class = "nothing:Here"\n', [], "nothing:Here"),
        ('[[models]]\nname = "a.b"\nengine = "echo"\n[[models]]\nname = "a-b"\nengine = "echo"\n', [], "A_B"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named_before_anything_starts(
    run: Services, tables: str, arguments: list[str], told: str
) -> None:
    service = run.start(tables, *arguments, wait="nothing")
    assert service.wait_ended(30) != 0
    assert told in service.log()
    assert "Starting gunicorn" not in service.log()


def _a_file(state: Path) -> None:
    state.write_text("I was here first.")


def _an_instance_that_is_a_file(state: Path) -> None:
    state.mkdir()
    (state / "here").write_text("")


def _a_lock_that_is_a_folder(state: Path) -> None:
    (state / "here" / "lock").mkdir(parents=True)


def _a_record_that_is_a_folder(state: Path) -> None:
    (state / "here" / "models.json" / "x").mkdir(parents=True)


def _a_folder_of_somebody_else(state: Path) -> None:
    if os.geteuid() == 0:
        # No mode stops root; /proc does.
        state.symlink_to("/proc/self")
    else:
        (state / "here").mkdir(parents=True)
        (state / "here").chmod(0o500)


@pytest.mark.parametrize(
    "spoil",
    [
        _a_file,
        _an_instance_that_is_a_file,
        _a_lock_that_is_a_folder,
        _a_record_that_is_a_folder,
        _a_folder_of_somebody_else,
    ],
)
def test_a_state_folder_that_can_not_be_used_costs_only_the_memory(run: Services, spoil: object) -> None:
    folder = run.folder()
    assert callable(spoil)
    spoil(folder / "state")
    service = run.start(ECHO, folder=folder, instance="here")
    assert service.post("generate", {"model": "echo", "prompt": "x"}).status_code == 200
    outcome = service.post("apply", {"model": "echo", "apply_type": "restart"})
    assert outcome.json()["success"] is True
    body = {"model": "echo-embed", "worker_type": "text2vec", "params": {}}
    assert service.post("models/startup", body).status_code == 200
    assert "remembered" in service.log()
