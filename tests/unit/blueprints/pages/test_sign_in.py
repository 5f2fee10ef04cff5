"""Who may see which page: sign-ins by key, their cookies, forms of other sites, and the headers of every answer."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from modelyard import Modelyard
from modelyard.access.keys import new_key
from modelyard.access.signing import Signer
from modelyard.access.tokens import digest_of, new_secret, parse_scopes
from modelyard.access.wrong_keys import LIMIT, SPAN
from modelyard.blueprints.pages import visitors
from modelyard.blueprints.pages.visitors import Visitor
from modelyard.blueprints.request.guard import Guard
from modelyard.cluster.keys.sign_outs import SignOuts
from modelyard.errors import ConfigError
from modelyard.server.extension import KEY
from modelyard.settings.settings import Settings
from pages_service import OWN, SECRETS, TOKENS, Build, building, read_keys, sign_in
from running import ROOT

GATEWAY = {"role": "gateway", "model_tables": (), "tokens": TOKENS}
"""A service of which there may be several in one process: it holds no models."""


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    with building(tmp_path) as build:
        yield build


def cookie_of(response: Any) -> str:
    return next(text for text in response.headers.getlist("Set-Cookie") if text.startswith(visitors.COOKIE))


def value_of(response: Any) -> str:
    return cookie_of(response).partition("=")[2].partition(";")[0]


def add_key(app: Flask, scopes: str = "infer", **options: Any) -> tuple[str, Any]:
    secret = new_secret()
    key = new_key("ann", digest_of(secret), parse_scopes(scopes), **options)
    app.extensions[KEY].keys.store.add(key)
    return secret, key


@pytest.fixture
def closed(build: Build) -> FlaskClient:
    """A browser at a service that requires tokens."""
    return build(tokens=TOKENS).test_client()


# Open, and closed


def test_without_keys_and_from_this_machine_pages_are_open(build: Build):
    page = build().test_client().get("/ui/")
    assert page.status_code == 200
    assert "echo" in page.text
    assert "Sign in" not in page.text


def test_behind_a_proxy_they_are_open_for_what_the_address_allows(build: Build):
    page = build().test_client().get("/ui/", headers={"X-Forwarded-For": "10.0.0.1"})
    assert page.status_code == 200
    assert "Sign in" in page.text, "for what more a key may do"


def test_a_site_whose_name_leads_to_this_machine_reads_what_infer_may(build: Build):
    browser = build().test_client()
    for host, status in ("localhost:8000", 200), ("[::1]:8000", 200), ("e.example:8000", 303):
        assert browser.get("/ui/keys", headers={"Host": host}).status_code == status
    page = browser.get("/ui/model?name=echo&type=llm", headers={"Host": "e.example:8000"})
    assert page.status_code == 200
    assert "Apply" not in page.text


def test_with_tokens_a_visitor_is_sent_to_sign_in_and_then_back(closed: FlaskClient):
    first = closed.get("/ui/?a=b")
    assert (first.status_code, first.location) == (303, "/ui/sign-in?next=%2F%3Fa%3Db")
    form = closed.get(first.location)
    assert form.status_code == 200
    assert 'value="/?a=b"' in form.text
    after = sign_in(closed, SECRETS["infer"], wanted="/?a=b")
    assert (after.status_code, after.location) == (303, "/ui/?a=b")
    page = closed.get("/ui/")
    assert page.status_code == 200
    assert "t-infer" in page.text


@pytest.mark.parametrize(
    "wanted", ["https://e.example/", "//e.example/", "/\\e.example", "/\r\nX: y", "x", "/../a", "/%2E%2e/a"]
)
def test_a_sign_in_leads_to_no_other_site(closed: FlaskClient, wanted: str):
    location = sign_in(closed, SECRETS["infer"], wanted).location
    assert re.fullmatch(r"/ui/(e\.example/)?", location)


def test_a_wrong_key_is_refused_with_words_and_not_shown(closed: FlaskClient):
    refused = sign_in(closed, "modelyard_wrong")
    assert refused.status_code == 401
    assert "not known here" in refused.text
    assert "modelyard_wrong" not in refused.text
    assert "Set-Cookie" not in refused.headers


def test_signing_out_ends_it(closed: FlaskClient):
    sign_in(closed, SECRETS["infer"])
    assert closed.post("/ui/sign-out", headers=OWN).status_code == 303
    assert closed.get("/ui/").status_code == 303


@pytest.mark.parametrize("has_keys", [True, False])
def test_a_copied_cookie_is_of_no_use_after_a_sign_out_in_any_process(build: Build, tmp_path: Path, has_keys: bool):
    store = f"sqlite:///{tmp_path / 'keys.db'}" if has_keys else "none"
    browser, copy, other = (build(**GATEWAY, key_store=store).test_client() for _ in range(3))
    cookie = value_of(sign_in(browser, SECRETS["infer"]))
    sign_in(other, SECRETS["infer"])
    copy.set_cookie(visitors.COOKIE, cookie, path="/ui")
    assert copy.get("/ui/").status_code == 200
    browser.post("/ui/sign-out", headers=OWN)
    browser.set_cookie(visitors.COOKIE, cookie, path="/ui")
    assert [client.get("/ui/").status_code for client in (browser, copy, other)] == [303, 303, 200]


def test_a_sign_out_that_others_can_not_be_told_is_said(build: Build, tmp_path: Path):
    (tmp_path / "a file").touch()
    browser = build(**GATEWAY, key_store=f"sqlite:///{tmp_path / 'a file' / 'keys.db'}").test_client()
    cookie = value_of(sign_in(browser, SECRETS["infer"]))
    assert (
        "a copy of its cookie would still be valid"
        in browser.post("/ui/sign-out", headers=OWN, follow_redirects=True).text
    )
    browser.set_cookie(visitors.COOKIE, cookie, path="/ui")
    assert browser.get("/ui/").status_code == 303, "this process knows it"


def test_an_address_that_sends_many_wrong_keys_has_to_wait(closed: FlaskClient):
    for _ in range(LIMIT):
        assert sign_in(closed, "modelyard_wrong").status_code == 401
    refused = sign_in(closed, SECRETS["infer"])
    assert (refused.status_code, 0 < int(refused.headers["Retry-After"]) <= SPAN) == (429, True)
    assert "too many wrong keys have come from 127.0.0.1: try again in" in refused.text
    assert sign_in(closed, SECRETS["infer"], **{"X-Forwarded-For": "10.0.0.9, 10.0.0.1"}).status_code == 303


def test_an_authenticating_proxy_may_send_the_token(closed: FlaskClient):
    page = closed.get("/ui/", headers={"Authorization": f"Bearer {SECRETS['infer']}"})
    assert page.status_code == 200
    assert "t-infer" in page.text


# The cookie


def test_the_cookie_is_for_the_pages_alone_and_has_no_key(closed: FlaskClient):
    cookie = cookie_of(sign_in(closed, SECRETS["infer"]))
    assert {"HttpOnly", "Path=/ui", "SameSite=Strict", "Max-Age=28800"} <= set(re.split("; ", cookie))
    assert "Secure" not in cookie
    assert SECRETS["infer"] not in cookie
    assert digest_of(SECRETS["infer"]).hex() not in cookie
    assert "; Secure;" in cookie_of(sign_in(closed, SECRETS["infer"], **{"X-Forwarded-Proto": "https"}))


def test_a_changed_cookie_and_an_old_one_count_as_none(closed: FlaskClient, monkeypatch: pytest.MonkeyPatch):
    cookie = value_of(sign_in(closed, SECRETS["infer"]))
    closed.set_cookie(visitors.COOKIE, cookie.replace(cookie[5], "A" if cookie[5] != "A" else "B"), path="/ui")
    assert closed.get("/ui/").status_code == 303
    closed.set_cookie(visitors.COOKIE, cookie, path="/ui")
    assert closed.get("/ui/").status_code == 200
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + visitors.LIFETIME + 2)
    assert closed.get("/ui/").status_code == 303


def test_all_processes_of_a_service_know_a_sign_in_and_other_services_do_not(build: Build):
    browser = build(**GATEWAY).test_client()
    cookie = value_of(sign_in(browser, SECRETS["infer"]))
    for settings, status in ({}, 200), ({"instance": "another"}, 303), ({"pages_secret": "x" * 32}, 303):
        other = build(**GATEWAY, **settings).test_client()
        other.set_cookie(visitors.COOKIE, cookie, path="/ui")
        assert other.get("/ui/").status_code == status, settings


def test_a_shared_secret_makes_a_sign_in_good_for_several_services(build: Build):
    first, second = (build(**GATEWAY, instance=name, pages_secret="s" * 32).test_client() for name in "ab")
    cookie = value_of(sign_in(first, SECRETS["infer"]))
    second.set_cookie(visitors.COOKIE, cookie, path="/ui")
    assert second.get("/ui/").status_code == 200


def test_a_revoked_key_ends_the_sign_in_at_the_next_request(build: Build):
    app = build()
    secret, key = add_key(app)
    read_keys(app)
    browser = app.test_client()
    assert browser.get("/ui/").status_code == 303, "there is a key, so one is needed"
    sign_in(browser, secret)
    assert browser.get("/ui/").status_code == 200
    app.extensions[KEY].keys.store.revoke(key.id)
    read_keys(app)
    assert browser.get("/ui/").status_code == 303


def test_a_key_that_expires_ends_the_sign_in_at_the_next_request(build: Build):
    app = build()
    keys = app.extensions[KEY].keys
    secret, _ = add_key(app, expires=time.time() + 3600)
    read_keys(app)
    browser = app.test_client()
    sign_in(browser, secret)
    assert browser.get("/ui/").status_code == 200
    keys._wall_clock = lambda: time.time() + 3600
    assert browser.get("/ui/").status_code == 303


def test_a_new_key_of_the_same_name_is_another_sign_in(build: Build):
    browser = build(**GATEWAY).test_client()
    cookie = value_of(sign_in(browser, SECRETS["infer"]))
    renewed = [TOKENS[0].replace(digest_of(SECRETS["infer"]).hex(), digest_of("modelyard_renewed").hex())]
    other = build(**{**GATEWAY, "tokens": renewed}).test_client()
    other.set_cookie(visitors.COOKIE, cookie, path="/ui")
    assert other.get("/ui/").status_code == 303


def test_a_secret_that_is_too_short_is_refused():
    with pytest.raises(ConfigError, match="pages_secret: must have 32 characters"):
        Settings(pages_secret="x" * 31)


def test_without_a_folder_there_is_a_secret_all_the_same(tmp_path: Path):
    signer = Signer(None, lambda: tmp_path / "absent")
    assert signer.read(signer.sign([1], "x"), "x", 10) == [1]
    assert signer.read(signer.sign([1], "x"), "y", 10) is None


@pytest.mark.parametrize(("before", "mode"), [(b"x" * 40, 0o644), (b"x" * 40, 0o660), (b"\xff" * 40, 0o600)])
def test_a_secret_that_others_could_read_or_that_is_damaged_is_replaced(tmp_path: Path, before: bytes, mode: int):
    file = tmp_path / "pages.secret"
    file.write_bytes(before)
    file.chmod(mode)
    text = Signer(None, lambda: tmp_path).sign(1, "x")
    assert file.read_bytes() != before
    assert file.stat().st_mode & 0o777 == 0o600
    assert Signer(None, lambda: tmp_path).read(text, "x", 10) == 1


def test_a_secret_is_never_written_where_a_link_leads(tmp_path: Path):
    (tmp_path / "pages.secret").symlink_to(tmp_path / "elsewhere")
    signer = Signer(None, lambda: tmp_path)
    assert signer.read(signer.sign(1, "x"), "x", 10) == 1
    assert not (tmp_path / "elsewhere").exists()


def test_a_sign_in_that_has_ended_or_whose_token_is_another_ends_its_streams(tmp_path: Path):
    settings = Settings(tokens=TOKENS, key_store=f"sqlite:///{tmp_path / 'keys.db'}")
    guard, sign_outs = Guard(settings), SignOuts(settings)
    sign_ins = visitors.SignIns(guard, Signer(None, lambda: tmp_path), sign_outs, "/ui")
    token = guard.find(SECRETS["infer"])
    assert token is not None
    sign_outs.end("b", 60)
    assert not sign_ins.is_current(Visitor(token.scopes, token, sign_in="b"))
    assert sign_ins.is_current(Visitor(token.scopes, token, sign_in="a"))
    assert sign_ins.is_current(Visitor(token.scopes, token))
    for changes in {"scopes": parse_scopes("admin")}, {"digest": digest_of("another")}, {"name": "another"}:
        assert not sign_ins.is_current(Visitor(token.scopes, replace(token, **changes)))


# Forms of other sites


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "null"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://localhost:81"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "http://localhost:x"},
        {"Origin": "chrome-extension://localhost"},
        {"Origin": "http://localhost", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://localhost", "Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_form_of_another_site_is_refused(closed: FlaskClient, headers: dict[str, str]):
    refused = closed.post("/ui/sign-in/send", data={"key": SECRETS["admin"]}, headers=headers)
    assert refused.status_code == 403
    assert "was not sent by a page of localhost" in refused.text
    assert "Set-Cookie" not in refused.headers


@pytest.mark.parametrize("origin", ["http://localhost:80", "https://localhost", "HTTP://LOCALHOST"])
def test_a_form_of_the_same_host_is_accepted(closed: FlaskClient, origin: str):
    host = {"Host": "localhost:443"} if origin.startswith("https") else {}
    accepted = closed.post("/ui/sign-in/send", data={"key": SECRETS["infer"]}, headers={"Origin": origin, **host})
    assert accepted.status_code == 303


# Headers, files, errors


def test_every_answer_forbids_what_no_page_needs(closed: FlaskClient):
    asset = re.search(r'href="(/ui/static/[^"]+\.css)"', closed.get("/ui/sign-in").text)
    assert asset is not None
    for path in "/ui/", "/ui/sign-in", "/ui/absent", asset[1]:
        headers = closed.get(path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"
    assert closed.get("/ui/sign-in").headers["Cache-Control"] == "no-store"
    for path in "/healthz", "/openapi.json", "/absent":
        assert "Content-Security-Policy" not in closed.get(path).headers


def test_files_are_kept_by_browsers_and_not_sent_twice(closed: FlaskClient):
    pages = closed.get("/ui/sign-in").text
    addresses = re.findall(r'"(/ui/static/[^"]+)"', pages)
    assert len(set(addresses)) == 3
    for address in addresses:
        first = closed.get(address)
        assert "immutable" in first.headers["Cache-Control"]
        again = closed.get(address, headers={"If-None-Match": first.headers["ETag"]})
        assert (again.status_code, again.data) == (304, b"")
        old = closed.get(re.sub(r"static/\w+", "static/0", address))
        assert (old.status_code, old.headers["Cache-Control"]) == (200, "no-cache")
    assert closed.get("/ui/static/0/absent.css").status_code == 404


def test_a_form_that_is_too_long_is_refused(closed: FlaskClient):
    refused = sign_in(closed, "x" * 300_000)
    assert refused.status_code == 413
    assert "at most 262144 are read" in refused.text


def test_errors_below_the_pages_are_pages_and_others_stay_as_they_are(closed: FlaskClient):
    absent = closed.get("/ui/<b>absent</b>", headers={"Accept": "text/html"})
    assert (absent.status_code, absent.mimetype) == (404, "text/html")
    assert "&lt;b&gt;" in absent.text
    assert "<b>absent" not in absent.text
    assert closed.get("/ui/absent", headers={"Accept": "application/json"}).mimetype == "text/plain"
    assert closed.get("/absent").mimetype == "application/problem+json"
    assert closed.delete("/ui/sign-in", headers=OWN).status_code == 404


def test_a_page_for_the_script_says_that_nobody_is_signed_in(closed: FlaskClient):
    refused = closed.get("/ui/", headers={"Accept": "application/json"})
    assert (refused.status_code, refused.text) == (401, "A token is needed: sign in first\n")


# Where they are


def test_the_first_address_of_a_service_leads_to_them_and_a_switch_takes_them_away(build: Build):
    browser = build().test_client()
    assert browser.get("/").location == "/ui/"
    assert '<a href="/docs">API</a>' in browser.get("/ui/").text
    off = build(pages=False, instance="off").test_client()
    assert (off.get("/ui/").status_code, off.get("/").status_code) == (404, 404)
    assert build(role="worker", registry=None, instance="worker").test_client().get("/ui/").status_code == 404


def test_in_an_application_they_are_below_the_prefix_where_they_are_asked_for(tmp_path: Path):
    without, with_pages = Flask("shop"), Flask("shop")
    Modelyard(without, models=[], state_dir=str(tmp_path))
    Modelyard(with_pages, url_prefix="/ml", models=[], state_dir=str(tmp_path), pages=True)
    for app in without, with_pages:
        app.extensions[KEY].start = lambda: None
    assert without.test_client().get("/api/ui/").status_code == 404
    browser = with_pages.test_client()
    page = browser.get("/ml/ui/sign-in", environ_overrides={"SCRIPT_NAME": "/shop"})
    assert page.status_code == 200
    assert '"/shop/ml/ui/static/' in page.text
    assert (browser.get("/").status_code, browser.get("/ui/").status_code) == (404, 404)


def test_what_the_application_does_to_its_own_templates_does_not_reach_them(tmp_path: Path):
    app = Flask("shop", template_folder=str(tmp_path))
    (tmp_path / "base.html").write_text("the application's own")
    app.jinja_options = {"autoescape": False, "block_start_string": "[%"}
    app.url_defaults({}.update)
    Modelyard(app, models=[], state_dir=str(tmp_path), pages=True)
    app.extensions[KEY].start = lambda: None
    page = app.test_client().get("/api/ui/sign-in").text
    assert "the application" not in page
    assert "<h1>Sign in</h1>" in page


def test_all_scripts_together_are_small():
    folder = ROOT / "blueprints" / "pages" / "static"
    assert 0 < sum(path.stat().st_size for path in folder.glob("*.js")) < 20_000
