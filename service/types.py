"""The plain values that processes exchange: requests, outputs, metadata, instances, worker keys.

All of them are dataclasses over strings, numbers, lists and dicts, so that they can cross
a process boundary as they are. The field names are DB-GPT's wire names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, NamedTuple, TypeAlias

JSONObject: TypeAlias = dict[str, Any]


class WorkerType(str, Enum):
    """What a model is for."""

    LLM = "llm"
    TEXT2VEC = "text2vec"
    RERANKER = "reranker"

    def __str__(self) -> str:
        return self.value


def worker_key(name: str, worker_type: WorkerType | str) -> str:
    """Return the registry's name of a model: ``name@type``."""
    kind = worker_type if isinstance(worker_type, WorkerType) else WorkerType(worker_type)
    return "@".join((name, kind))


def split_worker_key(key: str) -> tuple[str, WorkerType]:
    """Return the name and type of a worker key. Raises ValueError if it is not a worker key."""
    name, at, kind = key.rpartition("@")
    if not at or not name:
        raise ValueError(f"{key!r} is not a worker key: expected name@type")
    return name, WorkerType(kind)


class Burst(NamedTuple):
    """The pieces of an answer that are ready together, and, in the last one, how it ended.

    ``pieces`` are new text only. ``usage`` has ``prompt_tokens``, ``completion_tokens`` and ``total_tokens``, and may
    have details by the keys of OpenAI's usage (`USAGE_DETAILS`). ``metrics`` has the keys
    of DB-GPT's inference metrics. Only the last burst of an answer may have no pieces.
    ``deltas``, where there are any, hold for each piece what else comes with it, by the keys of OpenAI's delta
    (``tool_calls``, ``reasoning_content``, ``refusal``) and ``logprobs``; a piece may be empty then.
    """

    pieces: list[str]
    finish_reason: str | None = None
    usage: JSONObject | None = None
    metrics: JSONObject | None = None
    deltas: list[JSONObject] | None = None

    @property
    def counts(self) -> JSONObject | None:
        """The three counts of ``usage``, which are all that DB-GPT's clients know."""
        return None if self.usage is None else counts_of(self.usage)


USAGE_DETAILS: Mapping[str, str] = {
    "prompt_tokens_details": "cached_tokens",
    "completion_tokens_details": "reasoning_tokens",
}
"""The details that a usage may have, each with the count in it."""


def details_of(usage: Mapping[str, Any]) -> JSONObject:
    """Return those of the `USAGE_DETAILS` that a usage has."""
    details: JSONObject = {}
    for name, count in USAGE_DETAILS.items():
        detail = usage.get(name)
        if isinstance(detail, dict) and type(detail.get(count)) is int:
            details[name] = {count: detail[count]}
    return details


def counts_of(usage: Mapping[str, Any]) -> JSONObject:
    """Return a usage without its details."""
    return {name: count for name, count in usage.items() if not isinstance(count, dict)}


@dataclass(slots=True)
class ModelOutput:
    """One answer, or one chunk of it, with exactly the keys that DB-GPT's clients accept."""

    text: str = ""
    error_code: int = 0
    incremental: bool = False
    model_context: JSONObject | None = None
    finish_reason: str | None = None
    usage: JSONObject | None = None
    metrics: JSONObject | None = None

    @property
    def success(self) -> bool:
        """Whether this is an answer and not a failure."""
        return self.error_code == 0

    def to_dict(self) -> JSONObject:
        """Return the wire's keys."""
        return plain(self)


@dataclass(frozen=True, slots=True)
class Terms:
    """How a request is served, apart from what it asks for. Between processes its values are headers."""

    wait: bool = True
    """Whether it may stand in line: else a model without a free slot refuses it."""
    batch: bool = False
    """Whether it stands in line behind interactive ones."""
    session: str = ""
    """The key of the session that it belongs to: requests of one key go to one server, while it has room. Empty: to
    any."""
    request_id: str = ""
    """The id of the client's request, for the access lines of all processes that it passes; may be empty."""


