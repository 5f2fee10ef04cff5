"""The headers of the terms of a request, and of the time that it stood in line."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..types import Terms

SESSION_HEADER = "x-session-id"
"""The name of the session that a request belongs to, by a client; by a router, the key that it has made of it."""

ID_HEADER = "x-request-id"
"""The id of a request: the client's, or that of the first process that it came to."""

PRIORITY_HEADER = "Modelyard-Priority"
INTERACTIVE, BATCH = "interactive", "batch"
"""The values of that header: batch stands in line behind interactive, the default."""

QUEUE_HEADER = "Modelyard-Queue-Ms"
"""The milliseconds that a request stood in line before it had a slot; absent if a slot was free."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_MILLISECONDS = re.compile(r"\d{1,9}", re.ASCII)


def headers_of_terms(terms: Terms) -> dict[str, str]:
    """Return the headers of a request's terms, without those that say what holds without them."""
    headers = {}
    if not terms.wait:
        headers["Prefer"] = "wait=0"
    if terms.batch:
        headers[PRIORITY_HEADER] = BATCH
    if terms.session:
        headers[SESSION_HEADER] = terms.session
    if terms.request_id:
        headers[ID_HEADER] = terms.request_id
    return headers


def may_wait(prefer: str | None) -> bool:
    """Return whether a request may stand in line, by its header ``Prefer``: unless it is ``wait=0``."""
    return prefer is None or "wait=0" not in prefer.replace(" ", "").split(",")


def checked_id(request_id: str) -> str:
    """Return the id of a request; empty if it has characters that could spoil a log, or is too long."""
    return request_id if _REQUEST_ID.fullmatch(request_id) else ""


def queued_in(headers: Mapping[str, str]) -> float:
    """Return the seconds that the request of a response stood in line: ``Modelyard-Queue-Ms``, 0 if it is absent."""
    queued = headers.get(QUEUE_HEADER) or ""
    return int(queued) / 1000 if _MILLISECONDS.fullmatch(queued) else 0.0
