"""Find out whether a request came through a proxy or from a web page, and not directly from a program at its peer.

The address of the peer is no help for such a request: it is the proxy's, or that of a browser which shows the page of
another machine.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from ...settings.loopback import is_loopback_host

FORWARDED = frozenset(
    f"HTTP_{name}"
    for name in (
        *("FORWARDED", "VIA", "X_FORWARDED", "X_FORWARDED_FOR", "X_FORWARDED_HOST", "X_FORWARDED_PROTO"),
        *("X_FORWARDED_PORT", "X_FORWARDED_SERVER", "X_FORWARDED_BY", "X_FORWARDED_SCHEME", "X_FORWARDED_PROTOCOL"),
        *("X_FORWARDED_SSL", "X_FORWARDED_PREFIX", "X_FORWARDED_PATH", "X_FORWARDED_URI", "X_FORWARDED_METHOD"),
        *("X_FORWARDED_USER", "X_FORWARDED_EMAIL", "X_FORWARDED_CLIENT_CERT", "X_ORIGINAL_FORWARDED_FOR"),
        *("X_REAL_IP", "X_REAL_PORT", "X_CLIENT_IP", "X_CLUSTER_CLIENT_IP", "X_REMOTE_ADDR", "X_REMOTE_IP"),
        *("X_ORIGINATING_IP", "X_PROXYUSER_IP", "CLIENT_IP", "PROXY_CLIENT_IP", "WL_PROXY_CLIENT_IP"),
        *("X_ORIGINAL_HOST", "X_ORIGINAL_URL", "X_ORIGINAL_URI", "X_REWRITE_URL", "X_SCHEME", "X_URL_SCHEME"),
        *("FRONT_END_HTTPS", "X_NGINX_PROXY", "X_VARNISH", "X_ARR_LOG_ID", "X_REQUEST_START", "SURROGATE_CAPABILITY"),
        *("X_ENVOY_EXTERNAL_ADDRESS", "X_ENVOY_EXPECTED_RQ_TIMEOUT_MS", "X_ENVOY_ORIGINAL_PATH", "X_PROXY_CONTEXTPATH"),
        *("CF_CONNECTING_IP", "CF_CONNECTING_IPV6", "CF_RAY", "CDN_LOOP", "TRUE_CLIENT_IP", "FASTLY_CLIENT_IP"),
        *("FLY_CLIENT_IP", "X_AMZ_CF_ID", "X_AZURE_CLIENTIP", "X_AZURE_SOCKETIP", "X_AZURE_FDID"),
        *("X_APPENGINE_USER_IP", "ALI_CDN_REAL_IP", "TAILSCALE_USER_LOGIN"),
    )
)
"""Headers that proxies add, as keys of the environ."""


def detour(environ: Mapping[str, Any]) -> str:
    """Return what shows that a request came through a proxy, or from a web page of another machine; else empty."""
    if not environ.keys().isdisjoint(FORWARDED):
        header = min(environ.keys() & FORWARDED).removeprefix("HTTP_").replace("_", "-").title()
        return f"it has the header {header}"
    # Otherwise any page that a browser on this machine shows could start and stop models.
    if "cross-site" in environ.get("HTTP_SEC_FETCH_SITE", "").lower():
        return "its Sec-Fetch-Site is cross-site"
    origin = environ.get("HTTP_ORIGIN")
    return "" if origin is None or _is_local_page(origin) else "its Origin is not of this machine"


def client_of(environ: Mapping[str, Any]) -> str:
    """Return the address of a client: of its connection, and through a proxy also the one that the proxy has added."""
    peer = environ.get("REMOTE_ADDR") or "a unix socket"
    forwarded = environ.get("HTTP_X_FORWARDED_FOR", "").rpartition(",")[2].strip()[:64]
    return f"{forwarded} through {peer}" if forwarded else peer


def is_of_plain_proxy(environ: Mapping[str, Any]) -> bool:
    """Return whether a request is HTTP/1.0: a ``proxy_pass`` of nginx, without more, sends that and no header."""
    return bool(environ.get("SERVER_PROTOCOL") == "HTTP/1.0")


def foreign_host(environ: Mapping[str, Any]) -> str:
    """Return the Host of a request if it is not a name of this machine, as when a proxy keeps it; else empty."""
    host = environ.get("HTTP_HOST") or "localhost"
    return "" if _is_local_host(host) else host[:100]


def _is_local_page(origin: str) -> bool:
    try:
        return is_loopback_host(urlsplit(origin).hostname or "")
    except ValueError:
        return False


@functools.lru_cache(maxsize=256)
def _is_local_host(host: str) -> bool:
    return _is_local_page(f"//{host}")
