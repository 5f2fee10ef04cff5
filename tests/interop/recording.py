"""A server that passes requests on to another and keeps what both say."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from asked_of_peers import PORT, Exchange, as_bytes, said
from faulty import Peer, Script

KEPT = 2
"""Entries of a long list that are kept: those of models that may run, and of parameters."""


def records(upstream: str, exchanges: list[Exchange]) -> Script:
    """Return the script that passes on to ``upstream`` and adds each exchange to ``exchanges``."""

    def script(peer: Peer) -> bool:
        response, port = _asked(upstream, peer), peer.sock.getsockname()[1]
        # Their refusals repeat the body, and so our port.
        kept = json.loads(json.dumps(response).replace(str(port), str(PORT)))
        exchanges.append({**said(peer.request, port), "response": kept})
        peer.send(*as_bytes(response))
        return not response.get("breaks_off")

    return script


def _asked(upstream: str, peer: Peer) -> Exchange:
    parts = urlsplit(upstream)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    try:
        headers = {name: value for name, value in peer.request.headers.items() if name not in ("host", "connection")}
        connection.request(peer.request.method, peer.request.path, peer.request.body or None, headers)
        answer = connection.getresponse()
        chunked = answer.getheader("transfer-encoding") == "chunked"
        broke = False
        try:
            data = answer.read()
        except http.client.IncompleteRead as error:
            data, broke = error.partial, True
    finally:
        connection.close()
    if chunked:
        chunks = [f"{chunk}\0" for chunk in data.decode().split("\0")[:-1]]
        return {"status": answer.status, "chunks": chunks, **({"breaks_off": True} if broke else {})}
    if answer.getheader("content-type") == "application/json":
        return {"status": answer.status, "json": _shortened(json.loads(data))}
    return {"status": answer.status, "text": data.decode()}


def _shortened(value: Any) -> Any:
    if isinstance(value, list):
        kept = value[:KEPT] if value and isinstance(value[0], dict) else value
        return [_shortened(one) for one in kept]
    return {name: _shortened(inner) for name, inner in value.items()} if isinstance(value, dict) else value
