"""A registry in a file: shared by processes, made by whoever comes first, never in the way of a hub."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from modelyard.cluster.registry import client, schema, sqlite_file, sqlite_store
from modelyard.cluster.registry.base import Instance
from modelyard.cluster.registry.sqlite import SqliteRegistry
from modelyard.cluster.registry.sqlite_file import fault_of
from modelyard.errors import ConfigError, RegistryUnavailable
from registry_process import TURNS, others
from running import wait_until

MINE = Instance("chat@llm", "http://10.0.0.1:9001/api")
WITH_A_NOTE = (*schema.SQLITE, ("ALTER TABLE {prefix}_instances ADD COLUMN note TEXT DEFAULT 'none'",))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"


@pytest.fixture
def registry(path):
    made = SqliteRegistry(path)
    yield made
    made.close()


@pytest.fixture
def beside(path):
    """A connection beside the registry's own."""
    connection = sqlite3.connect(path, isolation_level=None)
    yield connection
    connection.close()


def descriptors(path: Path) -> int:
    links = Path("/proc/self/fd")
    return sum(1 for link in os.listdir(links) if os.path.realpath(links / link) == str(path.resolve()))


def test_nothing_is_opened_until_it_is_used_and_the_file_is_its_owners(path, registry):
    assert not path.exists()
    registry.beat([MINE])
    assert {one.stat().st_mode & 0o777 for one in path.parent.iterdir()} == {0o600}
    assert path.exists()


def test_a_file_that_is_there_keeps_its_mode(path, registry):
    path.touch()
    path.chmod(0o660)
    registry.beat([MINE])
    assert path.stat().st_mode & 0o777 == 0o660


def test_several_processes_that_start_at_once_lose_nothing(path, registry):
    names = ["a", "b", "c", "d"]
    with others(f"sqlite:///{path}", "beat", names) as issued:
        generations = [generation for one in issued for generation in one]
    assert len(set(generations)) == len(names) * TURNS
    assert [one.generation for one in registry.instances("shared@llm")] == [max(generations)]
    assert len(registry.instances(healthy_only=True)) == 5 * len(names) + 1


def read_beside(path: Path) -> list[str]:
    """Return the keys that another process reads, which ends then."""
    script = "import sqlite3, sys; print(*(row[0] for row in sqlite3.connect(sys.argv[1]).execute(sys.argv[2])))"
    query = "SELECT worker_key FROM modelyard_instances ORDER BY worker_key"
    command = [sys.executable, "-c", script, str(path), query]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()


def test_what_is_written_after_another_process_has_left_is_not_lost(path, registry):
    # Who is the last to leave takes the log of writes away: so nobody may seem to have left who has not.
    registry.beat([MINE])
    registry.instances()
    assert read_beside(path) == [MINE.key]
    registry.beat([Instance("b@llm", MINE.url)])
    assert read_beside(path) == ["b@llm", MINE.key]


def test_a_forked_child_and_its_parent_both_go_on(path, registry):
    with others(f"sqlite:///{path}", "fork", ["p"]) as (count,):
        assert count == 5 + 3 * 5
    assert len(registry.instances()) == count


def test_children_that_are_forked_amid_writes_inherit_no_lock(path, registry):
    with others(f"sqlite:///{path}", "fork_amid_writes", ["p"]) as (statuses,):
        assert statuses == [0] * 20
    assert len(registry.instances(healthy_only=True)) == 1 + 20 * 5


def test_those_that_open_a_new_file_at_once_do_not_collide(tmp_path):
    start = threading.Barrier(6)

    def open_and_beat(number: int) -> None:
        for turn in range(15):
            registry = SqliteRegistry(tmp_path / f"{turn}.db")
            start.wait(30)
            registry.beat([Instance(f"m{number}@llm", MINE.url)])
            registry.close()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(open_and_beat, range(6)))
    for turn in range(15):
        registry = SqliteRegistry(tmp_path / f"{turn}.db")
        assert len(registry.instances()) == 6
        registry.close()


def test_what_was_read_in_a_write_can_not_change_until_it_ends(path, registry):
    # A transaction that starts as a reader is refused as soon as another process has written.
    registries = [SqliteRegistry(path) for _ in range(4)]

    def live(number: int) -> list[int]:
        return [registries[number].beat([MINE]).receipts[0].generation for _ in range(100)]

    with ThreadPoolExecutor(4) as pool:
        issued = [generation for many in pool.map(live, range(4)) for generation in many]
    assert len(set(issued)) == 400
    for one in registries:
        one.close()


