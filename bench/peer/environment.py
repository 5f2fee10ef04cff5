"""The environment that another project's package lives in: made once, and kept in the checkout's cache."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import venv
from collections.abc import Sequence
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
        wanted = hashlib.sha256(self.requirements.read_bytes() + repr(self.extra).encode()).hexdigest()
        mark = self.folder / "installed-from.sha256"
        if Path(self.python).exists() and mark.exists() and mark.read_text() == wanted:
            return
        sys.stderr.write(f"installing {self.name} into {self.folder} (once)\n")
        try:
            venv.create(self.folder, clear=True, with_pip=True)
            subprocess.run(
                [self.python, "-m", "pip", "install", "-qq", "--requirement", str(self.requirements), *self.extra],
                check=True,
                timeout=_INSTALL_TIMEOUT,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise PeerMissing(f"{self.name} could not be installed: {error}") from error
        mark.write_text(wanted)

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
