"""The similarity of texts: computed, shown as a table and a ranking, without a script."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from modelyard.access.keys import Limits, new_key
from modelyard.access.tokens import digest_of, new_secret, parse_scopes
from modelyard.blueprints.pages.similarity import MOST_LETTERS, MOST_TEXTS, TONES, cosines, shown
from modelyard.server.extension import KEY
from pages_service import OWN, SECRETS, TOKENS, Build, building, sign_in

STEERED = "steered:Steered"
TABLES = (
    {"name": "embeds", "worker_class": STEERED, "worker_type": "text2vec"},
    {"name": "ranks", "worker_class": STEERED, "worker_type": "reranker"},
    {"name": "echo"},
)


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    with building(tmp_path) as build:
        yield build


@pytest.fixture
def client(build: Build) -> FlaskClient:
    return build(model_tables=TABLES).test_client()


def compare(client: FlaskClient, texts: str, query: str = "", model: str = "embeds") -> Any:
    form = {"model": model, "texts": texts, "query": query}
    return client.post("/ui/similarity", data=form, headers=OWN)


def cells_of(page: str) -> list[tuple[str, str]]:
    """Return the class and the text of each cell of the table."""
    heat = re.search(r'<table class="heat">(.*?)</table>', page, re.DOTALL)
    assert heat is not None
    return re.findall(r'<td class="([\w-]+)">([^<]*)</td>', heat[1])


def ranking_of(page: str) -> list[tuple[str, str]]:
    """Return the scores and the texts of the ranking, in its order."""
    row = r'<tr><td class="number">([^<]*)</td>.*?<th scope="row"><bdi>([^<]*)</bdi></th></tr>'
    return re.findall(row, page, re.DOTALL)


def test_the_page_offers_models_with_vectors_and_texts_to_begin_with(client: FlaskClient):
    page = client.get("/ui/similarity")
    assert page.status_code == 200
    assert '<option value="embeds">embeds</option>' in page.text
    assert '<option value="ranks">ranks (ranks)</option>' in page.text
    assert "echo" not in page.text
    assert "A kitten naps" in page.text
    assert "<script" not in page.text.replace('<script src="', "", 1), "none beside the one of all pages"


def test_each_two_texts_have_a_cell_whose_colour_grows_with_the_similarity(client: FlaskClient):
    # The vectors are (length, 1).
    page = compare(client, "aaaa\n\n  bbbb \nc")
    assert page.status_code == 200
    cells = cells_of(page.text)
    low = shown((4 + 1) / (17**0.5 * 2**0.5), 2)
    assert cells == [
        ("same", "1"),
        (f"tone-{TONES}", "1.00"),
        ("tone-0", low),
        (f"tone-{TONES}", "1.00"),
        ("same", "1"),
        ("tone-0", low),
        ("tone-0", low),
        ("tone-0", low),
        ("same", "1"),
    ]
    assert "2 numbers a text" in page.text
    assert "Most alike are 1 and 2 (<b>1.000</b>), least alike" in page.text
    assert ranking_of(page.text) == []


def test_a_query_ranks_the_texts_best_first(client: FlaskClient):
    page = compare(client, "aaaaaaaa\nb", query="c").text
    assert [text for _, text in ranking_of(page)] == ["b", "aaaaaaaa"]
    assert ranking_of(page)[0][0] == "1.000"


def test_a_reranker_only_ranks_and_needs_a_query(client: FlaskClient):
    page = compare(client, "a b\nb b", query="b", model="ranks")
    assert page.status_code == 200
    scores = ranking_of(page.text)
    assert [text for _, text in scores] == ["b b", "a b"]
    assert scores[0][0] == "0.881", "the sigmoid of 2"
    assert "heat" not in page.text
    assert "The embeddings as curl" not in page.text
    refused = compare(client, "a\nb", model="ranks")
    assert (refused.status_code, "query: is missing" in refused.text) == (422, True)


@pytest.mark.parametrize(
    ("texts", "status", "words"),
    [
        (" \n ", 422, "write one text a line"),
        ("a\n" * (MOST_TEXTS + 1), 422, f"there are {MOST_TEXTS + 1}"),
        ("a" * (MOST_LETTERS + 1), 422, f"one has {MOST_LETTERS + 1} letters"),
        ("break", 500, "the engine of model "),
    ],
)
def test_a_refusal_keeps_what_was_written(client: FlaskClient, texts: str, status: int, words: str):
    page = compare(client, texts)
    assert (page.status_code, words in page.text) == (status, True)
    if status == 422:
        assert '<p class="notice bad" role="alert">' in page.text
        assert texts.strip().splitlines()[:1] == re.findall(r"<textarea[^>]*>([^<\n]+)", page.text)


def test_an_unknown_model_is_refused_on_the_page(client: FlaskClient):
    page = compare(client, "a\nb", model="<i>other")
    assert page.status_code == 404
    assert "&lt;i&gt;other" in page.text
    assert "<i>" not in page.text


def test_texts_and_query_are_text_and_the_commands_hold_them_as_they_are(client: FlaskClient):
    texts, query = ["</textarea><script>alert(1)</script>", 'it\'s "$(date)"'], "<img src=x onerror=y>'"
    page = compare(client, "\n".join(texts), query=query)
    assert page.status_code == 200
    for tag in ("<script>", "<img src=x", "</textarea><"):
        assert tag not in page.text
    commands = re.findall(r'<pre class="whole" tabindex="0">(.*?)</pre>', page.text, re.DOTALL)
    first, second = (shlex.split(unescape(command).replace("\\\n", "")) for command in commands)
    assert first[:2] == ["curl", "http://localhost/v1/embeddings"]
    sent = client.post("/v1/embeddings", data=first[-1])
    assert len(sent.get_json()["data"]) == 2
    assert second[1] == "http://localhost/v1/rerank"
    ranked = client.post("/v1/rerank", data=second[-1]).get_json()
    assert len(ranked["results"]) == 2
    client.environ_base["HTTP_X_FORWARDED_PROTO"] = "https"
    assert "curl https://localhost/v1/embeddings" in compare(client, "a").text


def test_one_text_has_a_table_of_itself(client: FlaskClient):
    page = compare(client, "a")
    assert cells_of(page.text) == [("same", "1")]
    assert "Most alike" not in page.text


def test_only_with_infer_and_only_from_its_own_page(build: Build):
    client = build(tokens=TOKENS, model_tables=TABLES).test_client()
    sign_in(client, SECRETS["worker"])
    assert compare(client, "a\nb").status_code == 403
    sign_in(client, SECRETS["infer"])
    assert compare(client, "a\nb").status_code == 200
    foreign = {"Origin": "https://evil.example"}
    assert client.post("/ui/similarity", data={"texts": "a"}, headers=foreign).status_code == 403


def test_the_models_and_the_limits_are_those_of_the_key(build: Build):
    app = build(model_tables=TABLES)
    secret = new_secret()
    key = new_key("ann", digest_of(secret), parse_scopes("infer"), ["embeds"], limits=Limits(requests=1))
    app.extensions[KEY].keys.add(key)
    client = app.test_client()
    sign_in(client, secret)
    assert "ranks" not in client.get("/ui/similarity").text.partition("Query")[0]
    assert compare(client, "a", query="b", model="ranks").status_code == 403
    assert compare(client, "a\nb").status_code == 200
    refused = compare(client, "a\nb")
    assert (refused.status_code, "the limit of the key ann" in refused.text) == (429, True)


def test_the_cosine_of_rows():
    matrix = cosines([[3.0, 4.0], [4.0, 3.0], [0.0, 0.0]])
    assert [round(value, 6) for value in matrix[0]] == [1.0, 0.96, 0.0]
    assert matrix[2] == [0.0, 0.0, 0.0]
    assert (shown(-0.001, 2), shown(-0.06, 2)) == ("0.00", "-0.06")
