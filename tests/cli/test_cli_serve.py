"""modelyard serve: what it refuses before a server starts, and that what it is told arrives."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from commands import Ran, modelyard
from modelyard.cli.options import GROUPS, SERVE_SETTINGS
from modelyard.cli.serve import environment_of
from modelyard.settings import params
from modelyard.settings.loading import load as load_settings
from modelyard.settings.settings import Settings
from running import Services, console_script, free_port, wait_until


class Executed(Exception):
    """Instead of becoming gunicorn."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.environ = environ


@pytest.fixture(autouse=True)
def no_exec(monkeypatch: pytest.MonkeyPatch) -> None:
    def execute(path: str, words: list[str], environ: dict[str, str]) -> None:
        raise Executed(environ)

    monkeypatch.setattr(os, "execve", execute)


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own, with folders of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def serve(*words: object, **environ: str) -> Ran:
    return modelyard("serve", "--models-dirs", "models", "--state-dir", "state", *words, **environ)


def handed(*words: object, **environ: str) -> Settings:
    """Run serve up to the point where it would become gunicorn; return the settings that gunicorn would load."""
    with pytest.raises(Executed) as caught:
        serve("--port", free_port(), *words, **environ)
    return load_settings(environ=caught.value.environ)


# help


def test_help_names_every_setting_once_below_a_heading():
    ran = modelyard("serve", "--help")
    assert ran.status == 0
    for name, declared in params.params_of(Settings).items():
        if name != "role" and "secret" not in declared.tags:
            assert len(re.findall(rf"^  --{name.replace('_', '-')}(?![\w-])", ran.out, re.MULTILINE)) == 1, name
    for heading in GROUPS:
        assert f"\n{heading}:\n" in ran.out
    assert ran.out.rpartition("\nOther:\n")[2].strip() == "-h, --help  Show this message and exit."


def test_every_setting_stands_in_one_group():
    grouped = [name for names in GROUPS.values() for name in names]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {*SERVE_SETTINGS, "model", "overrides"}


def test_a_secret_is_no_option_which_other_users_of_the_machine_could_read():
    assert set(params.params_of(Settings)) - set(SERVE_SETTINGS) == {"role", "token", "pages_secret"}
    ran = modelyard("serve", "--token", "hunter2")
    assert (ran.status, "hunter2" in ran.err) == (2, False)


def test_help_shows_defaults_and_what_is_to_be_filled_in():
    lines = " ".join(modelyard("serve", "--help").out.split())
    assert "--port N port to listen on [default: 8000]" in lines
    assert "--drain-timeout SECONDS" in lines
    assert "--access-log / --no-access-log" in lines
    assert "[default: on]" in lines
    assert "--log-level [debug|info|warning|error|critical]" in lines


# what is handed on


def test_what_the_command_line_says_reaches_the_settings_of_the_server(at: Path):
    settings = handed(
        "worker", "-m", "echo", "--threads", 64, "--no-access-log", "--fresh", "--log-level", "debug", "--prefix", "/x"
    )
    assert (settings.role, settings.threads, settings.access_log, settings.fresh) == ("worker", 64, False, True)
    assert (settings.log_level, settings.prefix) == ("debug", "/x")


def test_models_can_be_named_one_by_one_and_as_a_list(at: Path):
    assert handed("-m", "echo", "--model", "echo-embed").models == ["echo", "echo-embed"]
    assert handed("-m", "echo", "--models", "echo-embed,smollm2-135m").models == ["echo", "echo-embed", "smollm2-135m"]
    assert handed("--models", "").models == []


def test_the_command_line_wins_over_environment_and_file(at: Path):
    (at / "c.toml").write_text("[service]\nthreads = 20\nreserve = 3\nwrite_timeout = 4.0\n")
    settings = handed(
        "--config", "c.toml", "-m", "echo", "--threads", 40, MODELYARD_THREADS="30", MODELYARD_RESERVE="2"
    )
    assert (settings.threads, settings.reserve, settings.write_timeout) == (40, 2, 4.0)


def test_parameters_of_models_are_handed_on(at: Path):
    settings = handed("-m", "echo", "--set", "echo.delay=0.5", "--set", "echo.reply=prompt")
    assert settings.overrides == ("echo.delay=0.5", "echo.reply=prompt")


def test_nothing_is_handed_on_that_was_not_said():
    assert environment_of({}, ()) == {}


def test_a_real_service_has_what_its_command_line_says(run: Services):
    service = run.start("", "-m", "echo", "--set", "echo.default_max_new_tokens=3", "--prefix", "/other/v1")
    answer = service.post("/other/v1/worker/generate", {"model": "echo", "prompt": "x"})
    assert answer.json()["text"] == " token token token"
    assert [model["model"] for model in service.status()["models"]] == ["echo@llm"]


def test_an_engine_in_the_working_directory_is_found_before_and_after_gunicorn_starts(run: Services):
    folder = run.folder()
    (folder / "own_engine.py").write_text(
        "from modelyard.engines.echo import Echo\n\nclass Own(Echo):\n    name = 'own'\n"
    )
    service = run.start('[[models]]\nname = "mine"\nworker_class = "own_engine:Own"\n', folder=folder)
    assert service.model("mine@llm")["state"] == "ready"


