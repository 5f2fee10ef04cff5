"""The cost of one call over a kept connection: our sessions, ``requests.Session.post``, and urllib3's pool."""

from __future__ import annotations

import multiprocessing
import selectors
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import requests
import urllib3
from modelyard.sessions.session import Session

from ..plan import Plan
from ..report import Row, at_least

NAME = "sessions"
TITLE = "one call to another process on a kept connection: sessions, requests, urllib3"
LIMITS = "requests' adapter and urllib3's connection, on which our sessions are built"

CALLS = 500
"""Calls of one measurement."""
LEAST = 1.0
"""The least ratio of the CPU of a plain call to that of ours."""
BODY = b'{"model": "m", "prompt": "one two three"}'
HEADERS = {"Content-Type": "application/json"}
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n3"


def measure(plan: Plan) -> Iterator[Row]:
    """Yield a row for each kind of call; the kinds are measured in turns."""
    ours, plain, pools = Session(), requests.Session(), urllib3.PoolManager()
    plain.trust_env = False

    def sessions(url: str) -> None:
        ours.request("POST", url, body=BODY).read_whole()

    calls: dict[str, Callable[[str], object]] = {
        "sessions": sessions,
        "requests.Session.post": lambda url: plain.post(url, BODY, headers=HEADERS).content,
        "urllib3.PoolManager.request": lambda url: pools.request("POST", url, body=BODY, headers=HEADERS).data,
    }
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    with _answering() as url:
        for _ in range(plan.rounds):
            for name, call in calls.items():
                costs[name].append(_cost(call, url))
    ours.close()
    cpu = {name: statistics.median(cost[0] for cost in rounds) for name, rounds in costs.items()}
    for name, rounds in costs.items():
        wall = statistics.median(cost[1] for cost in rounds)
        row = Row(NAME, name, f"{cpu[name] * 1e6:.0f} us of CPU, {wall * 1e6:.0f} us")
        yield at_least(row, cpu["requests.Session.post"] / cpu[name], LEAST) if name == "sessions" else row


def _cost(call: Callable[[str], object], url: str) -> tuple[float, float]:
    """Return the seconds of CPU in this process, and the seconds of time, of one call."""
    call(url)
    cpu, began = time.process_time(), time.perf_counter()
    for _ in range(CALLS):
        call(url)
    return (time.process_time() - cpu) / CALLS, (time.perf_counter() - began) / CALLS


@contextmanager
def _answering() -> Iterator[str]:
    """Give the URL of a server in a process of its own, which answers each request at once."""
    context = multiprocessing.get_context("spawn")
    parent, child = context.Pipe()
    process = context.Process(target=serve, args=(child,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{parent.recv()}/api/worker/count_token"
    finally:
        process.kill()
        process.join()


def serve(pipe: Connection) -> None:
    """Send the port to ``pipe``, and answer the requests of all connections."""
    selector = selectors.DefaultSelector()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pipe.send(listener.getsockname()[1])
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is listener:
                    accepted, _ = listener.accept()
                    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    selector.register(accepted, selectors.EVENT_READ)
                elif data := sock.recv(65536):
                    if data.endswith(BODY):
                        sock.sendall(_ANSWER)
                else:
                    selector.unregister(sock)
                    sock.close()
