"""Tokens and networks at a real service: who is let in, how a token is rotated, and that none is ever shown."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
from modelyard.access.tokens import Token, add_to_file, digest_of, new_secret, parse_scopes, remove_from_file
from processes import children
from running import ROOT, Service, Services, console_script, wait_until

ECHO = '[[models]]\nname = "echo"\n'
SCOPES = ("infer", "worker", "admin")
HERE = "http://127.0.0.1:9/api"
TRUSTED = "127.0.0.2"
"""An address of this machine that the service under test trusts."""

CALLS: dict[str, tuple[str, Any]] = {
    "POST /worker/generate": ("infer", {"model": "echo", "prompt": "x"}),
    "POST /worker/generate_stream": ("infer", {"model": "echo", "prompt": "x"}),
    "POST /worker/embeddings": ("infer", {"model": "nobody", "input": ["x"]}),
    "POST /worker/count_token": ("infer", {"model": "echo", "prompt": "x"}),
    "POST /worker/model_metadata": ("infer", {"model": "echo"}),
    "GET /worker/parameter/descriptions?model=echo": ("infer", None),
    "GET /worker/models/supports": ("infer", None),
    "POST /worker/apply": ("admin", {"model": "nobody", "apply_type": "start"}),
    "POST /worker/models/startup": ("admin", {"model": "nobody"}),
    "POST /worker/models/shutdown": ("admin", {"model": "nobody"}),
    "GET /controller/models": ("infer worker", None),
    "GET /controller/instances": ("infer worker", None),
    "POST /controller/models": ("worker", {"model_name": "m@llm", "host": "127.0.0.1", "port": 9}),
    "POST /controller/heartbeat": ("worker", {"model_name": "m@llm", "host": "127.0.0.1", "port": 9}),
    "POST /controller/instances": ("worker", [{"key": "m@llm", "url": HERE}]),
    "DELETE /controller/models?model_name=m@llm&host=127.0.0.1&port=9": ("worker", None),
    "DELETE /controller/instances": ("worker", [{"key": "m@llm", "url": HERE}]),
}


class Answered(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def reason(self) -> str:
        """What is said of a refusal, in a problem document or a model output."""
        document = json.loads(self.body.rstrip(b"\0"))
        return str(document["text"] if "text" in document else document["detail"])


def ask(
    port: int, call: str, body: Any = None, secret: str | None = None, *, source: str = "127.0.0.1", **headers: str
) -> Answered:
    """Call from ``source``, an address of this machine, on a connection of its own."""
    method, path = call.split()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30, source_address=(source, 0))
    if secret is not None:
        headers["Authorization"] = f"Bearer {secret}"
    try:
        connection.request(method, f"/api{path}", None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return Answered(response.status, dict(response.getheaders()), response.read())
    finally:
        connection.close()


class Guarded(NamedTuple):
    """A service on all addresses of this machine, and the secrets that it takes."""

    service: Service
    secrets: dict[str, str]
    file: Path

    def ask(self, call: str, body: Any = None, secret: str | None = None, **options: str) -> Answered:
        return ask(self.service.port, call, body, secret, **options)


def add(file: Path, name: str, scopes: str) -> str:
    """Put a new token into a file; return the secret."""
    secret = new_secret()
    add_to_file(file, Token(name, parse_scopes(scopes), digest_of(secret)))
    return secret


def guarded_by(run: Services, **settings: Any) -> Guarded:
    folder = run.folder()
    file = folder / "tokens"
    secrets = {scope: add(file, scope, scope) for scope in SCOPES}
    service = run.start(ECHO, folder=folder, host="0.0.0.0", tokens_file=file, **settings)
    return Guarded(service, secrets, file)


@pytest.fixture(scope="module")
def guarded(run_module: Services) -> Guarded:
    return guarded_by(run_module, trusted_networks=f"{TRUSTED}=infer")


@pytest.mark.parametrize("call", CALLS)
def test_each_call_wants_a_token_that_has_its_scope(guarded: Guarded, call: str) -> None:
    scopes, body = CALLS[call]
    for secret in (None, new_secret(), "", digest_of(guarded.secrets["admin"]).hex()):
        refused = guarded.ask(call, body, secret)
        assert refused.status == 401
        assert refused.headers["WWW-Authenticate"].startswith("Bearer")
        assert all(scope in refused.reason for scope in scopes.split())
    for scope in SCOPES:
        answered = guarded.ask(call, body, guarded.secrets[scope])
        if scope in (*scopes.split(), "admin"):
            assert answered.status in (200, 404), answered
        else:
            assert answered.status == 403
            assert all(wanted in answered.reason for wanted in scopes.split())
            assert f"the token {scope} has {scope}" in answered.reason


def test_a_refused_stream_is_one_output_that_the_peers_read(guarded: Guarded) -> None:
    refused = guarded.ask("POST /worker/generate_stream", CALLS["POST /worker/generate"][1])
    assert refused.body.endswith(b"\0")
    output = json.loads(refused.body[:-1])
    assert (output["error_code"], refused.status) == (401, 401)


def test_a_connection_goes_on_after_a_refusal_with_a_body(guarded: Guarded) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", guarded.service.port, timeout=30)
    body = json.dumps({"model": "echo", "prompt": "x" * 2000})
    try:
        for secret, status in ((new_secret(), 401), (guarded.secrets["infer"], 200)):
            headers = {"Authorization": f"Bearer {secret}", "Accept": "*/*"}
            connection.request("POST", "/api/worker/count_token", body, headers)
            response = connection.getresponse()
            assert (response.status, bool(response.read())) == (status, True)
    finally:
        connection.close()


def test_a_refusal_can_be_read_however_large_the_body_is(guarded: Guarded) -> None:
    # As a loop: whether the answer outruns the connection's end is a race.
    for _ in range(5):
        answer = requests.post(guarded.service.url("embeddings"), data=b" " * 8_000_000, timeout=30)
        assert (answer.status_code, answer.headers["Content-Type"]) == (401, "application/problem+json")


def test_who_can_send_no_token_is_known_by_its_address(guarded: Guarded) -> None:
    for call, (scopes, body) in CALLS.items():
        status = guarded.ask(call, body, source=TRUSTED).status
        assert status in ((200, 404) if "infer" in scopes.split() else (401,)), call
        assert guarded.ask(call, body, source="127.0.0.3").status == 401, call


def test_an_address_that_a_header_claims_is_not_believed(guarded: Guarded) -> None:
    call, body = "POST /worker/generate", CALLS["POST /worker/generate"][1]
    for headers in ({"X-Forwarded-For": TRUSTED}, {"Forwarded": f"for={TRUSTED}"}, {"X-Real-IP": TRUSTED}):
        assert guarded.ask(call, body, **headers).status == 401
        assert guarded.ask(call, body, source=TRUSTED, **headers).status == 401


def test_health_is_told_to_everybody(guarded: Guarded) -> None:
    assert guarded.service.status()["ready"] is True
    assert guarded.ask("GET /health", source="127.0.0.3").status == 200


def test_a_token_is_made_and_revoked_without_a_restart(guarded: Guarded) -> None:
    call, body = "POST /worker/generate", CALLS["POST /worker/generate"][1]
    process = guarded.service.worker_pid()
    secret = add(guarded.file, "rotated", "infer")
    wait_until(lambda: guarded.ask(call, body, secret).status == 200, "the new token is known", 10)
    remove_from_file(guarded.file, "rotated")
    wait_until(lambda: guarded.ask(call, body, secret).status == 401, "the token is revoked", 10)
    assert guarded.ask(call, body, guarded.secrets["infer"]).status == 200
    assert guarded.service.worker_pid() == process


def test_a_file_that_breaks_locks_nobody_out(guarded: Guarded) -> None:
    call, body = "POST /worker/generate", CALLS["POST /worker/generate"][1]
    before = guarded.file.read_bytes()
    guarded.file.write_text("half a li")
    try:
        wait_until(
            lambda: (
                guarded.ask(call, body, guarded.secrets["infer"]).status == 200
                and "tokens read before stay accepted" in guarded.service.log()
            ),
            "the fault is in the log",
            10,
        )
        assert guarded.ask(call, body).status == 401
    finally:
        guarded.file.write_bytes(before)


def test_no_token_is_in_the_log_a_command_line_or_an_answer(run: Services) -> None:
    own = new_secret()
    guarded = guarded_by(run, log_level="debug", environ={"MODELYARD_TOKEN": own})
    wrong = new_secret()
    told = []
    for call, (_, body) in CALLS.items():
        for secret in (*guarded.secrets.values(), own, wrong):
            told.append(guarded.ask(call, body, secret).body)
            told.append(guarded.ask(f"{call}{'&' if '?' in call else '?'}x=1", body, secret).body)
    told.append(json.dumps(guarded.service.status()).encode())
    guarded.service.wait_for_line(path="/api/controller/instances", method="DELETE", status=200)
    lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (guarded.service.pid, *children(guarded.service.pid))]
    everything = b"".join([guarded.service.log_path.read_bytes(), *told, *lines])
    for secret in (*guarded.secrets.values(), own, wrong):
        assert secret.encode() not in everything
        assert digest_of(secret).hex().encode() not in everything
    assert {line.get("caller") for line in guarded.service.access_lines()} == {*SCOPES, None}


def test_tokens_may_stand_in_the_environment(run: Services) -> None:
    secret = new_secret()
    entry = Token("ci", parse_scopes("infer"), digest_of(secret)).line
    service = run.start(ECHO, host="0.0.0.0", tokens=f"{entry}, other worker {'0' * 64}")
    call, body = "POST /worker/generate", CALLS["POST /worker/generate"][1]
    assert ask(service.port, call, body, secret).status == 200
    assert ask(service.port, call, body).status == 401


@pytest.mark.parametrize("command", [[], [console_script("gunicorn"), "wsgi:app"]])
@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"tokens_file": "/nonexistent/tokens"}, "/nonexistent/tokens: No such file"),
        ({"tokens": "ci infer hunter2"}, "tokens, item 1: token ci: the third word is not a SHA-256"),
        ({"trusted_networks": "10.0.0.0/8"}, "has no scopes"),
        ({"allowed_networks": "everywhere"}, "allowed_networks"),
        ({"token_file": "/nonexistent/token"}, "/nonexistent/token: No such file"),
        ({"token": "own", "remote_headers": "authorization=Basic eHk="}, "remote_headers: Authorization is the header"),
        ({"registry": "sqlite:////nonexistent/registry.db"}, "there is no folder /nonexistent: make it"),
        ({"registry": "nowhere:"}, "registry nowhere:: unknown kind"),
    ],
)
def test_what_does_not_fit_is_refused_at_the_start(
    run: Services, settings: dict[str, str], why: str, command: list[str]
) -> None:
    service = run.start(ECHO, wait="nothing", command=command, cwd=ROOT, **settings)
    assert service.wait_ended(60) != 0
    assert why in service.log()
    assert "hunter2" not in service.log()
    assert "Traceback" not in service.log()


def test_networks_alone_open_the_door_for_whom_they_name(run: Services) -> None:
    service = run.start(ECHO, host="0.0.0.0", trusted_networks="192.0.2.0/24=worker")
    call, body = "POST /worker/apply", CALLS["POST /worker/apply"][1]
    assert ask(service.port, call, body).status == 404, "no token is asked for, so this machine may do everything"


def test_through_a_proxy_in_front_of_loopback_one_may_ask_models_and_no_more(run: Services) -> None:
    service = run.start(ECHO)
    for call, (scopes, body) in CALLS.items():
        answered = ask(service.port, call, body, **{"X-Forwarded-For": "203.0.113.7"})
        assert answered.status in ((200, 404) if "infer" in scopes.split() else (403,)), call
        assert ask(service.port, call, body).status in (200, 404), call
    assert "--tokens-file" in ask(service.port, "POST /worker/apply", {}, Via="1.1 nginx").reason
    assert "has the Host" not in service.log()
    assert ask(service.port, "POST /worker/apply", {}, Host="shop.example").status == 422
    assert "has the Host 'shop.example'" in service.log()
    assert service.log().count("no token is set: every program on this machine may start and stop models") == 1


def test_behind_a_proxy_that_asks_who_comes_insecure_lets_everything_through(run: Services) -> None:
    service = run.start(ECHO, "--insecure")
    call, body = "POST /worker/apply", CALLS["POST /worker/apply"][1]
    assert ask(service.port, call, body, Via="1.1 nginx").status == 404


def test_a_web_page_of_elsewhere_can_not_stop_the_models_of_who_reads_it(run: Services) -> None:
    service = run.start(ECHO)
    call, body = "POST /worker/models/shutdown", {"model": "echo"}
    assert ask(service.port, call, body, Origin="https://evil.example").status == 403
    assert service.model("echo@llm")["state"] == "ready"
    assert ask(service.port, call, body, Origin="http://localhost:3000").status == 200


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@pytest.mark.parametrize("with_tokens", [False, True])
def test_a_unix_socket_counts_as_this_machine(run: Services, with_tokens: bool) -> None:
    folder = run.folder()
    path = folder / "s"
    entry = f"ci admin {'0' * 64}" if with_tokens else ""
    command = [console_script("gunicorn"), "--bind", f"unix:{path}", "wsgi:app"]
    run.start(ECHO, folder=folder, command=command, cwd=ROOT, wait="nothing", tokens=entry)

    def status() -> int:
        connection = UnixConnection(path)
        try:
            connection.request("POST", "/api/worker/apply", json.dumps(CALLS["POST /worker/apply"][1]))
            return connection.getresponse().status
        except OSError:
            return 503
        finally:
            connection.close()

    assert wait_until(lambda: (found := status()) != 503 and found, "an answer") == (401 if with_tokens else 404)


# A cluster in which everybody needs a token


class Cluster(NamedTuple):
    """A controller, a worker and a gateway, all of which ask for tokens of one file."""

    controller: Service
    worker: Service
    gateway: Service
    secrets: dict[str, str]
    file: Path

    def ask(self, call: str, body: Any, secret: str | None) -> Answered:
        """Call the gateway."""
        return ask(self.gateway.port, call, body, self.secrets.get(secret or "", secret))


def registry_of(controller: Service) -> str:
    return f"http://127.0.0.1:{controller.port}/api"


@pytest.fixture(scope="module")
def cluster(run_module: Services) -> Iterator[Cluster]:
    folder = run_module.folder()
    file, own = folder / "tokens", folder / "token"
    scopes = {"client": "infer", "person": "admin", "gpu": "worker", "router": "infer"}
    secrets = {name: add(file, name, granted) for name, granted in scopes.items()}
    own.write_text(f"{secrets['router']}\n")
    own.chmod(0o600)
    guard: dict[str, Any] = {"tokens_file": file, "heartbeat_timeout": 3, "registry_refresh": 0.1}
    # Heartbeats that were taken have a line at this level only.
    controller = run_module.start("", "controller", **guard, log_level="debug")
    there = {**guard, "registry": registry_of(controller)}
    worker = run_module.start(ECHO, "worker", **there, environ={"MODELYARD_TOKEN": secrets["gpu"]})
    gateway = run_module.start("", "gateway", **there, token_file=own)
    made = Cluster(controller, worker, gateway, secrets, file)
    wait_until(lambda: made.ask(*GENERATE, "client").status == 200, "an answer through the gateway", 30)
    yield made
    for service in (gateway, worker, controller):
        service.kill()


GENERATE = ("POST /worker/generate", {"model": "echo", "prompt": "x"})


def test_our_own_parts_send_their_tokens(cluster: Cluster) -> None:
    rows = json.loads(ask(cluster.controller.port, "GET /controller/instances", None, cluster.secrets["gpu"]).body)
    assert {row["key"] for row in rows} >= {"echo@llm", "WorkerManager@service"}
    assert cluster.ask(*GENERATE, "client").status == 200
    assert cluster.ask(*GENERATE, None).status == 401
    assert ask(cluster.worker.port, *GENERATE).status == 401
    callers = {line.get("caller") for line in cluster.worker.access_lines() if line["status"] == 200}
    assert callers == {"router"}, "a client's token ends at the gateway"


def test_a_router_whose_token_lacks_a_scope_says_that_it_is_not_the_clients(cluster: Cluster) -> None:
    refused = cluster.ask("POST /worker/models/shutdown", {"model": "echo"}, "person")
    assert refused.status == 403
    assert "refuses this router, not its client" in refused.reason
    assert "scope admin; the token router has infer" in refused.reason
    outcome = json.loads(cluster.ask("POST /worker/apply", {"model": "echo", "apply_type": "restart"}, "person").body)
    assert outcome["success"] is False
    assert "scope admin" in outcome["message"]
    assert cluster.ask(*GENERATE, "client").status == 200, "the worker is still taken for what the router may do"


def test_a_router_whose_token_is_not_known_is_503_to_its_clients(cluster: Cluster, run: Services) -> None:
    client = new_secret()
    entry = Token("client", parse_scopes("infer"), digest_of(client)).line
    registry = registry_of(cluster.controller)
    other = run.start(
        "", "gateway", registry=registry, tokens=entry, environ={"MODELYARD_TOKEN": cluster.secrets["gpu"]}
    )
    said = wait_until(
        lambda: "not its client" in (r := ask(other.port, *GENERATE, client)).reason and r, "a refusal", 20
    )
    assert said.status == 503
    assert "needs the scope infer; the token gpu has worker" in said.reason


@pytest.mark.parametrize(("token", "why"), [(None, "is not known here"), ("router", "the token router has infer")])
def test_a_worker_with_a_wrong_token_works_alone_and_its_log_says_why(
    cluster: Cluster, run: Services, token: str | None, why: str
) -> None:
    secret = new_secret() if token is None else cluster.secrets[token]
    worker = run.start(ECHO, "worker", registry=registry_of(cluster.controller), environ={"MODELYARD_TOKEN": secret})
    wait_until(lambda: why in worker.log(), "the reason in the log", 20)
    assert "scope worker" in worker.log()
    assert secret not in worker.log()
    assert ask(worker.port, *GENERATE).status == 200


def test_an_address_that_may_not_be_registered_is_told_to_who_advertises_it(run: Services) -> None:
    elsewhere = "http://203.0.113.7:8001/api"
    controller = run.start("", "controller")
    worker = run.start(ECHO, "worker", registry=registry_of(controller), advertise=elsewhere)
    wait_until(lambda: f"{elsewhere} can't be registered" in worker.log(), "the reason in the log", 20)
    assert json.loads(ask(controller.port, "GET /controller/instances").body) == []


def test_a_worker_goes_on_when_tokens_are_rotated_under_it(cluster: Cluster, run: Services) -> None:
    folder = run.folder()
    own = folder / "token"
    old = add(cluster.file, "old", "worker")
    own.write_text(old)
    own.chmod(0o600)
    registry = registry_of(cluster.controller)
    worker = run.start(ECHO, "worker", folder=folder, registry=registry, token_file=own, heartbeat_interval=0.2)

    def beats() -> list[str | None]:
        return [line.get("caller") for line in cluster.controller.access_lines() if line["status"] == 200]

    wait_until(lambda: "old" in beats(), "heartbeats with the old token")
    own.write_text(add(cluster.file, "new", "worker"))
    wait_until(lambda: "new" in beats(), "heartbeats with the new token")
    remove_from_file(cluster.file, "old")
    wait_until(lambda: ask(cluster.controller.port, "DELETE /controller/instances", [], old).status == 401, "revoked")
    count = beats().count("new")
    wait_until(lambda: beats().count("new") > count + 2, "heartbeats go on")
    assert "refuses this process" not in worker.log()
