"""The page of a model: its parameters as a form, what starts and stops it, and its last requests."""

from __future__ import annotations

import html
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import steered
from flask import Flask
from flask.testing import FlaskClient
from modelyard.access.keys import new_key
from modelyard.access.tokens import digest_of, parse_scopes
from modelyard.blueprints.pages import models, watch
from modelyard.blueprints.pages.parameters import FormField, changes
from modelyard.errors import InvalidRequest
from modelyard.server.extension import KEY
from modelyard.settings.params import describe, param
from modelyard.telemetry import recent
from modelyard.telemetry.recent import RecentRequests
from modelyard.worker.states import State
from pages_service import OWN, SECRETS, TOKENS, Build, building, read_keys, sign_in
from running import wait_until
from steered import Steered

PAGE = "/ui/model?name=s&type=llm"
CHAT = "/v1/chat/completions"
TABLES = ({"name": "s", "worker_class": steered.PATH, "token": "very secret"}, {"name": "echo"})


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Build]:
    monkeypatch.setattr(watch, "LOOK_INTERVAL", 0.0)
    Steered.reset()
    with building(tmp_path) as build:
        yield build
        Steered.go.set()


@pytest.fixture
def app(build: Build) -> Flask:
    return build(model_tables=TABLES)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def change(client: FlaskClient, action: str, name: str = "s", **fields: str) -> Any:
    form = {"name": name, "type": "llm", "action": action, **fields}
    return client.post("/ui/model/change", data=form, headers=OWN)


def outcome(client: FlaskClient, path: str = PAGE) -> tuple[str, str]:
    """Return the tone and the text of the outcome that a page shows; empty without one."""
    shown = re.search(r'<p class="notice (\w+)">(.*?)</p>', client.get(path).text.partition("data-live")[0])
    return (shown[1], html.unescape(shown[2])) if shown else ("", "")


def params_of(app: Flask, name: str = "s") -> Any:
    return app.extensions[KEY].local.models.find(f"{name}@llm").params


# The form


def test_each_parameter_is_a_field_with_its_help_and_limits(client: FlaskClient):
    page = client.get(PAGE).text
    size = re.search(r'<input id="f-size"[^>]*>', page)
    assert size is not None
    assert 'value="1"' in size[0]
    assert all(part in size[0] for part in ('type="number"', 'step="1"', 'min="1"', 'max="9"'))
    assert "a number that may change" in page
    chosen = re.search(r'<select id="f-hold_start".*?</select>', page, re.DOTALL)
    assert chosen is not None
    assert "<option selected>false</option>" in chosen[0]
    fixed = re.search(r'<input id="f-serial"[^>]*>', page)
    assert fixed is not None
    assert "disabled" in fixed[0]
    assert len(page.encode()) < 100_000


def test_a_private_value_is_never_sent_to_a_browser(client: FlaskClient):
    page = client.get(PAGE).text
    token = re.search(r'<input id="f-token"[^>]*>', page)
    assert token is not None
    assert 'value=""' in token[0]
    assert 'placeholder="set, and not shown"' in token[0]
    assert "very secret" not in page
    assert "******" not in page
    of_another = {"param_name": "key", "param_type": "str", "default_value": "mine"}
    field = FormField.of({**of_another, "ext_metadata": {"tags": "privacy", "default": "mine"}})
    assert "mine" not in str(field), "of a program that does not mask it"


def test_a_form_changes_what_differs_from_what_the_page_has_shown(app: Flask, client: FlaskClient):
    fields = {"new.size": "3", "old.size": "1", "new.queue_timeout": "60.0", "old.queue_timeout": "60.0"}
    answer = change(client, "update_params", **fields, **{"new.token": "", "old.token": ""})
    assert (answer.status_code, answer.location) == (303, PAGE)
    tone, text = outcome(client)
    assert tone == "good"
    assert re.match(r"Model s@llm: changed size and restarted \(\d", text)
    assert (params_of(app).size, params_of(app).token) == (3, "very secret")
    assert outcome(client) == ("", ""), "it is shown once"


