"""The page on which a chat is tried: its script streams the answers, from an endpoint of the pages.

The endpoint is the call of OpenAI's API within this process, for the visitor of the page: the API itself reads no
cookie, so no other site can use a sign-in, and a form of another site is refused like every form of the pages.
"""

from __future__ import annotations

import functools
import importlib.util
import time
from http import HTTPStatus

from flask import Response, current_app, request
from werkzeug.wrappers import Response as AnyResponse

from ...access.tokens import INFER
from ...errors import InvalidRequest
from ..openai.blueprint import answer_chat
from ..openai.models import model_entries
from ..request.bodies import read_bytes
from ..request.keys import visible
from .site import Site

_CHAT_CALL = "modelyard_openai.chat_completions"
_ANSWER = ("loaded", "loading", "unloaded")
"""The states of models that answer, at once or after a while."""


def add(site: Site) -> None:
    """Add the page to a site."""

    def page() -> AnyResponse:
        return site.render(
            "playground.html",
            models=models_that(site, "completion"),
            chosen=request.args.get("model", ""),
            api=api_path(),
            has_markdown=_has_markdown(),
        )

    def chat() -> AnyResponse:
        return answer_chat(site.service)

    def words() -> AnyResponse:
        if not _has_markdown():
            return Response(status=HTTPStatus.NOT_IMPLEMENTED)
        from .markdown import LARGEST, html_of  # noqa: PLC0415 - its library is optional, and takes 40 ms to import

        try:
            text = read_bytes(request, LARGEST).decode()
        except UnicodeDecodeError:
            raise InvalidRequest("the body must be text in UTF-8") from None
        return Response(html_of(text), content_type="text/html; charset=utf-8")

    site.add("playground", page, needs=(INFER,), label="Playground")
    site.add("playground/chat", chat, needs=(INFER,), methods=("POST",))
    site.add("playground/words", words, needs=(INFER,), methods=("POST",))


def models_that(site: Site, *capabilities: str) -> dict[str, list[str]]:
    """Return the models that the visitor may use and that have one of ``capabilities``, with all that they can do.

    Models that a request loads are among them.
    """
    entries = model_entries(site.service, int(time.time()))
    usable = [entries[name] for name in visible(entries) if entries[name]["status"]["value"] in _ANSWER]
    wanted = set(capabilities)
    return {entry["id"]: entry["capabilities"] for entry in usable if not wanted.isdisjoint(entry["capabilities"])}


def api_path() -> str:
    """Return the path of OpenAI's API in this application, which clients name in a base URL; empty without it."""
    rules = [rule.rule for rule in current_app.url_map.iter_rules() if rule.endpoint == _CHAT_CALL]
    paths = [rule.removesuffix("/chat/completions") for rule in rules if "/v1/" in rule]
    return request.script_root + min(paths, key=len) if paths else ""


@functools.cache
def _has_markdown() -> bool:
    return importlib.util.find_spec("markdown_it") is not None
