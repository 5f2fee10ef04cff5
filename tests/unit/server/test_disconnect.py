"""A hang-up is seen, whatever lies before it; data is none; a number that is used again is a new client."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from modelyard.server import disconnect
from modelyard.server.disconnect import DisconnectWatcher
from modelyard.sockets import has_gone
from running import wait_until

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=["tcp", "unix"])
def family(request) -> str:
    return str(request.param)


@pytest.fixture
def connect(family) -> Iterator[Callable[[], Pair]]:
    """Makes pairs of (ours, the client's) that end with the test."""
    made: list[socket.socket] = []

    def pair() -> Pair:
        if family == "unix":
            ours, theirs = socket.socketpair()
        else:
            with socket.create_server(("127.0.0.1", 0)) as server:
                theirs = socket.create_connection(server.getsockname())
                ours, _ = server.accept()
        made.extend((ours, theirs))
        return ours, theirs

    yield pair
    for sock in made:
        sock.close()


@pytest.fixture(params=["epoll", "poll"])
def watcher(request, monkeypatch) -> Iterator[DisconnectWatcher]:
    """Both ways of watching; the second is the one for gevent, whose patches take epoll away."""
    if request.param == "poll":
        monkeypatch.setattr(disconnect, "is_patched", lambda: True)
        monkeypatch.setattr(disconnect, "_POLL_INTERVAL", 0.005)
    made = DisconnectWatcher()
    made.start()
    yield made
    made.stop()


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def half_close(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)


def pipeline_and_close(sock: socket.socket) -> None:
    sock.sendall(b"GET /next HTTP/1.1\r\n\r\n" * 50)
    sock.close()


def assert_watches(watcher: DisconnectWatcher, connect: Callable[[], Pair]) -> None:
    """Check that the hang-up of a new client is seen."""
    ours, theirs = connect()
    gone = threading.Event()
    watcher.watch(ours.fileno(), gone.set)
    theirs.close()
    assert gone.wait(10)


HANGUPS = [socket.socket.close, half_close, reset, pipeline_and_close]


@pytest.mark.parametrize("hang_up", HANGUPS, ids=lambda f: f.__name__)
def test_a_hang_up_is_seen(watcher, connect, hang_up):
    ours, theirs = connect()
    gone = threading.Event()
    watcher.watch(ours.fileno(), gone.set)
    assert not gone.is_set()
    hang_up(theirs)
    assert gone.wait(10)


@pytest.mark.parametrize("hang_up", HANGUPS, ids=lambda f: f.__name__)
def test_a_hang_up_before_the_watch_is_seen_too(watcher, connect, hang_up):
    ours, theirs = connect()
    hang_up(theirs)
    gone = threading.Event()
    watcher.watch(ours.fileno(), gone.set)
    assert gone.wait(10)


@pytest.mark.parametrize("hang_up", HANGUPS, ids=lambda f: f.__name__)
def test_has_gone_tells_without_waiting(connect, hang_up):
    ours, theirs = connect()
    assert not has_gone(ours.fileno())
    theirs.sendall(b"data")
    assert not has_gone(ours.fileno())
    hang_up(theirs)
    wait_until(lambda: has_gone(ours.fileno()), "the hang-up arrived")


def test_data_is_no_hang_up(watcher, connect):
    ours, theirs = connect()
    gone, other_gone = threading.Event(), threading.Event()
    watcher.watch(ours.fileno(), gone.set)
    for _ in range(100):
        theirs.sendall(b"GET /next HTTP/1.1\r\n\r\n")
    # A hang-up elsewhere proves that the thread has looked since.
    second, second_client = connect()
    watcher.watch(second.fileno(), other_gone.set)
    second_client.close()
    assert other_gone.wait(10)
    assert not gone.is_set()
    theirs.close()
    assert gone.wait(10)


def test_the_thread_is_not_woken_by_data(connect, monkeypatch):
    made = DisconnectWatcher()
    made.start()
    try:
        looks: list[int] = []
        tell = made._call_back
        monkeypatch.setattr(made, "_call_back", lambda fileno: (looks.append(fileno), tell(fileno)))
        ours, theirs = connect()
        gone = threading.Event()
        made.watch(ours.fileno(), gone.set)
        for _ in range(100):
            theirs.sendall(b"x")
        # A hang-up elsewhere proves that the thread has looked since.
        second, second_client = connect()
        other_gone = threading.Event()
        made.watch(second.fileno(), other_gone.set)
        second_client.close()
        assert other_gone.wait(10)
        assert looks == [second.fileno()]
        theirs.close()
        assert gone.wait(10)
        assert looks == [second.fileno(), ours.fileno()]
    finally:
        made.stop()


def test_a_socket_that_was_taken_out_is_not_told_of(watcher, connect):
    ours, theirs = connect()
    gone, other_gone = threading.Event(), threading.Event()
    watcher.watch(ours.fileno(), gone.set)
    watcher.unwatch(ours.fileno())
    theirs.close()
    second, second_client = connect()
    watcher.watch(second.fileno(), other_gone.set)
    second_client.close()
    assert other_gone.wait(10)
    assert not gone.is_set()


def test_taking_out_what_is_not_watched_does_nothing(watcher, connect):
    ours, _ = connect()
    watcher.unwatch(ours.fileno())
    watcher.unwatch(10**6)


def test_a_hang_up_is_told_once(watcher, connect):
    ours, theirs = connect()
    told: list[int] = []
    watcher.watch(ours.fileno(), lambda: told.append(1))
    half_close(theirs)
    wait_until(lambda: told, "the hang-up was told")
    theirs.close()
    second, second_client = connect()
    other = threading.Event()
    watcher.watch(second.fileno(), other.set)
    second_client.close()
    assert other.wait(10)
    assert told == [1]
    watcher.unwatch(ours.fileno())


def test_a_kept_connection_is_watched_again_for_its_next_request(watcher, connect):
    ours, theirs = connect()
    told: list[int] = []
    for number in range(20):
        watcher.watch(ours.fileno(), lambda number=number: told.append(number))
        theirs.sendall(b"x")
        ours.recv(1)
        watcher.unwatch(ours.fileno())
    gone = threading.Event()
    watcher.watch(ours.fileno(), gone.set)
    theirs.close()
    assert gone.wait(10)
    assert told == []


def test_a_number_that_is_used_again_is_a_new_client(watcher, connect):
    ours, theirs = connect()
    number, told = ours.fileno(), []
    watcher.watch(number, lambda: told.append("old"))
    watcher.unwatch(number)
    fresh, fresh_client = connect()
    ours.close()
    again = os.dup2(fresh.fileno(), number)
    try:
        watcher.watch(again, lambda: told.append("new"))
        theirs.close()
        fresh_client.close()
        wait_until(lambda: told, "the new client's hang-up was told")
        assert told == ["new"]
    finally:
        watcher.unwatch(again)
        os.close(again)


def test_a_socket_that_was_closed_while_watched_harms_nobody(watcher, connect):
    ours, _client = connect()
    number = ours.fileno()
    watcher.watch(number, lambda: None)
    ours.close()
    watcher.unwatch(number)
    assert_watches(watcher, connect)


def test_an_event_that_was_meant_for_an_earlier_request_is_looked_at_again(watcher, connect):
    ours, theirs = connect()
    gone = threading.Event()
    watcher.watch(ours.fileno(), gone.set)
    watcher._call_back(ours.fileno())
    assert not gone.is_set()
    theirs.close()
    assert gone.wait(10)


def test_a_callback_that_fails_does_not_end_the_watch(watcher, connect, caplog):
    ours, theirs = connect()
    watcher.watch(ours.fileno(), lambda: 1 // 0)
    theirs.close()
    wait_until(lambda: "a hang-up callback failed" in caplog.text, "the failure was logged")
    assert_watches(watcher, connect)


def test_a_number_that_is_no_socket_is_taken_for_nobody(watcher, connect):
    ours, _ = connect()
    number = ours.fileno()
    ours.close()
    watcher.watch(number, lambda: None)
    watcher.unwatch(number)


def test_watching_a_number_twice_leaves_the_later_watch(watcher, connect):
    ours, theirs = connect()
    told: list[str] = []
    watcher.watch(ours.fileno(), lambda: told.append("first"))
    watcher.watch(ours.fileno(), lambda: told.append("second"))
    theirs.close()
    wait_until(lambda: told, "the hang-up was told")
    assert told == ["second"]


def test_many_clients_that_come_and_go_are_told_apart(watcher, connect, family):
    count = 60
    pairs = [connect() for _ in range(count)]
    told: set[int] = set()
    for number, (ours, _) in enumerate(pairs):
        watcher.watch(ours.fileno(), lambda number=number: told.add(number))
    for number in range(0, count, 2):
        watcher.unwatch(pairs[number][0].fileno())
    for _, theirs in pairs:
        theirs.close()
    wait_until(lambda: len(told) == count // 2, "every watched hang-up was told")
    assert told == set(range(1, count, 2))


def test_watching_races_with_unwatching_and_hang_ups(watcher, connect):
    def requests() -> None:
        for _ in range(100):
            ours, theirs = socket.socketpair()
            cancelled = threading.Event()
            watcher.watch(ours.fileno(), cancelled.set)
            theirs.close()
            watcher.unwatch(ours.fileno())
            ours.close()

    threads = [threading.Thread(target=requests) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    ours, theirs = connect()
    gone = threading.Event()
    watcher.watch(ours.fileno(), gone.set)
    theirs.close()
    assert gone.wait(10)
    assert watcher._watched == {}


# Its life


def test_nothing_is_open_before_the_start_nor_after_the_stop():
    made = DisconnectWatcher()
    before = len(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    made.start()
    made.start()
    assert threading.active_count() == threads + 1
    made.stop()
    made.stop()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == before


def test_one_that_does_not_run_watches_nothing(connect):
    ours, theirs = connect()
    made = DisconnectWatcher()
    made.watch(ours.fileno(), lambda: None)
    made.unwatch(ours.fileno())
    theirs.close()
    made.stop()
    assert made._watched == {}


def test_it_can_be_started_again(connect):
    made = DisconnectWatcher()
    made.start()
    made.stop()
    made.start()
    ours, theirs = connect()
    gone = threading.Event()
    made.watch(ours.fileno(), gone.set)
    theirs.close()
    assert gone.wait(10)
    made.stop()


# Clients that the server shows by a function


def test_a_client_without_a_socket_is_asked_for(monkeypatch):
    monkeypatch.setattr(disconnect, "_POLL_INTERVAL", 0.005)
    made = DisconnectWatcher()
    threads = threading.active_count()
    for _ in range(2):
        made.start()
        assert threading.active_count() == threads + 1, "no thread for clients that there are not"
        left, stays, gone, other = threading.Event(), threading.Event(), threading.Event(), threading.Event()
        made.watch(left.is_set, gone.set)
        made.watch(stays.is_set, other.set)
        assert not gone.is_set()
        left.set()
        assert gone.wait(10)
        assert not other.is_set()
        made.unwatch(stays.is_set)
        made.unwatch(left.is_set)
        assert made._asked == {}
        made.stop()
        assert threading.active_count() == threads


def test_a_client_that_was_taken_out_is_not_told_of_whatever_the_server_says(monkeypatch):
    monkeypatch.setattr(disconnect, "_POLL_INTERVAL", 0.005)
    made = DisconnectWatcher()
    made.start()
    left, gone, second = threading.Event(), threading.Event(), threading.Event()
    made.watch(left.is_set, gone.set)
    made.unwatch(left.is_set)
    left.set()
    made.watch(lambda: True, second.set)
    assert second.wait(10)
    assert not gone.is_set()
    made.stop()
