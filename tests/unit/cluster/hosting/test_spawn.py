"""Programs that this process starts: their files, their environment, their ends."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from modelyard.cluster.hosting.spawn import Spawned

SHELL = "/bin/sh"


@pytest.fixture
def output() -> Iterator[tuple[int, int]]:
    """The ends of a pipe: to read, and to write."""
    ends = os.pipe()
    yield ends
    os.close(ends[0])


def spawn(script: str, files: Mapping[int, int], environ: Mapping[str, str] | None = None) -> Spawned:
    return Spawned([SHELL, "-c", script], {"PATH": "/usr/bin:/bin", **(environ or {})}, files)


def said(process: Spawned, output: tuple[int, int]) -> str:
    """Return all that a process writes, which ends in order."""
    os.close(output[1])
    with os.fdopen(os.dup(output[0])) as lines:
        text = lines.read()
    assert process.wait() == 0
    return text


def test_it_has_the_files_that_it_was_given_and_no_other(output: tuple[int, int], tmp_path: Path) -> None:
    file = os.open(tmp_path / "left", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(file, True)
    try:
        process = spawn(f"echo a >&1; ls /proc/$$/fd; [ -e /proc/$$/fd/{file} ] || echo closed", {1: output[1]})
        assert said(process, output).splitlines() == ["a", "0", "1", "2", "closed"]
    finally:
        os.close(file)


def test_files_whose_numbers_are_those_of_others_do_not_replace_each_other(tmp_path: Path) -> None:
    files = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in "ab"]
    first, second = files
    process = spawn(f"cd /proc/self/fd; echo a >{second}; echo b >{first}", {first: second, second: first})
    assert process.wait() == 0
    # Each had the number of the other.
    assert [(tmp_path / name).read_text() for name in "ab"] == ["a\n", "b\n"]
    for file in files:
        os.close(file)


def test_its_environment_is_the_given_one_and_it_leads_a_session(output: tuple[int, int]) -> None:
    process = spawn('echo "$A $HOME"; cut -d" " -f6 /proc/$$/stat', {1: output[1]}, {"A": "b"})
    assert said(process, output).splitlines() == ["b ", str(process.pid)]


def test_signals_that_a_thread_blocks_are_not_blocked_in_it(output: tuple[int, int]) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        process = spawn("exec grep SigBlk /proc/self/status", {1: output[1]})
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert int(said(process, output).split()[1], 16) == 0


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -9 $$", -9)])
def test_its_end_is_known_and_no_zombie_is_left(script: str, status: int) -> None:
    process = spawn(script, {})
    assert process.wait() == status
    assert process.poll() == status
    process.kill()  # not of another process that has its number by now
    assert not Path(f"/proc/{process.pid}").exists()


def test_a_running_one_has_no_status_until_it_is_killed() -> None:
    process = spawn("exec sleep 60", {})
    assert process.poll() is None
    process.kill()
    assert process.wait() == -signal.SIGKILL


def test_what_can_not_be_started_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        Spawned([str(Path(sys.prefix, "no-such-program"))], {}, {})
