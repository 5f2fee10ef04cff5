"""The page of the calls: whole, small, linked in itself, safe, and made of the document alone."""

from __future__ import annotations

import re
import shlex
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import orjson
import pytest
from flask import Flask
from modelyard import Modelyard
from modelyard.blueprints.openapi.document import OTHER_PATHS
from modelyard.server.extension import create_app
from modelyard.settings.settings import Settings

ROLES = {"standalone": "memory:", "worker": None, "controller": "memory:", "gateway": "memory:"}
LARGEST = 100_000
"""The most bytes of a page."""


class Page(HTMLParser):
    """The elements of a page, and what is wrong with their nesting."""

    VOID = frozenset({"meta", "link", "br", "hr", "img", "input"})
    OPTIONAL_END = frozenset({"td", "th", "tr", "thead"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        self.attributes |= given.keys()
        self.ids += [str(given["id"])] if "id" in given else []
        self.links += [str(given["href"])] if "href" in given else []
        if tag not in self.VOID | self.OPTIONAL_END:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.OPTIONAL_END:
            assert self.open.pop() == tag


def app_of(folder: Path, role: str = "standalone") -> Flask:
    app = create_app(Settings(state_dir=str(folder), role=role, registry=ROLES[role], models=[]))
    app.extensions["modelyard"].start = lambda: None  # which the first request calls
    return app


def commands_of(text: str) -> list[list[str]]:
    """Return the words of each command of curl on a page."""
    runs = re.findall(r'<pre class="run" tabindex="0">(.*?)</pre>', text, re.DOTALL)
    return [shlex.split(unescape(run).replace("\\\n", "")) for run in runs]


@pytest.mark.parametrize("role", ROLES)
def test_it_shows_every_call_of_the_role_and_each_link_leads_somewhere(tmp_path: Path, role: str):
    client = app_of(tmp_path, role).test_client()
    document: dict[str, Any] = client.get("/openapi.json").get_json()
    response = client.get("/docs")
    assert response.status_code == 200
    assert response.content_type == "text/html; charset=utf-8"
    assert len(response.data) < LARGEST
    page = Page(response.text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    operations = [each for path in document["paths"].values() for each in path.values()]
    assert {each["operationId"] for each in operations} <= set(page.ids)
    assert document["components"]["schemas"].keys() <= set(page.ids)
    assert {link for link in page.links if link.removeprefix("#") not in page.ids} == {"openapi.json", "docs.css"}
    assert client.get("/openapi.json").status_code == 200
    style = client.get("/docs.css")
    assert (style.status_code, style.content_type) == (200, "text/css; charset=utf-8")
    assert "url(" not in style.text
    for operation in operations:
        for also in operation.get(OTHER_PATHS, ()):
            assert f"<code>{also}</code>" in response.text


def test_nothing_of_it_runs_and_nothing_comes_from_elsewhere(tmp_path: Path):
    response = app_of(tmp_path).test_client().get("/docs")
    page = Page(response.text)
    assert not page.tags & {"script", "img", "style", "iframe", "form"}
    assert not {name for name in page.attributes if name.startswith("on")} | page.attributes & {"src", "style"}
    assert re.findall(r"<link [^>]*>", response.text) == ['<link rel="stylesheet" href="docs.css">']
    policy = response.headers["Content-Security-Policy"]
    assert policy.split("; ")[:2] == ["default-src 'none'", "style-src 'self'"]
    assert "frame-ancestors 'none'" in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_each_call_has_a_command_that_sends_the_example_of_the_document(tmp_path: Path):
    client = app_of(tmp_path).test_client()
    document: dict[str, Any] = client.get("/openapi.json").get_json()
    commands = commands_of(client.get("/docs").text)
    assert len(commands) == sum(map(len, document["paths"].values()))
    sent = {}
    for words in commands:
        assert words[0] == "curl"
        (url,) = (word for word in words if word.startswith("$MODELYARD_URL"))
        data = words[words.index("-d") + 1] if "-d" in words else None
        method = words[words.index("-X") + 1] if "-X" in words else "GET" if data is None else "POST"
        sent[method, url.removeprefix("$MODELYARD_URL")] = data, "-H" in words
    for path in ("/v1/chat/completions", "/api/worker/apply"):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        data, has_token = sent["POST", path]
        assert orjson.loads(data or "") == body["examples"]["whole"]["value"]
        assert has_token
    assert sent["GET", "/healthz"] == (None, False)
    assert ("DELETE", "/api/controller/instances") in sent
    assert ("GET", "/v1/models/NAME") in sent
    assert ("GET", "/api/worker/parameter/descriptions?model=MODEL") in sent


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("models.example:8443", "http://models.example:8443"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("x;touch$IFS/p", "http://127.0.0.1:8000"),
        ("a<script>b", "http://127.0.0.1:8000"),
    ],
)
def test_the_commands_read_the_address_that_the_browser_has_written(tmp_path: Path, host: str, shown: str):
    response = app_of(tmp_path).test_client().get("/docs", headers={"Host": host})
    assert response.status_code == 200
    assert f"export MODELYARD_URL={shown} MODELYARD_TOKEN=" in response.text
    assert "<script" not in response.text


def test_the_commands_speak_https_where_a_proxy_does(tmp_path: Path):
    page = app_of(tmp_path).test_client().get("/docs", headers={"Host": "h.test", "X-Forwarded-Proto": "https"}).text
    assert "export MODELYARD_URL=https://h.test MODELYARD_TOKEN=" in page


def test_a_browser_that_has_it_is_told_so(tmp_path: Path):
    client = app_of(tmp_path).test_client()
    first = client.get("/docs")
    again = client.get("/docs", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


def test_in_an_application_it_is_below_the_prefix_where_it_is_wanted(tmp_path: Path):
    app, bare = Flask("shop"), Flask("bare")
    app.jinja_env.autoescape = False  # of no effect on pages of ours
    Modelyard(app, url_prefix="/ml", openai=True, docs=True, models=[], state_dir=str(tmp_path))
    Modelyard(bare, url_prefix="/ml", models=[], state_dir=str(tmp_path / "bare"))
    for each in (app, bare):
        each.extensions["modelyard"].start = lambda: None
    page = app.test_client().get("/ml/docs").text
    assert "<code>/ml/v1/chat/completions</code>" in page
    assert Page(page).links.count("openapi.json") == 1
    assert bare.test_client().get("/ml/docs").status_code == 404
