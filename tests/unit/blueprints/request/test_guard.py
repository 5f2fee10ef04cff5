"""The guard: who may call what, by token or by address; and which addresses may be registered."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, request
from flask.testing import FlaskClient
from modelyard.access import token_store, tokens
from modelyard.access.tokens import Token, digest_of, parse_scopes
from modelyard.blueprints.controller import controller_blueprint
from modelyard.blueprints.request import detour
from modelyard.blueprints.request import problems as errors
from modelyard.blueprints.request.detour import FORWARDED
from modelyard.blueprints.request.guard import NEEDS, Guard
from modelyard.cluster.registry.memory import MemoryRegistry
from modelyard.errors import ConfigError, Forbidden, InvalidRequest, Unauthorized
from modelyard.server.extension import attach
from modelyard.server.runtime import Runtime
from modelyard.settings import loopback
from modelyard.settings.settings import Settings
from packaging.version import Version
from running import ROOT

OLD_CLIENT = Version(version("werkzeug")) < Version("3.1")
LOOPBACK, ELSEWHERE = "127.0.0.1", "203.0.113.7"
"""An address of this machine, and one that no machine has."""

INFER = {
    *("POST /worker/generate_stream", "POST /worker/generate", "POST /worker/embeddings", "POST /worker/count_token"),
    *("POST /worker/model_metadata", "GET /worker/parameter/descriptions", "GET /worker/models/supports"),
}
ADMIN = {"POST /worker/apply", "POST /worker/models/startup", "POST /worker/models/shutdown"}
READ = {"GET /controller/models", "GET /controller/instances"}
WORKER = {
    *("POST /controller/models", "DELETE /controller/models", "POST /controller/heartbeat"),
    *("POST /controller/instances", "DELETE /controller/instances"),
}
CALLS = sorted(INFER | ADMIN | READ | WORKER)
ALLOWED = {"infer": INFER | READ, "worker": WORKER | READ, "admin": set(CALLS)}


def line(scopes: str, secret: str | None = None, name: str | None = None) -> str:
    return Token(
        name or f"t-{scopes}".replace("+", "-"), parse_scopes(scopes), digest_of(secret or f"{scopes}-secret")
    ).line


TOKENS = [line("infer"), line("worker"), line("admin"), line("infer+worker")]


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


Client = Callable[..., FlaskClient]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Client]:
    """Make clients of services with both blueprints that are told these settings."""
    made: list[Runtime] = []

    def client(**settings: Any) -> FlaskClient:
        told = Settings(
            role="worker",
            models=[],
            state_dir=str(tmp_path),
            instance=f"test-{len(made)}",
            access_log=False,
            **settings,
        )
        runtime = Runtime(told, environ={})
        made.append(runtime)
        app = Flask("guarded")
        attach(app, runtime)
        registry = MemoryRegistry()
        app.register_blueprint(controller_blueprint(lambda: registry, told, told.prefix))
        errors.install_in_app(app)
        return app.test_client()

    yield client
    for runtime in made:
        runtime.stop()


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hosts file in which box.example is this machine."""
    path = tmp_path / "hosts"
    path.write_text("127.0.1.1 box.example\n10.0.0.7 shop.example\n")
    monkeypatch.setattr(loopback, "HOSTS_FILE", path)
    detour._is_local_host.cache_clear()


def asked(
    client: FlaskClient, call: str, peer: str | None = LOOPBACK, protocol: str = "HTTP/1.1", **options: Any
) -> Any:
    method, path = call.split()
    environ = {"REMOTE_ADDR": peer, "SERVER_PROTOCOL": protocol}
    options.setdefault("json", {} if method == "POST" else None)
    return client.open(f"/api{path}", method=method, environ_overrides=environ, buffered=True, **options)


def refused(response: Any) -> bool:
    return response.status_code in (401, 403)


def allowed(client: FlaskClient, peer: str | None = LOOPBACK, **options: Any) -> set[str]:
    """Return the calls that the guard lets through, whatever then becomes of them."""
    return {call for call in CALLS if not refused(asked(client, call, peer, **options))}


# The table


