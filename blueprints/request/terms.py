"""The terms of a request that computes: whether it waits in line, and before whom; its session; its id."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, TypeAlias

import orjson

from ...errors import Unavailable
from ...types import GenerateRequest, JSONObject, Terms
from ...wire.chunks import ROUTE_HEADER, ROUTE_LOCAL
from ...wire.terms import BATCH, INTERACTIVE, PRIORITY_HEADER, SESSION_HEADER, may_wait
from ...worker.protocol import Service, WorkerManager
from .access_log import AccessLine
from .calls import called
from .current import current_request
from .fields import fault

_AT_ONCE = Terms(wait=False)
Environ: TypeAlias = Mapping[str, Any]
"""The environment of a request, whose headers are read here at a tenth of the cost of Werkzeug's mapping of them."""
_PRIORITY, _SESSION, _ROUTE, _CONVERSATION = (
    f"HTTP_{name.upper().replace('-', '_')}"
    for name in (PRIORITY_HEADER, SESSION_HEADER, ROUTE_HEADER, "x-conversation-id")
)
_USERS = ("user", "human")
"""The role of a person's messages: OpenAI's, and DB-GPT's."""


def terms_of(
    service: Service, line: AccessLine, body: Mapping[str, Any], prompt: GenerateRequest | None = None
) -> Terms:
    """Return the terms of the request of ``line``, which has a thread of the budget: of its headers and its ``body``.

    It belongs to a session if it has a ``prompt``. Raises InvalidRequest, and Overloaded for a batch request if the
    threads that are left are for interactive ones.
    """
    environ = line.request.environ
    batch = _is_batch(environ, body)
    if batch:
        service.budget.check_batch()
    session = _session_of(environ, body, prompt) if prompt is not None and service.settings.session_affinity else ""
    return Terms(may_wait(environ.get("HTTP_PREFER")), batch, session, line.request_id)


def count_tokens(service: Service, manager: WorkerManager, model: str | None, prompt: str) -> int:
    """Return the tokens of ``prompt``. A thread of the budget is taken for a model that is not loaded: to wait for it.

    Raises Overloaded without such a thread, and what `WorkerManager.count_token` raises.
    """
    try:
        return manager.count_token(model, prompt, terms=_AT_ONCE)
    except Unavailable:
        if not may_wait(current_request().environ.get("HTTP_PREFER")):
            raise
    with called(service) as call:
        return manager.count_token(model, prompt, call.cancel)


# Priority


def _is_batch(environ: Environ, body: Mapping[str, Any]) -> bool:
    """Return whether a request stands in line behind interactive ones. The header has precedence over the ``body``."""
    header = environ.get(_PRIORITY)
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


def _session_of(environ: Environ, body: Mapping[str, Any], prompt: GenerateRequest) -> str:
    """Return the key of a request's session: a hash of the first name that it has, or of its first messages.

    Empty without both: a raw prompt does not show which part of it stays the same. A router has sent the key with the
    request, if there is one.
    """
    if environ.get(_ROUTE) == ROUTE_LOCAL:
        name = environ.get(_SESSION, "")
    else:
        name = _name_in(environ, body) or _beginning(prompt)
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest() if name else ""


def _name_in(environ: Environ, body: Mapping[str, Any]) -> str:
    """Return the most exact name of a session that there is: one of OpenAI's clients, Anthropic's or DB-GPT's."""
    metadata, context = body.get("metadata"), body.get("context")
    metadata = metadata if isinstance(metadata, dict) else {}
    context = context if isinstance(context, dict) else {}
    for name in (
        environ.get(_SESSION),
        environ.get(_CONVERSATION),
        body.get("prompt_cache_key"),
        context.get("conv_uid"),
        body.get("user"),
        metadata.get("user_id"),
        context.get("user_name"),
    ):
        if isinstance(name, str) and name:
            return name
    return ""


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
