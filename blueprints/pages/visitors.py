"""Who looks at a page: a sign-in with an API key or a token, kept in a cookie that has neither."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from flask import Request
from werkzeug.wrappers import Response

from ...access.keys import Key
from ...access.signing import Signer
from ...access.tokens import ADMIN, Token
from ...access.wrong_keys import WrongKeys
from ...cluster.keys.sign_outs import SignOuts
from ...errors import Forbidden, ModelyardError, RateLimited, Unauthorized
from ..request.detour import client_of
from ..request.guard import Guard, scheme_of

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
    sign_in: str = ""
    """The id of their sign-in; empty without one."""

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

    def __init__(self, guard: Guard, signer: Signer, sign_outs: SignOuts, path: str) -> None:
        """Set cookies for the pages below ``path``."""
        self._guard = guard
        self._signer = signer
        self._sign_outs = sign_outs
        self._path = path
        self._wrong_keys = WrongKeys()

    # Who it is

    def visitor(self, request: Request) -> Visitor:
        """Return the visitor of a request, by cookie, by token or key in a header, or by address.

        Raises NotReady while keys can't be checked. A cookie of a key that is not valid any more counts as none.
        """
        holder, sign_in = self._of_cookie(request)
        holder = holder or self._guard.holder_of(request)
        by_address = self._guard.scopes_by_address(request)
        scopes = by_address if holder is None else by_address | holder.scopes
        return Visitor(scopes, holder, self._guard.is_closed(), sign_in)

    def is_current(self, visitor: Visitor) -> bool:
        """Return whether what a visitor has signed in with is the same still, and whether they still need nothing else.

        A token of another secret, or with other scopes, is another one.
        """
        if visitor.sign_in and self._sign_outs.has_ended(visitor.sign_in):
            return False
        try:
            if visitor.holder is not None:
                return self._guard.named(*_place_of(visitor.holder)) == visitor.holder
        except ModelyardError:
            return False
        return visitor.closed or not self._guard.is_closed()

    def _of_cookie(self, request: Request) -> tuple[Token | Key | None, str]:
        """Return what a browser has signed in with, and the id of its sign-in; None without one that is valid."""
        kind, name, mark, sign_in = self._read(request) or ("", "", "", "")
        try:
            holder = self._guard.named(kind, name) if sign_in else None
        except Unauthorized:
            holder = None
        is_same = holder is not None and hmac.compare_digest(self._signer.mark(holder.digest), mark)
        return (holder, sign_in) if is_same and not self._sign_outs.has_ended(sign_in) else (None, "")

    def _read(self, request: Request) -> Sequence[str] | None:
        return self._signer.read(request.cookies.get(COOKIE), "sign-in with an id", LIFETIME)

    def find(self, request: Request, secret: str) -> Token | Key:
        """Return the token or the key of a secret. Raises Unauthorized, and NotReady while keys can't be checked.

        Raises RateLimited if the address of the request has sent too many that are wrong.
        """
        address = client_of(request.environ)
        if pause := self._wrong_keys.pause(address):
            raise RateLimited(f"too many wrong keys have come from {address}: try again in {pause} s", pause)
        holder = self._guard.find(secret) if secret else None
        if holder is None:
            self._wrong_keys.note(address)
            raise Unauthorized("this key is not known here: it is mistyped, or was removed, or is of another service")
        return holder

    # Cookies

    def begin(self, response: Response, request: Request, holder: Token | Key) -> None:
        """Sign a visitor in: the next requests of the browser are those of the key."""
        value = [*_place_of(holder), self._signer.mark(holder.digest), secrets.token_hex(16)]
        self._set(response, request, COOKIE, self._signer.sign(value, "sign-in with an id"), LIFETIME)

    def end(self, response: Response, request: Request) -> None:
        """Sign a visitor out: a copy of the cookie opens nothing in any process of the service.

        Raises ModelyardError if others can't be told; the browser loses its cookie all the same.
        """
        response.delete_cookie(COOKIE, path=self._cookie_path(request))
        if (value := self._read(request)) is not None:
            self._sign_outs.end(value[3], LIFETIME)

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
        path, secure = self._cookie_path(request), scheme_of(request) == "https"
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
