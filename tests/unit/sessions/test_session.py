from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import urllib3
from faulty import (
    LAST,
    STREAM_TYPE,
    Faulty,
    Peer,
    breaks_off,
    dribbles,
    faulty,
    head,
    http_chunk,
    in_turn,
    resets,
    says,
    stalls,
    stream_head,
    whole,
)
from modelyard.errors import Cancelled, ConfigError, NotConnected, NotReady, WorkerSilent, WorkerUnreachable
from modelyard.sessions import adapters
from modelyard.sessions.response import RECEIVE_SIZE, Response
from modelyard.sessions.session import Session
from modelyard.streams import Cancel
from packaging.version import Version
from running import wait_until

HELLO = whole(200, {"hello": "you"})


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session(connect_timeout=2, read_timeout=5)
    yield made
    made.close()


@pytest.fixture
def hasty() -> Iterator[Session]:
    """One that soon takes silence for a failure."""
    made = Session(connect_timeout=0.3, read_timeout=0.3)
    yield made
    made.close()


def ask(session: Session, method: str, url: str, **options: Any) -> Response:
    """Return a response that was read to its end."""
    response = session.request(method, url, **options)
    response.read_whole()
    return response


# What is sent


def test_a_request_says_who_asks_and_what_was_configured():
    sent = Session(headers={"X-Tenant": "a"}, token="secret")
    with faulty(says(HELLO)) as server:
        answer = ask(sent, "POST", f"{server.url}/x?y=%20z", body=b"{}", headers={"Prefer": "wait=0"})
        sent.close()
    assert (answer.status_code, answer.json()) == (200, {"hello": "you"})
    [request] = server.requests
    assert (request.method, request.path, request.body) == ("POST", "/api/x?y=%20z", b"{}")
    assert request.headers["authorization"] == "Bearer secret"
    assert request.headers["x-tenant"] == "a"
    assert request.headers["prefer"] == "wait=0"
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("modelyard/")
    assert f"//{request.headers['host']}/" in server.url


def test_a_header_is_sent_once_however_its_name_is_written(monkeypatch: pytest.MonkeyPatch):
    sent = Session(headers={"user-agent": "mine", "authorization": "Basic none"}, token=lambda: "secret")
    writes: list[bytes] = []
    send = socket.socket.send

    def noted(sock: socket.socket, data: bytes, *flags: int) -> int:
        writes.append(data)
        return send(sock, data, *flags)

    with faulty(says(HELLO)) as server:
        monkeypatch.setattr(socket.socket, "send", noted)
        ask(sent, "POST", server.url, body=b"{}", headers={"CONTENT-TYPE": "application/x"})
        sent.close()
    first, *lines = writes[0].decode().partition("\r\n\r\n")[0].split("\r\n")
    headers = [(name.lower(), value) for name, value in (line.split(": ") for line in lines)]
    assert first.startswith("POST ")
    assert len(dict(headers)) == len(headers)
    assert {("content-type", "application/x"), ("authorization", "Bearer secret"), ("user-agent", "mine")} < set(
        headers
    )


def test_a_request_without_a_body_has_no_length(session: Session):
    with faulty(says(HELLO)) as server:
        ask(session, "GET", server.url)
    assert not {"content-length", "content-type", "authorization"} & set(server.requests[0].headers)


def test_a_line_break_in_a_header_is_refused_before_anything_is_sent(session: Session):
    with pytest.raises(ConfigError, match="remote headers"):
        Session(headers={"X-A": "b\r\nX-C: d"})
    with faulty(says(HELLO)) as server, pytest.raises(ValueError, match=r"X-A.*one line"):
        ask(session, "GET", server.url, headers={"X-A": "b\nX-C: d"})
    assert server.connections == 0


@pytest.mark.parametrize(
    "url",
    [
        "ftp://localhost/api",
        "localhost:8000/api",
        "http:///api",
        "http://localhost:99999/api",
        "http://localhost/a b",
        "http://localhost/a\r\nX: y",
        "http://localhost/\xfc",
        "http://user:word@localhost/api",
        "http+unix://relative.sock/api",
    ],
)
def test_an_address_that_is_none_is_nobody_to_reach(session: Session, url: str):
    with pytest.raises(WorkerUnreachable, match=r"address|range"):
        ask(session, "GET", url)


def test_proxies_of_the_environment_are_not_asked(session: Session, monkeypatch: pytest.MonkeyPatch):
    with faulty(says(HELLO)) as server, faulty(says(HELLO)) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        ask(session, "GET", server.url)
    assert (server.connections, proxy.connections) == (1, 0)