def test_full_passes_of_the_collector_are_rare_and_leave_out_what_was_loaded(run: Services):
    folder = run.folder()
    (folder / "own_engine.py").write_text(
        "import gc\n"
        "from modelyard.engines.echo import Echo\n"
        "from modelyard.types import Burst\n\n"
        "class Own(Echo):\n"
        "    name = 'own'\n"
        "    def generate_stream(self, request, cancel):\n"
        "        yield Burst([str([gc.get_freeze_count() > 10_000, gc.get_threshold()[2]])], 'stop')\n"
    )
    service = run.start('[[models]]\nname = "mine"\nworker_class = "own_engine:Own"\n', folder=folder)
    assert service.post("/api/worker/generate", {"model": "mine", "prompt": "x"}).json()["text"] == "[True, 50]"


def test_a_forked_process_does_not_collect_in_what_its_master_has_loaded():
    script = (
        "import gc; from modelyard.server import gunicorn; gunicorn.pre_fork(None, None); print(gc.get_freeze_count())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 10_000


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_the_loopback_address_of_ipv6_is_served(run: Services, host: str):
    service = run.start("", "-m", "echo", "--host", host, wait="nothing")
    if not has_ipv6():
        assert service.wait_ended(60) == 1
        assert "can't be listened on" in service.log()
        return

    def answered() -> bool:
        ran = modelyard("models", "list", "--url", f"http://[::1]:{service.port}/api")
        return ran.status == 0 and "ready" in ran.out

    wait_until(answered, "an answer over IPv6", 60)
    assert service.is_running()


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


# what is refused


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        (["--set", "ekho.delay=1"], 1, "there is no model 'ekho'"),
        (["--set", "echo.dealy=1"], 1, "dealy: no such parameter (did you mean delay?)"),
        (["--set", "echo.delay=soon"], 1, "delay: 'soon' is not a number"),
        (["--set", "echo.delay=-1"], 1, "less than 0"),
        (["--set", "echo.worker_type=text2vec"], 1, "only be set in a [[models]] table"),
        (["--set", "delay=1"], 1, "expected MODEL.PARAM=VALUE"),
        (["-m", "ekho"], 1, "there is no model 'ekho'"),
        (["--config", "absent.toml"], 1, "absent.toml: No such file or directory"),
        (["--config", "."], 1, "Is a directory"),
        (["--reserve", "300"], 1, "reserve (300) must be less than threads (256)"),
        (["--prefix", "api"], 1, "must start with a slash"),
        (["--host", "0.0.0.0"], 1, "set --insecure"),
        (["--host", "::"], 1, "set --insecure"),
        (["--host", "127.0.0.1.example.org"], 1, "set --insecure"),
        (["--host", "203.0.113.9", "--insecure"], 1, "203.0.113.9:8000 can't be listened on"),
        (["--host", "nowhere.invalid", "--insecure"], 1, "can't be listened on"),
        (["--set", "echo.limit_model_concurrency=4000", "-m", "echo"], 1, "it asks for 4000 slots"),
        (["-m", "echo", "-m", "echo-embed", "--threads", "40"], 1, "it asks for 64 slots"),
        (["--port", "http"], 2, "'http' is not an integer"),
        (["--port", "0"], 2, "0 is less than 1"),
        (["--port", "70000"], 2, "70000 is more than 65535"),
        (["--threads", "3"], 2, "3 is less than 8"),
        (["--log-level", "loud"], 2, "'loud' is not one of"),
        (["--http-threads", "leader"], 2, "'leader' was removed, as it used private parts of gunicorn"),
        (["--prot", "1"], 2, "--prot"),
        (["king"], 2, "'king' is not one of"),
    ],
)
def test_what_can_not_work_is_refused_in_one_line_before_a_server_starts(
    at: Path, words: list[str], status: int, reason: str
):
    ran = serve(*words)
    assert (ran.status, ran.out) == (status, "")
    assert reason in ran.complaint