def test_the_table_has_every_call_and_nothing_else(serve):
    assert set(NEEDS) == set(CALLS)
    app = serve().application
    rules = {
        f"{method} {rule.rule.removeprefix('/api')}"
        for rule in app.url_map.iter_rules()
        if rule.endpoint.startswith(("modelyard_worker.", "modelyard_controller."))
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    assert rules == set(CALLS)


def test_the_page_on_security_has_the_same_table():
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    for call, scopes in NEEDS.items():
        method, path = call.split()
        rows = [row for row in page.splitlines() if row.startswith("|") and f"`{path}`" in row and method in row]
        assert len(rows) == 1, call
        assert [scope for scope in tokens.SCOPES if f"`{scope}`" in rows[0]] == list(scopes), call


def test_a_call_that_is_not_in_the_table_needs_admin():
    guard = Guard(Settings(tokens=TOKENS))
    app = Flask("x")
    app.add_url_rule("/api/worker/new", view_func=lambda: "", endpoint="new")
    lesser = app.test_request_context("/api/worker/new", headers=bearer("infer+worker-secret"))
    with lesser, pytest.raises(Forbidden, match="needs the scope admin"):
        guard.check(request)
    with app.test_request_context("/api/worker/new", headers=bearer("admin-secret")):
        assert guard.check(request).name == "t-admin"


def test_another_prefix_has_the_same_table(serve):
    client = serve(tokens=TOKENS, prefix="/other/v1")
    body = {"json": {}, "environ_overrides": {"REMOTE_ADDR": ELSEWHERE}}
    assert client.post("/other/v1/worker/generate", headers=bearer("infer-secret"), **body).status_code == 422
    assert client.post("/other/v1/worker/apply", headers=bearer("infer-secret"), **body).status_code == 403


# By token


@pytest.mark.parametrize("scope", ["infer", "worker", "admin"])
def test_a_token_opens_the_calls_of_its_scope_and_admin_opens_all(serve, scope):
    client = serve(tokens=TOKENS)
    for peer in (LOOPBACK, ELSEWHERE, ""):
        assert allowed(client, peer, headers=bearer(f"{scope}-secret")) == ALLOWED[scope]


def test_scopes_of_a_token_add_up(serve):
    assert allowed(serve(tokens=TOKENS), headers=bearer("infer+worker-secret")) == INFER | WORKER | READ


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer nobody's",
        "Bearer infer-secre",
        "Bearer infer-secret2",
        "Bearer INFER-SECRET",
        "Bearer infer-secret admin-secret",
        f"Bearer {digest_of('admin-secret').hex()}",
        "Basic YWRtaW4tc2VjcmV0",
        "Basic admin-secret",
        "admin-secret",
        "Token admin-secret",
    ],
)
def test_without_a_token_that_is_known_nothing_is_open_not_even_from_loopback(serve, authorization):
    client = serve(tokens=TOKENS)
    headers = {} if authorization is None else {"Authorization": authorization}
    for peer in (LOOPBACK, ELSEWHERE, ""):
        assert allowed(client, peer, headers=headers) == set()


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_read_in_any_case(serve, scheme):
    response = asked(serve(tokens=TOKENS), "POST /worker/apply", headers={"Authorization": f"{scheme}  admin-secret "})
    assert response.status_code == 422


def test_without_a_token_it_is_401_which_says_the_scope_and_the_scheme(serve):
    client = serve(tokens=TOKENS)
    response = asked(client, "POST /worker/apply")
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"].startswith("Bearer")
    assert response.content_type == "application/problem+json"
    assert response.json["type"] == "urn:modelyard:error:unauthorized"
    assert "scope admin" in response.json["detail"]
    assert "Authorization: Bearer" in response.json["detail"]
    assert "infer or worker" in asked(client, "GET /controller/instances").json["detail"]
    wrong = asked(client, "POST /worker/apply", headers=bearer("nobody's"))
    assert (wrong.status_code, "not known" in wrong.json["detail"]) == (401, True)
    assert "nobody's" not in wrong.text


