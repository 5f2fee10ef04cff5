"""The files of deploy/: each is checked by its own tool where that is installed, and in any case for what it names."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from modelyard.cli import cli
from modelyard.models.catalog import Catalog
from modelyard.settings.loading import load
from modelyard.settings.params import params_of
from modelyard.settings.settings import ROLES, Settings
from running import ROOT, console_script

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


def test_the_page_names_every_file():
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            assert f"deploy/{path.relative_to(DEPLOY)}" in page, path


def test_no_file_has_a_secret_or_a_path_of_this_machine():
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert "modelyard_" not in re.sub(r"modelyard_[a-z]+[_a-z]*", "", text) or path.suffix == ".json"
            assert sys.prefix not in text
