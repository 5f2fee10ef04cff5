"""The worker whose leader serves: what can't be seen from outside."""

from __future__ import annotations

import select
import socket
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

pytest.importorskip("gunicorn")
from modelyard.server.leader import LeaderWorker


def pair_in(opened: ExitStack) -> list[socket.socket]:
    return [opened.enter_context(one) for one in socket.socketpair()]


def test_the_end_of_a_connection_that_was_closed_already_is_not_that_of_a_new_one_with_its_number() -> None:
    worker = LeaderWorker.__new__(LeaderWorker)
    worker._slow = set()
    worker.method_queue = SimpleNamespace(defer=lambda call: None)
    with ExitStack() as opened, select.epoll() as worker._epoll:
        old, _ = pair_in(opened)
        conn = SimpleNamespace(sock=old, fd=old.fileno(), close=lambda graceful: None)
        worker._epoll.register(old, select.EPOLLIN)
        # An answer that broke off: gunicorn has closed the socket, and accepts the next.
        old.close()
        number = next(one.fileno() for one in pair_in(opened) if one.fileno() == conn.fd)
        worker._epoll.register(number, select.EPOLLIN)
        worker._discard(conn, graceful=True)
        worker._epoll.modify(number, select.EPOLLIN | select.EPOLLOUT)
        assert worker._epoll.poll(5)