def test_redirects_are_not_followed(session: Session):
    with faulty(says(HELLO)) as elsewhere, faulty(says(whole(302, b"", f"Location: {elsewhere.url}"))) as server:
        answer = ask(session, "GET", server.url)
    assert answer.status_code == 302
    assert elsewhere.connections == 0


def test_nothing_comes_from_the_environment_or_from_answers_before(
    session: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "netrc").write_text("machine localhost login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with faulty(says(whole(200, b"", "Set-Cookie: a=b; Path=/"))) as server:
        for _ in range(2):
            ask(session, "GET", server.url)
        assert not {"authorization", "cookie"} & set(server.requests[1].headers)


def test_what_changes_is_asked_for_each_time():
    values = iter("abcd")
    asking = Session(token=lambda: next(values), current_headers=lambda: {"X-Trace": next(values)})
    with faulty(says(HELLO)) as server:
        for _ in range(2):
            ask(asking, "GET", server.url)
    sent = [(request.headers["x-trace"], request.headers["authorization"]) for request in server.requests]
    assert sent == [("a", "Bearer b"), ("c", "Bearer d")]
    asking.close()


def test_small_packets_are_not_held_back(session: Session, monkeypatch: pytest.MonkeyPatch):
    options: list[tuple[Any, ...]] = []
    setsockopt = socket.socket.setsockopt
    monkeypatch.setattr(
        socket.socket, "setsockopt", lambda sock, *args: options.append(args) or setsockopt(sock, *args)
    )
    with faulty(says(HELLO)) as server:
        ask(session, "GET", server.url)
    assert (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1) in options


# Connections


def test_a_connection_serves_one_request_after_the_other(session: Session):
    with faulty(says(HELLO)) as server:
        for _ in range(3):
            ask(session, "GET", server.url)
        assert server.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        whole(200, b"x", "Connection: close"),
        HELLO.replace(b"HTTP/1.1", b"HTTP/1.0"),
        HELLO + b"HTTP/1.1 200 another answer that nobody asked for",
    ],
)
def test_a_connection_that_is_not_fit_for_another_request_is_closed(session: Session, answer: bytes):
    with faulty(says(answer)) as server:
        for count in (1, 2):
            assert ask(session, "GET", server.url).status_code == 200
            assert server.connections == count
        wait_until(lambda: server.open_connections == 0, "both connections closed")


def test_a_stream_that_was_not_read_to_its_end_is_not_reused(session: Session):
    with faulty(in_turn(stalls(stream_head(), http_chunk(b"a")), says(HELLO))) as server:
        with session.request("GET", server.url) as answer:
            assert answer.read1() == b"a"
        wait_until(lambda: server.open_connections == 0, "hung up")
        ask(session, "GET", server.url)
        assert server.connections == 2


def test_a_request_may_ask_for_a_connection_of_its_own(session: Session):
    with faulty(says(HELLO)) as server:
        ask(session, "GET", server.url)
        ask(session, "GET", server.url, reuse=False)
        assert server.requests[1].headers["connection"] == "close"
        wait_until(lambda: server.open_connections == 1, "the one of its own closed")
        ask(session, "GET", server.url)
        assert server.connections == 2


def test_what_a_server_says_unasked_is_no_answer_to_the_next_request(session: Session):
    """Servers say 408 on a connection that was idle for too long, and close it."""
    answered = threading.Event()

    def script(peer: Peer) -> None:
        peer.send(HELLO)
        answered.wait(20)
        peer.send(whole(408, b"too late"))

    with faulty(script) as server:
        for _ in range(3):
            assert ask(session, "GET", server.url).status_code == 200
            answered.set()
            wait_until(lambda: server.open_connections == 0, "closed by the server")
            answered.clear()


def test_a_connection_that_the_server_has_closed_is_not_used(session: Session):
    with faulty(breaks_off(HELLO)) as server:
        for count in (1, 2, 3):
            ask(session, "POST", server.url, body=b"{}")
            wait_until(lambda: server.open_connections == 0, "closed by the server")
            assert len(server.requests) == count


def test_a_request_that_met_a_closing_connection_is_sent_once_more_on_a_new_one(session: Session):
    for closes in (breaks_off(), resets()):
        with faulty(in_turn(says(HELLO), closes, says(HELLO))) as server:
            ask(session, "POST", server.url, body=b"1")
            assert ask(session, "POST", server.url, body=b"2").status_code == 200
            assert [request.body for request in server.requests] == [b"1", b"2", b"2"]
            assert server.connections == 2


def test_a_request_is_sent_once_more_at_most(session: Session):
    with faulty(in_turn(says(HELLO), breaks_off())) as server:
        ask(session, "POST", server.url, body=b"1")
        with pytest.raises(WorkerUnreachable, match="closed the connection before its answer"):
            ask(session, "POST", server.url, body=b"2")
        assert len(server.requests) == 3


