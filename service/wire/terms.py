"""The headers by which a request names its session and its priority, and an answer the time in line."""

from __future__ import annotations

import re
from collections.abc import Mapping

SESSION_HEADER = "x-session-id"
"""The name of the session that a request belongs to, by a client; by a router, the key that it has made of it."""

PRIORITY_HEADER = "Modelyard-Priority"
INTERACTIVE, BATCH = "interactive", "batch"
"""The values of that header: batch stands in line behind interactive, the default."""

QUEUE_HEADER = "Modelyard-Queue-Ms"
"""The milliseconds that a request stood in line before it had a slot; absent if a slot was free."""

_MILLISECONDS = re.compile(r"\d{1,9}", re.ASCII)


def headers_of_terms(*, session: str = "", batch: bool = False) -> dict[str, str]:
    """Return the headers of a request of a ``session``, which may be empty, and of its priority."""
    headers = {SESSION_HEADER: session} if session else {}
    if batch:
        headers[PRIORITY_HEADER] = BATCH
    return headers


def queued_in(headers: Mapping[str, str]) -> float:
    """Return the seconds that the request of a response stood in line: ``Modelyard-Queue-Ms``, 0 if it is absent."""
    queued = headers.get(QUEUE_HEADER) or ""
    return int(queued) / 1000 if _MILLISECONDS.fullmatch(queued) else 0.0
