"""The guard in front of a blueprint: which call needs which scope, and who has it.

A scope comes with a token, or with the address that the request comes straight from. One that came through a proxy
(it says so in its headers), or that a web page of elsewhere made a browser send, has no address that counts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from flask import Blueprint, Request, g, request

from ...access.networks import Address, Resolver, TrustedNetworks, address_of, is_of_this_machine, parse_networks
from ...access.token_store import Tokens
from ...access.tokens import ADMIN, INFER, SCOPES, WORKER, Token, spoken
from ...errors import Forbidden, InvalidRequest, Unauthorized
from ...settings.settings import Settings

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
"""The scopes of each call below the API's prefix, any of which will do. What is not here needs admin."""

FORWARDED = frozenset(
    f"HTTP_{name}"
    for name in (
        *("FORWARDED", "VIA", "X_FORWARDED_FOR", "X_FORWARDED_HOST", "X_FORWARDED_PROTO", "X_FORWARDED_PORT"),
        *("X_FORWARDED_SERVER", "X_FORWARDED_BY", "X_REAL_IP", "X_CLIENT_IP", "X_ORIGINAL_FORWARDED_FOR"),
        *("CF_CONNECTING_IP", "TRUE_CLIENT_IP", "FLY_CLIENT_IP"),
    )
)
"""What proxies add, as it stands in the environ."""

_UNIX_PEERS = ("", "<local>")
"""How servers write the address of a client on a unix socket."""
_LOOPBACK = address_of("127.0.0.1")
_EVERYTHING = frozenset(SCOPES)
_NOTHING: frozenset[str] = frozenset()
_ADDRESSES_KEPT = 4096
_WHAT_TO_DO = (
    "make tokens (modelyard token new --scope SCOPE --file FILE, and --tokens-file FILE here), name the addresses that "
    "may come without one in trusted_networks, or say --insecure"
)


class _Granted(NamedTuple):
    """What an address may do: when the request comes straight from it, and when it is that of a proxy."""

    direct: frozenset[str]
    forwarded: frozenset[str]