def test_without_the_scope_it_is_403_which_says_which_is_missing(serve):
    response = asked(serve(tokens=TOKENS), "POST /worker/apply", headers=bearer("infer-secret"))
    assert response.status_code == 403
    assert "WWW-Authenticate" not in response.headers
    assert response.json["type"] == "urn:modelyard:error:forbidden"
    assert "scope admin" in response.json["detail"]
    assert "t-infer has infer" in response.json["detail"]
    assert "secret" not in response.text


@pytest.mark.parametrize(("secret", "status"), [(None, 401), ("nobody's", 401), ("worker-secret", 403)])
def test_where_text_is_generated_a_refusal_is_a_model_output(serve, secret, status):
    client = serve(tokens=TOKENS)
    headers = {} if secret is None else bearer(secret)
    whole = asked(client, "POST /worker/generate", headers=headers)
    streamed = asked(client, "POST /worker/generate_stream", headers=headers)
    assert (whole.status_code, streamed.status_code) == (status, status)
    assert streamed.data.endswith(b"\0")
    for output in (whole.json, json.loads(streamed.data[:-1])):
        assert output["error_code"] == status
        assert "scope infer" in output["text"]
    assert ("WWW-Authenticate" in streamed.headers) is (status == 401)


def test_health_and_readiness_need_nothing(serve):
    client = serve(tokens=TOKENS)
    for path in ("/api/healthz", "/api/readyz", "/api/health"):
        assert client.get(path, environ_overrides={"REMOTE_ADDR": ELSEWHERE}).status_code in (200, 503)


def test_a_refusal_comes_before_the_body_is_read_and_before_the_budget(serve):
    class Unread(io.BytesIO):
        def read(self, *args: object) -> bytes:
            raise AssertionError("the body was read")

        readline = readinto = read

    client = serve(tokens=TOKENS, threads=8, reserve=7)
    budget = client.application.extensions["modelyard"].budget
    budget.enter()
    try:
        for call in sorted(INFER | ADMIN | WORKER):
            method, path = call.split()
            response = client.open(
                f"/api{path}",
                method=method,
                input_stream=Unread(b"{...}"),
                headers={"Content-Length": "5"},
                buffered=True,
            )
            assert response.status_code == 401, call
    finally:
        budget.leave()


def test_head_is_asked_like_get_and_options_of_everybody(serve):
    client = serve(tokens=TOKENS)
    assert asked(client, "HEAD /worker/models/supports").status_code == 401
    assert asked(client, "HEAD /worker/models/supports", headers=bearer("infer-secret")).status_code == 200
    assert asked(client, "OPTIONS /worker/generate").status_code == 200