def test_many_threads_lose_nothing_and_leave_nothing_open(path, registry):
    start = threading.Barrier(16)

    def live(number: int) -> None:
        start.wait(30)
        for _ in range(10):
            registry.beat([Instance(f"m{number}@llm", MINE.url)])
            registry.instances()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(live, range(16)))
    assert len(registry.instances()) == 16
    assert descriptors(path) == 0
    assert list(path.parent.iterdir()) == [path]


def test_readers_do_not_wait_for_a_writer(path, registry, beside):
    registry.beat([MINE])
    beside.execute("BEGIN IMMEDIATE")
    assert len(registry.instances()) == 1
    beside.execute("ROLLBACK")


def test_a_write_waits_for_another_process_and_not_for_ever(path, beside):
    registry = SqliteRegistry(path, busy_timeout=0.2)
    registry.beat([MINE])
    beside.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with pytest.raises(RegistryUnavailable, match=r"registry\.db"):
        registry.beat([MINE])
    assert time.monotonic() - began < 10
    beside.execute("ROLLBACK")
    assert registry.beat([MINE]).receipts[0].generation
    registry.close()


def test_a_write_waits_for_those_of_other_threads_and_not_for_ever(path, registry, beside):
    registry.beat([MINE])
    hasty = SqliteRegistry(path, busy_timeout=0.1)
    beside.execute("BEGIN IMMEDIATE")
    waiting = threading.Thread(target=registry.beat, args=([MINE],))
    waiting.start()

    def is_refused() -> bool:
        with pytest.raises(RegistryUnavailable, match=r"registry\.db") as refused:
            hasty.beat([MINE])
        return "other threads" in str(refused.value)

    wait_until(is_refused, "the other thread's write comes first")
    assert len(hasty.instances()) == 1
    beside.execute("ROLLBACK")
    waiting.join(30)
    assert hasty.beat([MINE]).receipts[0].generation


def test_a_removed_file_is_made_again_and_complete_after_the_next_beat(path, registry):
    mine = [MINE, Instance("b@llm", MINE.url)]
    for one, receipt in zip(mine, registry.beat(mine).receipts, strict=True):
        one.generation = receipt.generation
    # Its companions are left: they belong to a database that is no more.
    path.unlink()
    assert registry.instances() == []
    assert [one.superseded for one in registry.beat(mine).receipts] == [False, False]
    beside = SqliteRegistry(path)
    assert [one.generation for one in beside.instances()] == sorted(
        (one.generation for one in mine), key=lambda generation: generation != mine[1].generation
    )
    beside.close()


def test_dropped_tables_are_made_again(path, registry, beside):
    registry.beat([MINE])
    for table in ("instances", "schema"):
        beside.execute(f"DROP TABLE modelyard_{table}")
    assert registry.instances() == []
    registry.beat([MINE])
    assert len(registry.instances()) == 1


@pytest.mark.parametrize("fault", ["no folder", "no database", "a folder"])
def test_a_file_that_can_not_be_used_is_named(tmp_path, fault):
    path = tmp_path / "registry.db"
    if fault == "no folder":
        path = tmp_path / "absent" / "registry.db"
    elif fault == "no database":
        # By this name it may be anything, so it is left as it is.
        path = tmp_path / "registry.db.txt"
        path.write_bytes(b"This is no database. " * 500)
    else:
        path.mkdir()
    registry = SqliteRegistry(path)
    for call in (registry.instances, lambda: registry.beat([MINE])):
        with pytest.raises(RegistryUnavailable, match=r"registry\.db") as refused:
            call()
        assert (f"there is no folder {path.parent}: make it" in str(refused.value)) == (fault == "no folder")
    assert descriptors(path) == 0
    assert [one.name for one in tmp_path.iterdir()] == ([] if fault == "no folder" else [path.name])
    registry.close()


def garbage(path: Path) -> None:
    path.write_bytes(b"This is no database. " * 500)
    path.with_name("registry.db-wal").write_bytes(b"nor is this")


def damage(path: Path) -> None:
    SqliteRegistry(path).beat([MINE])
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"\xff" * (len(whole) - 100))


@pytest.mark.parametrize("harm", [garbage, damage])
def test_a_broken_file_is_set_aside_and_a_new_one_is_in_its_place(path, caplog, harm):
    harm(path)
    broken = path.read_bytes()
    assert fault_of(path)
    registry = SqliteRegistry(path)
    assert registry.beat([MINE]).receipts[0].generation
    assert [one.key for one in registry.instances()] == ["chat@llm"]
    assert (path.with_name("registry.db.bad").read_bytes(), fault_of(path)) == (broken, "")
    assert caplog.text.count("set aside") == 1


def test_a_file_that_another_process_has_set_aside_meanwhile_is_left(path, registry):
    registry.beat([MINE])
    with pytest.raises(sqlite3.DatabaseError) as fault, contextlib.closing(sqlite3.connect(__file__)) as connection:
        connection.execute("SELECT * FROM sqlite_master")
    assert sqlite_file.set_aside(path, path.stat().st_ino + 1, fault.value)
    assert len(registry.instances()) == 1


