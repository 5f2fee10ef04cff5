"""The files of deploy/: each is checked by its own tool where that is installed, and in any case for what it names."""

from __future__ import annotations

import configparser
import grp
import os
import pwd
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from faulty import faulty, says, whole
from in_process import service
from modelyard.cli import cli
from modelyard.cli.examine import examine
from modelyard.engines.llama_cpp import LlamaCpp
from modelyard.models.catalog import Catalog
from modelyard.settings.loading import load
from modelyard.settings.params import params_of
from modelyard.settings.settings import ROLES, Settings
from running import ROOT, console_script
from stores import program

DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd" / "modelyard@.service"


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return parser


def test_the_unit_starts_a_command_that_exists_with_the_file_of_its_role():
    words = unit()["Service"]["ExecStart"].split()
    assert words == ["/opt/modelyard/bin/modelyard", "serve", "%i", "--config", "/etc/modelyard/%i.toml"]
    serve = cli.get_command(None, "serve")  # type: ignore[arg-type]
    assert "--config" in {option for param in serve.params for option in param.opts}


def test_the_unit_gives_a_drain_its_time():
    stop = int(unit()["Service"]["TimeoutStopSec"])
    assert stop > Settings().drain_timeout + 15
    assert unit()["Service"]["KillMode"] == "mixed"
    assert unit()["Service"]["Type"] == "notify", "a process test has what it sends"
    assert unit()["Service"]["NotifyAccess"] == "main"