def test_a_private_value_can_be_replaced(app: Flask, client: FlaskClient):
    change(client, "update_params", **{"new.token": "another", "old.token": ""})
    assert params_of(app).token == "another"


def test_a_form_without_a_difference_changes_nothing(app: Flask, client: FlaskClient):
    before = app.extensions[KEY].local.models.find("s@llm")
    change(client, "update_params", **{"new.size": "1", "old.size": "1"})
    assert outcome(client) == ("good", "No parameter was changed: every field has the value that it had.")
    assert app.extensions[KEY].local.models.find("s@llm") is before


def test_every_field_that_is_not_valid_is_named(app: Flask, client: FlaskClient):
    change(client, "update_params", **{"new.size": "12", "new.fail": "never", "new.serial": "s2", "new.weight": "x"})
    tone, text = outcome(client)
    assert tone == "bad"
    assert "size: 12 is more than 9" in text
    assert "fail: 'never' is not one of" in text
    assert "weight: 'x' is not a number" in text
    assert params_of(app).serial == "s1"


@dataclass
class EveryType:
    """Parameters of every type."""

    words: list[str] = param(["a"], help="words")
    table: dict[str, str] = param({}, help="a table")
    lists: dict[str, list[str]] = param({}, help="lists")
    share: float | None = param(None, help="a share", max=1)
    often: bool = param(True, help="often")
    length: int = param(0, help="a length", min=64, words={"auto": 0})
    memory: int | None = param(None, help="bytes", min=100_000_000, max=1000**4, tags=["size"])
    pause: float = param(60.0, help="seconds", max=3600)
    path: str | None = param(None, help="a path", tags=["operator"])


def test_a_text_becomes_a_value_of_the_declared_type():
    form = {"new.words": "a, b", "new.table": "x=1,y=2", "new.lists": "x=1+2", "new.share": "0.5", "new.often": "false"}
    form |= {"new.length": "128", "new.memory": "2GB", "new.path": "/etc/passwd"}
    assert changes(form, describe(EveryType)) == {
        **{"words": ["a", "b"], "table": {"x": "1", "y": "2"}, "lists": {"x": ["1", "2"]}},
        **{"share": 0.5, "often": False, "length": 128, "memory": 2_000_000_000},
    }
    with pytest.raises(InvalidRequest, match=r"share: 1\.5 is more than 1") as raised:
        changes({"new.share": "1.5", "new.table": "x"}, describe(EveryType))
    assert [error["field"] for error in raised.value.errors] == ["table", "share"]


def test_the_limits_of_a_field_are_told():
    limits = {field.name: field.limits for field in map(FormField.of, describe(EveryType))}
    assert limits["words"] == "separated by commas"
    assert limits["share"] == "… 1"
    assert limits["length"] == "64 …, auto"
    assert limits["memory"] == "100.0 MB … 1.0 TB"
    assert changes({"new.length": "auto", "old.length": "128"}, describe(EveryType)) == {"length": 0}
    values = {field.name: (field.value, field.kind) for field in map(FormField.of, describe(EveryType))}
    assert values["length"] == ("auto", "text"), "a browser refuses words in a field of numbers"
    assert values["pause"] == ("60", "number")
    assert limits["lists"] == "NAME=VALUE+VALUE, …"


# Start, stop, restart


def test_start_stop_and_restart_tell_their_outcome(app: Flask, client: FlaskClient):
    for action, state in ("stop", State.STOPPED), ("start", State.READY), ("restart", State.READY):
        assert change(client, action).status_code == 303
        tone, text = outcome(client)
        assert tone == "good", text
        assert "s@llm" in text
        assert app.extensions[KEY].local.models.find("s@llm").state is state


def test_a_failure_is_told_in_its_words(client: FlaskClient):
    change(client, "update_params", **{"new.fail": "file"})
    tone, text = outcome(client)
    assert tone == "bad"
    assert "weights.bin" in text


