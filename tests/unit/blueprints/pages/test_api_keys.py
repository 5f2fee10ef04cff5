"""The page of the keys: for admins, from its own form alone; a secret is shown once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from modelyard.access.keys import Key, Limits, new_key
from modelyard.access.tokens import digest_of, new_secret, parse_scopes
from modelyard.blueprints.pages.api_keys import A_PAGE
from modelyard.server.extension import KEY
from pages_service import OWN, SECRETS, TOKENS, Build, building, sign_in


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    with building(tmp_path) as build:
        yield build


@pytest.fixture
def app(build: Build) -> Flask:
    return build(tokens=TOKENS)


@pytest.fixture
def admin(app: Flask) -> FlaskClient:
    client = app.test_client()
    sign_in(client, SECRETS["admin"])
    return client


def store_of(app: Flask) -> Any:
    return app.extensions[KEY].keys.store


def add(app: Flask, name: str, **options: Any) -> Key:
    key = new_key(name, digest_of(new_secret()), parse_scopes("infer"), **options)
    store_of(app).add(key)
    return key


def make(client: FlaskClient, headers: Any = OWN, **fields: Any) -> Any:
    return client.post("/ui/keys", data={"name": "ci", "scope": ["infer"], **fields}, headers=headers)


def revoke(client: FlaskClient, number: str, **fields: str) -> Any:
    client.post("/ui/keys/revoke", data={"id": number, **fields}, headers=OWN)
    return client.get("/ui/keys")


def secret_of(page: Any) -> str:
    found = re.search(r'id="secret">(modelyard_[\w-]+)</pre>', page.text)
    assert found is not None
    return found[1]


def test_a_key_is_made_with_all_that_it_may_and_its_secret_is_shown_once(app: Flask, admin: FlaskClient):
    limits = {"requests": "600", "tokens": "200000", "parallel": "8"}
    page = make(admin, models="echo, qwen* ", expires="30d", **limits)
    assert page.status_code == 200
    assert page.headers["Cache-Control"] == "no-store"
    (key,) = store_of(app).all()
    assert (key.name, key.models, key.limits) == ("ci", ("echo", "qwen*"), Limits(600, 200_000, 8))
    assert key.scopes == {"infer"}
    assert 29 < (key.expires - key.created) / 86_400 < 31
    secret = secret_of(page)
    bearer = {"Authorization": f"Bearer {secret}"}
    listed = app.test_client().get("/v1/models", headers=bearer).get_json()
    assert [model["id"] for model in listed["data"]] == ["echo"], "it is valid at once"
    assert secret not in admin.get("/ui/keys").text


def test_what_is_used_of_the_limits_is_shown(app: Flask, admin: FlaskClient):
    secret = secret_of(make(admin, requests="600", tokens="1000", parallel="4"))
    body = {"model": "echo", "messages": [{"role": "user", "content": "abcd"}], "max_tokens": 9}
    bearer = {"Authorization": f"Bearer {secret}"}
    assert app.test_client().post("/v1/chat/completions", json=body, headers=bearer).status_code == 200
    app.extensions[KEY].keys._give_back()
    uses = re.findall(r'</progress> (.*?) <span class="muted">(.*?)</span>', admin.get("/ui/keys").text)
    assert uses == [
        ("1 of 600", "requests a minute"),
        ("10 of 1\u202f000", "tokens a minute"),
        ("0 of 4", "requests at once"),
    ]


def test_a_key_is_revoked_and_then_forgotten(app: Flask, admin: FlaskClient):
    secret = secret_of(make(admin))
    (key,) = store_of(app).all()
    page = revoke(admin, key.id)
    assert f"ci ({key.id}) is revoked" in page.text
    assert '<span class="state bad">revoked</span>' in page.text
    bearer = {"Authorization": f"Bearer {secret}"}
    assert app.test_client().get("/v1/models", headers=bearer).status_code == 401
    page = revoke(admin, key.id, forget="1")
    assert "is forgotten" in page.text
    assert store_of(app).all() == []
    assert "there is no key" in revoke(admin, key.id).text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "a b"}, "the name may have"),
        ({"name": "<script>"}, "the name may have"),
        ({"name": "key_0123456789ab"}, "is how ids of keys look"),
        ({"name": "old"}, "there is a key named old already"),
        ({"scope": []}, "scopes: choose some"),
        ({"scope": ["root"]}, "scopes: choose some"),
        ({"expires": "soon"}, "is not a duration"),
        ({"expires": "2001-01-01"}, "is past"),
        ({"requests": "0"}, "requests a minute: must be"),
        ({"tokens": "1e9"}, "tokens a minute: must be"),
        ({"parallel": "²"}, "requests at once: must be"),
        ({"requests": str(10**13)}, "requests a minute: must be"),
        ({"tokens": "9" * 5000}, "tokens a minute: must be"),
    ],
)
def test_a_refusal_names_the_field_and_keeps_the_form(app: Flask, admin: FlaskClient, fields: Any, words: str):
    add(app, "old")
    page = make(admin, **{"models": "m<1>", **fields})
    assert page.status_code == 422
    assert words in page.text
    assert 'value="m&lt;1&gt;"' in page.text
    assert "<script>" not in page.text
    assert 'id="secret"' not in page.text
    assert len(store_of(app).all()) == 1


def test_models_are_text(app: Flask, admin: FlaskClient):
    add(app, "ci", models=["<script>alert(1)</script>"])
    page = admin.get("/ui/keys").text
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>" not in page


def test_only_admins_and_only_from_this_page(app: Flask, admin: FlaskClient):
    other = app.test_client()
    assert make(other).status_code == 401
    sign_in(other, SECRETS["infer"])
    assert other.get("/ui/keys").status_code == 403
    assert make(other).status_code == 403
    assert ">Keys<" not in other.get("/ui/").text
    key = add(app, "old")
    foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert make(admin, headers=foreign).status_code == 403
    assert admin.post("/ui/keys/revoke", data={"id": key.id}, headers=foreign).status_code == 403
    assert [each.revoked for each in store_of(app).all()] == [None]


def test_before_the_first_key_the_page_warns_and_offers_admin(build: Build):
    app = build()
    client = app.test_client()
    page = client.get("/ui/keys").text
    assert "There are no keys" in page
    assert "answers nothing without one" in page
    assert 'value="admin" checked' in page
    secret = secret_of(make(client, scope=["admin"]))
    assert client.get("/ui/keys").location == "/ui/sign-in?next=%2Fkeys"
    sign_in(client, secret)
    page = client.get("/ui/keys").text
    assert "answers nothing without one" not in page
    assert 'value="infer" checked' in page


def test_without_a_store_it_says_how_to_have_one(build: Build):
    app = build(tokens=TOKENS, key_store="none")
    client = app.test_client()
    sign_in(client, SECRETS["admin"])
    page = client.get("/ui/keys")
    assert (page.status_code, "set key_store" in page.text) == (200, True)
    refused = make(client)
    assert (refused.status_code, '<form class="columns"' in refused.text) == (422, False)


def test_many_keys_are_on_pages_and_found_by_name(app: Flask, admin: FlaskClient):
    for number in range(A_PAGE + 1):
        add(app, f"key-{number:02}", limits=Limits(requests=5))
    first = admin.get("/ui/keys").text
    assert f"key-{A_PAGE}<" in first, "the newest first"
    assert "key-00<" not in first
    assert '<a href="/ui/keys?part=2&amp;find=">Older</a>' in first
    second = admin.get("/ui/keys?part=2").text
    assert re.findall(r'<th scope="row">(.*?)<', second) == ["key-00"]
    assert admin.get("/ui/keys?part=999&find=").text.count('scope="row"') == 1
    found = admin.get("/ui/keys?find=-07").text
    assert re.findall(r'<th scope="row">(.*?)<', found) == ["key-07"]
    assert "No key is named so" in admin.get("/ui/keys?find=<x>").text
    assert len(first) < 100_000
