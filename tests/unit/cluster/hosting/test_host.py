"""A web process, before its model host: what it makes of one that is left of an earlier run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from modelyard.cluster.hosting.folder import HostFolder, HostLock, LifeLine, digest
from modelyard.cluster.hosting.host import ModelHost
from modelyard.settings.loading import serialize
from modelyard.settings.settings import Settings

OTHER = "other settings"


@pytest.fixture
def folder(tmp_path: Path) -> HostFolder:
    """The folder of a host that runs with other settings than ours."""
    found = HostFolder(tmp_path, tmp_path / "host.sock")
    lock = HostLock.take(found.lock)
    assert lock is not None
    lock.note(pid=1_234_567, starts=0, since=0.0, settings=1, run=0)
    lock.close()
    found.socket.touch()
    return found


@pytest.fixture
def host(tmp_path: Path) -> Iterator[ModelHost]:
    made = ModelHost(Settings(role="worker", placement="hosted", state_dir=str(tmp_path)))
    yield made
    made.stop()


def test_a_host_with_other_settings_that_nobody_needs_is_ended(
    host: ModelHost, folder: HostFolder, caplog: pytest.LogCaptureFixture
) -> None:
    host._compare(folder)
    assert not folder.socket.exists(), "nobody finds it any more: so it ends"
    # Others of the new processes, a moment later.
    line = LifeLine(folder.life)
    line.hold()
    host._compare(folder)
    line.release()
    assert OTHER not in caplog.text, "it is no news to who has just started"


def test_an_address_of_an_earlier_run_is_forgotten_and_of_two_in_one_run_the_first_counts(
    tmp_path: Path, folder: HostFolder
) -> None:
    folder.note_address("http://127.0.0.1:1/api")
    line = LifeLine(folder.life)
    line.hold()
    settings = Settings(role="worker", placement="hosted", state_dir=str(tmp_path), port=9)
    web = ModelHost(settings)
    web._compare(folder)
    folder.note_address("http://127.0.0.1:9/api")
    assert folder.address == "http://127.0.0.1:1/api", "another web process needs the host"
    line.release()
    web._compare(folder)
    folder.note_address("http://127.0.0.1:9/api")
    assert folder.address == "http://127.0.0.1:9/api"
    web.stop()


def test_a_host_that_is_registered_at_another_address_is_ended(host: ModelHost, folder: HostFolder) -> None:
    lock = HostLock.take(folder.lock)
    assert lock is not None
    same = digest(serialize(host._hosts_settings(folder)))
    lock.note(pid=1_234_567, starts=0, since=0.0, settings=same, run=0)
    lock.close()
    for address, is_ended in (("http://127.0.0.1:8000/api", False), ("http://127.0.0.1:9/api", True)):
        folder.note_address(address)
        host.locate()
        host._compare(folder)
        assert folder.socket.exists() is not is_ended


def test_one_of_another_container_is_not_ended_as_its_server_is_not_seen_here(
    host: ModelHost, folder: HostFolder, caplog: pytest.LogCaptureFixture
) -> None:
    lock = HostLock.take(folder.lock)
    assert lock is not None
    lock.note(pid=1_234_567, starts=0, since=0.0, settings=1, run=0, namespace=1)
    lock.close()
    host._compare(folder)
    assert folder.socket.exists()
    assert OTHER in caplog.text


def test_one_that_others_need_goes_on_and_that_is_told(
    host: ModelHost, folder: HostFolder, caplog: pytest.LogCaptureFixture
) -> None:
    line = LifeLine(folder.life)
    line.hold()
    host._compare(folder)
    line.release()
    assert folder.socket.exists()
    assert OTHER in caplog.text