def test_the_file_of_tokens_is_read_anew(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(token_store, "LOOK_AGAIN", 0.0)
    file = tmp_path / "tokens"
    tokens.add_to_file(file, tokens.parse(TOKENS[0]))
    client = serve(tokens_file=str(file))
    assert allowed(client, headers=bearer("infer-secret")) == ALLOWED["infer"]
    tokens.add_to_file(file, tokens.parse(TOKENS[1]))
    tokens.remove_from_file(file, "t-infer")
    assert allowed(client, headers=bearer("worker-secret")) == ALLOWED["worker"]
    assert allowed(client, headers=bearer("infer-secret")) == set()


# By address


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", ""])
def test_without_configuration_this_machine_may_do_everything(serve, peer):
    client = serve()
    assert allowed(client, peer) == set(CALLS)
    assert allowed(client, peer, headers=bearer("of another service")) == set(CALLS)


@pytest.mark.parametrize("peer", [ELSEWHERE, "::ffff:203.0.113.7", "2001:db8::7", "fe80::1%eth0", "nonsense", None])
def test_without_configuration_nobody_else_may_do_anything(serve, peer):
    client = serve()
    assert allowed(client, peer) == set()
    response = asked(client, "POST /worker/apply", peer)
    assert response.status_code == 403, "a token would not help"
    for word in ("scope admin", "modelyard token new", "--tokens-file", "trusted_networks", "--insecure"):
        assert word in response.json["detail"]


@pytest.mark.parametrize("header", sorted(FORWARDED))
def test_what_came_through_a_proxy_is_not_from_this_machine(serve, header):
    client = serve()
    name = header.removeprefix("HTTP_").replace("_", "-")
    assert allowed(client, headers={name: "127.0.0.1"}) == ALLOWED["infer"]
    assert allowed(client, "", headers={name: ""}) == ALLOWED["infer"]
    assert allowed(client, ELSEWHERE, headers={name: "127.0.0.1"}) == set()
    response = asked(client, "POST /worker/apply", headers={name: "127.0.0.1"})
    assert response.status_code == 403
    for word in ("through a proxy", "has only infer", "--tokens-file", "--insecure"):
        assert word in response.json["detail"]


@pytest.mark.parametrize(
    ("origin", "scopes"),
    [
        ("http://localhost:3000", set(CALLS)),
        ("http://127.0.0.1:8000", set(CALLS)),
        ("http://[::1]:8000", set(CALLS)),
        ("http://box.example:3000", set(CALLS)),
        ("https://evil.example", ALLOWED["infer"]),
        ("http://localhost.evil.example", ALLOWED["infer"]),
        ("http://203.0.113.7", ALLOWED["infer"]),
        ("null", ALLOWED["infer"]),
        ("http://[", ALLOWED["infer"]),
        ("", ALLOWED["infer"]),
    ],
)
def test_a_page_of_elsewhere_in_a_browser_here_is_not_this_machine(serve, hosts, origin, scopes):
    assert allowed(serve(), headers={"Origin": origin}) == scopes


@pytest.mark.parametrize("site", ["cross-site", "Cross-Site ", "none,cross-site"])
@pytest.mark.parametrize("origin", [None, "http://localhost:3000"])
def test_a_browser_that_calls_for_a_page_of_another_site_is_not_this_machine(serve, origin, site):
    headers = {"Sec-Fetch-Site": site, **({} if origin is None else {"Origin": origin})}
    client = serve()
    assert allowed(client, headers=headers) == ALLOWED["infer"]
    assert "Sec-Fetch-Site" in asked(client, "POST /worker/apply", headers=headers).json["detail"]
    for near in ("same-origin", "same-site", "none"):
        assert allowed(client, headers={"Sec-Fetch-Site": near}) == set(CALLS)


@pytest.mark.parametrize(
    "host",
    [
        *("shop.example", "shop.example:8000", "203.0.113.7", "[2001:db8::7]:80", "a b", "/"),
        pytest.param("[", marks=pytest.mark.skipif(OLD_CLIENT, reason="Werkzeug's test client sends no such host")),
    ],
)
def test_a_host_of_elsewhere_may_be_that_of_a_proxy_and_is_logged_once(serve, hosts, caplog, host):
    client = serve()
    for _ in range(2):
        assert asked(client, "POST /worker/apply", headers={"Host": host}).status_code == 422
    logged = [record for record in caplog.records if "has the Host" in record.message]
    assert [record.levelname for record in logged] == ["WARNING"]
    for words in (repr(host), "everybody who reaches the proxy may start and stop models", "X-Forwarded-For"):
        assert words in logged[0].message


@pytest.mark.parametrize("host", ["localhost:8000", "LOCALHOST", "127.0.0.1:8000", "[::1]:8000", "box.example", ""])
def test_a_host_of_this_machine_is_this_machine(serve, hosts, caplog, host):
    assert allowed(serve(), headers={"Host": host}) == set(CALLS)
    assert "has the Host" not in caplog.text


def test_a_plain_proxy_pass_is_not_this_machine(serve):
    client = serve()
    assert allowed(client, protocol="HTTP/1.0") == ALLOWED["infer"]
    assert "HTTP/1.0" in asked(client, "POST /worker/apply", protocol="HTTP/1.0").json["detail"]


def test_host_and_version_do_not_count_where_it_is_said_who_may_call(serve, caplog):
    options = {"headers": {"Host": "shop.example", **bearer("admin-secret")}, "protocol": "HTTP/1.0"}
    assert allowed(serve(insecure=True), **options) == set(CALLS)
    assert allowed(serve(trusted_networks=["127.0.0.0/8=admin"]), **options) == set(CALLS)
    assert allowed(serve(trusted_networks=["10.0.0.0/8=admin"]), "10.0.0.1", **options) == set(CALLS)
    assert allowed(serve(tokens=TOKENS), **options) == set(CALLS)
    assert "has the Host" not in caplog.text


def test_insecure_means_everybody_and_through_every_proxy(serve):
    client = serve(insecure=True)
    for peer in (LOOPBACK, ELSEWHERE, ""):
        assert allowed(client, peer) == set(CALLS)
        assert allowed(client, peer, headers={"X-Forwarded-For": ELSEWHERE}) == set(CALLS)


@pytest.mark.parametrize("settings", [{"tokens": TOKENS}, {"trusted_networks": ["10.0.0.0/8=infer"]}])
def test_insecure_means_nothing_where_tokens_or_networks_are_said(serve, settings):
    client = serve(insecure=True, **settings)
    assert allowed(client, ELSEWHERE) == set()


def test_a_network_has_the_scopes_that_it_is_given_and_no_other_address_has_them(serve):
    client = serve(trusted_networks=["10.0.0.0/8=infer", "10.1.0.0/16=worker", "192.168.7.9=admin", "fd00::/8=worker"])
    assert allowed(client, "10.9.9.9") == ALLOWED["infer"]
    assert allowed(client, "::ffff:10.9.9.9") == ALLOWED["infer"]
    assert allowed(client, "10.1.9.9") == INFER | WORKER | READ
    assert allowed(client, "192.168.7.9") == set(CALLS)
    assert allowed(client, "fd12::1") == ALLOWED["worker"]
    for peer in ("192.168.7.8", "11.0.0.1", ELSEWHERE, "2001:db8::7"):
        assert allowed(client, peer) == set()
    assert allowed(client, LOOPBACK) == set(CALLS), "no token is asked for, so this machine may do everything"


def test_what_a_proxy_says_of_an_address_gives_nothing(serve):
    client = serve(trusted_networks=["10.0.0.0/8=admin"])
    assert allowed(client, ELSEWHERE, headers={"X-Forwarded-For": "10.0.0.1"}) == set()
    assert allowed(client, "10.0.0.1", headers={"X-Forwarded-For": "10.0.0.2"}) == set()


def test_a_network_that_is_not_enough_is_403_without_tokens_and_401_with_them(serve):
    networks = ["10.0.0.0/8=infer"]
    response = asked(serve(trusted_networks=networks), "POST /worker/apply", "10.0.0.1")
    assert response.status_code == 403
    assert "10.0.0.1 has only infer:" in response.json["detail"]
    client = serve(trusted_networks=networks, tokens=TOKENS)
    assert asked(client, "POST /worker/apply", "10.0.0.1").status_code == 401
    assert allowed(client, "10.0.0.1", headers=bearer("admin-secret")) == set(CALLS)
    assert allowed(client, "10.0.0.1", headers=bearer("nobody's")) == ALLOWED["infer"]


def test_with_tokens_loopback_is_a_network_like_others(serve):
    client = serve(tokens=TOKENS, trusted_networks=["127.0.0.0/8=infer"])
    assert allowed(client, LOOPBACK) == ALLOWED["infer"]
    assert allowed(client, "") == ALLOWED["infer"], "a unix socket is on this machine"
    assert allowed(client, LOOPBACK, headers={"Via": "1.1 proxy"}) == set()


# In a log


def test_the_name_of_a_token_is_in_the_access_line_and_nothing_more_of_it(serve, tmp_path, caplog):
    runtime = Runtime(Settings(role="worker", models=[], state_dir=str(tmp_path), tokens=TOKENS), environ={})
    app = Flask("logged")
    attach(app, runtime)
    with caplog.at_level("DEBUG", "modelyard"):
        asked(app.test_client(), "POST /worker/apply", headers=bearer("admin-secret"))
        asked(app.test_client(), "POST /worker/apply", headers=bearer("infer-secret"))
        asked(app.test_client(), "POST /worker/apply", headers=bearer("nobody's"))
    runtime.stop()
    lines = [json.loads(record.message) for record in caplog.records if record.name == "modelyard.access"]
    found = [(one["status"], one.get("error"), one.get("caller")) for one in lines]
    assert found == [(422, "invalid_request", "t-admin"), (403, "forbidden", None), (401, "unauthorized", None)]
    assert "secret" not in caplog.text
    assert "nobody's" not in caplog.text


# Bad configuration


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"tokens": ["ci"]}, "tokens, item 1: expected NAME SCOPES SHA256"),
        ({"tokens_file": "/nonexistent/tokens"}, "/nonexistent/tokens: No such file"),
        ({"trusted_networks": ["10.0.0.0/8"]}, "trusted_networks: '10.0.0.0/8' has no scopes"),
        ({"trusted_networks": ["10.0.0.0/8=root"]}, "'root' is not a scope"),
        ({"trusted_networks": ["10.0.0.0/33=infer"]}, "trusted_networks: '10.0.0.0/33' does not appear"),
        ({"trusted_networks": ["10.0.0.5/8=infer"]}, "has host bits set"),
        ({"trusted_networks": ["worker.example=infer"]}, "worker.example"),
        ({"allowed_networks": ["10.0.0.0/8=infer"]}, "allowed_networks"),
        ({"allowed_networks": ["nowhere", "10.0.0.0/99"]}, "10.0.0.0/99"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_setting(settings, why):
    with pytest.raises(ConfigError) as caught:
        Guard(Settings(**settings))
    assert why in str(caught.value)


# Registrations


@pytest.fixture
def own_address() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((ELSEWHERE, 9))  # Nothing is sent: it only finds the way.
        return str(probe.getsockname()[0])


def registering(url: str, peer: str = LOOPBACK, token: str | None = None, headers: Any = None, **settings: Any) -> None:
    """Ask a guard that is told these settings; Forbidden where it refuses."""
    given = {**(headers or {}), **(bearer(token) if token else {})}
    with Flask("x").test_request_context("/", headers=given, environ_overrides={"REMOTE_ADDR": peer}):
        Guard(Settings(**settings)).check_registration(request, [url])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.0.0.5"])
def test_without_a_token_this_machine_may_register_its_own_addresses(host, own_address):
    for peer in (LOOPBACK, "", own_address):
        registering(f"http://{host}:8001/api", peer)
        registering(f"http://{own_address}:8001/api", peer)


@pytest.mark.parametrize(
    "url", [f"http://{ELSEWHERE}:8001/api", "http://[2001:db8::7]:8001/api", "http://10.255.1.2/x"]
)
def test_without_a_token_this_machine_may_register_no_other_machine(url):
    with pytest.raises(Forbidden, match="can't be registered: without a token") as caught:
        registering(url)
    for word in (url, "the addresses of this machine", "--advertise", "token with the scope worker"):
        assert word in str(caught.value)


def test_without_a_token_another_machine_may_register_itself_only(own_address):
    trusted = {"trusted_networks": ["203.0.113.0/24=worker"]}
    registering(f"http://{ELSEWHERE}:8001/api", ELSEWHERE, **trusted)
    registering(f"https://{ELSEWHERE}/prefix", f"::ffff:{ELSEWHERE}", **trusted)
    for host in ("203.0.113.8", "127.0.0.1", "localhost", own_address, "0.0.0.0"):
        with pytest.raises(Forbidden, match=f"its own address, {ELSEWHERE},"):
            registering(f"http://{host}:8001/api", ELSEWHERE, **trusted)


def test_who_comes_through_a_proxy_needs_a_token_to_register():
    for settings in ({"insecure": True}, {}):
        with pytest.raises(Forbidden, match="through a proxy"):
            registering("http://127.0.0.1:8001/api", headers={"X-Forwarded-For": ELSEWHERE}, **settings)
    registering("http://127.0.0.1:1/api", token="worker-secret", headers={"Via": "1.1 x"}, tokens=TOKENS)


def test_with_a_token_every_address_may_be_registered_where_none_is_said():
    for token in ("worker-secret", "admin-secret"):
        for host in (ELSEWHERE, "127.0.0.1", "10.0.0.1", "nowhere.invalid", "[2001:db8::7]"):
            registering(f"http://{host}:8001/api", ELSEWHERE, token=token, tokens=TOKENS)


def test_with_a_token_the_allowed_networks_may_be_registered_and_nothing_else():
    settings = {"tokens": TOKENS, "allowed_networks": ["10.0.0.0/8", "fd00::/8", "127.0.0.0/8", "::1"]}
    for host in ("10.9.9.9", "[fd00::7]", "localhost", "[::ffff:10.0.0.1]"):
        registering(f"http://{host}:8001/api", ELSEWHERE, token="worker-secret", **settings)
    with pytest.raises(Forbidden, match="is in none of allowed_networks") as caught:
        registering(f"http://{ELSEWHERE}:8001/api", ELSEWHERE, token="worker-secret", **settings)
    for word in (ELSEWHERE, "10.0.0.0/8, fd00::/8", "--advertise"):
        assert word in str(caught.value)


def test_the_allowed_networks_are_for_tokens_that_have_the_scope():
    settings = {"tokens": TOKENS, "allowed_networks": ["10.0.0.0/8"], "trusted_networks": ["127.0.0.0/8=worker"]}
    for token in (None, "infer-secret", "nobody's"):
        with pytest.raises(Forbidden, match="without a token"):
            registering("http://10.0.0.1:8001/api", token=token, **settings)


def test_a_unix_socket_can_only_be_registered_on_this_machine():
    url = "http+unix://%2Frun%2Fdocker.sock/api"
    registering(url)
    registering(url, "", token="worker-secret", tokens=TOKENS)
    for headers in ({}, {"Via": "1.1 x"}):
        with pytest.raises(Forbidden, match="unix socket"):
            registering(url, ELSEWHERE, token="worker-secret", tokens=TOKENS, headers=headers)
    with pytest.raises(Forbidden, match="unix socket"):
        registering(url, LOOPBACK, token="worker-secret", tokens=TOKENS, headers={"Via": "1.1 x"})


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8001", "ftp://127.0.0.1/x", "http:///api", "http://[::1/api", "file:///x"]
)
def test_what_is_no_address_of_a_worker_is_refused_as_such(url):
    with pytest.raises(InvalidRequest, match="is not a valid address of a worker"):
        registering(url)