def test_a_request_whose_answer_began_is_not_sent_again(session: Session):
    with faulty(in_turn(says(HELLO), breaks_off(b"HTTP/1.1 200"))) as server:
        ask(session, "POST", server.url, body=b"1")
        with pytest.raises(WorkerUnreachable):
            ask(session, "POST", server.url, body=b"2")
        assert len(server.requests) == 2


def test_a_new_connection_that_breaks_is_not_tried_again(session: Session):
    with faulty(breaks_off()) as server:
        with pytest.raises(WorkerUnreachable):
            ask(session, "POST", server.url, body=b"1")
        assert len(server.requests) == 1


def test_connections_that_nobody_used_for_a_while_are_closed(session: Session, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(adapters, "IDLE_LIMIT", 0.05)
    with faulty(says(HELLO)) as server, faulty(says(HELLO)) as other:
        ask(session, "GET", other.url)
        assert other.open_connections == 1

        def closed() -> bool:
            ask(session, "GET", server.url)
            return other.open_connections == 0

        wait_until(closed, "the idle connection closed while another server is used")


def test_closing_it_closes_what_is_idle_and_later_what_was_in_use(session: Session):
    with faulty(says(HELLO)) as server, faulty(says(stream_head(), http_chunk(b"a"), LAST)) as other:
        ask(session, "GET", server.url)
        stream = session.request("GET", other.url)
        session.close()
        wait_until(lambda: server.open_connections == 0, "the idle connection closed")
        assert stream.read_whole() == b"a"
        wait_until(lambda: other.open_connections == 0, "the used connection closed")
        session.close()


def test_a_unix_socket_is_an_address(session: Session, tmp_path: Path):
    with faulty(says(HELLO), path=tmp_path / "a.sock") as server:
        assert ask(session, "GET", f"{server.url}/x").json() == {"hello": "you"}
        ask(session, "GET", server.url)
    assert server.connections == 1
    assert (server.requests[0].path, server.requests[0].headers["host"]) == ("/api/x", "localhost")
    with pytest.raises(WorkerUnreachable, match=r"unix:.*a\.sock refused"):
        ask(session, "GET", server.url)
    with pytest.raises(WorkerUnreachable, match=r"can't be connected to: .*No such file"):
        ask(session, "GET", "http+unix://%2Fno%2Fsuch.sock/api")


FORK = """
import os, sys
from modelyard.sessions.response import Response
from modelyard.sessions.session import Session
session, url = Session(), sys.argv[1]
assert session.request("GET", url).content
child = os.fork()
assert session.request("GET", url).content
session.close()
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_process_that_was_forked_makes_connections_of_its_own():
    with faulty(says(HELLO)) as server:
        subprocess.run([sys.executable, "-W", "error", "-c", FORK, server.url], check=True, timeout=60)
        assert (server.connections, len(server.requests)) == (2, 3)


def test_many_threads_share_it(session: Session):
    bodies: list[bytes] = []

    def ask_often(server: Faulty) -> None:
        for _ in range(20):
            bodies.append(ask(session, "POST", server.url, body=b"{}").content)

    with faulty(says(HELLO)) as server:
        threads = [threading.Thread(target=ask_often, args=(server,)) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(server.requests) == 200
        assert server.connections <= 10
    assert bodies == [b'{"hello": "you"}'] * 200


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost that signs itself, with its key in the same file."""
    file = tmp_path_factory.mktemp("tls") / "cert.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    try:
        made = subprocess.run(
            [*command.split(), "-keyout", f"{file}.key", "-out", str(file)], capture_output=True, check=True, timeout=60
        )
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    assert made.returncode == 0
    return file


@pytest.fixture(scope="module")
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, f"{certificate}.key")
    return context


def test_a_server_whose_certificate_is_trusted_is_spoken_to_over_tls(certificate: Path, tls: ssl.SSLContext):
    trusting = Session(ca=str(certificate))
    with faulty(dribbles(stream_head() + http_chunk(b"a" * 20_000) + LAST, 5000), tls=tls) as server:
        for _ in range(3):
            assert len(ask(trusting, "GET", server.url).content) == 20_000
        assert server.connections == 1
        trusting.close()


def test_a_certificate_that_is_not_trusted_is_refused(session: Session, tls: ssl.SSLContext):
    with faulty(says(HELLO), tls=tls) as server:
        with pytest.raises(NotConnected, match="certificate that is not trusted"):
            ask(session, "GET", server.url)
        assert not server.requests


def test_a_certificate_of_another_name_is_refused(certificate: Path, tls: ssl.SSLContext):
    trusting = Session(ca=str(certificate))
    with faulty(says(HELLO), tls=tls) as server:
        with pytest.raises(WorkerUnreachable, match="not trusted"):
            ask(trusting, "GET", server.url.replace("localhost", "127.0.0.1"))
        assert not server.requests


