"""The connections of clients: which are shut down, and when; the figures of gunicorn run in tests/process."""

from __future__ import annotations

import io
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from modelyard.server import clients as module
from modelyard.server.clients import Clients, connections_within
from modelyard.server.extension import create_app
from modelyard.settings.settings import Settings
from modelyard.sockets import listening_addresses
from running import wait_until
from werkzeug.exceptions import RequestTimeout

LIMIT = 0.2
KEEPALIVE = 2.0
"""Much longer, so that a slow machine does not take one for the other."""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@pytest.fixture
def clients(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clients]:
    monkeypatch.setattr(module, "LOOK_INTERVAL", 0.02)
    made = Clients(LIMIT, KEEPALIVE, 100)
    made.start()
    yield made
    assert made.stop()


@pytest.fixture
def pair(listener: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's socket, and the one that was accepted for it."""
    with socket.create_connection(listener.getsockname(), 10) as client:
        accepted, _ = listener.accept()
        accepted.settimeout(10)
        with accepted:
            yield client, accepted


def call(clients: Clients, accepted: socket.socket, body: Any = None) -> dict[str, Any]:
    """Begin a request, and return its environ, as the application has it."""
    environ = {"gunicorn.socket": accepted, "wsgi.input": body or io.BytesIO()}
    clients.wrap(lambda environ, start_response: [])(environ, None)
    return environ


def test_it_is_known_where_this_process_listens(listener):
    assert listener.getsockname() in listening_addresses()


def test_a_new_connection_that_sends_nothing_is_shut_down(clients, pair):
    client, accepted = pair
    assert accepted.recv(1) == b""
    assert client.recv(1) == b""


def test_half_a_head_that_was_read_is_shut_down(clients, pair):
    client, accepted = pair
    client.sendall(b"GET")
    assert accepted.recv(10) == b"GET"
    assert accepted.recv(1) == b""


def test_what_waits_for_a_thread_of_ours_is_left_alone(clients, listener, pair):
    client, accepted = pair
    client.sendall(b"GET / HTTP/1.1\r\n\r\n")
    # Another connection, made later, is late: so the first was looked at when it was as old.
    with socket.create_connection(listener.getsockname(), 10) as other, listener.accept()[0]:
        assert other.recv(1) == b""
    assert accepted.recv(3) == b"GET"


def test_a_request_under_way_is_left_alone_and_the_pause_after_it_is_longer(clients, listener, pair):
    client, accepted = pair
    environ = call(clients, accepted)
    with socket.create_connection(listener.getsockname(), 10) as other, listener.accept()[0]:
        assert other.recv(1) == b""
    accepted.sendall(b"x")
    assert client.recv(1) == b"x"
    clients.end_request(environ)
    with socket.create_connection(listener.getsockname(), 10) as other, listener.accept()[0]:
        assert other.recv(1) == b""
    accepted.sendall(b"y")
    assert client.recv(1) == b"y"
    # gunicorn closes it after its keepalive; what it can't see, a next request in the same packet, ends a limit later.
    assert accepted.recv(1) == b""


def test_a_request_that_ends_during_a_look_leaves_its_connection_kept(pair, monkeypatch):
    clients = Clients(LIMIT, KEEPALIVE, 100)
    environ = call(clients, pair[1])

    def open_sockets(without: set[int]) -> Iterator[tuple[int, socket.socket]]:
        clients.end_request(environ)
        yield from ()

    monkeypatch.setattr(module, "open_sockets", open_sockets)
    clients._look_once()
    assert list(clients._connections.values()) == [environ["modelyard.connection"]]
    clients._look_once()
    assert clients._connections == {}, "it was closed meanwhile"


def test_half_a_body_is_a_timeout_and_can_be_answered(clients, pair):
    client, accepted = pair
    environ = call(clients, accepted, accepted.makefile("rb"))
    client.sendall(b"half")
    with pytest.raises(RequestTimeout, match=r"within 0.2 s \(receive_timeout\)"):
        environ["wsgi.input"].read(10)
    accepted.sendall(b"late")
    assert client.recv(10) == b"late"


def test_a_whole_body_is_read_in_every_way(clients, pair):
    environ = call(clients, pair[1], io.BytesIO(b"a\nb\nc\nd\n"))
    body = environ["wsgi.input"]
    assert (body.read(2), body.readline(), next(iter(body)), body.readlines()) == (b"a\n", b"b\n", b"c\n", [b"d\n"])


def test_at_the_end_everything_is_closed(clients, pair):
    client, accepted = pair
    call(clients, accepted)
    clients.close()
    assert client.recv(1) == b""


def test_a_full_house_is_said_once(listener, caplog):
    full = Clients(60, 60, 1)
    full.start()
    with socket.create_connection(listener.getsockname()), listener.accept()[0]:
        wait_until(lambda: "no more are accepted" in caplog.text, "the warning")
        full.drain()
    assert full.stop()
    assert caplog.text.count("no more are accepted") == 1


@pytest.mark.parametrize(
    ("files", "threads", "expected"),
    [(resource.RLIM_INFINITY, 256, 1256), (1_000_000, 256, 1256), (1024, 256, 384), (1024, 16, 864), (256, 256, 256)],
)
def test_the_connections_leave_files_for_the_requests(files, threads, expected):
    assert connections_within(files, threads) == expected


def test_a_service_that_can_not_start_its_threads_is_asked_again(tmp_path: Path, monkeypatch):
    settings = Settings(state_dir=str(tmp_path / "state"), models_dirs=[str(tmp_path)])
    settings.model_tables = ({"name": "echo"},)
    app = create_app(settings)
    client, body = app.test_client(), {"model": "echo", "prompt": "x"}
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        refused = client.post("/api/worker/generate", json=body)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503
    assert client.get("/readyz").status_code in (200, 503)
    try:
        assert app.extensions["modelyard"].wait_loaded(30)
        assert client.post("/api/worker/generate", json=body).status_code == 200
    finally:
        app.extensions["modelyard"].stop()


def refuse(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")
