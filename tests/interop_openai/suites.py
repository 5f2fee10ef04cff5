"""Suites that other projects wrote: fetched, run in an environment of their own against a URL of ours, and counted."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.peer.environment import Environment
from bench.places import CACHE

HERE = Path(__file__).parent
INSIDE = HERE / "inside"
"""The folder of what runs in the environments of the suites."""
PACKAGES = HERE / "requirements" / "package.json"
EXCLUSIONS = HERE / "exclusions.toml"
SOURCES = CACHE / "interop-openai"
RUN_LIMIT = 900
FETCH_LIMIT = 300
SHOWN = 12_000
"""Characters of a failed suite's output that the report shows."""

lines: list[str] = []
"""One line for each suite that ran."""


def environment(name: str) -> Environment:
    """Return the environment that has the requirements of this name, made if it is not there."""
    made = Environment(f"interop-openai/{name}", HERE / "requirements" / f"{name}.txt")
    made.install()
    return made


def source(place: Environment, package: str, version: str, within: str = "") -> Path:
    """Return the folder of a package's source distribution, or the one ``within`` it, fetched if it is not there."""
    folder = SOURCES / "sources"
    top = folder / f"{package.replace('-', '_')}-{version}"
    if not top.exists():
        command = [place.python, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", package]
        subprocess.run([*command, "--dest", folder, f"{package}=={version}"], check=True, timeout=FETCH_LIMIT)
        with tarfile.open(folder / f"{top.name}.tar.gz") as archive:
            members = [member for member in archive if member.name.startswith(f"{top.name}/{within}")]
            archive.extractall(folder, members, filter="data")
    return top / within


@dataclass(frozen=True)
class Result:
    """The count of one suite's tests, and what it printed."""

    suite: str
    passed: int
    failed: int
    excluded: int
    skipped: int
    output: str

    @classmethod
    def read(cls, suite: str, report: Path, output: str) -> Result:
        """Return the counts of a report in JUnit's format."""
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
        failed = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
        skips = [skip.get("message", "") for case in cases if (skip := case.find("skipped")) is not None]
        excluded = sum(message.startswith("excluded: ") for message in skips)
        return cls(suite, len(cases) - failed - len(skips), failed, excluded, len(skips) - excluded, output)

    def check(self, status: int) -> None:
        """Note the line of the suite; raise AssertionError if a test failed, or none passed."""
        skipped = f", {self.skipped} skipped by itself" if self.skipped else ""
        line = f"{self.suite}: {self.passed} passed, {self.failed} failed, {self.excluded} excluded{skipped}"
        lines.append(line)
        assert status == 0 and self.failed == 0 and self.passed > 0, f"{line}\n{self.output[-SHOWN:]}"


def run_pytest(
    suite: str,
    place: Environment,
    root: Path,
    tests: Sequence[str],
    variables: Mapping[str, str],
    *options: str,
) -> None:
    """Run ``tests`` below ``root`` in an environment, without those that `EXCLUSIONS` lists for the suite."""
    report = SOURCES / f"{suite.replace(' ', '-')}.xml"
    report.unlink(missing_ok=True)
    command = [place.python, "-m", "pytest", "-q", "--tb=short", "-p", "excluding", "-p", "no:cacheprovider"]
    command += [
        "-o",
        "addopts=",
        f"--rootdir={root}",
        f"--confcutdir={root}",
        f"--junit-xml={report}",
        *options,
        *tests,
    ]
    surroundings = {"PYTHONPATH": str(INSIDE), "INTEROP_EXCLUSIONS": str(EXCLUSIONS), "INTEROP_SUITE": suite}
    _run(suite, command, root, report, {**surroundings, **variables})


def run_node(suite: str, script: Path, variables: Mapping[str, str]) -> None:
    """Run a script of node's test runner beside the packages of `PACKAGES`, installed if they are not there."""
    folder = SOURCES / "node"
    wanted = PACKAGES.read_text()
    if not (folder / "node_modules").exists() or (folder / "package.json").read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text(wanted)
        subprocess.run(["npm", "install", "--no-audit", "--no-fund"], cwd=folder, check=True, timeout=FETCH_LIMIT)
    # Node looks for packages in the folders above a script.
    copied = shutil.copy(script, folder)
    report = SOURCES / f"{suite.replace(' ', '-')}.xml"
    report.unlink(missing_ok=True)
    reporter = ["--test-reporter=junit", f"--test-reporter-destination={report}"]
    _run(suite, ["node", "--test", *reporter, copied], folder, report, variables)


def _run(suite: str, command: Sequence[str], folder: Path, report: Path, variables: Mapping[str, str]) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "MODELYARD_"))}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**inherited, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_LIMIT,
    )
    Result.read(suite, report, done.stdout).check(done.returncode)
