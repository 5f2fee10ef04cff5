"""The peer's side: DB-GPT's worker, in an environment of its own that is made once and kept in the checkout's cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..models import EchoModel
from ..places import CACHE, run_folder
from ..processes import Server, free_port

NAME = "DB-GPT"
TUNING = ("uvloop", "httptools")
"""What makes uvicorn faster; DB-GPT's own requirements don't bring it."""

_HERE = Path(__file__).resolve().parent
_REQUIREMENTS = _HERE / "requirements.txt"
_PACKAGES = ("dbgpt", "fastapi", "starlette", "pydantic", "uvicorn", *TUNING)
_INSTALL_TIMEOUT = 900


class PeerMissing(Exception):
    """The peer's environment could not be made; its figures are left out."""


@dataclass(frozen=True)
class Peer:
    """The peer as DB-GPT installs it, or ``tuned``."""

    tuned: bool = False

    @property
    def _folder(self) -> Path:
        return CACHE / ("bench-peer-tuned" if self.tuned else "bench-peer")

    @property
    def _python(self) -> str:
        return str(self._folder / "bin" / "python")

    def install(self) -> None:
        """Make the environment unless that was done from these requirements before. Raises PeerMissing."""
        extra = TUNING if self.tuned else ()
        wanted = hashlib.sha256(_REQUIREMENTS.read_bytes() + repr(extra).encode()).hexdigest()
        mark = self._folder / "installed-from.sha256"
        if Path(self._python).exists() and mark.exists() and mark.read_text() == wanted:
            return
        sys.stderr.write(f"installing the peer into {self._folder} (once)\n")
        try:
            venv.create(self._folder, clear=True, with_pip=True)
            subprocess.run(
                [self._python, "-m", "pip", "install", "-qq", "--requirement", str(_REQUIREMENTS), *extra],
                check=True,
                timeout=_INSTALL_TIMEOUT,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise PeerMissing(f"the peer could not be installed: {error}") from error
        mark.write_text(wanted)

    def versions(self) -> dict[str, str]:
        """Return the versions of the peer's parts."""
        code = (
            "import importlib.metadata as m, json\n"
            f"have = {{d.metadata['name'] for d in m.distributions()}} & set({_PACKAGES!r})\n"
            "print(json.dumps({name: m.version(name) for name in sorted(have)}))"
        )
        done = subprocess.run([self._python, "-c", code], check=True, capture_output=True, text=True, timeout=60)
        found: dict[str, str] = json.loads(done.stdout)
        return found

    @contextlib.contextmanager
    def serving(self, models: Sequence[EchoModel]) -> Iterator[Server]:
        """Run the peer with ``models`` until left; ready when entered."""
        port = free_port()
        told = json.dumps([asdict(model) for model in models])
        command = [self._python, str(_HERE / "server.py"), str(port), told]
        with Server(NAME, command, port, {}, run_folder("peer") / f"log-{port}.txt") as server:
            server.wait_ready("/openapi.json")
            yield server
