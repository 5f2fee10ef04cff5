"""What a process leaves to its successor: a lock that dies with it, and a file that is whole or absent."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from modelyard.files import state_folder, write_atomically
from modelyard.server.state import QUARANTINE_AFTER, OwnerLock, StateFile
from running import wait_until

HOLDER = """
import sys, time
from pathlib import Path
from modelyard.server.state import OwnerLock
lock = OwnerLock(Path(sys.argv[1]))
print(lock.acquire(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "models.json"


class Holder:
    """A process that takes the lock, if it can, and keeps it until it is ended."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-c", HOLDER, str(path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.took = self.process.stdout.readline().strip() == "True"

    def end(self) -> None:
        if self.process.returncode is None:
            self.process.communicate(timeout=30)

    def kill(self) -> None:
        self.process.kill()
        self.end()


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Callable[[], Holder]]:
    """Starts processes that take the lock of this test's folder."""
    made: list[Holder] = []

    def start() -> Holder:
        made.append(Holder(tmp_path / "lock"))
        return made[-1]

    yield start
    for holder in made:
        holder.kill()


# The lock


def test_one_process_at_a_time_holds_it(tmp_path, hold):
    holder = hold()
    assert holder.took
    lock = OwnerLock(tmp_path / "lock")
    assert not lock.acquire()
    assert not hold().took
    holder.end()
    assert lock.acquire()
    assert lock.acquire(), "who holds it, has it"
    lock.release()


def test_it_ends_with_the_process_also_when_killed(tmp_path, hold):
    holder = hold()
    lock = OwnerLock(tmp_path / "lock")
    assert not lock.acquire()
    holder.kill()
    assert lock.acquire()
    lock.release()


def test_it_says_who_holds_it(tmp_path, hold):
    holder = hold()
    namespace = Path("/proc/self/ns/pid").stat().st_ino
    expected = {"pid": holder.process.pid, "ppid": os.getpid(), "namespace": namespace}
    assert OwnerLock(tmp_path / "lock").holder() == expected


def test_nobody_holds_what_is_not_there_or_says_nothing(tmp_path):
    assert OwnerLock(tmp_path / "lock").holder() == {}
    for text in ("", "{", "[]", '{"pid": "x"}', '"text"'):
        (tmp_path / "lock").write_text(text)
        assert OwnerLock(tmp_path / "lock").holder() == {}


def test_a_shorter_entry_leaves_nothing_of_a_longer_one(tmp_path):
    (tmp_path / "lock").write_text(json.dumps({"pid": 10**30, "ppid": 10**30, "more": 1}))
    lock = OwnerLock(tmp_path / "lock")
    assert lock.acquire()
    assert set(lock.holder()) == {"pid", "ppid", "namespace"}
    lock.release()


def test_it_can_be_given_back_twice_and_taken_again(tmp_path):
    lock = OwnerLock(tmp_path / "lock")
    lock.release()
    assert lock.acquire()
    lock.release()
    lock.release()
    other = OwnerLock(tmp_path / "lock")
    assert other.acquire()
    assert not lock.acquire()
    other.release()


def test_its_file_is_for_the_owner_alone_and_not_handed_to_children(tmp_path):
    lock = OwnerLock(tmp_path / "lock")
    assert lock.acquire()
    assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o600
    assert lock._fd is not None
    assert not os.get_inheritable(lock._fd)
    lock.release()


def test_a_successor_waits_until_the_holder_has_gone_and_says_nothing(tmp_path, hold):
    holder = hold()
    lock, told, got = OwnerLock(tmp_path / "lock"), [], []
    # Same parent (this process, by way of the child's own view): a hand-over, as at a reload.
    parent = os.getppid()
    (tmp_path / "lock").write_text(json.dumps({"pid": holder.process.pid, "ppid": parent}))
    thread = threading.Thread(target=lambda: got.append(lock.wait(threading.Event(), told.append, 0.01)))
    thread.start()
    holder.end()
    thread.join(30)
    assert (got, told) == ([True], [])
    lock.release()


def test_a_second_service_is_told_once_who_holds_it_and_what_to_do(tmp_path, hold):
    holder = hold()
    lock, told, got = OwnerLock(tmp_path / "lock"), [], []
    thread = threading.Thread(target=lambda: got.append(lock.wait(threading.Event(), told.append, 0.01)))
    thread.start()
    wait_until(lambda: told, "the second was told")
    holder.end()
    thread.join(30)
    assert got == [True]
    assert len(told) == 1
    assert f"pid {holder.process.pid}, started by pid {os.getpid()}" in told[0]
    assert "--port or --state-dir" in told[0]
    lock.release()


def test_a_holder_whose_parent_is_gone_is_about_to_end(tmp_path, hold):
    holder = hold()
    orphan = subprocess.Popen([sys.executable, "-c", ""])
    orphan.wait(30)
    (tmp_path / "lock").write_text(json.dumps({"pid": holder.process.pid, "ppid": orphan.pid}))
    lock, told, got = OwnerLock(tmp_path / "lock"), [], []
    thread = threading.Thread(target=lambda: got.append(lock.wait(threading.Event(), told.append, 0.01)))
    thread.start()
    holder.end()
    thread.join(30)
    assert (got, told) == ([True], [])
    lock.release()


def first_reason(path: Path) -> str:
    """Return what is reported to a process that waits for the lock at ``path``."""
    stop, reasons = threading.Event(), []

    def report(reason: str) -> None:
        reasons.append(reason)
        stop.set()

    thread = threading.Thread(target=OwnerLock(path).wait, args=(stop, report, 0.01), daemon=True)
    thread.start()
    thread.join(10)
    stop.set()
    return reasons[0] if reasons else ""


@pytest.mark.parametrize("parent", ["ours", "dead"])
def test_a_holder_in_another_container_lives_whatever_its_pids_are_here(tmp_path, hold, parent):
    holder = hold()
    orphan = subprocess.Popen([sys.executable, "-c", ""])
    orphan.wait(30)
    ppid = os.getppid() if parent == "ours" else orphan.pid
    (tmp_path / "lock").write_text(json.dumps({"pid": holder.process.pid, "ppid": ppid, "namespace": 1}))
    reason = first_reason(tmp_path / "lock")
    assert "another process holds the models" in reason
    assert f"pid {holder.process.pid}, started by pid {ppid} of another container" in reason
    assert "--state-dir" in reason


def test_a_second_application_of_one_process_is_told_so(tmp_path):
    lock = OwnerLock(tmp_path / "lock")
    assert lock.acquire()
    reason = first_reason(tmp_path / "lock")
    assert f"another application of this process (pid {os.getpid()})" in reason
    assert "instance=NAME" in reason
    lock.release()


def test_who_is_to_stop_waits_no_longer(tmp_path, hold):
    hold()
    lock, stop, got = OwnerLock(tmp_path / "lock"), threading.Event(), []
    thread = threading.Thread(target=lambda: got.append(lock.wait(stop, lambda reason: None, 60)))
    thread.start()
    stop.set()
    thread.join(30)
    assert got == [False]
    assert lock._fd is None


# What ran


def test_what_is_noted_is_there_for_the_next(path):
    state = StateFile(path)
    state.update("a@llm", params={"n_ctx": 1}, running=True)
    state.update("a@llm", running=False)
    state.update("b@llm", running=True)
    assert StateFile(path).models() == {
        "a@llm": {"params": {"n_ctx": 1}, "running": False},
        "b@llm": {"running": True},
    }
    state.forget("b@llm")
    state.forget("c@llm")
    assert list(StateFile(path).models()) == ["a@llm"]
    state.forget_all()
    assert StateFile(path).models() == {}


def test_what_is_given_out_is_a_copy(path):
    state = StateFile(path)
    state.update("a@llm", running=True)
    state.models()["a@llm"]["running"] = False
    state.models().clear()
    assert state.models() == {"a@llm": {"running": True}}


def test_its_file_is_for_the_owner_alone(path):
    StateFile(path).update("a@llm", params={"secret": "x"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_its_folder_is_for_the_owner_alone(tmp_path):
    folder = state_folder(tmp_path / "deep" / "down", "standalone-8000")
    assert folder == tmp_path / "deep" / "down" / "standalone-8000"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert state_folder(tmp_path / "deep" / "down", "standalone-8000") == folder


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"models": []}', b'{"models": {"a@llm": 1}}', b"\xff\xfe", b"null"]
)
def test_a_file_that_can_not_be_read_is_set_aside(path, caplog, content):
    path.write_bytes(content)
    state = StateFile(path)
    assert state.models() == {}
    assert "renamed to .bad" in caplog.text
    assert path.with_suffix(".bad").read_bytes() == content
    state.update("a@llm", running=True)
    assert StateFile(path).models() == {"a@llm": {"running": True}}


def test_entries_that_make_no_sense_are_left_out(path, caplog):
    sound = {"a@llm": {"model": "a", "params": {}}, "b@text2vec": {}}
    senseless = {"a": {}, "a@what": {}, "c@llm": {"model": 5}, "d@llm": {"params": [1]}}
    path.write_text(json.dumps({"models": {**sound, **senseless}}))
    assert StateFile(path).models() == sound
    assert "a@what" in caplog.text


def test_a_folder_that_can_not_be_written_is_said_once_and_nothing_else_happens(tmp_path, caplog):
    state = StateFile(tmp_path / "gone" / "models.json")
    state.update("a@llm", running=True)
    state.update("b@llm", running=True)
    assert sorted(state.models()) == ["a@llm", "b@llm"]
    assert caplog.text.count("can't be written") == 1


def test_many_threads_leave_a_whole_file(path):
    state = StateFile(path)

    def work(number: int) -> None:
        for step in range(20):
            state.update(f"{number}@llm", step=step)
            json.loads(path.read_bytes())

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert StateFile(path).models() == {f"{n}@llm": {"step": 19} for n in range(6)}


# Models that kill their process


def died(path: Path, *keys: str) -> list[str]:
    """Return what the next process finds in quarantine, when this one died while it loaded ``keys``."""
    state = StateFile(path)
    for key in keys:
        state.begin_start(key)
    return StateFile(path).count_deaths()


def test_a_model_that_killed_its_process_twice_is_quarantined_and_no_other(path):
    StateFile(path).update("b@llm", running=True)
    assert QUARANTINE_AFTER == 2
    assert died(path, "a@llm") == []
    assert died(path, "a@llm") == ["a@llm"]
    assert died(path) == ["a@llm"]
    assert StateFile(path).models()["b@llm"] == {"running": True}


def test_a_load_that_ends_counts_as_survived_however_it_went(path):
    died(path, "a@llm")
    state = StateFile(path)
    state.begin_start("a@llm")
    state.end_start("a@llm")
    assert died(path) == []
    assert died(path, "a@llm") == []
    assert died(path, "a@llm") == ["a@llm"]


def test_a_process_that_loads_nothing_has_survived_no_load(path):
    died(path, "a@llm")
    state = StateFile(path)
    state.count_deaths()
    state.end_start("a@llm")  # it stays unloaded until a request wants it
    assert died(path, "a@llm") == ["a@llm"]


def test_a_death_is_counted_once(path):
    died(path, "a@llm")
    for _ in range(3):
        assert StateFile(path).count_deaths() == []
    assert StateFile(path).models()["a@llm"]["deaths"] == 1


def test_a_process_that_was_told_to_end_was_not_killed_by_what_it_loaded(path):
    died(path, "a@llm")
    state = StateFile(path)
    state.count_deaths()
    state.begin_start("a@llm")
    state.end_all_starts()
    assert died(path) == []
    assert StateFile(path).models()["a@llm"]["deaths"] == 1, "neither a death nor a load that was survived"


def test_a_death_between_loads_blames_nobody(path):
    state = StateFile(path)
    state.begin_start("a@llm")
    state.end_start("a@llm")
    assert StateFile(path).count_deaths() == []
    assert StateFile(path).models()["a@llm"]["deaths"] == 0


# Writing


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(path, monkeypatch):
    write_atomically(path, b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]
