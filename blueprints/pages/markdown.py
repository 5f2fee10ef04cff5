"""A model's words as safe HTML: markdown without HTML, without pictures, and with links to the web alone.

What a model writes may come from a document that an attacker wrote. So HTML is text, and nothing is loaded: a picture's
address could carry the conversation away. Needs markdown-it-py.
"""

from __future__ import annotations

import functools
from collections.abc import MutableMapping, Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererProtocol
from markdown_it.rules_block import StateBlock, table
from markdown_it.token import Token
from markdown_it.utils import OptionsDict
from markupsafe import Markup

LARGEST = 64 * 1024
"""The most bytes of a text: the slowest one takes about half a second."""
MOST_CELLS = 16_384
"""The most cells of all tables of a text, also of those that a row leaves out: four bytes could make hundreds."""
_SCHEMES = ("http://", "https://")
_REL = "noopener noreferrer nofollow"

_Environment = MutableMapping[str, Any]


class _Markdown(MarkdownIt):
    """CommonMark with tables and strikethrough."""

    def validateLink(self, url: str) -> bool:
        return url.lower().startswith(_SCHEMES)


def html_of(text: str) -> str:
    """Return the HTML of a model's words."""
    rendered: str = _markdown().render(text)
    return rendered


@functools.cache
def _markdown() -> _Markdown:
    markdown = _Markdown("commonmark", {"html": False})
    markdown.enable(["table", "strikethrough"])
    markdown.block.ruler.at("table", _table, {"alt": ["paragraph", "reference"]})
    markdown.add_render_rule("link_open", _link)
    markdown.add_render_rule("image", _picture)
    for name in "th_open", "td_open":
        markdown.add_render_rule(name, _cell)
    return markdown


def _table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Read a table, unless the text would have more than `MOST_CELLS`: then it stays text."""
    if start + 1 >= end:
        return False
    columns = state.src.count("|", state.bMarks[start + 1], state.eMarks[start + 1]) + 1
    # As if all further lines were of the table: so each line is looked at once.
    if state.env.get("cells", 0) + columns * (end - start) > MOST_CELLS or not table(state, start, end, silent):
        return False
    if not silent:
        state.env["cells"] = state.env.get("cells", 0) + columns * (state.line - start)
    return True


def _link(
    renderer: RendererProtocol, tokens: Sequence[Token], index: int, options: OptionsDict, env: _Environment
) -> str:
    """Return the start of a link: the page that it leads to learns nothing of the one that it is on."""
    # A plain str: markdown-it-py 3 would escape all that it adds to a Markup.
    return str(Markup('<a href="{}" rel="{}" target="_blank">').format(tokens[index].attrs.get("href", ""), _REL))


def _picture(
    renderer: RendererProtocol, tokens: Sequence[Token], index: int, options: OptionsDict, env: _Environment
) -> str:
    """Return a picture as a link to it."""
    address = tokens[index].attrs.get("src", "")
    text = tokens[index].content or address
    return str(Markup('<a href="{}" rel="{}" target="_blank">{}</a>').format(address, _REL, text))


def _cell(
    renderer: RendererProtocol, tokens: Sequence[Token], index: int, options: OptionsDict, env: _Environment
) -> str:
    """Return the start of a cell, without the inline style of its column, which the pages' policy forbids."""
    return f"<{tokens[index].tag}>"
