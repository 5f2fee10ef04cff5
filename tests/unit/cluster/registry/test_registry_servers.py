"""Registries in real servers: faults are named and bounded, and what was away is complete after the next beats."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest
from modelyard.cluster.registry import open_registry, postgresql, redis_server, schema
from modelyard.cluster.registry.address import StoreAddress
from modelyard.cluster.registry.base import Instance, Registry
from modelyard.cluster.registry.database import ANSWER_TIMEOUT
from modelyard.cluster.registry.mysql import MysqlDatabase, MysqlRegistry
from modelyard.cluster.registry.postgresql import PostgresqlRegistry
from modelyard.errors import ConfigError, RegistryUnavailable
from registry_process import TURNS, others
from running import free_port, wait_until
from stores import PASSWORD, QUOTED, SERVERS, Server, StoreServers

FEW_SECONDS = 15.0
MINE = [Instance(f"m{number}@llm", "http://10.0.0.1:9001/api") for number in range(4)]
SQL = {
    "postgresql": (PostgresqlRegistry, schema.POSTGRESQL),
    "mariadb": (MysqlRegistry, schema.MYSQL),
}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, store_server: StoreServers) -> Server:
    return store_server(request.param)


@pytest.fixture(params=SQL)
def database(request: pytest.FixtureRequest, store_server: StoreServers) -> Server:
    return store_server(request.param)


@pytest.fixture
def opened() -> Iterator[Callable[..., Registry]]:
    """Opens registries, and closes them in the end."""
    made: list[Registry] = []

    def open_at(url: str) -> Registry:
        made.append(open_registry(url))
        return made[-1]

    yield open_at
    for registry in made:
        registry.close()


@pytest.fixture
def registry(server: Server, opened: Callable[..., Registry]) -> Registry:
    return opened(server.url())


def registered(registry: Registry) -> list[Instance]:
    receipts = registry.beat(MINE).receipts
    return [replace(one, generation=receipt.generation) for one, receipt in zip(MINE, receipts, strict=True)]


def assert_unavailable(registry: Registry, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Every call says which store does not answer, in time, and nothing shows its password."""

    def fault_of(call: Callable[[], object]) -> BaseException | None:
        began = time.monotonic()
        with pytest.raises(RegistryUnavailable, match=f"127.0.0.1:{server.port}") as error:
            call()
        assert time.monotonic() - began < FEW_SECONDS
        return error.value

    calls = (lambda: registry.beat(MINE), lambda: registry.deregister(MINE), lambda: registry.instances("m0@llm"))
    with ThreadPoolExecutor(3) as pool:
        for fault in pool.map(fault_of, calls):
            shown = fault
            while shown is not None:
                assert PASSWORD not in repr(shown)
                assert QUOTED not in repr(shown)
                shown = shown.__cause__ or shown.__context__
    logged = "".join(logging.Formatter().format(record) for record in caplog.records)
    assert PASSWORD not in logged
    assert QUOTED not in logged


def test_a_server_that_is_down_is_named_and_the_same_registry_goes_on_after_its_return(server, registry, caplog):
    caplog.set_level(logging.DEBUG)
    mine = registered(registry)
    server.stop()
    assert_unavailable(registry, server, caplog)
    server.start()
    assert [one.generation for one in registry.beat(mine).receipts] == [one.generation for one in mine]
    assert [one.generation for one in registry.instances(healthy_only=True)] == [one.generation for one in mine]


def test_a_server_that_restarts_between_two_calls_is_not_noticed(server, registry):
    mine = registered(registry)
    server.stop()
    server.start()
    assert [one.generation for one in registry.instances()] == [one.generation for one in mine]
    server.stop()
    server.start()
    assert [one.superseded for one in registry.beat(mine).receipts] == [False] * 4


def test_a_registry_that_was_opened_while_the_server_was_down_works_later(server, opened):
    server.stop()
    registry = opened(server.url())
    with pytest.raises(RegistryUnavailable):
        registry.beat(MINE)
    server.start()
    assert len(registry.beat(MINE).receipts) == 4
    assert len(registry.instances()) == 4


