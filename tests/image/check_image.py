"""The image of deploy/docker, built by docker or podman and run: by its user, read-only, with its volumes, until TERM.

`make check-image` runs them. IMAGE_TOOL is the one to use; IMAGE_BUILD and IMAGE_RUN are further options for ``build``
and ``run``.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import requests
from modelyard.version import __version__
from running import ROOT, free_port, wait_until

IMAGE = "modelyard-check"
TOOL = shutil.which(os.environ.get("IMAGE_TOOL", "docker")) or shutil.which("podman") or ""
STORY = {
    "model": "smollm2-135m",
    "messages": [{"role": "user", "content": "Tell a long story of a city."}],
    "max_tokens": 400,
    "ignore_eos": True,
    "stream": True,
}


def tool(*words: str, limit: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TOOL, *words], capture_output=True, text=True, timeout=limit, check=False)


def options(name: str) -> list[str]:
    return shlex.split(os.environ.get(name, ""))


@pytest.fixture(scope="module")
def image() -> str:
    if not TOOL:
        pytest.fail("neither docker nor podman is installed")
    file = str(ROOT / "deploy" / "docker" / "Dockerfile")
    built = tool("build", *options("IMAGE_BUILD"), "-f", file, "-t", IMAGE, str(ROOT), limit=1200)
    assert built.returncode == 0, built.stdout + built.stderr
    return IMAGE


class Container(NamedTuple):
    name: str
    url: str


@pytest.fixture
def container(image: str) -> Iterator[Container]:
    """Run a standalone service as docs/deployment.md does, and give it when its models are ready."""
    port = free_port()
    name = f"{IMAGE}-{port}"
    limits = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    places = ["-p", f"127.0.0.1:{port}:8000", "-v", f"{ROOT}/models:/models:ro", "-e", "MODELYARD_INSECURE=yes"]
    ran = tool("run", "-d", "--name", name, *limits, *places, *options("IMAGE_RUN"), image)
    try:
        assert ran.returncode == 0, ran.stderr

        def is_ready() -> bool:
            try:
                return requests.get(f"http://127.0.0.1:{port}/readyz", timeout=5).ok
            except requests.ConnectionError:
                return False

        wait_until(is_ready, "ready models", timeout=60)
        yield Container(name, f"http://127.0.0.1:{port}")
    finally:
        sys.stderr.write(tool("logs", name).stderr)
        tool("rm", "-f", name)


def check_the_version_is_that_of_the_source(image: str) -> None:
    ran = tool("run", "--rm", *options("IMAGE_RUN"), image, "--version")
    assert ran.stdout.split()[-1] == __version__, ran.stderr


def check_an_open_door_is_refused(image: str) -> None:
    ran = tool("run", "--rm", *options("IMAGE_RUN"), image)
    assert (ran.returncode, "no token is required" in ran.stderr) == (1, True), ran.stderr


def check_it_runs_by_its_user_and_is_healthy(container: Container) -> None:
    assert tool("exec", container.name, "id", "-u").stdout.strip() == "10001"
    assert tool("exec", container.name, "touch", "/x").returncode != 0
    assert tool("exec", container.name, "touch", "/state/x", "/run/modelyard/x").stderr == ""
    assert tool("exec", container.name, "python", "/opt/modelyard/healthcheck.py").returncode == 0
    assert "ready" in tool("exec", container.name, "modelyard", "models", "list").stdout


def check_a_stop_lets_the_answer_end(container: Container) -> None:
    with requests.post(f"{container.url}/v1/chat/completions", json=STORY, stream=True, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        stop = subprocess.Popen([TOOL, "stop", "--time", "60", container.name])
        assert [line for line in lines if line][-1] == b"data: [DONE]"
    assert stop.wait(60) == 0
    assert tool("inspect", "--format", "{{.State.ExitCode}}", container.name).stdout.strip() == "0"
