"""The web pages of a service as one blueprint, and those that sign a visitor in and out."""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import unquote

from flask import Blueprint, redirect, request
from werkzeug.wrappers import Response as AnyResponse

from ...errors import ModelyardError, RateLimited, Unauthorized
from ...worker.protocol import Service
from . import api_keys, cluster, models, playground, similarity
from .site import EVERYONE, Site
from .watch import Watch

LONGEST_NEXT = 2000


def pages_blueprint(service: Service, path: str, docs: str | None = None) -> Blueprint:
    """Return the pages below ``path``; ``docs`` is the path of the page of all calls. Raises ConfigError.

    A page is added by its module, with the scopes that it needs; the order is that of the navigation.
    """
    site = Site(service, path, docs)
    watch = Watch(service)
    cluster.add(site, watch)
    models.add(site, watch)
    playground.add(site)
    similarity.add(site)
    api_keys.add(site)
    _add_sign_in(site)
    return site.blueprint


def _add_sign_in(site: Site) -> None:
    """Add the pages that sign a visitor in and out. A wrong key costs a lookup by its hash, and tells nothing."""

    def form() -> AnyResponse:
        return site.render("sign_in.html", next=request.args.get("next", ""), refusal="")

    def sign_in() -> AnyResponse:
        wanted = request.form.get("next", "")
        try:
            holder = site.sign_ins.find(request, request.form.get("key", "").strip())
        except (Unauthorized, RateLimited) as error:
            refused = site.render("sign_in.html", HTTPStatus(error.status), next=wanted, refusal=str(error))
            if isinstance(error, RateLimited):
                refused.headers["Retry-After"] = str(error.retry_after)
            return refused
        response = redirect(site.link_to() + _below(wanted), HTTPStatus.SEE_OTHER)
        site.sign_ins.begin(response, request, holder)
        return response

    def sign_out() -> AnyResponse:
        response = site.go_to("sign-in")
        try:
            site.sign_ins.end(response, request)
        except ModelyardError as error:
            words = f"this browser is signed out, but a copy of its cookie would still be valid for some hours: {error}"
            site.sign_ins.keep_outcome(response, request, words, good=False)
        return response

    site.add("sign-in", form, needs=EVERYONE)
    site.add("sign-in/send", sign_in, needs=EVERYONE, methods=("POST",))
    site.add("sign-out", sign_out, needs=EVERYONE, methods=("POST",))


def _below(wanted: str) -> str:
    """Return the page to go to after a sign-in, below the address of the site: nothing leads out of it."""
    is_page = wanted.startswith("/") and len(wanted) <= LONGEST_NEXT and not any(c in wanted for c in "\\\r\n\t")
    steps = unquote(wanted.partition("?")[0]).split("/")
    return wanted[1:].lstrip("/") if is_page and ".." not in steps else ""