def test_a_server_that_speaks_no_tls_is_told_apart(session: Session):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(4096)
                sock.sendall(whole(400, b"this is plain HTTP"))

        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(WorkerUnreachable, match="does not speak TLS as expected"):
            ask(session, "GET", f"https://127.0.0.1:{listener.getsockname()[1]}/api")
        thread.join(10)


def test_certificates_that_can_not_be_read_are_a_fault_of_the_configuration(tmp_path: Path):
    for ca in (tmp_path / "absent.pem", tmp_path / "empty.pem"):
        (tmp_path / "empty.pem").touch()
        with pytest.raises(ConfigError, match=r"\.pem has no certificates"):
            Session(ca=str(ca))


# What goes wrong


def test_a_port_where_nobody_listens_refuses(session: Session):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(NotConnected, match=f"http://127.0.0.1:{port} refused the connection") as caught:
        ask(session, "GET", f"http://127.0.0.1:{port}/api")
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


def test_a_name_that_nobody_knows_is_nobody_to_reach(session: Session):
    with pytest.raises(NotConnected, match=r"http://no-such-host\.invalid has a name that can't be looked up"):
        ask(session, "GET", "http://no-such-host.invalid/api")


@pytest.fixture
def deaf() -> Iterator[str]:
    """The address of a listener that takes no connection: its line of one is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        for _ in range(3):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
            waiting.append(sock)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        for sock in waiting:
            sock.close()


def test_a_connection_is_waited_for_no_longer_than_it_may_take(hasty: Session, deaf: str):
    with pytest.raises(NotConnected, match=r"did not accept a connection within 0\.3 s"):
        ask(hasty, "GET", deaf)


def test_a_server_that_takes_no_request_is_given_up(hasty: Session):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        with pytest.raises(WorkerUnreachable, match="did not accept the request"):
            ask(hasty, "POST", url, body=bytes(32 * 1024 * 1024))


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\n", stream_head(), stream_head() + http_chunk(b"a")])
def test_silence_is_a_failure_wherever_it_begins(hasty: Session, sent: bytes):
    with faulty(stalls(sent)) as server, pytest.raises(WorkerUnreachable, match=r"was silent for 0\.3 s"):
        ask(hasty, "GET", server.url)


def test_each_byte_ends_a_silence(hasty: Session):
    beats = threading.Event()

    def script(peer: Peer) -> bool:
        for part in (HELLO[:4], HELLO[4:40], HELLO[40:-4], HELLO[-4:]):
            beats.wait(0.15)
            peer.send(part)
        return True

    with faulty(script) as server:
        assert ask(hasty, "GET", server.url).json() == {"hello": "you"}


def test_silences_are_not_added_up():
    patient = Session(read_timeout=1.5)
    beats = threading.Event()

    def script(peer: Peer) -> bool:
        for part in (HELLO[:4], HELLO[4:-4], HELLO[-4:]):
            beats.wait(1.1)
            peer.send(part)
        return True

    with faulty(script) as server:
        assert ask(patient, "GET", server.url).status_code == 200
    patient.close()


def test_a_call_may_have_times_of_its_own(hasty: Session):
    late = threading.Event()

    def script(peer: Peer) -> bool:
        late.wait(0.8)
        peer.send(HELLO)
        return True

    with faulty(script) as server:
        assert ask(hasty, "GET", server.url, timeout=(1, 10)).status_code == 200


@pytest.mark.parametrize("closes", [breaks_off, resets])
@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 200",
        HELLO[:-1],
        head(200, "Content-Length: 5"),
        stream_head(),
        stream_head() + http_chunk(b"abc")[:-4],
        stream_head() + http_chunk(b"abc"),
        b"HTTP/1.1 200 OK\r\nContent-Type: te",
        head(200)[:-2],
    ],
)
def test_an_answer_that_breaks_off_is_never_taken_for_a_whole_one(
    session: Session, closes: Callable[..., Callable[[Peer], bool | None]], sent: bytes
):
    with (
        faulty(closes(sent)) as server,
        pytest.raises(WorkerUnreachable, match=r"broke off|closed|ends within") as caught,
    ):
        ask(session, "GET", server.url)
    assert "int()" not in str(caught.value), "the words are those of HTTP"


def test_a_body_without_a_length_that_is_reset_is_not_whole(session: Session):
    with faulty(resets(head(200), b"half")) as server, pytest.raises(WorkerUnreachable, match="broke off"):
        ask(session, "GET", server.url)


@pytest.mark.parametrize(
    "sent",
    [
        b"220 mail.example.org ESMTP\r\n",
        b"\x16\x03\x01\x00\xa5\x01\x00",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        head(200, "Content-Length: x"),
        head(200, "Content-Length: -1"),
        head(200, "Content-Length: 5, 6") + b"abcdef",
        head(200, "Content-Length: 5", "Content-Length: 6") + b"abcdef",
        head(200, "Transfer-Encoding: br"),
        head(200, "Transfer-Encoding: gzip, chunked"),
        head(200, "Content-Encoding: gzip") + b"\x1f\x8b",
        head(103, "Link: </a>") + HELLO,
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000,
        stream_head() + b"zz\r\n",
        stream_head() + b"-1\r\nabc\r\n" + LAST,
        stream_head() + b"ffffffffffffffff\r\nabc",
        stream_head() + b"2\r\nabc\r\n" + LAST,
        stream_head() + b"1" * 70_000,
        pytest.param(
            stream_head() + b"0\r\n" + b"x" * 70_000,
            marks=pytest.mark.skipif(
                Version(urllib3.__version__) < Version("2.8"), reason="older urllib3 takes a trailer of any length"
            ),
        ),
    ],
)
def test_what_is_no_http_is_named(session: Session, sent: bytes):
    with (
        faulty(breaks_off(sent)) as server,
        pytest.raises(WorkerUnreachable, match=r"does not answer with HTTP|broke off"),
    ):
        ask(session, "GET", server.url)


def floods(lines: bytes) -> Callable[[Peer], None]:
    """Return a script that sends ``lines`` without end, until the client hangs up."""

    def script(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\n" if lines.startswith(b"X") else b"")
        with suppress(OSError):
            while True:
                peer.send(lines)

    return script


@pytest.mark.parametrize(
    "lines", [head(100) * 100, head(100, "X: y"), b"X-" + b"y" * 5000, b"X: " + b"y" * 5000 + b"\r\n"]
)
def test_headers_without_end_are_given_up(session: Session, lines: bytes):
    with faulty(floods(lines)) as server, pytest.raises(WorkerUnreachable, match="does not answer with HTTP"):
        session.request("GET", server.url)


@pytest.mark.parametrize("line", ["no colon", "blank before : colon", ": no name", "X: \x00\x7f\xff", "X: a\rY: b"])
def test_an_odd_header_is_no_traceback(session: Session, line: str):
    with faulty(says(whole(200, {"hello": "you"}, line), keep=False)) as server, suppress(WorkerUnreachable):
        assert ask(session, "GET", server.url).status_code == 200


def test_a_body_that_failed_never_looks_whole(session: Session):
    with (
        faulty(breaks_off(stream_head(), http_chunk(b"abc"))) as server,
        session.request("GET", server.url) as response,
    ):
        assert response.read1() == b"abc"
        for read in (response.read1, response.read_whole, response.read1):
            with pytest.raises(WorkerUnreachable, match="broke off"):
                read()


def test_what_came_before_a_fault_is_given_out_first(session: Session):
    sent = stream_head() + http_chunk(b"abc") + http_chunk(b"def") + b"zz\r\n"
    with faulty(breaks_off(sent)) as server, session.request("GET", server.url) as response:
        wait_until(lambda: server.open_connections == 0, "all was sent")
        assert response.read1() == b"abcdef"
        with pytest.raises(WorkerUnreachable, match="broke off"):
            response.read1()


@pytest.mark.parametrize(
    ("parts", "reads"),
    [
        ([http_chunk(b"abc") + http_chunk(b"def") + b"5\r\ngh", b"ijk\r\n" + LAST], [b"abcdef", b"ghijk"]),
        ([http_chunk(b"abc") + b"3;x=y\r\ndef\r", b"\n" + LAST], [b"abc", b"def"]),
        ([http_chunk(b"abc") + http_chunk(b"def") + LAST], [b"abcdef"]),
        ([http_chunk(b"x" * (RECEIVE_SIZE + 2)) + LAST], [b"x" * RECEIVE_SIZE, b"xx"]),
    ],
    ids=["part of a chunk", "a chunk without its line end", "the end", "a large chunk"],
)
def test_what_has_come_whole_is_read_at_once_and_the_rest_later(
    session: Session, parts: list[bytes], reads: list[bytes]
):
    go_on, read = threading.Event(), []

    def script(peer: Peer) -> bool:
        peer.send(stream_head() + parts[0])
        if parts[1:]:
            go_on.wait(20)
            peer.send(parts[1])
        return True

    with faulty(in_turn(script, says(HELLO))) as server:
        with session.request("GET", server.url) as response:
            while data := response.read1():
                read.append(data)
                go_on.set()
        assert read == reads
        ask(session, "GET", server.url)
        assert server.connections == 1


def test_chunks_that_come_alone_or_together_are_one_read_of_the_socket(
    session: Session, monkeypatch: pytest.MonkeyPatch
):
    parts = [http_chunk(b"alone"), http_chunk(b"to") + http_chunk(b"gether"), LAST]
    go_on, counts = [threading.Event() for _ in parts], []
    recv_into = socket.socket.recv_into

    def counted(sock: socket.socket, *buffer: Any) -> int:
        counts.append(recv_into(sock, *buffer))
        return counts[-1]

    def script(peer: Peer) -> bool:
        peer.send(stream_head())
        for event, part in zip(go_on, parts, strict=True):
            event.wait(20)
            peer.send(part)
        return True

    with faulty(script) as server, session.request("GET", server.url) as response:
        monkeypatch.setattr(socket.socket, "recv_into", counted)
        for event, content in zip(go_on, (b"alone", b"together", b""), strict=True):
            event.set()
            assert response.read1() == content
        assert counts == [len(part) for part in parts]


def test_a_request_leaves_in_one_write(session: Session, monkeypatch: pytest.MonkeyPatch):
    writes: list[bytes] = []
    send = socket.socket.send

    def noted(sock: socket.socket, data: bytes, *flags: int) -> int:
        if b"HTTP/1.1\r\n" in data or b"the body" in data:
            writes.append(data)
        return send(sock, data, *flags)

    with faulty(says(HELLO)) as server:
        monkeypatch.setattr(socket.socket, "send", noted)
        ask(session, "POST", server.url, body=b'"the body"')
        ask(session, "GET", server.url)
    assert [data.partition(b" ")[0] for data in writes] == [b"POST", b"GET"]
    assert writes[0].endswith(b'\r\n\r\n"the body"')


def test_a_body_may_be_limited(session: Session):
    with faulty(says(whole(200, b"x" * 1000))) as server:
        with pytest.raises(WorkerUnreachable, match="over 999 bytes"):
            session.request("GET", server.url).read_whole(999)
        assert len(session.request("GET", server.url).read_whole(1000)) == 1000


@pytest.mark.parametrize("begin", [b"HTTP/1.1 200 OK\r\nX: ", stream_head() + b"ffff\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_response_may_have_a_time_at_which_it_must_be_whole(session: Session, begin: bytes):
    beats = threading.Event()

    def dribbles_on(peer: Peer) -> None:
        peer.send(begin)
        with suppress(OSError):
            while not beats.wait(0.02):
                peer.send(b"x")

    with faulty(dribbles_on) as server:
        started = time.monotonic()
        with pytest.raises(WorkerSilent, match="did not answer in time"):
            session.request("GET", server.url, until=time.monotonic() + 0.3).read_whole()
        assert time.monotonic() - started < 2


# What goes well


def test_interim_answers_are_passed_over(session: Session):
    for parts in ([b"HTTP/1.1 100 Continue\r\n\r\n" + HELLO], [head(100), head(100, "X: y"), HELLO]):
        with faulty(says(*parts)) as server:
            assert ask(session, "GET", server.url).json() == {"hello": "you"}


@pytest.mark.parametrize(
    "sent",
    [
        head(200, "Content-Length: 5", "Content-Length: 5") + b"hello",
        head(200, "Content-Length: 5, 5") + b"hello",
        head(200, "Content-Length: 5", "Content-Encoding: Identity") + b"hello",
        head(200, "Content-Length: 5", "X: folded", " over lines") + b"hello",
        head(200, "Content-Length: 3", "Transfer-Encoding: Chunked") + http_chunk(b"hello") + LAST,
        stream_head() + b"2;name=value\r\nhe\r\n0003\r\nllo\r\n0\r\nTrailer: x\r\n\r\n",
        b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello",
    ],
)
def test_what_servers_do_at_times_is_understood(session: Session, sent: bytes):
    with faulty(says(sent)) as server, session.request("GET", server.url) as response:
        assert response.content == b"hello"


def test_a_body_without_bytes_is_an_end_at_once(session: Session):
    for sent in (whole(200, b""), head(204), head(304)):
        with faulty(says(sent)) as server:
            assert session.request("GET", server.url).read1() == b""
            ask(session, "GET", server.url)
            assert server.connections == 1


def test_lists_within_lists_are_no_json(session: Session):
    with faulty(says(whole(200, b"[" * 100_000))) as server, pytest.raises(ValueError, match="nested"):
        session.request("GET", server.url).json()


def test_an_answer_may_come_in_bytes(session: Session):
    with faulty(dribbles(stream_head() + http_chunk(b"ab\0") + http_chunk("ü".encode()) + LAST)) as server:
        assert ask(session, "GET", server.url).content == b"ab\0" + "ü".encode()
        ask(session, "GET", server.url)
        assert server.connections == 1


def test_a_body_that_ends_with_its_connection_is_read_as_it_comes(session: Session):
    go_on = threading.Event()

    def script(peer: Peer) -> None:
        peer.send(head(200, f"Content-Type: {STREAM_TYPE}"), b"first")
        go_on.wait(20)
        peer.send(b" last")

    with faulty(script) as server, session.request("GET", server.url) as answer:
        assert answer.read1() == b"first"
        go_on.set()
        assert answer.read_whole() == b" last"


def test_waiting_gives_way_about_once_a_second(session: Session):
    with faulty(stalls(stream_head())) as server, session.request("GET", server.url) as answer:
        began = time.monotonic()
        assert answer.read1() is None
        assert 0.5 < time.monotonic() - began < 3


@pytest.mark.parametrize("reads_on", [True, False])
def test_an_answer_to_half_a_request_is_heard(session: Session, reads_on: bool):
    """A server that refuses a large body answers before it has read it, and mostly closes then, which is a RST."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(1024)
                sock.sendall(whole(413, b"too large", "Connection: close"))
                sock.shutdown(socket.SHUT_WR)
                while reads_on and sock.recv(65536):
                    pass

        thread = threading.Thread(target=refuse)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        assert ask(session, "POST", url, body=bytes(8_000_000)).status_code == 413
        thread.join(10)