@pytest.mark.parametrize(
    ("toml", "reason"),
    [
        ("[service\n", "not valid TOML"),
        ("[serivce]\nport = 1\n", "unknown table 'serivce'"),
        ("[service]\nprot = 1\n", "did you mean port?"),
        ('[service]\nport = "8000"\n', "port: must be an integer, not a string"),
        ("[service]\nthreads = 9.5\n", "threads: must be an integer, not a number"),
        ('[[models]]\nengine = "echo"\n', "has no name"),
        ('[[models]]\nname = "x"\nengine = "ekho"\n', "engine 'ekho' is unknown"),
        ('[[models]]\nname = "echo"\ndelay = "soon"\n', "delay: must be a number, not a string"),
        ('[[models]]\nname = "echo"\ndealy = 1\n', "did you mean delay?"),
        ('[[models]]\nname = "echo"\n[[models]]\nname = "echo"\n', "is there twice"),
        ('[[models]]\nname = "ec.ho"\nengine = "echo"\n[[models]]\nname = "ec-ho"\nengine = "echo"\n', "prefix EC_HO"),
        ('[[models]]\nname = "x"\nworker_class = "no.such:Engine"\n', "can't be imported"),
    ],
)
def test_a_configuration_file_that_does_not_fit_is_refused_with_its_place(at: Path, toml: str, reason: str):
    (at / "c.toml").write_text(toml)
    ran = serve("--config", "c.toml")
    assert ran.status == 1
    assert reason in ran.complaint


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"MODELYARD_PORT": "http"}, "MODELYARD_PORT"),
        ({"ECHO_DELAY": "soon"}, "ECHO_DELAY"),
        ({"ECHO_ENGINE": "llama.cpp"}, "ECHO_ENGINE: engine can only be set in a [[models]] table"),
        ({"MODELYARD_SET": "echo.delay=1"}, "MODELYARD_SET"),
        ({"MODELYARD_SET": '["echo.dealy=1"]'}, "did you mean delay?"),
    ],
)
def test_a_variable_that_does_not_fit_is_named(at: Path, environ: dict[str, str], reason: str):
    ran = serve("-m", "echo", **environ)
    assert ran.status == 1
    assert reason in ran.complaint


def test_of_several_faults_the_first_is_said_and_where_to_see_the_others(at: Path):
    complaint = serve("--set", "echo.dealy=1", "--set", "echo.delay=x", MODELYARD_THREADS="x").complaint
    assert "(and 2 more: see modelyard check-config)" in complaint


def test_a_port_in_use_is_refused_at_once(at: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = serve("--port", taken.getsockname()[1])
    assert ran.status == 1
    assert "is in use" in ran.complaint


def test_a_unix_socket_is_listened_on(at: Path):
    path = at / "s"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    assert handed("--host", f"unix:{path}").address == f"unix:{path}"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("s", "in use"),
        ("file", "not a socket"),
        ("link", "not a socket"),
        ("none/s", "not a folder"),
        ("s" * 108, "too long"),
    ],
)
def test_a_socket_that_can_not_be_made_is_refused_at_once(at: Path, name: str, reason: str):
    (at / "file").touch()
    (at / "link").symlink_to(at / "nothing")
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(at / "s"))
        taken.listen()
        ran = serve("--host", f"unix:{at / name}")
    assert ran.status == 1
    assert reason in ran.complaint
    assert "expected a whole path" in serve("--host", "unix:s").complaint


def test_without_gunicorn_the_extra_is_named(at: Path, monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "gunicorn" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    ran = serve("--port", free_port())
    assert ran.status == 1
    assert "pip install 'modelyard[server]'" in ran.complaint


def test_missing_weights_do_not_keep_a_service_from_starting(at: Path):
    assert handed("-m", "smollm2-135m").models == ["smollm2-135m"]


def test_gunicorn_by_hand_refuses_an_open_door_in_the_same_words(at: Path):
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("MODELYARD_", "GUNICORN_"))}
    command = [console_script("gunicorn"), "-c", "python:modelyard.server.gunicorn", "modelyard.server.wsgi:app"]
    given = {"MODELYARD_HOST": "0.0.0.0", "MODELYARD_PORT": str(free_port()), "MODELYARD_STATE_DIR": str(at / "state")}
    ran = subprocess.run(command, cwd=at, env={**environ, **given}, capture_output=True, text=True, timeout=60)
    assert ran.returncode != 0
    said = serve("--host", "0.0.0.0").complaint
    assert said in ran.stderr


def test_the_installed_command_refuses_in_one_line_and_ends_with_the_status(at: Path):
    command = [console_script("modelyard"), "serve", "--set", "echo.dealy=1"]
    ran = subprocess.run(command, cwd=at, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("modelyard: --set echo.dealy=1")
    assert ran.stderr.count("\n") == 1


def test_an_interrupt_while_gunicorn_is_imported_ends_it_without_a_traceback(at: Path):
    (at / "interrupted.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    command = [sys.executable, "-m", "modelyard.server", "-c", "python:interrupted", "modelyard.server.wsgi:app"]
    environ = {**os.environ, "PYTHONPATH": str(at)}
    ran = subprocess.run(command, cwd=at, env=environ, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (-signal.SIGINT, "", "")


# completion


def test_the_shell_is_told_commands_settings_and_models():
    def completed(line: str) -> set[str]:
        environ = {**os.environ, "_MODELYARD_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": "2"}
        if len(line.split()) == 1:
            environ["COMP_CWORD"] = "1"
        ran = subprocess.run(
            [console_script("modelyard")], env=environ, capture_output=True, text=True, timeout=60, check=True
        )
        return {row.partition(",")[2] for row in ran.stdout.splitlines()}

    assert {"serve", "pull", "models", "check-config"} <= completed("modelyard")
    assert "--drain-timeout" in completed("modelyard serve --dr")
    assert completed("modelyard pull smol") == {"smollm2-135m"}
