"""What web processes and their host share: a lock that one has, a line that all hold, a place for both."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelyard import processes
from modelyard.cluster.hosting import folder as host_folder
from modelyard.cluster.hosting.folder import MAX_SOCKET_PATH, HostFolder, HostLock, LifeLine, is_needed, noted
from modelyard.settings.settings import Settings
from running import wait_until


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder for temporary files, here and in what is started; with a path as short as they are."""
    tmp_path_factory.getbasetemp()  # not in there
    monkeypatch.delenv("SERVER_SOFTWARE", raising=False)
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing until it is ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


# The folder


def test_it_is_the_services_folder_in_the_state_folder(tmp_path: Path) -> None:
    found = HostFolder.of(Settings(state_dir=str(tmp_path / "s"), instance="shop"))
    assert found.path == tmp_path / "s" / "shop"
    assert (found.socket, found.lock, found.life) == tuple(
        found.path / name for name in ("host.sock", "host.lock", "host.life")
    )
    assert found.url == f"http+unix://{str(found.socket).replace('/', '%2F')}/api"
    assert list(found.path.iterdir()) == []


def test_where_that_can_not_be_written_it_is_a_private_one_and_the_same_for_all(
    tmp_path: Path, temporary: Path
) -> None:
    (tmp_path / "file").touch()
    settings = Settings(state_dir=str(tmp_path / "file" / "s"), instance="shop")
    found = HostFolder.of(settings)
    assert found == HostFolder.of(settings)
    assert found.path == temporary / f"modelyard-{os.getuid()}" / "shop"
    assert stat.S_IMODE(found.path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("made", ["open", "link", "file"])
def test_a_private_folder_that_somebody_else_may_have_made_is_refused(
    tmp_path: Path, temporary: Path, made: str
) -> None:
    (tmp_path / "file").touch()
    root = temporary / f"modelyard-{os.getuid()}"
    if made == "open":
        root.mkdir()
        root.chmod(0o777)
    elif made == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        root.symlink_to(tmp_path / "elsewhere")
    else:
        root.touch()
    with pytest.raises(OSError, match=root.name):
        HostFolder.of(Settings(state_dir=str(tmp_path / "file" / "s")))


def test_a_socket_stands_elsewhere_where_its_path_would_be_too_long(tmp_path: Path, temporary: Path) -> None:
    found = {HostFolder.of(Settings(state_dir=str(tmp_path / ("x" * 120)), instance=name)).socket for name in "ab"}
    assert len(found) == 2, "each service has its own"
    for path in found:
        assert path.is_relative_to(temporary)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))


def test_the_folders_of_two_containers_at_one_path_have_two_sockets(tmp_path: Path, temporary: Path) -> None:
    settings = Settings(state_dir=str(tmp_path / ("x" * 120)), instance="shop")
    first = HostFolder.of(settings)
    assert HostFolder.of(settings).socket == first.socket, "each process of a service finds it"
    first.path.rename(tmp_path / "of another container")
    assert HostFolder.of(settings).socket != first.socket


def test_the_longest_path_that_is_kept_is_one_that_a_socket_may_have(temporary: Path) -> None:
    room = MAX_SOCKET_PATH - len(os.fsencode(temporary / "s" / "host.sock")) - 1
    found = HostFolder.of(Settings(state_dir=str(temporary / "s"), instance="x" * room))
    assert found.socket == found.path / "host.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(found.socket))


# The lock


def test_the_lock_is_one_holders_until_the_last_copy_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "host.lock"
    first = HostLock.take(path)
    assert first is not None
    assert HostLock.take(path) is None
    copy = HostLock(path, os.dup(first.fd))
    first.close()
    assert HostLock.take(path) is None, "as it was handed over"
    copy.close()
    second = HostLock.take(path)
    assert second is not None
    second.close()


def test_the_lock_is_free_when_its_holder_was_killed(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    path = tmp_path / "host.lock"
    lock = HostLock.take(path)
    assert lock is not None
    holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock.fd])
    try:
        lock.close()
        assert HostLock.take(path) is None
    finally:
        holder.kill()
        holder.communicate()
    free = HostLock.take(path)
    assert free is not None
    free.close()