def test_a_server_that_says_nothing_is_given_up_in_time_and_used_again(server, registry, opened, caplog, monkeypatch):
    mine = registered(registry)
    assert ANSWER_TIMEOUT == redis_server.ANSWER_TIMEOUT < FEW_SECONDS / 3
    for module in (postgresql, redis_server):
        monkeypatch.setattr(module, "ANSWER_TIMEOUT", 1)
    monkeypatch.setattr(MysqlDatabase, "connect_args", {**MysqlDatabase.connect_args, "read_timeout": 1})
    registry = opened(server.url())
    wait_until(lambda: answered(registry.instances), "it is connected")
    with server.paused():
        assert_unavailable(registry, server, caplog)
    # What was asked meanwhile may be done late; what counts is that the next calls get their own answers.
    again = wait_until(lambda: answered(lambda: registry.beat(mine)), "it answers again", 30)
    assert [one.key for one in again.receipts] == [one.key for one in MINE]
    listed = wait_until(lambda: answered(registry.instances), "it answers each call")
    assert [one.key for one in listed] == [one.key for one in MINE]


def answered(call):
    with suppress(RegistryUnavailable):
        return call()


def test_nobody_listens(server, opened, caplog):
    port = free_port()
    registry = opened(server.url(port=port))
    with pytest.raises(RegistryUnavailable, match=str(port)):
        registry.instances()


def test_a_wrong_password_is_unavailable_and_not_shown(server, opened):
    registry = opened(server.url(password="wr0ng-%40-secret"))
    with pytest.raises(RegistryUnavailable) as error:
        registry.beat(MINE)
    shown: BaseException | None = error.value
    while shown is not None:
        assert "wr0ng" not in repr(shown)
        shown = shown.__cause__ or shown.__context__


def test_a_database_that_does_not_exist_is_unavailable(database, opened):
    with pytest.raises(RegistryUnavailable, match="nowhere"):
        opened(database.url(database="nowhere")).instances()


