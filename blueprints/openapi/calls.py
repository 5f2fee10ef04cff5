"""How a call is described: what it takes and answers, the errors that it raises, and their shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from marshmallow import Schema

from ...errors import (
    EngineError,
    Forbidden,
    InvalidRequest,
    ModelyardError,
    Overloaded,
    RateLimited,
    RequestTooLarge,
    Unauthorized,
    Unavailable,
    UnknownModel,
    Unsupported,
    WorkerLost,
)
from ...types import JSONObject

LLM, TEXT2VEC = "smollm2-135m", "minilm-l6"
"""The models of examples: those that `modelyard pull` fetches."""

READS: tuple[type[ModelyardError], ...] = (Unauthorized, Forbidden, Unavailable)
"""What every guarded call raises."""
TAKES_BODY = (*READS, InvalidRequest, RequestTooLarge)
NAMES_MODEL = (*TAKES_BODY, UnknownModel)
COMPUTES = (*NAMES_MODEL, Unsupported, Overloaded, RateLimited, WorkerLost, EngineError)


@dataclass(frozen=True)
class Body:
    """A JSON body: the schema that checks it, an example, and what is checked by hand."""

    schema: Schema
    example: Any
    more: JSONObject = field(default_factory=dict)
    """The JSON Schemas of fields that ``schema`` does not have, and what they add to those that it has."""
    required: tuple[str, ...] = ()
    """The fields among ``more`` that are required."""
    rules: JSONObject = field(default_factory=dict)
    """What holds for the whole body, as keywords of a JSON Schema."""
    is_list: bool = False
    """Whether the body is a list of such objects."""
    most: int | None = None
    """The most objects of a list."""


class ErrorShape(NamedTuple):
    """The shape of the errors of a call."""

    name: str
    media_type: str
    schema: JSONObject
    status_of: Callable[[type[ModelyardError]], int]


@dataclass(frozen=True)
class Call:
    """One call: its documentation, without its path and its method, which the routes have."""

    summary: str
    answer: JSONObject | None
    """The schema of its JSON; None if it only streams."""
    errors: ErrorShape
    raises: Iterable[type[ModelyardError]] = ()
    body: Body | None = None
    query: Schema | None = None
    streams: Mapping[str, JSONObject] = field(default_factory=dict)
    """The media types of a streamed answer, each with the schema of one event."""
    others: Mapping[int, JSONObject] = field(default_factory=dict)
    """The schemas of answers that are no errors, and have another status than 200."""