def test_what_is_noted_is_read_by_others(tmp_path: Path) -> None:
    path = tmp_path / "host.lock"
    assert noted(path) == {}
    lock = HostLock.take(path)
    assert lock is not None
    lock.note(pid=1_234_567, since=1234.5, starts=3)
    assert noted(path) == {"pid": 1_234_567, "since": 1234.5, "starts": 3}
    lock.note(starts=0)
    assert noted(path) == {"starts": 0}, "nothing is left of a longer note"
    lock.close()


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"pid": "x"}', '{"pid": null}', "\x00"])
def test_a_note_that_makes_no_sense_says_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "host.lock"
    path.write_text(text)
    assert noted(path) == {}


def test_a_lock_knows_whether_its_file_was_deleted(tmp_path: Path) -> None:
    path = tmp_path / "host.lock"
    lock = HostLock.take(path)
    assert lock is not None
    assert lock.is_there
    path.unlink()
    assert not lock.is_there
    path.touch()
    assert not lock.is_there, "another file of that name is not it"
    lock.close()


# The life line


def test_the_host_is_needed_as_long_as_one_of_many_holds_the_line(tmp_path: Path) -> None:
    path = tmp_path / "host.life"
    assert not is_needed(path)
    lines = [LifeLine(path) for _ in range(3)]
    for line in lines:
        line.hold()
        line.hold()
    assert is_needed(path)
    for line in lines[:2]:
        line.release()
        line.release()
    assert is_needed(path)
    lines[2].release()
    assert not is_needed(path)


def test_a_line_is_held_anew_where_its_file_was_deleted(tmp_path: Path) -> None:
    path = tmp_path / "host.life"
    line = LifeLine(path)
    line.hold()
    path.unlink()
    assert not is_needed(path)
    line.hold()
    assert is_needed(path)
    line.release()


def test_a_line_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    path = tmp_path / "host.life"
    code = "import sys; from pathlib import Path; from modelyard.cluster.hosting.folder import LifeLine\n"
    code += "LifeLine.__del__ = lambda self: None; line = LifeLine(Path(sys.argv[1])); line.hold(); print(); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert is_needed(path)
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
        assert not is_needed(path)
    finally:
        holder.kill()
        holder.communicate()


def test_the_host_is_needed_while_the_server_is_there_that_starts_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child: subprocess.Popen[bytes]
) -> None:
    path = tmp_path / "host.life"
    monkeypatch.setenv("SERVER_SOFTWARE", "gunicorn/27")
    monkeypatch.setattr(os, "getppid", lambda: child.pid)
    line = LifeLine(path)
    line.hold()
    line.release()
    assert is_needed(path)
    child.kill()
    # It is dead though nobody has waited for it yet.
    wait_until(lambda: not is_needed(path), "its death shows")


def test_a_process_of_the_same_number_is_not_that_server(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    path = tmp_path / "host.life"
    began = processes.began(child.pid)
    assert began is not None
    path.write_text(json.dumps({"pid": child.pid, "began": began}))
    assert is_needed(path)
    path.write_text(json.dumps({"pid": child.pid, "began": began - 1}))
    assert not is_needed(path)


def test_a_process_without_a_descriptor_left_does_not_take_itself_for_unneeded(tmp_path: Path) -> None:
    code = "import resource, sys; from pathlib import Path\n"
    code += "from modelyard.cluster.hosting.folder import LifeLine, is_needed\n"
    code += "path = Path(sys.argv[1]); line = LifeLine(path); line.hold()\n"
    code += "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 64)); print(is_needed(path))"
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path / "host.life")], capture_output=True, text=True)
    assert ran.stdout == "True\n", ran.stderr


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", '{"pid": "x", "began": null}', '{"pid": 0, "began": null}'])
def test_a_line_that_makes_no_sense_needs_no_host(tmp_path: Path, text: str) -> None:
    path = tmp_path / "host.life"
    path.write_text(text)
    assert not is_needed(path)


def test_the_first_of_all_processes_is_not_that_server_unless_it_runs_the_same_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "host.life"
    monkeypatch.setenv("SERVER_SOFTWARE", "gunicorn/27")
    monkeypatch.setattr(os, "getppid", lambda: 1)
    # It may be whoever adopted a process that has lost its server: then the host would live for ever.
    expected = host_folder._is_same_program(1)
    assert host_folder._is_same_program(os.getpid())
    line = LifeLine(path)
    line.hold()
    line.release()
    assert is_needed(path) is expected


def test_other_servers_are_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "host.life"
    line = LifeLine(path)
    line.hold()
    line.release()
    assert path.read_bytes() == b""
    assert not is_needed(path)
