"""The guard of a blueprint: the scopes that each call needs, and those that a request has.

A request has the scopes of its token or API key, and of the address that it comes from directly. The address does not
count for a request through a proxy, or from a web page of another machine (`detour`).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from flask import Blueprint, Request, g

from ...access.keys import Key
from ...access.networks import IPAddress, Resolver, TrustedNetworks, address_of, is_of_this_machine, parse_networks
from ...access.token_store import TokenStore
from ...access.tokens import ADMIN, INFER, SCOPES, WORKER, Token, join_scopes
from ...access.wrong_keys import WrongKeys
from ...errors import Forbidden, InvalidRequest, NotReady, Unauthorized
from ...settings.settings import Settings
from ...worker.protocol import Keys
from .current import current_request
from .detour import client_of, detour, foreign_host, is_of_plain_proxy

log = logging.getLogger(__name__)

NEEDS: Mapping[str, tuple[str, ...]] = {
    "POST /worker/generate_stream": (INFER,),
    "POST /worker/generate": (INFER,),
    "POST /worker/embeddings": (INFER,),
    "POST /worker/count_token": (INFER,),
    "POST /worker/model_metadata": (INFER,),
    "GET /worker/parameter/descriptions": (INFER,),
    "GET /worker/models/supports": (INFER,),
    "POST /worker/apply": (ADMIN,),
    "POST /worker/models/startup": (ADMIN,),
    "POST /worker/models/shutdown": (ADMIN,),
    "GET /controller/models": (INFER, WORKER),
    "GET /controller/instances": (INFER, WORKER),
    "POST /controller/models": (WORKER,),
    "DELETE /controller/models": (WORKER,),
    "POST /controller/heartbeat": (WORKER,),
    "POST /controller/instances": (WORKER,),
    "DELETE /controller/instances": (WORKER,),
}
"""The scopes of each call below the API's prefix; any of them is enough."""


def needs_of(method: str, path: str, others: Iterable[str]) -> tuple[str, ...]:
    """Return the scopes of a call, any of which is enough; ``others`` for a call that is not in `NEEDS`."""
    return NEEDS.get(f"{method} {path}", tuple(others))


_UNIX_PEERS = ("", "<local>")
"""The addresses that servers give to clients on a unix socket."""
_LOOPBACK = address_of("127.0.0.1")
_EVERYTHING = frozenset(SCOPES)
_NOTHING: frozenset[str] = frozenset()
_ADDRESSES_KEPT = 4096
_WHAT_TO_DO = (
    "make tokens (modelyard token new --scope SCOPE --file FILE, and --tokens-file FILE for this service), put the "
    "addresses that need none into trusted_networks, or set --insecure"
)


class _Granted(NamedTuple):
    """The scopes of an address: of requests directly from it, and of those that it forwards as a proxy."""

    direct: frozenset[str]
    forwarded: frozenset[str]
    by_default: bool = False
    """Whether the address has its scopes only because it is of this machine, and no token or key is required."""