# Cancelling


def cancel_soon(cancel: Cancel, ready: Callable[[], bool]) -> threading.Thread:
    """Cancel in another thread as soon as ``ready``."""

    def run() -> None:
        wait_until(ready, "the moment to cancel")
        cancel.set()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


Place = tuple[dict[str, Any], Session]
"""Where a faulty server listens, and a session that trusts it and waits long."""


@pytest.fixture(params=["tcp", "tls", "unix"])
def place(request: pytest.FixtureRequest, tmp_path: Path, certificate: Path, tls: ssl.SSLContext) -> Iterator[Place]:
    where: dict[str, dict[str, Any]] = {"tcp": {}, "tls": {"tls": tls}, "unix": {"path": tmp_path / "a.sock"}}
    patient = Session(connect_timeout=30, read_timeout=30, ca=str(certificate))
    yield where[request.param], patient
    patient.close()


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\n", stream_head(), stream_head() + http_chunk(b"a")])
def test_a_cancel_ends_a_call_at_once_wherever_it_waits(place: Place, sent: bytes):
    where, patient = place
    cancel = Cancel()
    with faulty(stalls(sent), **where) as server:
        thread = cancel_soon(cancel, lambda: len(server.requests) == 1)
        began = time.monotonic()
        with pytest.raises(Cancelled):
            ask(patient, "GET", server.url, cancel=cancel)
        assert time.monotonic() - began < 1
        thread.join(10)
        wait_until(lambda: server.open_connections == 0, "hung up")


