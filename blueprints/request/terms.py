"""The terms of a request that computes: whether it waits in line, and before whom; its session; its id."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from flask import g
from werkzeug.datastructures import Headers

from ...errors import Unavailable
from ...types import GenerateRequest, JSONObject, Terms
from ...wire.chunks import ROUTE_HEADER, ROUTE_LOCAL
from ...wire.terms import BATCH, INTERACTIVE, PRIORITY_HEADER, SESSION_HEADER, may_wait
from ...worker.protocol import Service, WorkerManager
from .access_log import AccessLine
from .current import current_request
from .fields import fault
from .streaming import called

_AT_ONCE = Terms(wait=False)
_SESSION_HEADERS = (SESSION_HEADER, "x-conversation-id")
_USERS = ("user", "human")
"""The role of a person's messages: OpenAI's, and DB-GPT's."""


def terms_of(service: Service, body: Mapping[str, Any], prompt: GenerateRequest | None = None) -> Terms:
    """Return the terms of the current request, which has a thread of the budget, by its headers and OpenAI's ``body``.

    It belongs to a session if it has a ``prompt``. Raises InvalidRequest, and Overloaded for a batch request if the
    threads that are left are for interactive ones.
    """
    line: AccessLine = g.modelyard_line
    headers = line.request.headers
    batch = _is_batch(headers, body)
    if batch:
        service.budget.check_batch()
    session = _session_of(headers, body, prompt) if prompt is not None and service.settings.session_affinity else ""
    return Terms(may_wait(headers.get("Prefer")), batch, session, line.request_id)


def count_tokens(service: Service, manager: WorkerManager, model: str | None, prompt: str) -> int:
    """Return the tokens of ``prompt``. A thread of the budget is taken for a model that is not loaded: to wait for it.

    Raises Overloaded without such a thread, and what `WorkerManager.count_token` raises.
    """
    try:
        return manager.count_token(model, prompt, terms=_AT_ONCE)
    except Unavailable:
        if not may_wait(current_request().headers.get("Prefer")):
            raise
    with called(service) as call:
        return manager.count_token(model, prompt, call.cancel)


# Priority


def _is_batch(headers: Headers, body: Mapping[str, Any]) -> bool:
    """Return whether a request stands in line behind interactive ones. The header has precedence over the ``body``."""
    header = headers.get(PRIORITY_HEADER)
    if header is not None:
        return _means_batch(PRIORITY_HEADER, header)
    if (priority := body.get("priority")) is not None:
        return _means_batch("priority", priority)
    return body.get("service_tier") == "flex"


def _means_batch(field: str, value: Any) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value > 0  # vLLM's: the lower runs first, and 0 is the default
    if value not in (INTERACTIVE, BATCH):
        raise fault(field, f"must be {INTERACTIVE} or {BATCH}, or a number, of which those over 0 mean {BATCH}")
    return bool(value == BATCH)


# The session


def _session_of(headers: Headers, body: Mapping[str, Any], prompt: GenerateRequest) -> str:
    """Return the key of a request's session: a hash of the first name that it has, or of its first messages.

    Empty without both: a raw prompt does not show which part of it stays the same. A router has sent the key with the
    request, if there is one.
    """
    if headers.get(ROUTE_HEADER) == ROUTE_LOCAL:
        name = headers.get(SESSION_HEADER, "")
    else:
        name = next(_names(headers, body), "") or _beginning(prompt)
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest() if name else ""


def _names(headers: Headers, body: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of a session, the most exact first: those of OpenAI's clients, Anthropic's and DB-GPT's."""
    metadata, context = _object(body, "metadata"), _object(body, "context")
    for name in (
        *map(headers.get, _SESSION_HEADERS),
        body.get("prompt_cache_key"),
        context.get("conv_uid"),
        body.get("user"),
        metadata.get("user_id"),
        context.get("user_name"),
    ):
        if isinstance(name, str) and name:
            yield name


def _object(body: Mapping[str, Any], name: str) -> JSONObject:
    value = body.get(name)
    return value if isinstance(value, dict) else {}


def _beginning(prompt: GenerateRequest) -> str:
    """Return the messages up to a person's first one, as each turn of a conversation repeats them; empty without it."""
    if not prompt.uses_messages:
        return ""
    for count, message in enumerate(prompt.messages, 1):
        if message["role"] in _USERS:
            return "".join(map(_text_of, prompt.messages[:count]))
    return ""


def _text_of(message: JSONObject) -> str:
    content = message["content"]
    text = content if isinstance(content, str) else orjson.dumps(content).decode()
    return f"{message['role']}\0{text}\0"