class Guard:
    """Checks the requests of one service. Safe to use from many threads."""

    def __init__(
        self,
        settings: Settings,
        keys: Keys | None = None,
        *,
        needs: Iterable[str] = (),
        requires_keys: bool = False,
    ) -> None:
        """Read tokens and networks. Raises ConfigError.

        Calls that are not in `NEEDS` need one of the scopes in ``needs``; without them admin. With ``requires_keys`` an
        address of this machine has no scopes by default as soon as there is a key.
        """
        self._others_need = tuple(needs)
        self._keys = keys
        self._requires_keys = keys is not None and requires_keys
        self._tokens = TokenStore(settings.tokens, settings.tokens_file)
        self._trusted = TrustedNetworks(settings.trusted_networks)
        self._allowed = parse_networks(settings.allowed_networks, "allowed_networks")
        self._is_open = settings.insecure and not self._trusted
        self._prefix = settings.prefix
        self._resolver = Resolver()
        self._granted = functools.lru_cache(_ADDRESSES_KEPT)(self._granted_to)
        self._needs: dict[tuple[str, str], frozenset[str]] = {}
        self._has_warned = False
        self._wrong_keys = WrongKeys()

    # Each request

    def check(self, request: Request) -> Token | Key | None:
        """Return the token or the key that allows the call, None if none is needed.

        Raises Unauthorized or Forbidden, and NotReady while keys can't be checked.
        """
        call = request.method, request.url_rule.rule if request.url_rule is not None else ""
        try:
            needed = self._needs[call]
        except KeyError:
            needed = self._needs[call] = self._needed_by(*call)
        if not needed:
            return None
        is_closed = self.is_closed()
        by_address = self._by_address(request.environ, is_closed)
        secret = _secret_in(request.environ)
        if not needed.isdisjoint(by_address):
            return self._voluntary_key(secret) if is_closed else None
        token = self.find(secret)
        if token is not None and not needed.isdisjoint(token.scopes):
            return token
        raise self._refusal(needed, token, secret is not None, by_address, request)

    def scopes_by_address(self, request: Request) -> frozenset[str]:
        """Return the scopes that a request for a page has without a token or key.

        One to another name than those of this machine counts as through a proxy: a name server may give every site the
        address of this machine, and then that site's scripts read what it answers.
        """
        environ, is_closed = request.environ, self.is_closed()
        granted = self._granted(environ.get("REMOTE_ADDR"), is_closed)
        if granted.by_default and foreign_host(environ):
            return granted.forwarded
        return self._by_address(environ, is_closed)

    def holder_of(self, request: Request) -> Token | Key | None:
        """Return the token or the key that a request sends. Raises Unauthorized and NotReady, like `Keys.find`."""
        return self.find(_secret_in(request.environ))

    def named(self, kind: str, name: str) -> Token | Key | None:
        """Return the ``token`` of a name, or the ``key`` of an id; None if there is none. Raises like `Keys.find`."""
        if kind == "token":
            return self._tokens.named(name)
        return self._keys.with_id(name) if self._keys is not None else None

    def is_closed(self) -> bool:
        """Return whether a token or a key is required; True also while the keys can't be read."""
        try:
            return self._requires_secret()
        except NotReady:
            return True

    def _requires_secret(self) -> bool:
        """Return whether a token or a key is required. Raises NotReady while the keys can't be read."""
        return self._tokens.configured or (self._requires_keys and self._keys is not None and self._keys.is_required())

    def find(self, secret: str | None) -> Token | Key | None:
        """Return the token or the key of a secret, None for an unknown one, or without one."""
        if secret is None:
            return None
        return self._tokens.find(secret) or (self._keys.find(secret) if self._keys is not None else None)

    def _voluntary_key(self, secret: str | None) -> Key | None:
        """Return the key that a caller sends whose address needs none: its limits count all the same."""
        if secret is None or self._keys is None:
            return None
        try:
            return self._keys.find(secret)
        except (Unauthorized, NotReady):
            return None

    def _needed_by(self, method: str, rule: str) -> frozenset[str]:
        if method == "OPTIONS":
            return _NOTHING
        verb = "GET" if method == "HEAD" else method
        return frozenset((*needs_of(verb, rule.removeprefix(self._prefix), self._others_need), ADMIN))

    def _by_address(self, environ: Mapping[str, Any], is_closed: bool) -> frozenset[str]:
        granted = self._granted(environ.get("REMOTE_ADDR"), is_closed)
        if detour(environ):
            return granted.forwarded
        if granted.by_default:
            if is_of_plain_proxy(environ):
                return granted.forwarded
            if not self._has_warned and (host := foreign_host(environ)):
                self._has_warned = True
                log.warning(
                    "a request from this machine has the Host %r: if a proxy passed it on, everybody who reaches the "
                    "proxy may start and stop models; let the proxy send X-Forwarded-For, and a token",
                    host,
                )
        return granted.direct

    def _granted_to(self, peer: str | None, is_closed: bool) -> _Granted:
        if self._is_open and not is_closed:
            return _Granted(_EVERYTHING, _EVERYTHING)
        address = _address_of_peer(peer)
        if address is None:
            return _Granted(_NOTHING, _NOTHING)
        scopes = self._trusted.scopes_of(address)
        if address.is_loopback and not is_closed:
            return _Granted(_EVERYTHING, frozenset((INFER,)), by_default=not scopes)
        return _Granted(scopes, _NOTHING)

    def _refusal(
        self,
        needed: frozenset[str],
        token: Token | Key | None,
        is_sent: bool,
        by_address: frozenset[str],
        request: Request,
    ) -> Unauthorized | Forbidden:
        """Return the error of a refused call. Raises NotReady while the keys can't be read."""
        wanted = " or ".join(scope for scope in SCOPES if scope in needed and (scope != ADMIN or len(needed) == 1))
        call = f"this call needs the scope {wanted}"
        if token is not None:
            kind = "token" if isinstance(token, Token) else "key"
            return Forbidden(f"{call}; the {kind} {token.name} has {join_scopes(token.scopes)}")
        if not self._requires_secret():
            who = f"{request.environ.get('REMOTE_ADDR') or 'a unix socket'}"
            by_default = self._granted(request.environ.get("REMOTE_ADDR"), False).by_default
            is_plain = by_default and is_of_plain_proxy(request.environ)
            if sign := detour(request.environ) or (is_plain and "it is HTTP/1.0"):
                who = f"a request through a proxy or from a web page ({sign}; it came from {who})"
            has = f"has only {join_scopes(by_address)}" if by_address else "has none"
            return Forbidden(f"{call}; {who} {has}: {_WHAT_TO_DO}")
        if is_sent:
            self._wrong_keys.note(client_of(request.environ))
            return Unauthorized(f"{call}; the token or key is not known here: revoked, or of another service")
        return Unauthorized(f"{call}: send a token or key that has it, as in Authorization: Bearer TOKEN")

    # Registrations

    def check_registration(self, request: Request, urls: Iterable[str]) -> None:
        """Check that the caller may register these addresses. Raises Forbidden, or InvalidRequest for a bad address.

        A token with ``worker`` may register every host, or those in ``allowed_networks`` if that is set. Without a
        token: only the address that the request comes from; from this machine, all of its addresses.
        """
        environ = request.environ
        token = self.find(_secret_in(environ))
        has_token = token is not None and WORKER in token.scopes
        caller = _address_of_peer(environ.get("REMOTE_ADDR")) if not detour(environ) else None
        for url in dict.fromkeys(urls):
            host = _host_of(url)
            if host is None:
                self._check_socket(url, caller)
            elif not has_token:
                self._check_own(url, host, caller)
            elif self._allowed:
                self._check_allowed(url, host)

    def _check_socket(self, url: str, caller: IPAddress | None) -> None:
        if caller is None or not is_of_this_machine(caller):
            raise Forbidden(f"{url} can't be registered: a unix socket can only be registered from this machine")

    def _check_own(self, url: str, host: str, caller: IPAddress | None) -> None:
        if caller is None:
            raise Forbidden(
                f"{url} can't be registered: the request came through a proxy, so the address of the caller is "
                "unknown: send a token with the scope worker"
            )
        is_local = is_of_this_machine(caller)
        refused = [
            a for a in self._resolver.addresses(host) if a != caller and not (is_local and is_of_this_machine(a))
        ]
        if refused:
            allowed = "the addresses of this machine" if is_local else f"its own address, {caller},"
            raise Forbidden(
                f"{url} can't be registered: without a token {caller} may register {allowed} only, and not "
                f"{_listed(host, refused)}: advertise that (--advertise), or send a token with the scope worker"
            )

    def _check_allowed(self, url: str, host: str) -> None:
        refused = [a for a in self._resolver.addresses(host) if not any(a in network for network in self._allowed)]
        if refused:
            networks = ", ".join(str(network) for network in self._allowed)
            raise Forbidden(
                f"{url} can't be registered: {_listed(host, refused)} is in none of allowed_networks ({networks}): "
                "advertise an address in one of them (--advertise), or add its network"
            )


