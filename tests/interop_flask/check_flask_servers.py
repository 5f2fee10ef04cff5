"""Applications that nobody here wrote, with Modelyard, under six servers: they answer as without it, and so does it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from clients import NO_WAIT, Connection, chunks_of
from running import ROOT, Service, Services, wait_until
from suites import Suites

from scripts import journal, script

PREFIX = "/ml/api"
TABLES = """
[[models]]
name = "script"
worker_class = "scripted:Scripted"
journal = "{journal}"
limit_model_concurrency = 1
"""
GUNICORN = ("gunicorn", "theirs:app", "--bind", "127.0.0.1:{port}", "-w", "4", "--preload", "--no-control-socket")
# It closes connections, and does not say so by itself.
UWSGI = (
    "--add-header=Connection: close",
    "--module=theirs:app",
    "--processes=4",
    "--master",
    "--enable-threads",
    "--need-app",
    "--die-on-term",
)
SERVERS = {
    "gthread": (*GUNICORN, "-k", "gthread", "--threads", "8"),
    "sync": (*GUNICORN, "-k", "sync"),
    "gevent": (*GUNICORN, "-k", "gevent"),
    "waitress": ("waitress-serve", "--listen=127.0.0.1:{port}", "--channel-request-lookahead=1", "theirs:app"),
    "uwsgi": ("uwsgi", "--http-socket=127.0.0.1:{port}", *UWSGI),
    "flask run": ("flask", "--app", "theirs:app", "run", "--port", "{port}"),
    "flask run --debug": ("flask", "--app", "theirs:app", "run", "--port", "{port}", "--debug"),
}
SOURCES = {
    "tutorial": ("Flask", "3.1.3", "examples/tutorial"),
    "login": ("Flask-Security", "5.9.2", "examples"),
    "admin": ("Flask-AppBuilder", "5.3.0", "examples/crud_rest_api"),
    "httpbin": ("httpbin", "0.10.4", ""),
    "guarded": ("Flask-Limiter", "4.1.1", "examples"),
}
"""The source distribution of each application, and the folder that is on the path."""


Seen = dict[tuple[str, str], list[dict[str, Any]]]
"""What a visit has seen, by application and server."""


@dataclass
class Step:
    """One request of a visit; ``{0}`` in its data stands for the token in the answer before, if there is one."""

    method: str
    path: str
    form: dict[str, str] = field(default_factory=dict)
    json: Any = None
    headers: dict[str, str] = field(default_factory=dict)


USER = {"username": "ada", "password": "lovelace"}
VISITS: dict[str, Sequence[Step]] = {
    "tutorial": [
        Step("GET", "/"),
        Step("GET", "/hello"),
        Step("POST", "/auth/register", {"username": "", "password": "x"}),
        Step("POST", "/auth/register", USER),
        Step("POST", "/auth/login", {**USER, "password": "wrong"}),
        Step("GET", "/create"),
        Step("POST", "/auth/login", USER),
        Step("POST", "/create", {"title": "One", "body": "first"}),
        Step("GET", "/"),
        Step("POST", "/1/update", {"title": "Two", "body": "second"}),
        Step("GET", "/1/update"),
        Step("POST", "/7/delete"),
        Step("GET", "/1/delete"),
        Step("GET", "/static/style.css"),
        Step("GET", "/nowhere"),
        Step("PUT", "/hello"),
        Step("GET", "/auth/logout"),
    ],
    "login": [
        Step("GET", "/"),
        Step("GET", "/login"),
        Step("POST", "/login", {"email": "user@me.com", "password": "wrong", "csrf_token": "{0}"}),
        Step("POST", "/login", json={"email": "user@me.com", "password": "password"}),
        Step("GET", "/"),
        Step("GET", "/myblogs"),
        Step("GET", "/admin"),
        Step("GET", "/ops", headers={"Accept": "application/json"}),
        Step("GET", "/blog/99"),
        Step("POST", "/logout"),
        Step("GET", "/myblogs"),
        Step("DELETE", "/login"),
    ],
    "admin": [
        Step("GET", "/"),
        Step("GET", "/login/"),
        Step("GET", "/api/v1/greeting/"),
        Step("GET", "/api/v1/contact/"),
        Step("POST", "/api/v1/security/login", json={"username": "admin", "password": "wrong", "provider": "db"}),
        Step("POST", "/api/v1/security/login", json={"nothing": 1}),
        Step("POST", "/login/", {"username": "admin", "password": "password"}),
        Step("GET", "/contactgroupmodelview/list/"),
        Step("POST", "/contactgroupmodelview/add", {"name": "friends"}),
        Step("GET", "/contactgroupmodelview/list/"),
        Step("GET", "/api/v1/group/"),
        Step("GET", "/api/v1/_openapi"),
        Step("GET", "/users/list/"),
        Step("GET", "/nowhere"),
        Step("PATCH", "/login/"),
        Step("GET", "/logout/"),
    ],
    "httpbin": [
        Step("GET", "/get?a=1"),
        Step("POST", "/post", {"name": "value"}),
        Step("POST", "/post", json={"name": [1, None]}),
        Step("PUT", "/anything/x", json="text"),
        Step("DELETE", "/delete"),
        *(Step("GET", f"/status/{code}") for code in (204, 301, 401, 404, 405, 418, 500, 503)),
        Step("GET", "/cookies/set?a=b"),
        Step("GET", "/cookies"),
        Step("GET", "/gzip"),
        Step("GET", "/deflate"),
        Step("GET", "/stream/5"),
        Step("GET", "/stream-bytes/64?seed=1"),
        Step("GET", "/range/100", headers={"Range": "bytes=10-19"}),
        Step("GET", "/etag/abc", headers={"If-None-Match": "abc"}),
        Step("GET", "/basic-auth/a/b"),
        Step("GET", "/encoding/utf8"),
        Step("GET", "/nowhere"),
        Step("PATCH", "/get"),
    ],
    "guarded": [
        Step("GET", "/"),
        Step("GET", "/version"),
        Step("GET", "/health/"),
        Step("GET", "/resource"),
        Step("POST", "/resource"),
        Step("GET", "/csrf", headers={"Accept-Encoding": "gzip"}),
        Step("POST", "/resource", {"csrf_token": "{0}"}),
        Step("GET", "/nowhere"),
        Step("PUT", "/resource"),
    ],
}
CHANGING = (
    (r'(csrf_token"[^>]*value=|"token": ?|"csrf_token": ?)"[^"]+"', r'\1"TOKEN"'),
    (r"\d{4}-\d\d-\d\d( \d\d:\d\d:\d\d)?", "DATE"),
    (r'nonce="[^"]+"', 'nonce="N"'),
    (r"127\.0\.0\.1:\d+", "ADDRESS"),
)
"""What differs between two visits."""
KEPT = ("Content-Type", "Location", "Allow", "WWW-Authenticate", "Content-Encoding", "Content-Security-Policy")
KEPT += ("X-Frame-Options", "Access-Control-Allow-Origin", "Vary", "ETag", "Content-Range")
"""The headers that are compared; the others are of the server."""


def start(run: Services, suites: Suites, application: str, server: str, **variables: str) -> Service:
    """Run an application under a server of its environment, in a folder of its own."""
    place = suites.environment("flask", "--editable", f"{ROOT}[server]")
    folder = run.folder()
    path = [suites.inside, suites.source(place, *SOURCES[application][:2]) / SOURCES[application][2]]
    path.append(ROOT / "tests" / "process" / "engines")
    program, *arguments = SERVERS[server]
    is_mounted = "MOUNTED" in variables
    service = run.start(
        TABLES.format(journal=folder / "journal"),
        folder=folder,
        command=[str(Path(place.python).with_name(program)), *arguments],
        # The order of sets is that of a visit without Modelyard.
        environ={
            "PYTHONHASHSEED": "0",
            "APPLICATION": application,
            "PYTHONPATH": ":".join(map(str, path)),
            **variables,
        },
        probes=PREFIX,
        wait="ready" if is_mounted else "up",
        **({} if is_mounted else {"config": ""}),
    )
    service.may_show_tracebacks = True
    return service


def _joined(path: Sequence[Path]) -> str:
    return os.pathsep.join(map(str, path))


def visit(service: Service, steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Return what each request of a visit was answered, without what differs between visits."""
    seen, token = [], ""
    with requests.Session() as session:
        session.trust_env = False
        for step in steps:
            headers = {"Accept-Encoding": "identity", **step.headers}
            form = {name: value.format(token) for name, value in step.form.items()}
            response = session.request(
                step.method,
                service.url(step.path),
                data=form or None,
                json=step.json,
                headers=headers,
                allow_redirects=False,
                timeout=20,
            )
            if found := re.search(r'(?:csrf_token"[^>]*value=|"token": ?)"([^"]+)"', response.text):
                token = found[1]
            seen.append({"step": f"{step.method} {step.path}", **_kept(response)})
    return seen