def test_an_unknown_action_and_an_unknown_model_are_told(client: FlaskClient):
    change(client, "explode")
    assert outcome(client) == ("bad", "'explode' is not one of start, stop, restart, update_params")
    assert client.get("/ui/model?name=absent&type=llm").status_code == 404
    assert client.get("/ui/model?name=s&type=x").status_code == 422
    assert client.get("/ui/model").status_code == 422


@pytest.mark.parametrize("scope", ["infer", "worker", None])
def test_only_an_administrator_changes_models(build: Build, scope: str | None):
    app = build(model_tables=TABLES, tokens=TOKENS)
    browser = app.test_client()
    if scope is not None:
        sign_in(browser, SECRETS[scope])
    assert change(browser, "stop").status_code == (401 if scope is None else 403)
    assert app.extensions[KEY].local.models.find("s@llm").state is State.READY
    page = browser.get(PAGE)
    if scope == "infer":
        assert "Restart" not in page.text
        assert re.search(r'<input id="f-size"[^>]*disabled', page.text)
        assert "Apply" not in page.text


def test_an_administrator_s_form_of_another_site_changes_nothing(build: Build):
    app = build(model_tables=TABLES, tokens=TOKENS)
    browser = app.test_client()
    sign_in(browser, SECRETS["admin"])
    form = {"name": "s", "type": "llm", "action": "stop"}
    refused = browser.post("/ui/model/change", data=form, headers={"Origin": "http://evil.example"})
    assert refused.status_code == 403
    assert change(browser, "stop").status_code == 303


def test_the_progress_of_a_start_is_on_the_page_meanwhile(app: Flask, client: FlaskClient):
    change(client, "stop")
    change(client, "update_params", **{"new.hold_start": "true"})
    starting = threading.Thread(target=lambda: change(app.test_client(), "start"))
    starting.start()
    wait_until(lambda: 'role="progressbar"' in client.get(PAGE).text, "the start is shown")
    Steered.go.set()
    starting.join(10)
    assert 'role="progressbar"' not in client.get(PAGE).text


def test_why_parameters_can_t_be_read_is_told(app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: Any) -> Any:
        raise InvalidRequest("the machine does not answer")

    monkeypatch.setattr(app.extensions[KEY].manager, "parameter_descriptions", fail)
    page = client.get(PAGE)
    assert page.status_code == 200
    assert "the machine does not answer" in page.text


def test_few_pages_wait_for_parameters_that_another_machine_has(build: Build, monkeypatch: pytest.MonkeyPatch):
    app = build(reserve=4)
    monkeypatch.setattr(models, "PLACE_WAIT", 0.01)
    waits, goes = threading.Event(), threading.Event()

    def hang(*arguments: Any) -> Any:
        waits.set()
        goes.wait(10)
        return []

    monkeypatch.setattr(app.extensions[KEY].manager, "parameter_descriptions", hang)
    first = threading.Thread(target=lambda: app.test_client().get(ECHO))
    first.start()
    try:
        assert waits.wait(10)
        page = app.test_client().get(ECHO)
        assert page.status_code == 200
        assert "other pages wait for parameters" in page.text
    finally:
        goes.set()
        first.join(10)
    assert "other pages" not in app.test_client().get(ECHO).text


# The last requests


def ask(app: Flask, text: str = "one two", model: str = "echo", **options: Any) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **options.pop("body", {})}
    app.test_client().post(CHAT, json=body, buffered=True, **options)


ECHO = "/ui/model?name=echo&type=llm"


def requests_of(client: FlaskClient, path: str = ECHO) -> str:
    return client.get(path).text.partition("<h2>Last requests</h2>")[2].partition("</section>")[0]