DEFAULT_TERMS = Terms()


@dataclass(slots=True)
class GenerateRequest:
    """A request for an answer. The code that makes it validates it: for HTTP, the worker blueprint."""

    model: str
    messages: list[JSONObject] = field(default_factory=list)
    prompt: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    max_new_tokens: int | None = None
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    context_len: int | None = None
    echo: bool = False
    metrics: bool = False
    chat_model: bool | None = None
    span_id: str | None = None
    context: JSONObject | None = None
    """Free values of DB-GPT's callers: passed on to workers of other processes, of no effect on an engine."""
    options: JSONObject = field(default_factory=dict)
    """Fields of OpenAI's chat that some engines take: ``tools``, ``response_format``, ``logprobs`` and others. With
    ``messages`` in it, these are what the engine reads: they hold more than texts."""
    extra: JSONObject = field(default_factory=dict)
    """Fields of the caller that modelyard does not know: an engine whose `passes_on` is true sends them on."""
    terms: Terms = DEFAULT_TERMS
    whole: bool = False
    """Whether the caller reads the answer at its end only: an engine may give it in one burst. Between processes it
    does not travel."""

    @property
    def uses_messages(self) -> bool:
        """Whether the messages count, and not the raw prompt: unless they are empty, or ``chat_model`` is false."""
        return bool(self.messages) and self.chat_model is not False


@dataclass(slots=True)
class ModelMetadata:
    """The metadata of a model. Another key at the top would break clients: all others go into ``metadata``."""

    model: str
    context_length: int | None = None
    chat_model: bool = True
    metadata: JSONObject = field(default_factory=dict)
    prompt_chat_template: str | None = None

    def to_dict(self) -> JSONObject:
        """Return the wire's five keys."""
        return {
            "model": self.model,
            "context_length": self.context_length,
            "chat_model": self.chat_model,
            "metadata": self.metadata,
            "ext_metadata": {
                "prompt_roles": ["system", "human", "ai"],
                "prompt_sep": "\n",
                "prompt_chat_template": self.prompt_chat_template,
            },
        }


@dataclass(slots=True)
class ModelInstance:
    """One running model in a registry."""

    model_name: str
    host: str
    port: int
    weight: float = 1.0
    check_healthy: bool = True
    healthy: bool = False
    enabled: bool = True
    prompt_template: str | None = None
    last_heartbeat: str | None = None

    def to_dict(self) -> JSONObject:
        """Return the wire's nine keys."""
        return plain(self)


@dataclass(slots=True)
class ApplyOutcome:
    """The outcome of start, stop, restart or update_params; ``timecost`` in seconds."""

    message: str
    success: bool
    timecost: float

    def to_dict(self) -> JSONObject:
        """Return the wire's keys."""
        return plain(self)


@dataclass(slots=True)
class SupportedModel:
    """A model that this host may run, running or not."""

    model: str
    path: str
    worker_type: str
    path_exist: bool
    proxy: bool
    enabled: bool
    params: list[JSONObject]

    def to_dict(self) -> JSONObject:
        """Return the wire's keys."""
        return plain(self)


class HostModels(NamedTuple):
    """The models that may run on a host; if the host does not answer, no models, and the reason in ``error``."""

    host: str
    port: int
    models: list[SupportedModel]
    error: str = ""


class _Names(dict[type[Any], tuple[str, ...]]):
    """The names of the fields of each dataclass, computed once."""

    def __missing__(self, cls: type[Any]) -> tuple[str, ...]:
        names = self[cls] = tuple(entry.name for entry in fields(cls))
        return names


_names = _Names()


def plain(value: Any) -> JSONObject:
    """Return a dataclass's fields by name, not copied: `dataclasses.asdict` costs ten times as much."""
    return {name: getattr(value, name) for name in _names[type(value)]}


def known(cls: type[Any], values: Mapping[str, Any]) -> JSONObject:
    """Return those of ``values`` that are fields of the dataclass ``cls`` and not None."""
    return {name: values[name] for name in _names[cls] if values.get(name) is not None}
