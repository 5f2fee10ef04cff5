"""Suites that other projects wrote: fetched, run in an environment of their own, and counted."""

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

PLUGINS = Path(__file__).parent / "suite_plugins"
"""The folder of the plugins of pytest that every suite has."""
RUN_LIMIT = 900
FETCH_LIMIT = 300
SHOWN = 12_000
"""Characters of a failed suite's output that the report shows."""


@dataclass(frozen=True)
class Result:
    """The count of one suite's tests."""

    suite: str
    passed: int
    failed: int
    excluded: int
    skipped: int

    @classmethod
    def read(cls, suite: str, report: Path) -> Result:
        """Return the counts of a report in JUnit's format."""
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
        failed = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
        skips = [skip.get("message", "") for case in cases if (skip := case.find("skipped")) is not None]
        excluded = sum(message.startswith("excluded: ") for message in skips)
        return cls(suite, len(cases) - failed - len(skips), failed, excluded, len(skips) - excluded)

    @property
    def line(self) -> str:
        """The counts as a line."""
        skipped = f", {self.skipped} skipped by itself" if self.skipped else ""
        return f"{self.suite}: {self.passed} passed, {self.failed} failed, {self.excluded} excluded{skipped}"


class Suites:
    """The suites that one folder of checks runs, and the line of each.

    The folder has ``requirements``, one file an environment; ``inside``, what runs in the environments; and
    ``exclusions.toml``.
    """

    def __init__(self, folder: Path) -> None:
        """Keep what is fetched in a folder of the same name in the checkout's cache."""
        self.inside = folder / "inside"
        self.lines: list[str] = []
        self._requirements = folder / "requirements"
        self._exclusions = folder / "exclusions.toml"
        self._name = folder.name.replace("_", "-")
        self._cache = CACHE / self._name
        self.state_dir = self._cache / "state"
        """Where applications within a suite may keep the state of models."""

    def environment(self, name: str, *more: str) -> Environment:
        """Return the environment with the requirements of this name and ``more`` arguments of pip, made if need be."""
        made = Environment(f"{self._name}/{name}", self._requirements / f"{name}.txt", more)
        made.install()
        return made

    def source(self, place: Environment, package: str, version: str, within: str = "") -> Path:
        """Return the folder of a package's source distribution, or the one ``within`` it, fetched if need be."""
        folder = self._cache / "sources"
        top = folder / f"{package.replace('-', '_')}-{version}"
        if not top.exists():
            command = [place.python, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", package]
            subprocess.run([*command, "--dest", folder, f"{package}=={version}"], check=True, timeout=FETCH_LIMIT)
            # Names of archives differ in case and dashes.
            archives = [path for path in folder.glob("*.tar.gz") if _normal(path.name) == f"{_normal(top.name)}.tar.gz"]
            with tarfile.open(archives[0]) as archive:
                root = archive.getnames()[0].partition("/")[0]
                members = [member for member in archive if member.name.startswith(f"{root}/{within}")]
                archive.extractall(folder, members, filter="data")
            if root != top.name:
                (folder / root).rename(top)
        return top / within

    def run_pytest(
        self,
        suite: str,
        place: Environment,
        root: Path,
        tests: Sequence[str],
        variables: Mapping[str, str],
        *options: str,
    ) -> None:
        """Run ``tests`` below ``root`` in an environment, without those that the exclusions list for the suite."""
        report = self._report(suite)
        command = [place.python, "-m", "pytest", "-q", "--tb=short", "-p", "excluding", "-p", "no:cacheprovider"]
        command += ["-o", "addopts=", f"--rootdir={root}", f"--confcutdir={root}", f"--junit-xml={report}"]
        paths = [str(PLUGINS), str(self.inside), *filter(None, [variables.get("PYTHONPATH")])]
        given = {**variables, "PYTHONPATH": os.pathsep.join(paths)}
        given |= {"INTEROP_EXCLUSIONS": str(self._exclusions), "INTEROP_SUITE": suite}
        self._run(suite, [*command, *options, *tests], root, report, given)

    def run_node(self, suite: str, script: Path, variables: Mapping[str, str]) -> None:
        """Run a script of node's test runner beside the packages of ``package.json``, installed if need be."""
        folder = self._cache / "sources" / "node"
        wanted = (self._requirements / "package.json").read_text()
        if not (folder / "node_modules").exists() or (folder / "package.json").read_text() != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            (folder / "package.json").write_text(wanted)
            subprocess.run(["npm", "install", "--no-audit", "--no-fund"], cwd=folder, check=True, timeout=FETCH_LIMIT)
        # Node looks for packages in the folders above a script.
        copied = shutil.copy(script, folder)
        report = self._report(suite)
        reporter = ["--test-reporter=junit", f"--test-reporter-destination={report}"]
        self._run(suite, ["node", "--test", *reporter, copied], folder, report, variables)

    def _report(self, suite: str) -> Path:
        report = self._cache / f"{suite.replace(' ', '-')}.xml"
        report.unlink(missing_ok=True)
        return report

    def _run(
        self, suite: str, command: Sequence[str], folder: Path, report: Path, variables: Mapping[str, str]
    ) -> None:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "MODELYARD_"))
        }
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
        result = Result.read(suite, report)
        self.lines.append(result.line)
        assert done.returncode == 0 and result.failed == 0 and result.passed > 0, (
            f"{result.line}\n{done.stdout[-SHOWN:]}"
        )


def _normal(name: str) -> str:
    return name.lower().replace("-", "_")
