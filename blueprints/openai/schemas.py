"""The bodies of OpenAI's calls, as marshmallow schemas that are built once, and the requests that they mean.

Null means absent, and unknown keys are ignored, as OpenAI's clients expect it. What a model here can't do is refused
with the name of the field: a client that asks for tools must not get an answer that knows nothing of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from marshmallow import fields, validate

from ...types import GenerateRequest, JSONObject
from ..request.fields import Base, Flag, fault, integer, load, number, stops
from .chat_fields import as_text, chat_options, check_messages, holds_more

MAX_CHOICES = 128
MAX_TOOLS = 256
MAX_STOPS = 16
MAX_INPUTS = 2048
MAX_PROMPTS = 128
COMPLETION_TOKENS = 16
"""Tokens of a completion without ``max_tokens``: OpenAI's default."""


class _Sampling(Base):
    """The fields that chat and completions share."""

    model = fields.String(validate=validate.Length(1, 512))
    n = integer(1, MAX_CHOICES)
    stream = Flag()
    stream_options = fields.Dict(keys=fields.String())
    temperature = number(0, 2)
    top_p = number(0, 1)
    seed = integer(-(2**63), 2**63 - 1)
    max_tokens = integer(1, 10_000_000)
    presence_penalty = number(-2, 2)
    frequency_penalty = number(-2, 2)
    top_k = integer(-1, 1_000_000)
    min_p = number(0, 1)
    repetition_penalty = number(0, 100)
    logit_bias = fields.Dict(keys=fields.String())


class ChatSchema(_Sampling):
    """The body of a chat completion, without ``messages`` and ``stop``."""

    max_completion_tokens = integer(1, 10_000_000)
    logprobs = Flag()
    top_logprobs = integer(0, 20)
    tools = fields.List(fields.Dict(keys=fields.String()), validate=validate.Length(max=MAX_TOOLS))
    tool_choice = fields.Raw()
    parallel_tool_calls = Flag()
    functions = fields.List(fields.Dict(keys=fields.String()))
    response_format = fields.Dict(keys=fields.String())
    modalities = fields.List(fields.String())


class CompletionSchema(_Sampling):
    """The body of a completion, without ``prompt`` and ``stop``."""

    echo = Flag()
    best_of = integer(1, MAX_CHOICES)
    logprobs = integer(0, 5)
    suffix = fields.String()


class EmbeddingsSchema(Base):
    """The body of embeddings, without ``input``."""

    model = fields.String(validate=validate.Length(1, 512))
    encoding_format = fields.String(validate=validate.OneOf(("float", "base64")))
    dimensions = integer(1, 1_000_000)


class RelevanceSchema(Base):
    """The body of DB-GPT's relevance, without ``documents``."""

    model = fields.String(validate=validate.Length(1, 512))
    query = fields.String(required=True)


class RerankSchema(RelevanceSchema):
    """The body of a rerank, in any of its shapes, without the texts."""

    top_n = integer(1, 1_000_000)
    return_documents = Flag()
    return_text = Flag()
    raw_scores = Flag()


CHAT = ChatSchema()
COMPLETION = CompletionSchema()
EMBEDDINGS = EmbeddingsSchema()
RERANK = RerankSchema()
RELEVANCE = RelevanceSchema()


class Generation:
    """A checked request for text: one `GenerateRequest` for each choice, and how the answer is sent."""

    def __init__(self, requests: Sequence[GenerateRequest], copies: int, body: JSONObject) -> None:
        """Make a call of ``requests``, with ``copies`` of each prompt; the ``body`` has the choice to stream."""
        self.requests = requests
        self.body = body
        self.copies = copies
        self.stream: bool = body.get("stream", False)
        self.include_usage = bool(body.get("stream_options", {}).get("include_usage"))

    @property
    def model(self) -> str:
        """The model that answers."""
        return self.requests[0].model


def chat(body: Mapping[str, Any], model: str) -> Generation:
    """Return the request of a chat completion, for ``model``. Raises InvalidRequest."""
    loaded = load(CHAT, body)
    _refuse(loaded, model, _UNSUPPORTED_IN_CHAT)
    limit = loaded.get("max_completion_tokens", loaded.get("max_tokens"))
    request = _request(loaded, body, model, limit)
    messages = check_messages(body.get("messages"))
    request.messages = [as_text(message) for message in messages]
    request.options = chat_options(loaded)
    if any(holds_more(message) for message in messages):
        request.options["messages"] = messages
    return Generation(_copies(request, loaded.get("n", 1)), loaded.get("n", 1), loaded)


