"""A model's words as HTML: marked up, and never more than words."""

from __future__ import annotations

import time

import pytest
from modelyard.blueprints.pages.markdown import LARGEST, MOST_CELLS, html_of


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("**a** `b`", "<p><strong>a</strong> <code>b</code></p>\n"),
        ("|a|\n|-|\n|~~1~~|", "<table>\n<thead>\n<tr>\n<th>a</th>\n</tr>\n</thead>\n<tbody>\n<tr>\n<td><s>1</s></td>"),
        ("|a|\n|:-:|\n|1|", "<table>\n<thead>\n<tr>\n<th>a</th>\n</tr>\n</thead>\n<tbody>\n<tr>\n<td>1</td>"),
        ("```py\n1 < 2\n```", '<pre><code class="language-py">1 &lt; 2\n</code></pre>\n'),
    ],
)
def test_words_are_marked_up(text: str, html: str):
    assert html_of(text).startswith(html)


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "a <img src=x onerror=alert(1)> b",
        "<!-- <b> -->",
        "<style>*{display:none}</style>",
        "```<script>\n<script>\n```",
        "# <b>",
        "> <i onclick=x>",
        "[<b>](http://a.example)",
        '[a](http://a.example "<b>\'\\"><b>")',
        "![<b>](http://a.example/'\"><b>)",
        "|<b>|\n|-|\n|<b>|",
        "&lt;script&gt; &#60;script&#62;",
    ],
)
def test_html_is_text(text: str):
    html = html_of(text).lower()
    for tag in ("<script", "<img", "<b>", "<i ", "<style", "<!--"):
        assert tag not in html


@pytest.mark.parametrize(
    "address",
    [
        *("javascript:alert(1)", "JaVaScRiPt:alert(1)", "data:text/html,x", "vbscript:x", "file:///etc/passwd"),
        *("/ui/keys", "//a.example", "mailto:a@a.example", "&#106;avascript:x", "java\tscript:x", "http:", "#top"),
    ],
)
def test_links_that_lead_elsewhere_than_to_the_web_are_text(address: str):
    for text in (f"[a]({address})", f"![a]({address})", f"<{address}>", f"[a]\n\n[a]: {address}"):
        assert "href" not in html_of(text), text


def test_a_link_tells_its_page_nothing_and_a_picture_is_a_link():
    rel = 'rel="noopener noreferrer nofollow" target="_blank"'
    assert html_of("[a](https://a.example/?b&c)") == f'<p><a href="https://a.example/?b&amp;c" {rel}>a</a></p>\n'
    assert html_of("![a](HTTP://a.example/b)") == f'<p><a href="HTTP://a.example/b" {rel}>a</a></p>\n'
    assert html_of("![](http://a.example)") == f'<p><a href="http://a.example" {rel}>http://a.example</a></p>\n'
    assert html_of("http://a.example") == "<p>http://a.example</p>\n"


def test_short_rows_do_not_make_a_short_text_large():
    table = "|" + "a|" * 64 + "\n|" + "-|" * 64 + "\n" + "|\n" * 60 + "\n"
    html = html_of(table * (LARGEST // len(table)))
    assert html.count("<td") <= MOST_CELLS
    assert len(html) < 5 * LARGEST
    rows = html_of("|a|b|\n|-|-|\n" + "|1|2|\n" * 1000)
    assert rows.count("<td") == 2000


@pytest.mark.parametrize("part", ["[", "![[", "*a ", "`a", "> ", "|a", "<a ", "_*", "[x]: y\n", "a\n", "(" * 9])
def test_no_text_takes_long(part: str):
    began = time.process_time()
    html_of(part * (LARGEST // 4 // len(part)))
    assert time.process_time() - began < 2
