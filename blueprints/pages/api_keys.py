"""The page of the API keys, for admins: make one, see its limits and what is used of them, revoke it.

A secret is shown once, in the answer to the form that has made it: it is in no address, cookie or redirect.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from http import HTTPStatus
from typing import NamedTuple

from flask import g, request
from werkzeug.wrappers import Response as AnyResponse

from ...access.keys import LARGEST_LIMIT, Key, Limits, new_key, parse_expiry, shown_time
from ...access.tokens import ADMIN, INFER, SCOPES, digest_of, join_scopes, new_secret, with_implied
from ...cluster.keys import NO_STORE
from ...errors import ConfigError, InvalidRequest
from ...worker.protocol import Keys
from ..request.guard import origin_of
from .parts import Choice
from .playground import api_path
from .site import Site

A_PAGE = 50
"""The keys that a page lists: for each of them that has limits the store is asked once."""
_WHOLE = re.compile(r"[0-9]{1,20}")
_LIMITS = {"requests": "requests a minute", "tokens": "tokens a minute", "parallel": "requests at once"}


class Use(NamedTuple):
    """What is used of one limit."""

    unit: str
    used: int
    limit: int


class Row(NamedTuple):
    """A key, as the page lists it."""

    key: Key
    state: str
    """``valid``, ``expired`` or ``revoked``."""
    scopes: str
    expires: str | None
    uses: list[Use]


class Draft(NamedTuple):
    """The fields of the form, as they were filled in."""

    name: str = ""
    scopes: tuple[str, ...] = (INFER,)
    models: str = ""
    expires: str = ""
    limits: Mapping[str, str] = dict.fromkeys(_LIMITS, "")

    @classmethod
    def of_request(cls) -> Draft:
        """Return what the form of the current request has."""
        form = request.form
        texts = {name: form.get(name, "").strip() for name in ("name", "models", "expires", *_LIMITS)}
        limits = {name: texts[name] for name in _LIMITS}
        return cls(texts["name"], tuple(form.getlist("scope")), texts["models"], texts["expires"], limits)

    def key(self, secret: str) -> Key:
        """Return the key of a new secret. Raises InvalidRequest, which names the field."""
        limits = Limits(**{name: _limit(name, text) for name, text in self.limits.items()})
        if not self.scopes or not set(self.scopes) <= set(SCOPES):
            raise InvalidRequest(f"scopes: choose some of {', '.join(SCOPES)}")
        try:
            moment = parse_expiry(self.expires, time.time()) if self.expires else None
            models = self.models.replace(",", " ").split()
            return new_key(
                self.name, digest_of(secret), with_implied(self.scopes), models, expires=moment, limits=limits
            )
        except ValueError as error:
            raise InvalidRequest(str(error)) from None


def _limit(name: str, text: str) -> int | None:
    if not text:
        return None
    if not _WHOLE.fullmatch(text) or not 1 <= int(text) <= LARGEST_LIMIT:
        raise InvalidRequest(f"{_LIMITS[name]}: must be a whole number from 1, or empty for no limit")
    return int(text)


def add(site: Site) -> None:
    """Add the page to a site."""

    def page() -> AnyResponse:
        if request.method != "POST":
            return listed(_empty_draft(site))
        draft, secret = Draft.of_request(), new_secret()
        try:
            keys = _store(site)
            made = draft.key(secret)
            keys.add(made)
        except (InvalidRequest, ConfigError) as error:
            g.modelyard_line.error = error.code
            return listed(draft, refusal=str(error))
        return listed(_empty_draft(site), made=made, secret=secret)

    def revoke() -> AnyResponse:
        forget = request.form.get("forget") == "1"
        try:
            gone = _store(site).revoke(request.form.get("id", ""), forget=forget)
        except ConfigError as error:
            words, good = str(error), False
        else:
            words, good = f"{gone.name} ({gone.id}) is {'forgotten' if forget else 'revoked'}", True
        response = site.go_to("keys")
        site.sign_ins.keep_outcome(response, request, words, good=good)
        return response

    def listed(draft: Draft, *, made: Key | None = None, secret: str = "", refusal: str = "") -> AnyResponse:
        keys = site.service.keys
        newest_first = [] if keys is None else [*reversed(keys.all())]
        part = Choice.of_request().part(
            newest_first, A_PAGE, lambda key, wanted: wanted in key.name or wanted == key.id
        )
        return site.render(
            "keys.html",
            HTTPStatus.UNPROCESSABLE_ENTITY if refusal else HTTPStatus.OK,
            rows=_rows(keys, part.rows),
            part=part,
            draft=draft,
            made=made,
            secret=secret,
            refusal=refusal,
            units=_LIMITS,
            scopes=SCOPES,
            is_open=keys is not None and not keys.is_required(),
            unavailable=NO_STORE if keys is None else "",
            api=origin_of(request) + api_path(),
        )

    site.add("keys", page, needs=(ADMIN,), methods=("GET", "POST"), label="Keys")
    site.add("keys/revoke", revoke, needs=(ADMIN,), methods=("POST",))


def _empty_draft(site: Site) -> Draft:
    """Return the form as it is first shown: the first key is for those who make keys."""
    keys = site.service.keys
    return Draft() if keys is None or keys.is_required() else Draft(scopes=(ADMIN,))


def _store(site: Site) -> Keys:
    if site.service.keys is None:
        raise ConfigError(NO_STORE)
    return site.service.keys


def _rows(keys: Keys | None, shown: Sequence[Key]) -> list[Row]:
    if keys is None:
        return []
    now = time.time()
    return [
        Row(key, key.state(now), join_scopes(key.scopes), shown_time(key.expires), _uses(keys, key, key.state(now)))
        for key in shown
    ]


def _uses(keys: Keys, key: Key, state: str) -> list[Use]:
    """Return what is used of each limit of a key now; of a key that is not valid nothing."""
    if not key.limits:
        return []
    left = keys.left(key) if state == "valid" else key.limits
    limits = zip(_LIMITS.values(), astuple(key.limits), astuple(left), strict=True)
    return [Use(unit, limit - rest, limit) for unit, limit, rest in limits if limit is not None]