class Guard:
    """Decides for one service. Safe to use from many threads."""

    def __init__(self, settings: Settings) -> None:
        """Read tokens and networks. Raises ConfigError."""
        self._tokens = Tokens.of(settings)
        self._trusted = TrustedNetworks(settings.trusted_networks)
        self._allowed = parse_networks(settings.allowed_networks, "allowed_networks")
        self._is_open = settings.insecure and not self._tokens.configured and not self._trusted
        self._prefix = settings.prefix
        self._resolver = Resolver()
        self._granted = functools.lru_cache(_ADDRESSES_KEPT)(self._granted_to)
        self._needs: dict[tuple[str, str], frozenset[str]] = {}

    # Each request

    def check(self, request: Request) -> Token | None:
        """Raise Unauthorized or Forbidden unless the call is allowed; return the token that it took, if any."""
        call = request.method, request.url_rule.rule if request.url_rule is not None else ""
        try:
            needed = self._needs[call]
        except KeyError:
            needed = self._needs[call] = self._needed_by(*call)
        by_address = self._by_address(request.environ)
        if not needed or not needed.isdisjoint(by_address):
            return None
        secret = _secret_in(request.environ)
        token = self._tokens.find(secret) if secret is not None else None
        if token is not None and not needed.isdisjoint(token.scopes):
            return token
        raise self._refusal(needed, token, secret is not None, by_address, request)

    def _needed_by(self, method: str, rule: str) -> frozenset[str]:
        if method == "OPTIONS":
            return _NOTHING
        verb = "GET" if method == "HEAD" else method
        return frozenset((*NEEDS.get(f"{verb} {rule.removeprefix(self._prefix)}", ()), ADMIN))

    def _by_address(self, environ: Mapping[str, Any]) -> frozenset[str]:
        granted = self._granted(environ.get("REMOTE_ADDR"))
        return granted.direct if _is_straight(environ) else granted.forwarded

    def _granted_to(self, peer: str | None) -> _Granted:
        if self._is_open:
            return _Granted(_EVERYTHING, _EVERYTHING)
        address = _address_of_peer(peer)
        if address is None:
            return _Granted(_NOTHING, _NOTHING)
        scopes = self._trusted.scopes_of(address)
        if address.is_loopback and not self._tokens.configured:
            return _Granted(_EVERYTHING, frozenset((INFER,)))
        return _Granted(scopes, _NOTHING)

    def _refusal(
        self, needed: frozenset[str], token: Token | None, said: bool, by_address: frozenset[str], request: Request
    ) -> Unauthorized | Forbidden:
        wanted = " or ".join(scope for scope in SCOPES if scope in needed and (scope != ADMIN or len(needed) == 1))
        call = f"this call needs the scope {wanted}"
        if token is not None:
            return Forbidden(f"{call}; the token {token.name} has {spoken(token.scopes)}")
        if not self._tokens.configured:
            who = f"{request.environ.get('REMOTE_ADDR') or 'a unix socket'}"
            if not _is_straight(request.environ):
                who = f"a request through a proxy or from a web page (it came from {who})"
            has = f"has only {spoken(by_address)}" if by_address else "has none"
            return Forbidden(f"{call}; {who} {has} here: {_WHAT_TO_DO}")
        if said:
            return Unauthorized(f"{call}; the token that came is not known here: revoked, or of another service")
        return Unauthorized(f"{call}: send a token that has it, as in Authorization: Bearer TOKEN")

    # Registrations

    def check_registration(self, request: Request, urls: Iterable[str]) -> None:
        """Raise Forbidden unless who asks may register these addresses; InvalidRequest where one is no address.

        With a token that has ``worker``: every host, or if they are set those in ``allowed_networks``. Without: the
        address that the request comes from; from this machine all of its addresses.
        """
        environ = request.environ
        secret = _secret_in(environ)
        token = self._tokens.find(secret) if secret is not None else None
        has_token = token is not None and WORKER in token.scopes
        caller = _address_of_peer(environ.get("REMOTE_ADDR")) if _is_straight(environ) else None
        for url in dict.fromkeys(urls):
            host = _host_of(url)
            if host is None:
                self._check_socket(url, caller)
            elif not has_token:
                self._check_own(url, host, caller)
            elif self._allowed:
                self._check_allowed(url, host)

    def _check_socket(self, url: str, caller: Address | None) -> None:
        if caller is None or not is_of_this_machine(caller):
            raise Forbidden(f"{url} can't be registered: a unix socket can only be named by who is on this machine")

    def _check_own(self, url: str, host: str, caller: Address | None) -> None:
        if caller is None:
            raise Forbidden(
                f"{url} can't be registered: the request came through a proxy, so nobody knows whose address that is: "
                "send a token with the scope worker"
            )
        here = is_of_this_machine(caller)
        strange = [a for a in self._resolver.addresses(host) if a != caller and not (here and is_of_this_machine(a))]
        if strange:
            own = "the addresses of this machine" if here else f"its own address, {caller},"
            raise Forbidden(
                f"{url} can't be registered: without a token {caller} may name {own} only, and not "
                f"{_listed(host, strange)}: advertise that (--advertise), or send a token with the scope worker"
            )

    def _check_allowed(self, url: str, host: str) -> None:
        strange = [a for a in self._resolver.addresses(host) if not any(a in network for network in self._allowed)]
        if strange:
            networks = ", ".join(str(network) for network in self._allowed)
            raise Forbidden(
                f"{url} can't be registered: {_listed(host, strange)} lies in none of allowed_networks ({networks}): "
                "advertise an address within them (--advertise), or add its network there"
            )


def install(blueprint: Blueprint, settings: Settings) -> Guard:
    """Put a guard before every view of a blueprint, before a body is read, and return it. Raises ConfigError."""
    guard = Guard(settings)

    @blueprint.before_request
    def check() -> None:
        token = guard.check(request)
        line = g.get("modelyard_line")
        if token is not None and line is not None:
            line.caller = token.name

    return guard


def _secret_in(environ: Mapping[str, Any]) -> str | None:
    scheme, _, secret = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    return secret.strip() or None if scheme.lower() == "bearer" else None


def _is_straight(environ: Mapping[str, Any]) -> bool:
    """Return whether a request came straight from its peer, and not from a page that is none of this machine's."""
    if not environ.keys().isdisjoint(FORWARDED):
        return False
    origin = environ.get("HTTP_ORIGIN")
    return origin is None or _is_local_page(origin)


def _is_local_page(origin: str) -> bool:
    # Else any page that somebody reads here could start and stop models with a form, or under a name of its own.
    try:
        host = urlsplit(origin).hostname or ""
    except ValueError:
        return False
    address = address_of(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _address_of_peer(peer: str | None) -> Address | None:
    """Return the address of a peer, loopback for a unix socket; None where nobody knows."""
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
        raise InvalidRequest(f"{url!r} is no address of a worker: expected something like http://10.0.0.7:8001/api")
    return host


def _listed(host: str, addresses: Iterable[Address]) -> str:
    found = ", ".join(sorted(str(address) for address in addresses))
    return found if found == host else f"{host} ({found})"