def test_a_restart_amid_beats_loses_nothing(server, opened):
    registries = [opened(server.url()) for _ in range(2)]
    ended = threading.Event()
    beaten = itertools.count()
    faults: list[BaseException] = []

    def live(number: int) -> None:
        mine = [replace(one, url=f"http://10.0.0.1:{9000 + number}/api") for one in MINE]
        while not ended.is_set():
            try:
                receipts = registries[number % 2].beat(mine).receipts
                mine = [replace(a, generation=b.generation) for a, b in zip(mine, receipts, strict=True)]
                assert not any(one.superseded for one in receipts)
                next(beaten)
            except RegistryUnavailable:
                ended.wait(0.02)
            except BaseException as fault:
                faults.append(fault)
                raise

    threads = [threading.Thread(target=live, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()

    def go_on() -> None:
        aim = next(beaten) + 20
        wait_until(lambda: faults or next(beaten) > aim, "beats go on", 40)

    try:
        go_on()
        server.stop()
        server.start()
        go_on()
        server.clear()
        go_on()
    finally:
        ended.set()
        for thread in threads:
            thread.join(30)
    assert faults == []
    assert not any(thread.is_alive() for thread in threads)
    assert len(registries[0].instances(healthy_only=True)) == 16


def test_several_processes_that_start_at_once_on_an_empty_store_lose_nothing(server, registry):
    names = ["a", "b", "c"]
    with others(server.url(), "beat", names) as issued:
        generations = [generation for one in issued for generation in one]
    assert len(set(generations)) == len(names) * TURNS
    assert [one.generation for one in registry.instances("shared@llm")] == [max(generations)]
    assert len(registry.instances(healthy_only=True)) == 5 * len(names) + 1


def test_those_that_make_the_tables_at_once_do_not_collide(database, opened):
    start = threading.Barrier(4)

    def open_and_beat(number: int) -> None:
        for turn in range(4):
            registry = opened(database.url(query=f"?prefix=turn{turn}"))
            start.wait(30)
            registry.beat([replace(MINE[0], key=f"m{number}@llm")])
            start.wait(30)
            assert len(registry.instances()) == 4
            registry.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(open_and_beat, range(4)))
    for turn in range(4):
        assert database.execute(f"SELECT version FROM turn{turn}_schema") == [(1,)]


def test_a_forked_child_and_its_parent_both_go_on(server, registry):
    with others(server.url(), "fork", ["p"]) as (count,):
        assert count == 5 + 3 * 5
    assert len(registry.instances()) == count


def test_prefixes_keep_registries_in_one_database_apart(server, opened):
    plain, blue, green = (opened(server.url(query=query)) for query in ("", "?prefix=blue", "?prefix=green"))
    for number, registry in enumerate((plain, blue, green), 1):
        registry.beat(MINE[:number])
    assert [len(registry.instances()) for registry in (plain, blue, green)] == [1, 2, 3]
    blue.deregister(MINE[:2], forget=True)
    assert [len(registry.instances()) for registry in (plain, blue, green)] == [1, 0, 3]


def test_a_beat_of_many_is_one_script(store_server, opened):
    server = store_server("redis")
    registry = opened(server.url())
    registry.beat(MINE)

    def scripts() -> int:
        with server.client() as client:
            return int(client.info("commandstats")["cmdstat_evalsha"]["calls"])

    before = scripts()
    registry.beat([replace(MINE[0], url=f"http://10.0.0.1:{9000 + number}/api") for number in range(100)])
    assert scripts() - before == 1


def test_the_lookup_of_one_key_reads_only_its_rows(store_server, opened):
    server = store_server("redis")
    registry = opened(server.url())
    registry.beat(MINE)
    with server.client() as client:
        client.set("modelyard:instances:m1@llm", "no hash")
    assert len(registry.instances("m0@llm")) == 1
    with pytest.raises(RegistryUnavailable, match="WRONGTYPE"):
        registry.instances()


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_the_lookup_of_one_key_uses_an_index(database, opened):
    registry = opened(database.url())
    registry.beat([Instance(f"m{number}@llm", MINE[0].url) for number in range(3000)])
    database.execute("ANALYZE modelyard_instances" if database.name == "postgresql" else "SELECT 1")
    plan = str(database.execute("EXPLAIN SELECT * FROM modelyard_instances WHERE worker_key = 'm7@llm'"))
    assert "modelyard_instances_key" in plan


# Versions


def migrated(database: Server, *more: tuple[str, ...]) -> Registry:
    kind, migrations = SQL[database.name]
    return kind(StoreAddress.parse(database.url()), migrations=(*migrations, *more))


WITH_A_NOTE = ("ALTER TABLE {prefix}_instances ADD COLUMN note VARCHAR(20) DEFAULT 'none'",)


def test_an_older_database_is_brought_to_the_newer_version_with_its_rows(database, opened):
    older, newer = opened(database.url()), migrated(database, WITH_A_NOTE)
    mine = registered(older)
    assert [one.generation for one in newer.instances()] == [one.generation for one in mine]
    assert database.execute("SELECT DISTINCT note FROM modelyard_instances") == [("none",)]
    assert database.execute("SELECT version FROM modelyard_schema") == [(2,)]
    # One that is running still can go on: what it does not know of has a default.
    assert [one.superseded for one in older.beat(mine).receipts] == [False] * 4
    newer.close()


def test_a_database_of_a_newer_version_is_refused_with_both_numbers(database, opened):
    newer, older = migrated(database, WITH_A_NOTE), opened(database.url())
    newer.beat(MINE)
    for call in (older.instances, lambda: older.beat(MINE), lambda: older.deregister(MINE)):
        with pytest.raises(ConfigError, match=r"version 2.*up to 1") as error:
            call()
        assert QUOTED not in str(error.value)
    newer.close()


def test_a_redis_of_a_newer_version_is_refused_with_both_numbers(store_server, opened):
    server = store_server("redis")
    registry = opened(server.url())
    server.execute("SET modelyard:schema 2")
    for call in (
        registry.instances,
        lambda: registry.instances("a@llm"),
        lambda: registry.beat(MINE),
        lambda: registry.deregister(MINE),
    ):
        with pytest.raises(ConfigError, match=r"version 2.*up to 1"):
            call()
    assert server.execute("KEYS *") == [["modelyard:schema"]]


def test_a_migration_that_was_cut_off_is_finished_by_the_next(database):
    registered(whole := migrated(database))
    cut = migrated(database, (*WITH_A_NOTE, "NONSENSE"))
    with pytest.raises(RegistryUnavailable):
        cut.instances()
    assert database.execute("SELECT version FROM modelyard_schema") == [(1,)]
    assert len(whole.instances()) == 4
    again = migrated(database, WITH_A_NOTE)
    assert len(again.instances()) == 4
    assert database.execute("SELECT version FROM modelyard_schema") == [(2,)]
    for registry in (whole, cut, again):
        registry.close()
