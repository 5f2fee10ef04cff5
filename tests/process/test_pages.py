"""The pages of real services: streams that end in time, also behind nginx, and a sign-in that all processes know."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import requests
from modelyard.blueprints.pages import live
from nginx import Nginx, plain_configuration
from pages_service import SECRETS, TOKENS
from running import WORKER_CLASSES, Service, Services, wait_until

TABLES = '[[models]]\nname = "echo"\n'
LIMIT = 20.0
ADMIN = {"Authorization": f"Bearer {SECRETS['admin']}"}


@pytest.fixture(params=WORKER_CLASSES)
def service(request: pytest.FixtureRequest, run: Services) -> Service:
    return run.start(TABLES, worker_class=request.param)


@pytest.fixture
def proxied(service: Service) -> Iterator[int]:
    """The port of an nginx before the service, which would gather answers."""
    server = Nginx(service.port, configured=plain_configuration)
    try:
        server.start()
        yield server.port
    finally:
        server.close()


def test_streams_end_when_the_service_does(service: Service, proxied: int):
    urls = [f"http://127.0.0.1:{port}/ui/events" for port in (proxied, *[service.port] * (live.MOST - 1))]
    with ExitStack() as stack:
        streams = [stack.enter_context(requests.get(url, stream=True, timeout=LIMIT)) for url in urls]
        bodies = [stream.iter_content(None) for stream in streams]
        assert [next(body) for body in bodies] == [f"retry: {live.RECONNECT}\n\n".encode()] * live.MOST
        assert service.get("/ui/events").status_code == 204
        assert "<h1>Cluster</h1>" in service.get("/ui/").text
        service.process.send_signal(signal.SIGTERM)
        rest = [b"".join(body) for body in bodies]  # raises if one is broken off
        assert all(b"data:" in body for body in rest)
    assert service.process.wait(LIMIT) == 0


def test_every_process_knows_a_sign_in(run: Services):
    service = run.start(TABLES, workers=2, http_threads="gevent", tokens=",".join(TOKENS))
    own = {"Origin": service.url("/").rstrip("/")}
    answer = service.post("/ui/sign-in/send", data={"key": SECRETS["admin"]}, headers=own, allow_redirects=False)
    assert answer.status_code == 303
    seen: set[str] = set()

    def is_known_to_both() -> bool:
        page = service.get("/ui/model?name=echo&type=llm", allow_redirects=False)
        assert page.status_code == 200
        process, number = re.findall(r"of process (\d+), one of (\d) of this service", page.text)[0]
        assert int(number) == 3, "two of the web, and the model host"
        seen.add(process)
        return len(seen) == 2

    # A connection each: whichever process accepts it answers.
    wait_until(is_known_to_both, "both processes have answered", LIMIT)
