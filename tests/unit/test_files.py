"""The private folders of sockets: each lives as long as its process, in whichever container that is."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from modelyard import files
from modelyard.files import SocketFolder

UNSEEN = 2**22 + 1
"""A pid that no process can have, as that of a process in another pid namespace has no folder in /proc here."""


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_of_a_process_that_is_not_seen_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: UNSEEN)
        first = SocketFolder("llama")
    second = SocketFolder("llama")
    assert first.path.is_dir()
    first.remove()
    first.remove()
    assert not first.path.exists()
    assert second.path.is_dir()
    assert stat.S_IMODE(second.path.stat().st_mode) == 0o700
    second.remove()


def test_a_folder_of_a_process_that_was_killed_is_removed_by_the_next(temporary: Path) -> None:
    code = "import os, tempfile\nfrom modelyard.files import SocketFolder\n"
    code += (
        "folder = SocketFolder('llama'); folder.socket.touch(); print(folder.path, flush=True); os.kill(os.getpid(), 9)"
    )
    environ = {**os.environ, "TMPDIR": str(temporary)}
    ran = subprocess.run([sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, text=True, check=False)
    left = Path(ran.stdout.strip())
    assert left.is_dir()
    SocketFolder("llama").remove()
    assert not left.exists()


def test_a_folder_that_is_removed_before_it_is_locked_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[Path] = []
    really_lock = files.try_lock

    def try_lock(path: Path, flags: int) -> int | None:
        tries.append(path)
        if len(tries) == 1:
            path.rmdir()
        return None if len(tries) == 2 else really_lock(path, flags)

    monkeypatch.setattr(files, "try_lock", try_lock)
    monkeypatch.setattr(files, "_sweep", lambda root, prefix: None)
    folder = SocketFolder("llama")
    assert len(tries) == 3
    assert folder.path == tries[2]
    assert folder.path.is_dir()
    folder.remove()


def test_a_link_and_a_file_of_that_name_are_left_alone(temporary: Path) -> None:
    (temporary / "kept").mkdir()
    (temporary / "modelyard-llama_link").symlink_to(temporary / "kept")
    (temporary / "modelyard-llama_file").touch()
    SocketFolder("llama").remove()
    assert {path.name for path in temporary.iterdir()} == {"kept", "modelyard-llama_link", "modelyard-llama_file"}