def completion(body: Mapping[str, Any], model: str) -> Generation:
    """Return the request of a completion, for ``model``. Raises InvalidRequest."""
    if body.get("logprobs") is False:  # a client of chat's word for none
        body = {**body, "logprobs": None}
    loaded = load(COMPLETION, body)
    _refuse(loaded, model, _UNSUPPORTED_IN_COMPLETIONS)
    copies = loaded.get("n", 1)
    if loaded.get("best_of", copies) != copies:
        raise fault("best_of", f"must be n ({copies}): answers are not ranked here")
    request = _request(loaded, body, model, loaded.get("max_tokens", COMPLETION_TOKENS))
    request.echo = loaded.get("echo", False)
    requests = [
        copy
        for text in _texts(
            body.get("prompt"), "prompt", MAX_PROMPTS, "has token ids, which are not taken here: send text"
        )
        for copy in _copies(replace(request, prompt=text), copies)
    ]
    if len(requests) > MAX_CHOICES:
        raise fault("n", f"times the prompts is {len(requests)}: at most {MAX_CHOICES} choices are made at once")
    return Generation(requests, copies, loaded)


def inputs(body: Mapping[str, Any]) -> list[str]:
    """Return the texts to embed. Raises InvalidRequest with the entry."""
    return _texts(
        body.get("input"),
        "input",
        MAX_INPUTS,
        "has token ids, which are those of another model's tokenizer: send text "
        "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))",
    )


def documents(value: Any, field: str) -> list[str]:
    """Return the texts to rank: strings, or objects with ``text``. Raises InvalidRequest with the entry."""
    if not isinstance(value, list) or not value:
        raise fault(field, "must be a list of at least one text")
    if len(value) > MAX_INPUTS:
        raise fault(field, f"has {len(value)} texts, at most {MAX_INPUTS} are taken")
    texts: list[str] = []
    for index, entry in enumerate(value):
        text = entry.get("text") if isinstance(entry, dict) else entry
        if not isinstance(text, str):
            raise fault(f"{field}[{index}]", "must be a string, or an object with text")
        texts.append(text)
    return texts


def _texts(value: Any, field: str, most: int, no_ids: str) -> list[str]:
    """Return the texts of a string or a list of ``most`` at most; ``no_ids`` is the fault of token ids."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise fault(field, "must be a string, or a list of strings")
    if len(texts) > most:
        raise fault(field, f"has {len(texts)} entries, at most {most} are taken")
    for index, text in enumerate(texts):
        if isinstance(text, int | list):
            raise fault(field, no_ids)
        place = field if isinstance(value, str) else f"{field}[{index}]"
        if not isinstance(text, str):
            raise fault(place, "must be a string")
        if not text:
            raise fault(place, "is empty: give a text")
    return texts


def _asks(value: Any) -> bool:
    return bool(value)


def _asks_for_audio(value: Any) -> bool:
    return any(kind != "text" for kind in value)


_UNSUPPORTED_IN_CHAT = {
    "functions": _asks,
    "modalities": _asks_for_audio,
}
_UNSUPPORTED_IN_COMPLETIONS = {"logprobs": lambda value: True, "logit_bias": _asks, "suffix": _asks}
"""The fields that no engine supports, with a function that returns whether a value needs support."""


def _refuse(loaded: JSONObject, model: str, unsupported: Mapping[str, Any]) -> None:
    for field, asks in unsupported.items():
        if field in loaded and asks(loaded[field]):
            raise fault(field, f"is not supported by model {model!r}: leave it out")


def _request(loaded: JSONObject, body: Mapping[str, Any], model: str, limit: int | None) -> GenerateRequest:
    seed = loaded.get("seed")
    return GenerateRequest(
        model,
        temperature=loaded.get("temperature"),
        top_p=loaded.get("top_p"),
        top_k=loaded.get("top_k"),
        min_p=loaded.get("min_p"),
        seed=None if seed is None else seed % 2**32,
        max_new_tokens=limit,
        stop=stops(body.get("stop"), MAX_STOPS),
        presence_penalty=loaded.get("presence_penalty"),
        frequency_penalty=loaded.get("frequency_penalty"),
        repetition_penalty=loaded.get("repetition_penalty"),
    )


def _copies(request: GenerateRequest, count: int) -> list[GenerateRequest]:
    """Return ``count`` requests for one prompt: with a seed, each has another one."""
    if count == 1 or request.seed is None:
        return [request] * count
    return [replace(request, seed=(request.seed + number) % 2**32) for number in range(count)]