def test_systemd_has_nothing_to_say_of_the_unit(tmp_path: Path):
    """Without systemd-analyze the tests before this one are all."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        return
    text = UNIT.read_text().replace("/opt/modelyard/bin/modelyard", console_script("modelyard"))
    path = tmp_path / "modelyard@worker.service"
    path.write_text(text.replace("User=modelyard", "User=root").replace("Group=modelyard", "Group=root"))
    ran = subprocess.run([analyze, "verify", path], capture_output=True, text=True, timeout=60, check=False)
    of_the_unit = [line for line in ran.stderr.splitlines() if "modelyard@" in line]
    assert of_the_unit == []
    exposure = [analyze, "security", "--offline=true", "--threshold=25", path]
    ran = subprocess.run(exposure, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize("role", ROLES)
def test_each_role_has_a_configuration_that_fits(role: str):
    path = DEPLOY / "etc" / f"{role}.toml"
    settings = load(environ={"MODELYARD_CONFIG": str(path), "MODELYARD_ROLE": role})
    assert settings.role == role
    Catalog.load(settings.model_tables)
    assert set(tomllib.loads(path.read_text())["service"]) <= set(params_of(Settings))


def test_nginx_is_configured_as_the_page_has_it():
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```nginx\n(.*?)```", page, re.DOTALL)
    assert (DEPLOY / "nginx" / "modelyard.conf").read_text(encoding="utf-8").endswith(f"\n\n{block}")


def variables_in(text: str) -> dict[str, str]:
    """Return the variables of an environment file, those in comments too."""
    return dict(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]*)=(.*)$", text, re.MULTILINE))


@pytest.mark.parametrize("name", ["etc/example.env", "docker/cluster.env.example"])
def test_the_variables_of_an_environment_file_are_read(name: str):
    variables = variables_in((DEPLOY / name).read_text(encoding="utf-8"))
    ours = {variable.removeprefix("MODELYARD_").lower() for variable in variables if variable.startswith("MODELYARD_")}
    assert len(ours) > 1
    assert ours <= set(params_of(Settings)) | {n for n, p in params_of(LlamaCpp.Params).items() if "shared" in p.tags}


def test_logs_are_rotated(tmp_path: Path):
    text = (DEPLOY / "logrotate" / "modelyard").read_text(encoding="utf-8")
    user, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name
    text = text.replace("/var/log/modelyard", str(tmp_path)).replace("modelyard modelyard", f"{user} {group}")
    path = tmp_path / "rotate"
    path.write_text(text.replace("systemctl kill", "true"))
    path.chmod(0o644)
    tmp_path.chmod(0o755)
    (tmp_path / "worker.log").write_text("a line\n")
    for mode in ("--debug", "--force"):
        command = [program("logrotate"), mode, "--state", tmp_path / "state", path]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ran.returncode == 0, ran.stderr
        assert "error" not in ran.stderr
    assert (tmp_path / "worker.log.1").read_text() == "a line\n"
    assert (tmp_path / "worker.log").read_text() == ""


def dockerfile() -> str:
    return (DEPLOY / "docker" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")


def test_the_image_is_built_from_what_is_there():
    text = dockerfile()
    extras = re.findall(r"EXTRAS=([a-z,]+)", text)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert {extra for words in extras for extra in words.split(",")} <= set(setup["options.extras_require"])
    kept = (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    names = re.findall(r"^!(.+)$", kept, re.MULTILINE)
    copied = re.findall(r"^COPY ([a-z]\S+)", text, re.MULTILINE)
    assert {"service", "blueprints", "setup.cfg", "pyproject.toml", *copied} <= set(names)
    assert all((ROOT / name).exists() for name in names)
    names = {name.lower() for name in re.findall(r"MODELYARD_([A-Z_]+)=", text)}
    assert names == {"host", "models_dirs", "state_dir"} <= set(params_of(Settings))
    assert "USER 10001" in text


def test_the_image_asks_a_service_for_its_health(tmp_path: Path):
    assert 'CMD ["python", "/opt/modelyard/healthcheck.py"]' in dockerfile()
    path = tmp_path / "s"
    with service(tmp_path, [{"name": "echo"}], role="worker") as running, faulty(says(whole(200, {})), path=path):
        places = {
            "loopback": ({"MODELYARD_PORT": str(running.settings.port)}, 0),
            "every address": ({"MODELYARD_HOST": "0.0.0.0", "MODELYARD_PORT": str(running.settings.port)}, 0),
            "a socket": ({"MODELYARD_HOST": f"unix:{path}"}, 0),
            "another port": ({"MODELYARD_PORT": "1"}, 1),
            "no socket": ({"MODELYARD_HOST": f"unix:{path}.none"}, 1),
        }
        for name, (variables, status) in places.items():
            environ = {**os.environ, **variables, "http_proxy": "http://127.0.0.1:1"}
            command = [sys.executable, "-I", DEPLOY / "docker" / "healthcheck.py"]
            ran = subprocess.run(command, env=environ, capture_output=True, timeout=60, check=False)
            assert ran.returncode == status, (name, ran.stderr)


def test_nginx_of_the_cluster_is_configured_as_any_other():
    """Compose mounts files as they are, so there is a copy whose upstream is the socket that the gateway listens on."""
    compose = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text(encoding="utf-8"))
    host = compose["services"]["gateway"]["environment"]["MODELYARD_HOST"]
    block = (DEPLOY / "nginx" / "modelyard.conf").read_text(encoding="utf-8").partition("\n\n")[2]
    copy = (DEPLOY / "docker" / "nginx.conf").read_text(encoding="utf-8").partition("\n\n")[2]
    assert copy == block.replace("127.0.0.1:8000", host)


def test_the_services_of_the_cluster_are_configured():
    compose = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text(encoding="utf-8"))
    image = dict(re.findall(r"(MODELYARD_[A-Z_]+)=(\S+)", dockerfile()))
    tokens = {"MODELYARD_TOKEN": "modelyard_secret", "MODELYARD_TOKENS": f"cluster infer+worker {'0' * 64}"}
    started = {}
    for name, each in compose["services"].items():
        if each["image"] == "modelyard" and each["command"][0] == "serve":
            role, *words = each["command"][1:]
            environ = {**image, **tokens, **each["environment"]}
            options = {"role": role, **({"models": ",".join(words[1::2])} if words else {})}
            report = examine(options, [], environ, kept=False)
            assert report.faults == [], name
            report.settings.refuse_open_door()
            started[name] = role
    assert started == {"controller": "controller", "worker-1": "worker", "worker-2": "worker", "gateway": "gateway"}
    assert set(compose["volumes"]) == {
        volume.partition(":")[0] for each in compose["services"].values() for volume in each["volumes"]
    } - {"./nginx.conf"}


@pytest.mark.parametrize(
    "command",
    [["hadolint", "docker/Dockerfile"], ["docker-compose", "-f", "docker/compose.yaml", "config", "--quiet"]],
    ids=lambda words: words[0],
)
def test_the_tools_of_docker_have_nothing_to_say(command: list[str], tmp_path: Path):
    """Where they are not installed, the tests before this one are all."""
    if shutil.which(command[0]) is None:
        return
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    (tmp_path / "deploy" / "docker" / "cluster.env").write_text("")
    path = tmp_path / "deploy" / "docker" / "compose.yaml"
    path.write_text(path.read_text().replace("name: modelyard\n", ""))  # Compose 1 does not know it
    ran = subprocess.run(command, cwd=tmp_path / "deploy", capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stdout + ran.stderr


def test_the_pages_name_every_file():
    pages = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("operations.md", "deployment.md")]
    page = "".join(pages)
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            assert f"deploy/{path.relative_to(DEPLOY)}" in page, path


def test_no_file_has_a_secret_or_a_path_of_this_machine():
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert "modelyard_" not in re.sub(r"modelyard_[a-z]+[_a-z]*", "", text) or path.suffix == ".json"
            assert sys.prefix not in text
