"""Messages and outputs in the forms of DB-GPT 0.5 (text) and 0.8 (a content of typed parts), and their roles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from ..types import JSONObject, ModelOutput, known

M = TypeVar("M", bound=Mapping[str, Any])

DELTA_TYPE = "application/x-model-output-delta"
"""The media type of streams of new pieces, instead of the whole text so far."""

ROLES: Mapping[str, tuple[str, str]] = {
    "system": ("system", "system"),
    "human": ("human", "user"),
    "user": ("human", "user"),
    "ai": ("ai", "assistant"),
    "assistant": ("ai", "assistant"),
}
"""The roles of messages, with DB-GPT's and OpenAI's name of each. DB-GPT's workers drop messages of OpenAI's roles."""

VIEW = "view"
"""The role of what an application of DB-GPT shows to its user in place of an answer: it is not passed to a model."""


def messages_for_model(messages: Iterable[M]) -> list[M]:
    """Return the messages that are passed to a model: all but those of the role `VIEW`."""
    return [message for message in messages if message.get("role") != VIEW]


def dbgpt_messages(messages: Iterable[Mapping[str, Any]]) -> list[JSONObject]:
    """Return messages with DB-GPT's roles, plain texts, and their ``round_index`` if they have one.

    ValueError names the kind of a part that is not text.
    """
    converted = []
    for message in messages_for_model(messages):
        converted.append(_converted(message, 0))
        if type(message.get("round_index")) is int:
            converted[-1]["round_index"] = message["round_index"]
    return converted


def openai_messages(messages: Iterable[Mapping[str, Any]]) -> list[JSONObject]:
    """Return messages with OpenAI's roles and plain texts. ValueError names the kind of a part that is not text."""
    return [_converted(message, 1) for message in messages_for_model(messages)]


def _converted(message: Mapping[str, Any], column: int) -> JSONObject:
    role = message["role"]
    names = ROLES.get(role, (role, role))
    return {"role": names[column], "content": text_of_content(message["content"])}


def output_from_wire(chunk: Mapping[str, Any]) -> ModelOutput:
    """Return the output of a decoded chunk, of 0.5 (``text``) or 0.8 (``content``) peers.

    ValueError if its text is not a string, or its content has a part that is not text.
    """
    output = ModelOutput(**known(ModelOutput, chunk))
    content = chunk.get("content")
    if "text" not in chunk and content is not None:
        output.text = text_of_content(content)
    if not isinstance(output.text, str):
        raise ValueError("text is not a string")  # noqa: TRY004 - the data is at fault, not the caller
    return output


def text_of_content(content: Any) -> str:
    """Return the text of a message's or output's content: a string, a media object, or a list of them.

    ValueError names the kind of a part that is not text.
    """
    if isinstance(content, str):
        return content
    parts: Iterable[Any] = content if isinstance(content, list) else [content]
    return "".join(_text_of_part(part) for part in parts)


def _text_of_part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        kind = part.get("type")
        if kind == "text":
            inner = part.get("object", part.get("text"))
            text = inner.get("data") if isinstance(inner, dict) else inner
            if isinstance(text, str):
                return text
        if kind == "thinking":
            return ""
        name = kind if kind is None or isinstance(kind, str) else type(kind).__name__
        raise ValueError(f"a part of type {name!r} is not understood: only text is")
    raise ValueError("a part must be a string or an object with type and object")