def test_a_cancel_ends_a_stream_that_is_waited_for(place: Place):
    where, patient = place
    cancel = Cancel()
    with (
        faulty(stalls(stream_head(), http_chunk(b"a")), **where) as server,
        patient.request("GET", server.url, cancel=cancel) as response,
    ):
        assert response.read1() == b"a"
        thread = cancel_soon(cancel, lambda: True)
        began = time.monotonic()
        with pytest.raises(Cancelled):
            while response.read1() is None:
                pass
        assert time.monotonic() - began < 1
        thread.join(10)


def test_a_cancel_ends_a_call_that_sends(place: Place):
    where, patient = place
    cancel, ended = Cancel(), threading.Event()
    with faulty(lambda peer: not ended.wait(20), **where) as server:
        server.reads_bodies = False
        body = bytes(64 * 1024 * 1024)
        thread = cancel_soon(cancel, lambda: len(server.requests) == 1)
        began = time.monotonic()
        with pytest.raises(Cancelled):
            patient.request("POST", server.url, body=body, cancel=cancel)
        assert time.monotonic() - began < 2
        ended.set()
        thread.join(10)


def test_the_end_of_a_call_does_not_reach_its_connection_once_that_serves_another(session: Session):
    began, go_on = threading.Event(), threading.Event()

    def second(peer: Peer) -> bool:
        peer.send(stream_head())
        began.set()
        go_on.wait(20)
        peer.send(http_chunk(b"whole"), LAST)
        return True

    cancel = Cancel()
    with faulty(in_turn(says(HELLO), second)) as server:
        first = session.request("GET", server.url, cancel=cancel)
        assert first.read1() == b'{"hello": "you"}'
        other = session.request("GET", server.url)
        assert began.wait(10)
        cancel.set()
        first.hang_up()
        first.close()
        go_on.set()
        assert other.content == b"whole"
        assert server.connections == 1


