"""Completion in real shells, and what they complete without a service."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import modelyard
from in_process import service, url_of
from running import console_script
from stores import program

BASH = """
eval "$(modelyard completion bash)"
complete -p modelyard
complete_words() {
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    _modelyard_completion modelyard
    echo "${COMPREPLY[@]}"
}
complete_words modelyard print
complete_words modelyard models sto
complete_words modelyard serve --http-threads ge
complete_words modelyard pull smol
complete_words modelyard models stop ech
"""
ZSH = """
autoload -U compinit && compinit -u -d "$ZDOTDIR/dump"
eval "$(modelyard completion zsh)"
compadd() { print -r -- "${(P)@[-1]}" }
_describe() { print -r -- "${(P)3}" }
words=(modelyard print); CURRENT=2; _modelyard_completion
words=(modelyard models stop ech); CURRENT=4; _modelyard_completion
"""


def environment(folder: Path, url: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MODELYARD_")}
    path = f"{Path(console_script('modelyard')).parent}:{os.environ['PATH']}"
    return {**kept, "PATH": path, "HOME": str(folder), "ZDOTDIR": str(folder), "MODELYARD_URL": url}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory):
    tables = [{"name": "echo", "engine": "echo"}, {"name": "other", "engine": "echo"}]
    with service(tmp_path_factory.mktemp("service"), tables, role="worker") as runtime:
        yield url_of(runtime)


def ran(shell: str, script: str, folder: Path, url: str) -> list[str]:
    words = [program(shell), *(["--norc"] if shell == "bash" else ["-f"]), "-c", script]
    done = subprocess.run(words, env=environment(folder, url), capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_bash_completes_commands_options_and_models(tmp_path, url):
    complete, *lines = ran("bash", BASH, tmp_path, url)
    assert complete.endswith("-F _modelyard_completion modelyard")
    assert lines == ["print-config", "stop", "gevent", "smollm2-135m", "echo"]


def test_zsh_completes_commands_and_models(tmp_path, url):
    lines = ran("zsh", ZSH, tmp_path, url)
    assert "print-config:Print the configuration of a service as a file." in lines
    assert lines[-1] == "echo"


def test_without_a_service_no_model_is_completed(tmp_path):
    completing = {"_MODELYARD_COMPLETE": "bash_complete", "COMP_WORDS": "modelyard models stop e", "COMP_CWORD": "3"}
    environ = {**environment(tmp_path, "http://127.0.0.1:1/api"), **completing}
    done = subprocess.run([console_script("modelyard")], env=environ, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("\n", "")


def test_a_shell_without_completion_is_a_misuse():
    assert modelyard("completion", "tcsh").status == 2


HEAVY = ("flask", "werkzeug", "requests", "urllib3", "orjson", "prometheus_client", "gunicorn", "opentelemetry", "ssl")


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_the_help_imports_neither_a_command_nor_a_library(words):
    script = f"""
import sys
sys.argv = ["modelyard", *{words!r}]
from modelyard.cli import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stderr.split())
    assert not loaded & set(HEAVY)
    ours = {name for name in loaded if name.startswith("modelyard.")}
    assert ours <= {
        f"modelyard.{name}" for name in ("cli", "cli.commands", "cli.failures", "cli.tables", "errors", "version")
    }