def test_a_name_is_what_it_resolves_to_and_all_of_it(monkeypatch):
    found = {"near": ["127.0.0.1"], "far": [ELSEWHERE], "both": ["127.0.0.1", ELSEWHERE]}

    def getaddrinfo(host: str, *args: object, **options: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in found[host]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    registering("http://near:1/api")
    with pytest.raises(Forbidden, match=r"not far \(203\.0\.113\.7\)"):
        registering("http://far:1/api")
    with pytest.raises(Forbidden, match=r"not both \(203\.0\.113\.7\)"):
        registering("http://both:1/api")


def test_a_name_that_has_no_address_is_refused_with_the_reason():
    with pytest.raises(Forbidden, match=r"address of nowhere\.invalid is unknown"):
        registering("http://nowhere.invalid:8001/api")


def test_a_refused_registration_is_403_and_says_why_over_http(serve):
    client = serve()
    body = {"model_name": "m@llm", "host": ELSEWHERE, "port": 8001}
    for call in ("POST /controller/models", "POST /controller/heartbeat"):
        response = asked(client, call, json=body)
        assert response.status_code == 403
        assert ELSEWHERE in response.json["detail"]
    gone = asked(client, f"DELETE /controller/models?model_name=m@llm&host={ELSEWHERE}&port=8001")
    assert gone.status_code == 403
    many = asked(client, "POST /controller/instances", json=[{"key": "m@llm", "url": f"http://{ELSEWHERE}:8001/api"}])
    assert many.status_code == 403
    assert asked(client, "GET /controller/instances").json == []


def test_an_error_of_ours_says_who_must_log_in():
    with Flask("x").test_request_context("/", environ_overrides={"REMOTE_ADDR": ELSEWHERE}):
        with pytest.raises(Unauthorized):
            Guard(Settings(tokens=TOKENS)).check(request)
        with pytest.raises(Forbidden):
            Guard(Settings()).check(request)