def test_a_cancel_ends_a_call_that_waits_for_its_connection(deaf: str):
    patient = Session(connect_timeout=30)
    cancel = Cancel()
    began = time.monotonic()
    thread = cancel_soon(cancel, lambda: time.monotonic() - began > 0.1)
    with pytest.raises(Cancelled):
        ask(patient, "GET", deaf, cancel=cancel)
    assert time.monotonic() - began < 1
    thread.join(10)


def test_a_cancel_ends_a_call_that_shakes_hands(certificate: Path):
    patient = Session(connect_timeout=30, ca=str(certificate))
    cancel = Cancel()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/api"
        began = time.monotonic()
        thread = cancel_soon(cancel, lambda: time.monotonic() - began > 0.1)
        with pytest.raises(Cancelled):
            ask(patient, "GET", url, cancel=cancel)
        assert time.monotonic() - began < 1
        thread.join(10)


def test_a_call_ends_with_the_reason_that_the_cancel_has(session: Session):
    cancel = Cancel()
    cancel.set(NotReady("stopped by hand"))
    with faulty(says(HELLO)) as server:
        with pytest.raises(NotReady, match="stopped by hand"):
            ask(session, "GET", server.url, cancel=cancel)
        ask(session, "GET", server.url)
        with pytest.raises(NotReady, match="stopped by hand"):
            ask(session, "GET", server.url, cancel=cancel)
        assert len(server.requests) == 1