def install(
    blueprint: Blueprint,
    settings: Settings,
    keys: Keys | None = None,
    *,
    needs: Iterable[str] = (),
    requires_keys: bool = False,
) -> Guard:
    """Guard every view of a blueprint, before a body is read; return the guard. Raises ConfigError.

    The arguments are those of `Guard`.
    """
    guard = Guard(settings, keys, needs=needs, requires_keys=requires_keys)

    @blueprint.before_request
    def check() -> None:
        token = guard.check(current_request())
        if token is None:
            return
        if (line := g.get("modelyard_line")) is not None:
            line.caller = token.name
            line.api_key = token if isinstance(token, Key) else None

    return guard


def scheme_of(request: Request) -> str:
    """Return the scheme that a browser speaks, also to a proxy that names it: ``http`` or ``https``."""
    return "https" if request.headers.get("X-Forwarded-Proto") == "https" else request.scheme


def origin_of(request: Request) -> str:
    """Return the address at which a browser sees this service, without a path."""
    return f"{scheme_of(request)}://{request.host}"


def _secret_in(environ: Mapping[str, Any]) -> str | None:
    scheme, _, secret = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() != "bearer":
        secret = environ.get("HTTP_X_API_KEY", "")  # Anthropic's clients
    return secret.strip() or None


def _address_of_peer(peer: str | None) -> IPAddress | None:
    """Return the address of a peer, loopback for a unix socket; None if unknown."""
    if peer is None:
        return None
    return _LOOPBACK if peer in _UNIX_PEERS else address_of(peer)


def _host_of(url: str) -> str | None:
    """Return the host of an instance's address; None for a unix socket."""
    try:
        parts = urlsplit(url)
        if parts.scheme == "http+unix" and parts.netloc:
            return None
        host = parts.hostname
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise InvalidRequest(
            f"{url!r} is not a valid address of a worker: expected something like http://10.0.0.7:8001/api"
        )
    return host


def _listed(host: str, addresses: Iterable[IPAddress]) -> str:
    text = ", ".join(sorted(str(address) for address in addresses))
    return text if text == host else f"{host} ({text})"
