"""Who looks at a page: a sign-in with an API key or a token, kept in a cookie that has neither."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from flask import Request
from werkzeug.wrappers import Response

from ...access.keys import Key
from ...access.signing import Signer
from ...access.tokens import ADMIN, Token
from ...errors import Forbidden, ModelyardError, Unauthorized
from ..request.guard import Guard

COOKIE = "modelyard_sign_in"
OUTCOME_COOKIE = "modelyard_outcome"
LIFETIME = 8 * 3600
"""Seconds until a sign-in ends."""
OUTCOME_LIFETIME = 60
"""Seconds within which the page that follows a form shows its outcome."""
LONGEST_OUTCOME = 1200
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True)
class Visitor:
    """What a visitor may do, and what they have signed in with."""

    scopes: frozenset[str]
    holder: Token | Key | None = None
    closed: bool = False
    """Whether a token or key was required of everybody at their request."""

    @property
    def name(self) -> str:
        """The name of their key or token; empty without one."""
        return "" if self.holder is None else self.holder.name

    @property
    def key(self) -> Key | None:
        """Their API key; None for a token, and without a sign-in."""
        return self.holder if isinstance(self.holder, Key) else None

    @property
    def may_change(self) -> bool:
        """Whether they may start, stop and change models."""
        return ADMIN in self.scopes

    def may(self, scopes: Iterable[str]) -> bool:
        """Return whether they have one of ``scopes``, or admin."""
        return ADMIN in self.scopes or not self.scopes.isdisjoint(scopes)

    def sees(self, model: str) -> bool:
        """Return whether they see a model, by its name."""
        return self.key is None or self.key.allows(model)


class SignIns:
    """The sign-ins of a service: what their cookies are, and who has them."""

    def __init__(self, guard: Guard, signer: Signer, path: str) -> None:
        """Set cookies for the pages below ``path``."""
        self._guard = guard
        self._signer = signer
        self._path = path

    # Who it is

    def visitor(self, request: Request) -> Visitor:
        """Return the visitor of a request, by cookie, by token or key in a header, or by address.

        Raises NotReady while keys can't be checked. A cookie of a key that is not valid any more counts as none.
        """
        holder = self._of_cookie(request) or self._guard.holder_of(request)
        by_address = self._guard.scopes_by_address(request)
        scopes = by_address if holder is None else by_address | holder.scopes
        return Visitor(scopes, holder, self._guard.is_closed())

    def is_current(self, visitor: Visitor) -> bool:
        """Return whether what a visitor has signed in with is the same still, and whether they still need nothing else.

        A token of another secret, or with other scopes, is another one.
        """
        try:
            if visitor.holder is not None:
                return self._guard.named(*_place_of(visitor.holder)) == visitor.holder
        except ModelyardError:
            return False
        return visitor.closed or not self._guard.is_closed()

    def _of_cookie(self, request: Request) -> Token | Key | None:
        value = self._signer.read(request.cookies.get(COOKIE), "sign-in", LIFETIME)
        if value is None:
            return None
        kind, name, mark = value
        try:
            holder = self._guard.named(kind, name)
        except Unauthorized:
            return None
        return holder if holder is not None and hmac.compare_digest(self._signer.mark(holder.digest), mark) else None

    def find(self, secret: str) -> Token | Key:
        """Return the token or the key of a secret. Raises Unauthorized and NotReady."""
        holder = self._guard.find(secret) if secret else None
        if holder is None:
            raise Unauthorized("this key is not known here: it is mistyped, or was removed, or is of another service")
        return holder

    # Cookies

    def begin(self, response: Response, request: Request, holder: Token | Key) -> None:
        """Sign a visitor in: the next requests of the browser are those of the key."""
        value = [*_place_of(holder), self._signer.mark(holder.digest)]
        self._set(response, request, COOKIE, self._signer.sign(value, "sign-in"), LIFETIME)

    def end(self, response: Response, request: Request) -> None:
        """Sign a visitor out."""
        response.delete_cookie(COOKIE, path=self._cookie_path(request))

    def keep_outcome(self, response: Response, request: Request, words: str, *, good: bool) -> None:
        """Keep the outcome of a form for the page that follows."""
        text = self._signer.sign([words[:LONGEST_OUTCOME], good], "outcome")
        self._set(response, request, OUTCOME_COOKIE, text, OUTCOME_LIFETIME)

    def outcome(self, request: Request) -> tuple[str, bool] | None:
        """Return the outcome of the form that led to this page, and whether it is good; None without one."""
        value = self._signer.read(request.cookies.get(OUTCOME_COOKIE), "outcome", OUTCOME_LIFETIME)
        return None if value is None else (value[0], value[1])

    def forget_outcome(self, response: Response, request: Request) -> None:
        """Remove the outcome: it is shown once."""
        response.delete_cookie(OUTCOME_COOKIE, path=self._cookie_path(request))

    def _set(self, response: Response, request: Request, name: str, value: str, lifetime: int) -> None:
        secure = request.is_secure or request.headers.get("X-Forwarded-Proto") == "https"
        path = self._cookie_path(request)
        response.set_cookie(name, value, max_age=lifetime, path=path, secure=secure, httponly=True, samesite="Strict")

    def _cookie_path(self, request: Request) -> str:
        return request.script_root + self._path


def check_origin(request: Request) -> None:
    """Raise Forbidden for a form that another site may have sent: browsers name the site of each form."""
    if request.method in SAFE_METHODS:
        return
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    origin = request.headers.get("Origin", "")
    if site not in ("same-origin", "none") or not _is_of(origin, request.host):
        raise Forbidden(
            f"this form was not sent by a page of {request.host} (Origin: {origin or 'missing'}): open the page and "
            "send it there; behind a proxy, let it keep the Host header with its port"
        )


def _is_of(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
        own = urlsplit(f"{parts.scheme}://{host}")
        default = {"http": 80, "https": 443}.get(parts.scheme)
        places = {(each.hostname, each.port or default) for each in (parts, own)}
    except ValueError:
        return False
    return default is not None and len(places) == 1


def _place_of(holder: Token | Key) -> tuple[str, str]:
    return ("key", holder.id) if isinstance(holder, Key) else ("token", holder.name)