def test_all_waits_of_a_call_together_are_bounded(path, beside, monkeypatch):
    """What a call has waited for other threads is not left to wait for other processes."""
    waited = 0.0

    class Turn:
        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            nonlocal waited
            waited += timeout
            return True

        def release(self) -> None:
            pass

    registry = SqliteRegistry(path, busy_timeout=15)
    registry.beat([MINE])
    monkeypatch.setattr(sqlite_store, "_WRITING", Turn())
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + waited, time=time.time, time_ns=time.time_ns)
    monkeypatch.setattr(sqlite_store, "time", clock)
    beside.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with pytest.raises(RegistryUnavailable, match="locked"):
        registry.beat([MINE])
    assert time.monotonic() - began < 10
    beside.execute("ROLLBACK")
    assert sqlite_store.BUSY_TIMEOUT < client.TIMEOUT, "a client hears why"


def test_an_older_file_is_brought_to_the_newer_version_with_its_rows(path, beside):
    older, newer = SqliteRegistry(path), SqliteRegistry(path, migrations=WITH_A_NOTE)
    generation = older.beat([MINE]).receipts[0].generation
    assert [one.generation for one in newer.instances()] == [generation]
    assert beside.execute("SELECT note FROM modelyard_instances").fetchall() == [("none",)]
    assert beside.execute("SELECT version FROM modelyard_schema").fetchall() == [(2,)]
    # One that is running still can go on: what it does not know of has a default.
    assert not older.beat([Instance("b@llm", MINE.url)]).receipts[0].superseded
    assert len(newer.instances()) == 2
    older.close()
    newer.close()


def test_a_file_of_a_newer_version_is_refused_with_both_numbers(path):
    newer, older = SqliteRegistry(path, migrations=WITH_A_NOTE), SqliteRegistry(path)
    newer.beat([MINE])
    for call in (older.instances, lambda: older.beat([MINE]), lambda: older.deregister([MINE])):
        with pytest.raises(ConfigError, match=r"registry\.db.*version 2.*up to 1"):
            call()
    assert len(newer.instances()) == 1
    older.close()
    newer.close()


def test_a_migration_that_fails_changes_nothing(path, beside):
    broken = SqliteRegistry(path, migrations=(*schema.SQLITE, ("ALTER TABLE {prefix}_instances ADD note", "NONSENSE")))
    whole = SqliteRegistry(path)
    whole.beat([MINE])
    with pytest.raises(RegistryUnavailable, match="NONSENSE"):
        broken.instances()
    assert beside.execute("SELECT version FROM modelyard_schema").fetchall() == [(1,)]
    assert (
        "note" not in beside.execute("SELECT sql FROM sqlite_master WHERE name = 'modelyard_instances'").fetchone()[0]
    )
    assert len(whole.instances()) == 1
    broken.close()
    whole.close()


GREEN = """
from gevent import monkey; monkey.patch_all()
import sys, threading, time
from pathlib import Path
from modelyard.cluster.registry.base import Instance
from modelyard.cluster.registry.sqlite import SqliteRegistry
registry = SqliteRegistry(Path(sys.argv[1]), busy_timeout=30)
registry.instances()
beats = [threading.Thread(target=registry.beat, args=([Instance(f"m{n}@llm", "http://h:1/api")],)) for n in range(4)]
for beat in beats: beat.start()
for _ in range(20): time.sleep(0.01)
print("the hub runs", all(beat.is_alive() for beat in beats), flush=True)
for beat in beats: beat.join()
print(len(registry.instances()), flush=True)
registry.close()
"""


def test_under_gevent_a_wait_for_another_process_does_not_stall_the_hub(path, registry, beside):
    registry.beat([MINE])
    beside.execute("BEGIN IMMEDIATE")
    child = subprocess.Popen([sys.executable, "-c", GREEN, str(path)], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"the hub runs True\n"
        beside.execute("ROLLBACK")
        assert child.stdout.readline() == b"5\n"
        assert child.wait(30) == 0
    finally:
        child.kill()
        child.communicate()


def test_a_writer_that_was_killed_leaves_the_lock(path, registry):
    registry.beat([MINE])
    script = "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
    script += "c.execute('BEGIN IMMEDIATE'); c.execute('DELETE FROM modelyard_instances'); print('held', flush=True)\n"
    script += "time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        waiting = threading.Thread(target=registry.beat, args=([MINE],))
        waiting.start()
    finally:
        holder.kill()
        holder.communicate()
    wait_until(lambda: not waiting.is_alive(), "the beat went through")
    assert len(registry.instances()) == 1
