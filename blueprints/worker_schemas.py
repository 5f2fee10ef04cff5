"""What the worker API takes, as marshmallow schemas built once.

Null means absent, unknown keys are ignored, numbers have ranges. Messages are checked by hand: that is the hot path.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

from ..errors import FieldError, InvalidRequest
from ..types import GenerateRequest, JSONObject, WorkerType
from ..wire.messages import text_of_content
from ..worker.protocol import APPLY_TYPES

ROLES = frozenset({"system", "human", "ai", "user", "assistant", "view"})
MAX_MESSAGES = 10_000
MAX_TEXTS = 10_000
MAX_STOPS = 64
MAX_FAULTS = 20
"""How many faults of a list are named."""
_TYPES = [kind.value for kind in WorkerType]


class Number(fields.Float):
    """A JSON number: no string that looks like one, no NaN, no infinity."""

    def _validated(self, value: Any) -> float:
        if isinstance(value, str):
            raise self.make_error("invalid", input=value)
        return super()._validated(value)


class Flag(fields.Boolean):
    """true or false, not 0, 1 or words."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class Base(Schema):
    """A schema that ignores keys which it does not know."""

    class Meta:  # noqa: D106 - marshmallow reads it
        unknown = EXCLUDE


def integer(least: int, most: int) -> fields.Integer:
    """Return a field of whole numbers in a range."""
    return fields.Integer(strict=True, validate=validate.Range(least, most))


def number(least: float, most: float) -> Number:
    """Return a field of numbers in a range."""
    return Number(validate=validate.Range(least, most))


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


class EmbeddingsSchema(Base):
    """The body of embeddings, without ``input``."""

    model = _name()
    query = fields.String()


class CountTokenSchema(Base):
    """The body of count_token; the model may be left out where one LLM is hosted."""

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
    """The body of startup and shutdown; ``host`` and ``port`` say whom it was meant for."""

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
    """Return the schema of the fields that a body has: visiting the absent ones costs more than checking the others."""
    return PromptSchema(only=names)


def load(schema: Schema, body: Mapping[str, Any]) -> JSONObject:
    """Return the checked fields of ``body``; InvalidRequest names each that does not fit."""
    try:
        loaded: JSONObject = schema.load({key: value for key, value in body.items() if value is not None})
    except ValidationError as error:
        raise InvalidRequest.of_fields(_flat(error.messages, "")) from None
    return loaded


def load_each(schema: Schema, entries: list[Any]) -> list[JSONObject]:
    """Return the checked fields of every entry; InvalidRequest names fields by the entry's place, as ``[3].url``."""
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise _fault(f"[{index}]", "must be an object")
    present = [{key: value for key, value in entry.items() if value is not None} for entry in entries]
    try:
        loaded: list[JSONObject] = schema.load(present, many=True)
    except ValidationError as error:
        raise InvalidRequest.of_fields(_flat(error.messages, "")[:MAX_FAULTS]) from None
    return loaded


def _flat(messages: Any, path: str) -> list[FieldError]:
    if isinstance(messages, dict):
        found: list[FieldError] = []
        for key, inner in messages.items():
            step = f"[{key}]" if isinstance(key, int) else f".{key}" if path else str(key)
            found += _flat(inner, path + step)
        return found
    return [{"field": path, "message": str(message)} for message in messages]


def generate_request(body: Mapping[str, Any]) -> GenerateRequest:
    """Return the request that a prompt body asks for. Raises InvalidRequest."""
    loaded = load(_prompt_schema(_PROMPT_FIELDS.intersection(body) | {"model"}), body)
    loaded.pop("context", None)
    messages = body.get("messages")
    if messages is not None:
        _check_messages(messages)
    request = GenerateRequest(**loaded, messages=messages or [], stop=_stops(body.get("stop")))
    if not request.uses_messages and not request.prompt:
        fault = "are empty, and so is prompt: one of them must say something"
        raise InvalidRequest.of_fields([{"field": "messages", "message": fault}])
    return request


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list):
        raise _fault("messages", "must be a list of objects with role and content")
    if len(messages) > MAX_MESSAGES:
        raise _fault("messages", f"has {len(messages)} entries, at most {MAX_MESSAGES} are taken")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _fault(f"messages[{index}]", "must be an object with role and content")
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise _fault(f"messages[{index}].role", f"must be one of {', '.join(sorted(ROLES))}")
        content = message.get("content")
        if not isinstance(content, str):
            _check_parts(index, content)


def _check_parts(index: int, content: Any) -> None:
    if content is None:
        raise _fault(f"messages[{index}].content", "is missing: must be a string or a list of parts")
    try:
        text_of_content(content)
    except ValueError as error:
        raise _fault(f"messages[{index}].content", str(error)) from None


def _stops(stop: Any) -> list[str]:
    if stop is None:
        return []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(item, str) for item in stops):
        raise _fault("stop", "must be a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise _fault("stop", f"has {len(stops)} entries, at most {MAX_STOPS} are taken")
    return [item for item in stops if item]


def texts(body: Mapping[str, Any]) -> list[str]:
    """Return ``input`` of an embeddings body. Raises InvalidRequest, which names the entry at fault."""
    given = body.get("input")
    if not isinstance(given, list):
        raise _fault("input", "must be a list of strings")
    if not given:
        raise _fault("input", "is empty: give at least one text")
    if len(given) > MAX_TEXTS:
        raise _fault("input", f"has {len(given)} texts, at most {MAX_TEXTS} are taken")
    for index, text in enumerate(given):
        if not isinstance(text, str):
            raise _fault(f"input[{index}]", "must be a string")
    return given


def _fault(field: str, message: str) -> InvalidRequest:
    return InvalidRequest.of_fields([{"field": field, "message": message}])