def test_requests_are_there_with_their_timings_and_no_bodies(app: Flask, client: FlaskClient):
    ask(app, "a secret prompt", headers={"x-request-id": "mine-1"})
    ask(app, "a secret stream", body={"stream": True})
    shown = requests_of(client)
    assert shown.count("/v1/chat/completions") == 2
    assert "mine-1" in shown
    assert "length" in shown
    assert re.search(r"\d+ → \d+", shown)
    assert "secret" not in client.get(ECHO).text
    assert "None yet" in requests_of(client, PAGE)


def test_a_failure_has_its_status_and_error(app: Flask, client: FlaskClient):
    ask(app, body={"temperature": "hot"})
    assert "400 invalid_request" in requests_of(client)


def test_bodies_are_there_if_they_are_switched_on_and_cut(build: Build):
    app = build(pages_bodies=True, model_tables=({"name": "echo", "reply": "prompt"},))
    for options in {}, {"stream": True}:
        ask(app, "<b>bold</b> " + "x" * 9000, body=options)
    shown = requests_of(app.test_client())
    assert shown.count("&lt;b&gt;bold&lt;/b&gt;") == 4
    assert "<b>" not in shown
    assert len(shown) < 4 * recent.LONGEST_BODY + 6000


def test_the_bodies_of_changes_are_never_kept_as_they_have_private_parameters(build: Build):
    app = build(pages_bodies=True)
    browser = app.test_client()
    body = {"model": "echo", "worker_type": "llm", "params": {"api_key": "sk-private"}}
    for call, more in ("apply", {"apply_type": "update_params"}), ("models/startup", {}):
        browser.post(f"/api/worker/{call}", json={**body, **more})
    shown = requests_of(browser)
    assert shown.count("/api/worker/") == 2
    assert "sk-private" not in shown


def test_others_see_their_own_requests_alone(build: Build):
    app = build(tokens=TOKENS, key_store="memory:")
    app.extensions[KEY].keys.store.add(new_key("ann", digest_of("secret"), parse_scopes("infer")))
    read_keys(app)
    for secret, name in ("secret", "of-ann"), (SECRETS["infer"], "of-token"), (SECRETS["admin"], "of-admin"):
        ask(app, headers={"Authorization": f"Bearer {secret}", "x-request-id": name})
    seen = {}
    for secret in "secret", SECRETS["infer"], SECRETS["admin"]:
        browser = app.test_client()
        sign_in(browser, secret)
        seen[secret] = re.findall(r"of-\w+", requests_of(browser))
    assert seen == {
        "secret": ["of-ann"],
        SECRETS["infer"]: ["of-token"],
        SECRETS["admin"]: ["of-admin", "of-token", "of-ann"],
    }
    open_page = requests_of(build(model_tables=(), role="gateway", instance="open").test_client())
    assert "of-" not in open_page


def test_the_last_of_each_model_are_kept_and_the_models_called_last():
    kept = RecentRequests()
    for number in range(recent.REQUESTS + 5):
        kept.note({"model": "a", "number": number})
    assert [each.line["number"] for each in kept.of("a")] == list(range(recent.REQUESTS + 4, 4, -1))
    kept.note({"model": "alias", "answered_by": "b"})
    assert len(kept.of("b")) == 1
    for model in range(recent.MODELS - 1):
        kept.note({"model": str(model)})
    assert kept.of("a") == []
    assert len(kept.of("b")) == 1
    kept.note({"path": "/x"})
    kept.note({"model": "m" * (recent.LONGEST_NAME + 1)})
    assert len(kept._by_model) == recent.MODELS


def test_without_pages_nothing_is_kept(build: Build):
    assert build(pages=False).extensions[KEY].recent is None


def test_with_several_processes_it_is_said_whose_requests_these_are(app: Flask, client: FlaskClient):
    assert "of process" not in requests_of(client)
    sample = app.extensions[KEY].sample

    def doubled() -> Any:
        whole = sample()
        whole.gauges["modelyard_processes"] = {(): [2.0]}
        return whole

    app.extensions[KEY].sample = doubled
    assert re.search(r"of process \d+, one of 2 of this service", requests_of(client))
