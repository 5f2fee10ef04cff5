"""The bodies of OpenAI's calls, as marshmallow schemas that are built once, and the requests that they mean.

Null means absent, and unknown keys are ignored, as OpenAI's clients expect it. What a model here can't do is refused
with the name of the field: a client that asks for tools must not get an answer that knows nothing of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from marshmallow import Schema, fields, validate

from ...types import GenerateRequest, JSONObject
from ..request.fields import Base, Flag, fault, integer, load, number, stops
from ..request.keys import characters_of
from .chat_fields import as_text, chat_options, check_messages, completion_options, holds_more

MAX_CHOICES = 128
MAX_TOOLS = 256
MAX_STOPS = 16
MAX_GRAMMAR = 100_000
MAX_INPUTS = 2048
MAX_PROMPTS = 128
MAX_TOKEN_ID = 2**31 - 1
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
    grammar = fields.String(validate=validate.Length(1, MAX_GRAMMAR))
    json_schema = fields.Dict(keys=fields.String())


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
        for request in requests:
            request.whole = not self.stream
        self.include_usage = bool(body.get("stream_options", {}).get("include_usage"))

    @property
    def model(self) -> str:
        """The model that answers."""
        return self.requests[0].model

    @property
    def characters(self) -> int:
        """The characters of the prompts: a prompt counts once, however many choices it has."""
        return sum(map(characters_of, self.requests[:: self.copies]))


def chat(body: Mapping[str, Any], model: str) -> Generation:
    """Return the request of a chat completion, for ``model``. Raises InvalidRequest."""
    loaded = load(CHAT, body)
    _refuse_unsupported(loaded, model)
    limit = loaded.get("max_completion_tokens", loaded.get("max_tokens"))
    request = _request(loaded, body, model, limit)
    messages = check_messages(body.get("messages"))
    request.messages = [as_text(message) for message in messages]
    request.options = chat_options(loaded)
    request.extra = _extra(CHAT, body, "messages", "stop")
    if any(holds_more(message) for message in messages):
        request.options["messages"] = messages
    return Generation(_copies(request, loaded.get("n", 1)), loaded.get("n", 1), loaded)


def completion(body: Mapping[str, Any], model: str) -> Generation:
    """Return the request of a completion, for ``model``. Raises InvalidRequest."""
    if body.get("logprobs") is False:  # a client of chat's word for none
        body = {**body, "logprobs": None}
    loaded = load(COMPLETION, body)
    copies = loaded.get("n", 1)
    request = _request(loaded, body, model, loaded.get("max_tokens", COMPLETION_TOKENS))
    request.echo = loaded.get("echo", False)
    request.options = completion_options(loaded)
    request.extra = _extra(COMPLETION, body, "prompt", "stop")
    requests = [
        copy for prompt in _prompts(body.get("prompt")) for copy in _copies(_with_prompt(request, prompt), copies)
    ]
    if len(requests) > MAX_CHOICES:
        raise fault("n", f"times the prompts is {len(requests)}: at most {MAX_CHOICES} choices are made at once")
    return Generation(requests, copies, loaded)


def inputs(body: Mapping[str, Any]) -> list[str]:
    """Return the texts to embed. Raises InvalidRequest with the entry."""
    entries = _entries(body.get("input"), "input", MAX_INPUTS)
    if any(isinstance(entry, int | list) for _, entry in entries):
        raise fault(
            "input",
            "has token ids, which are those of another model's tokenizer: send text "
            "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))",
        )
    return [_text(place, entry) for place, entry in entries]


def embeddings_extra(loaded: JSONObject, body: Mapping[str, Any]) -> JSONObject:
    """Return the fields of embeddings that only a backend knows, ``dimensions`` among them."""
    size = {"dimensions": loaded["dimensions"]} if "dimensions" in loaded else {}
    return _extra(EMBEDDINGS, body, "input") | size


def rerank_extra(body: Mapping[str, Any]) -> JSONObject:
    """Return the fields of a rerank that only a backend knows."""
    return _extra(RERANK, body, "documents", "texts")


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


def _entries(value: Any, field: str, most: int) -> list[tuple[str, Any]]:
    """Return the entries of a list of ``most`` at most, or the only text, each with its place."""
    if isinstance(value, str):
        return [(field, value)]
    if not isinstance(value, list) or not value:
        raise fault(field, "must be a string, or a list of strings")
    if len(value) > most:
        raise fault(field, f"has {len(value)} entries, at most {most} are taken")
    return [(f"{field}[{index}]", entry) for index, entry in enumerate(value)]


def _text(place: str, text: Any) -> str:
    if not isinstance(text, str):
        raise fault(place, "must be a string")
    if not text:
        raise fault(place, "is empty: give a text")
    return text


def _prompts(value: Any) -> list[str | list[int]]:
    """Return the prompts of a completion: texts, or lists of token ids."""
    if isinstance(value, list) and value and type(value[0]) is int:
        return [_token_ids("prompt", value)]
    entries = _entries(value, "prompt", MAX_PROMPTS)
    return [_token_ids(place, entry) if isinstance(entry, list) else _text(place, entry) for place, entry in entries]


def _token_ids(place: str, ids: list[Any]) -> list[int]:
    if not ids or not all(type(number) is int and 0 <= number <= MAX_TOKEN_ID for number in ids):
        raise fault(place, "must be a text, or a list of token ids from 0")
    return ids


def _with_prompt(request: GenerateRequest, prompt: str | list[int]) -> GenerateRequest:
    if isinstance(prompt, str):
        return replace(request, prompt=prompt)
    return replace(request, options={**request.options, "prompt": prompt})


def _refuse_unsupported(loaded: JSONObject, model: str) -> None:
    """Raise InvalidRequest for a field of a chat that no engine supports."""
    message = f"is not supported by model {model!r}: leave it out"
    if loaded.get("functions"):
        raise fault("functions", message)
    if set(loaded.get("modalities", ())) > {"text"}:
        raise fault("modalities", message)


def _extra(schema: Schema, body: Mapping[str, Any], *read: str) -> JSONObject:
    """Return the fields of ``body`` that neither ``schema`` nor a list of other fields has: only a backend knows them.

    Null means absent. A ``priority`` in words is read by this service, and no backend knows it: they take numbers.
    """
    if isinstance(body.get("priority"), str):
        read = (*read, "priority")
    return {n: value for n, value in body.items() if value is not None and n not in schema.fields and n not in read}


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
