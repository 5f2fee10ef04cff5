"""The environment that another project's package lives in: made once, and kept in the checkout's cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..places import CACHE

_REQUIREMENTS = Path(__file__).resolve().with_name("requirements.txt")
_INSTALL_TIMEOUT = 900


class PeerMissing(Exception):
    """The peer's environment could not be made; what compares with it is left out."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment of that name, with what a file of requirements says (DB-GPT's by default), and more."""

    name: str
    requirements: Path = _REQUIREMENTS
    extra: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return CACHE / self.name

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(self.folder / "bin" / "python")

    def install(self) -> None:
        """Make it unless that was done from these requirements before. Raises PeerMissing."""
        wanted = _digest(self.requirements, self.extra)
        if not Path(self.python).exists() or not _is_made(self.folder, wanted):
            with _making(self.folder, wanted):
                venv.create(self.folder, clear=True, with_pip=True)
                command = [self.python, "-m", "pip", "install", "-qq", "--requirement", str(self.requirements)]
                _run([*command, *self.extra], self.folder)

    def versions(self, packages: Sequence[str]) -> dict[str, str]:
        """Return the versions of those of ``packages`` that are there."""
        code = (
            "import importlib.metadata as m, json\n"
            f"have = {{d.metadata['name'] for d in m.distributions()}} & set({tuple(packages)!r})\n"
            "print(json.dumps({name: m.version(name) for name in sorted(have)}))"
        )
        done = subprocess.run([self.python, "-c", code], check=True, capture_output=True, text=True, timeout=60)
        found: dict[str, str] = json.loads(done.stdout)
        return found


@dataclass(frozen=True)
class NodeEnvironment:
    """A folder of that name with the packages of npm that a ``package.json`` names."""

    name: str
    requirements: Path

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return CACHE / self.name

    @property
    def modules(self) -> Path:
        """The folder of its packages."""
        return self.folder / "node_modules"

    def install(self) -> None:
        """Make it unless that was done from this file before. Raises PeerMissing."""
        wanted = _digest(self.requirements)
        if not _is_made(self.folder, wanted):
            with _making(self.folder, wanted):
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir(parents=True)
                shutil.copy(self.requirements, self.folder / "package.json")
                _run(["npm", "install", "--silent", "--no-audit", "--no-fund"], self.folder)

    def versions(self, packages: Sequence[str]) -> dict[str, str]:
        """Return the versions of ``packages``."""
        files = {name: self.modules / name / "package.json" for name in packages}
        return {name: json.loads(file.read_text())["version"] for name, file in files.items()}


def _digest(requirements: Path, extra: Sequence[str] = ()) -> str:
    return hashlib.sha256(requirements.read_bytes() + repr(tuple(extra)).encode()).hexdigest()


def _mark(folder: Path) -> Path:
    return folder / "installed-from.sha256"


def _is_made(folder: Path, wanted: str) -> bool:
    return _mark(folder).exists() and _mark(folder).read_text() == wanted


@contextlib.contextmanager
def _making(folder: Path, wanted: str) -> Iterator[None]:
    """Note in the end of the body that ``folder`` is made. Raises PeerMissing for what fails in it."""
    sys.stderr.write(f"installing {folder.name} into {folder} (once)\n")
    try:
        yield
    except (OSError, subprocess.SubprocessError) as error:
        raise PeerMissing(f"{folder.name} could not be installed: {error}") from error
    _mark(folder).write_text(wanted)


def _run(command: Sequence[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, timeout=_INSTALL_TIMEOUT, stdin=subprocess.DEVNULL)