def _kept(response: requests.Response) -> dict[str, Any]:
    headers = {name: _constant(response.headers[name]) for name in KEPT if name in response.headers}
    cookies = sorted((cookie.name, cookie.path, cookie.secure) for cookie in response.cookies)
    body = _constant(response.text)
    return {"status": response.status_code, "headers": headers, "cookies": cookies, "body": body}


def _constant(text: str) -> str:
    for pattern, replacement in CHANGING:
        text = re.sub(pattern, replacement, text)
    return text


@pytest.fixture(scope="session")
def without() -> Seen:
    """What the applications answer without Modelyard."""
    return {}


def expected(run: Services, suites: Suites, application: str, server: str, kept: Seen) -> list[dict[str, Any]]:
    """Return what the visit of an application sees without Modelyard."""
    # `flask run` sets the debug mode, in which Flask writes JSON and errors in another way.
    at = application, server if server.startswith("flask run") else "gthread"
    if at not in kept:
        kept[at] = visit(start(run, suites, *at), VISITS[application])
    return kept[at]


def ask(service: Service) -> None:
    """Check Modelyard's calls: a whole answer, streams piece by piece, a hang-up, a refusal, health and metrics."""
    accepted = {"Accept-Encoding": "zstd, br, gzip, deflate"}
    answer = service.post(f"{PREFIX}/worker/generate", script(pieces=2), headers=accepted)
    assert (answer.status_code, answer.json()["text"]) == (200, "xx")
    chat = {**script(pieces=2), "stream": True}
    chat["messages"][0]["role"] = "user"
    events = service.post(f"{PREFIX}/v1/chat/completions", chat, headers=accepted).text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    for path in ("/worker/generate_stream", "/v1/chat/completions"):
        body = {**script(pieces=400, each=0.05), "stream": True}
        body["messages"][0]["role"] = "user"
        with Connection(service.port) as client:
            client.send("POST", f"{PREFIX}{path}", body, accepted)
            head = client.read_head()
            assert head.status == 200
            assert "content-encoding" not in head.headers
            client.sock.recv(1)  # long before the end
            assert not service.post(f"{PREFIX}/worker/generate", script(), headers=NO_WAIT).ok
        wait_until(lambda: service.post(f"{PREFIX}/worker/generate", script(), headers=NO_WAIT).ok, "a free slot", 10)
    refusal = service.post(f"{PREFIX}/worker/apply", {"model": "script"})
    assert (refusal.status_code, refusal.headers["Content-Type"]) == (422, "application/problem+json")
    assert service.get(f"{PREFIX}/healthz").json() == {"status": "ok"}
    assert "modelyard_request_success_total" in service.get(f"{PREFIX}/metrics").text
    assert len(journal(service, "start")) == 1, "the models are in one process"


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("application", VISITS)
def check_application(run: Services, suites: Suites, without: Seen, application: str, server: str) -> None:
    wanted = expected(run, suites, application, server, without)
    service = start(run, suites, application, server, MOUNTED="1")
    for before, after in zip(wanted, visit(service, VISITS[application]), strict=True):
        assert after == before
    ask(service)


def check_csrf_refuses_in_the_shape_that_clients_read(run: Services, suites: Suites) -> None:
    service = start(run, suites, "guarded", "gthread", MOUNTED="1", NOT_EXEMPT="1")
    answer = service.post(f"{PREFIX}/worker/generate", {"model": "echo", "prompt": "x"})
    assert (answer.status_code, answer.json()["text"]) == (400, "The CSRF token is missing.")
    assert answer.json()["error_code"] == 400
    stream = service.post(f"{PREFIX}/worker/generate_stream", {"model": "echo", "prompt": "x"})
    assert chunks_of(stream.content)[0]["text"] == "The CSRF token is missing."
    chat = service.post(f"{PREFIX}/v1/chat/completions", {"model": "echo", "messages": []})
    assert (chat.status_code, json.loads(chat.text)["error"]["message"]) == (400, "The CSRF token is missing.")