def test_a_cancel_that_comes_late_leaves_the_connection_alone(session: Session):
    with faulty(says(HELLO)) as server:
        for _ in range(3):
            cancel = Cancel()
            ask(session, "GET", server.url, cancel=cancel)
            cancel.set()
        assert server.connections == 1


def test_cancels_at_any_moment_leave_no_connection_in_a_state_that_others_meet(session: Session):
    with faulty(says(HELLO)) as server:
        for _ in range(100):
            cancel = Cancel()
            thread = threading.Thread(target=cancel.set)
            thread.start()
            with suppress(Cancelled):
                ask(session, "GET", server.url, cancel=cancel)
            thread.join(10)
            assert ask(session, "GET", server.url).json() == {"hello": "you"}


# Leaks


def test_five_hundred_calls_that_fail_leave_nothing_behind(session: Session):
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    scripts = [
        breaks_off(),
        resets(),
        breaks_off(stream_head(), http_chunk(b"abc")),
        breaks_off(b"nonsense\r\n\r\n"),
        says(HELLO + b"more"),
    ]
    with faulty(lambda peer: scripts[peer.number % len(scripts)](peer)) as server:
        before, threads = open_files(), threading.active_count()
        for _ in range(500):
            with (
                suppress(WorkerUnreachable),
                session.request("GET", server.url) as answer,
            ):
                answer.read1()
        wait_until(lambda: server.open_connections == 0, "all connections ended")
        assert open_files() <= before
        wait_until(lambda: threading.active_count() <= threads, "all threads ended")


# gevent

GEVENT = """
from gevent import monkey; monkey.patch_all()
import sys, time, gevent
from modelyard.errors import Cancelled
from modelyard.sessions.session import Session
from modelyard.streams import Cancel
whole, stalling, deaf, path = sys.argv[1:]
session = Session(connect_timeout=30, read_timeout=30)
jobs = [gevent.spawn(lambda: session.request("GET", whole).content) for _ in range(20)]
gevent.joinall(jobs, timeout=20, raise_error=True)
assert all(job.value for job in jobs)
assert session.request("GET", path).content

def cancelled(url):
    cancel = Cancel()
    gevent.spawn_later(0.2, cancel.set)
    began = time.monotonic()
    try:
        with session.request("GET", url, cancel=cancel) as response:
            assert response.read1() == b"a"
            while response.read1() is None:
                pass
    except Cancelled:
        return time.monotonic() - began < 1.5
    return False

ticks = []
def tick():
    while True:
        ticks.append(1)
        gevent.sleep(0.01)
ticking = gevent.spawn(tick)
assert cancelled(stalling) and cancelled(deaf)
assert len(ticks) > 10, "other greenlets went on"
with session.request("GET", stalling) as response:
    assert (response.read1(), response.read1()) == (b"a", None)
print("done")
"""


def test_it_gives_way_to_other_greenlets_where_gevent_has_patched_sockets(deaf: str, tmp_path: Path):
    with (
        faulty(says(HELLO)) as server,
        faulty(stalls(stream_head(), http_chunk(b"a"))) as stalling,
        faulty(says(HELLO), path=tmp_path / "a.sock") as unix,
    ):
        command = [sys.executable, "-c", GEVENT, server.url, stalling.url, deaf, unix.url]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert ran.stdout == "done\n", ran.stderr
