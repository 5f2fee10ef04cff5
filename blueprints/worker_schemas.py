"""The bodies and queries of the worker API, as marshmallow schemas that are built once.

Null means absent, unknown keys are ignored, numbers have ranges. Messages are checked without a schema, for speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from marshmallow import Schema, fields, validate

from ..types import GenerateRequest, WorkerType
from ..wire.messages import ROLES, VIEW, messages_for_model, text_of_content
from ..worker.protocol import APPLY_TYPES
from .request.fields import Base, Flag, fault, integer, load, number, stops

MAX_MESSAGES = 10_000
MAX_TEXTS = 10_000
MAX_STOPS = 64
_TYPES = [kind.value for kind in WorkerType]
_ROLES = frozenset((*ROLES, VIEW))


def _name(*, required: bool = True) -> fields.String:
    return fields.String(required=required, validate=validate.Length(1, 512))


class PromptSchema(Base):
    """The body of generate and generate_stream, without ``messages`` and ``stop``."""

    model = _name()
    prompt = fields.String()
    temperature = number(0, 100)
    top_p = number(0, 1)
    top_k = integer(-1, 1_000_000)
    min_p = number(0, 1)
    seed = integer(-1, 2**32 - 1)
    max_new_tokens = integer(1, 10_000_000)
    stop_token_ids = fields.List(fields.Integer(strict=True), validate=validate.Length(max=1024))
    presence_penalty = number(-2, 2)
    frequency_penalty = number(-2, 2)
    repetition_penalty = number(0, 100)
    context_len = integer(1, 100_000_000)
    echo = Flag()
    metrics = Flag()
    chat_model = Flag()
    span_id = fields.String()
    context = fields.Raw()
    options = fields.Dict(keys=fields.String())
    extra = fields.Dict(keys=fields.String())


class EmbeddingsSchema(Base):
    """The body of embeddings, without ``input``."""

    model = _name()
    query = fields.String()
    extra = fields.Dict(keys=fields.String())


class CountTokenSchema(Base):
    """The body of count_token; the model is optional if there is only one LLM."""

    model = _name(required=False)
    prompt = fields.String(required=True)


class MetadataSchema(Base):
    """The body of model_metadata."""

    model = _name()


class ApplySchema(Base):
    """The body of apply."""

    model = _name()
    apply_type = fields.String(required=True, validate=validate.OneOf(APPLY_TYPES))
    worker_type = fields.String(validate=validate.OneOf(_TYPES))
    params = fields.Dict(keys=fields.String())
    apply_user = fields.String()


class StartupSchema(Base):
    """The body of startup and shutdown; ``host`` and ``port`` name the worker service."""

    model = _name()
    host = fields.String()
    port = fields.Integer(validate=validate.Range(0, 65535))
    worker_type = fields.String(validate=validate.OneOf(_TYPES))
    params = fields.Dict(keys=fields.String())


class DescriptionsSchema(Base):
    """The query of parameter/descriptions."""

    model = _name()
    worker_type = fields.String(validate=validate.OneOf(_TYPES))


_PROMPT_FIELDS = frozenset(PromptSchema._declared_fields)
EMBEDDINGS = EmbeddingsSchema()
COUNT_TOKEN = CountTokenSchema()
METADATA = MetadataSchema()
APPLY = ApplySchema()
STARTUP = StartupSchema()
DESCRIPTIONS = DescriptionsSchema()


@lru_cache(maxsize=256)
def _prompt_schema(names: frozenset[str]) -> Schema:
    """Return the schema of the fields that a body has: absent ones would cost more time than the others."""
    return PromptSchema(only=names)


def generate_request(body: Mapping[str, Any]) -> GenerateRequest:
    """Return the request of a prompt body. Raises InvalidRequest."""
    loaded = load(_prompt_schema(_PROMPT_FIELDS.intersection(body) | {"model"}), body)
    if not isinstance(loaded.get("context"), dict):
        loaded.pop("context", None)
    messages = body.get("messages")
    if messages is not None:
        _check_messages(messages)
    request = GenerateRequest(
        **loaded, messages=messages_for_model(messages or ()), stop=stops(body.get("stop"), MAX_STOPS)
    )
    if not request.uses_messages and not request.prompt and "prompt" not in request.options:
        raise fault("messages", "are empty, and so is prompt: one of them is required")
    return request


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list):
        raise fault("messages", "must be a list of objects with role and content")
    if len(messages) > MAX_MESSAGES:
        raise fault("messages", f"has {len(messages)} entries, at most {MAX_MESSAGES} are accepted")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise fault(f"messages[{index}]", "must be an object with role and content")
        role = message.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise fault(f"messages[{index}].role", f"must be one of {', '.join(sorted(_ROLES))}")
        content = message.get("content")
        if not isinstance(content, str):
            _check_parts(index, content)


def _check_parts(index: int, content: Any) -> None:
    if content is None:
        raise fault(f"messages[{index}].content", "is missing: must be a string or a list of parts")
    try:
        text_of_content(content)
    except ValueError as error:
        raise fault(f"messages[{index}].content", str(error)) from None


def texts(body: Mapping[str, Any]) -> list[str]:
    """Return ``input`` of an embeddings body, which may be empty. Raises InvalidRequest with the entry."""
    entries = body.get("input")
    if not isinstance(entries, list):
        raise fault("input", "must be a list of strings")
    if len(entries) > MAX_TEXTS:
        raise fault("input", f"has {len(entries)} texts, at most {MAX_TEXTS} are accepted")
    for index, text in enumerate(entries):
        if not isinstance(text, str):
            raise fault(f"input[{index}]", "must be a string")
    return entries
