"""Anthropic's messages, which Claude Code and others speak: read as a chat, and answered in blocks."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import orjson

from ...errors import ModelyardError
from ...types import JSONObject
from ...wire.images import KIND as IMAGE
from ...wire.images import image_part
from ..request.fields import fault, renamed_faults
from ..request.keys import prompt_tokens
from . import schemas
from .answers import Choice, Header, Usage, finish_reason
from .errors import anthropic_document, document, status_of
from .events import PieceEvents, named_event

_STOP_REASONS: Mapping[str, str] = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
COPIED = ("model", "max_tokens", "temperature", "top_p", "top_k", "stream")
"""The fields that a message shares with a chat."""
_SENT_AS: Mapping[str, str] = {
    "stop": "stop_sequences",
    "response_format.json_schema": "output_config.format",
    "response_format": "output_config.format",
}
"""The names of the fields of a message, by those of a chat."""
_ROLES = ("user", "assistant", "system")
_TOOL_REFERENCE = "tool_reference"
_TOOL_CHOICES: Mapping[str, str] = {"auto": "auto", "any": "required", "none": "none"}


# Requests


def generation(body: Mapping[str, Any], model: str) -> schemas.Generation:
    """Return the request of a message, for ``model``. Raises InvalidRequest."""
    if body.get("max_tokens") is None:
        raise fault("max_tokens", "is missing: give the most tokens of the answer")
    return prompt(body, model)


def prompt(body: Mapping[str, Any], model: str) -> schemas.Generation:
    """Return the same of a body that only has its tokens counted. Raises InvalidRequest."""
    chat: JSONObject = {name: body[name] for name in COPIED if body.get(name) is not None}
    chat["messages"] = [*_system(body.get("system")), *_messages(body.get("messages"))]
    if body.get("stop_sequences") is not None:
        chat["stop"] = body["stop_sequences"]
    if body.get("tools"):
        chat["tools"] = _tools(body["tools"], _loaded_tools(body["messages"]))
    if body.get("tool_choice") is not None:
        chat |= _tool_choice(body["tool_choice"])
    if (form := _output_format(body)) is not None:
        chat["response_format"] = form
    with renamed_faults(_SENT_AS):
        return schemas.chat(chat, model)


def _system(system: Any) -> list[JSONObject]:
    if system is None or system == "":
        return []
    if isinstance(system, str):
        return [{"role": "system", "content": system}]
    return [{"role": "system", "content": "\n".join(_texts("system", system))}]


def _texts(field: str, blocks: Any) -> list[str]:
    return [_text(place, block) for place, block in _blocks(field, blocks)]


def _text(place: str, block: JSONObject) -> str:
    """Return the text of a block; a tool that a search has found stands there by its name."""
    if block["type"] == _TOOL_REFERENCE:
        return str(block.get("tool_name"))
    text = block.get("text")
    if block["type"] != "text" or not isinstance(text, str):
        raise fault(place, "must be a block of type text: no model here takes anything else")
    return text


def _messages(messages: Any) -> Iterable[JSONObject]:
    if not isinstance(messages, list) or not messages:
        raise fault("messages", "must be a list of at least one object with role and content")
    for index, message in enumerate(messages):
        field = f"messages[{index}]"
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise fault(f"{field}.role", f"must be one of {', '.join(_ROLES)}")
        content = message.get("content")
        if isinstance(content, str):
            yield {"role": message["role"], "content": content}
        elif message["role"] == "system":
            yield {"role": "system", "content": "\n".join(_texts(f"{field}.content", content))}
        elif message["role"] == "user":
            yield from _user(f"{field}.content", content)
        else:
            yield _assistant(f"{field}.content", content)


def _blocks(field: str, content: Any) -> list[tuple[str, JSONObject]]:
    if not isinstance(content, list):
        raise fault(field, "must be a string or a list of blocks")
    for index, block in enumerate(content):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise fault(f"{field}[{index}]", "must be an object with a type")
    return [(f"{field}[{index}]", block) for index, block in enumerate(content)]


def _user(field: str, content: Any) -> Iterable[JSONObject]:
    """Yield the results of tools, each a message of its own, and then the text, with all images among it.

    An image that a tool returns stands there too: few chat templates, and few servers, take one in a tool's message.
    """
    parts: list[JSONObject] = []
    for place, block in _blocks(field, content):
        if block["type"] == "tool_result":
            result = block.get("content") or ""
            inner = [] if isinstance(result, str) else _parts(f"{place}.content", result)
            parts += [part for part in inner if part["type"] == IMAGE]
            text = result if isinstance(result, str) else "\n".join(p["text"] for p in inner if p["type"] != IMAGE)
            yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text}
        else:
            parts.append(_part(place, block))
    if any(part["type"] == IMAGE for part in parts):
        yield {"role": "user", "content": parts}
    elif parts:
        yield {"role": "user", "content": "\n".join(part["text"] for part in parts)}


def _parts(field: str, blocks: Any) -> list[JSONObject]:
    return [_part(place, block) for place, block in _blocks(field, blocks)]


def _part(place: str, block: JSONObject) -> JSONObject:
    return _image(place, block) if block["type"] == "image" else {"type": "text", "text": _text(place, block)}


def _image(field: str, block: JSONObject) -> JSONObject:
    """Return an image as a part of a chat's content."""
    source = block.get("source")
    if not isinstance(source, dict) or source.get("type") not in ("base64", "url"):
        raise fault(f"{field}.source", "must be an object of type base64, with media_type and data")
    url = source.get("url")
    if source["type"] == "base64":
        url = f"data:{source.get('media_type')};base64,{source.get('data')}"
    return image_part(field, {IMAGE: {"url": url}})


def _assistant(field: str, content: Any) -> JSONObject:
    texts: list[str] = []
    message: JSONObject = {"role": "assistant"}
    for place, block in _blocks(field, content):
        if block["type"] == "tool_use":
            arguments = orjson.dumps(block.get("input") or {}).decode()
            function = {"name": block.get("name"), "arguments": arguments}
            message.setdefault("tool_calls", []).append(
                {"id": block.get("id"), "type": "function", "function": function}
            )
        elif block["type"] == "thinking":
            message["reasoning_content"] = block.get("thinking")
        elif block["type"] != "redacted_thinking":
            texts.append(_text(place, block))
    return {**message, "content": "\n".join(texts)}


def _loaded_tools(messages: Any) -> set[str]:
    """Return the names of the tools that the results of searches refer to."""
    contents = [message["content"] for message in messages if isinstance(message["content"], list)]
    results = [block.get("content") for blocks in contents for block in blocks if block["type"] == "tool_result"]
    blocks_of_results = [block for result in results if isinstance(result, list) for block in result]
    return {str(block.get("tool_name")) for block in blocks_of_results if block["type"] == _TOOL_REFERENCE}


def _tools(tools: Any, loaded: Container[str]) -> list[JSONObject]:
    """Return the functions that the model may call: a deferred one once a search has ``loaded`` it."""
    if not isinstance(tools, list):
        raise fault("tools", "must be a list")
    functions: list[JSONObject] = []
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or not isinstance(tool.get("input_schema"), dict):
            raise fault(f"tools[{index}]", "must have an input_schema: tools of the server are not there")
        if tool.get("defer_loading") is True and tool.get("name") not in loaded:
            continue
        function = {"name": tool.get("name"), "parameters": tool["input_schema"]}
        if isinstance(tool.get("description"), str):
            function["description"] = tool["description"]
        functions.append({"type": "function", "function": function})
    return functions


def _tool_choice(choice: Any) -> JSONObject:
    kind = str(choice.get("type")) if isinstance(choice, dict) else ""
    if kind == "tool":
        wanted: Any = {"type": "function", "function": {"name": choice.get("name")}}
    elif kind in _TOOL_CHOICES:
        wanted = _TOOL_CHOICES[kind]
    else:
        raise fault("tool_choice.type", f"must be tool or one of {', '.join(_TOOL_CHOICES)}")
    fields: JSONObject = {"tool_choice": wanted}
    if choice.get("disable_parallel_tool_use") is True:
        fields["parallel_tool_calls"] = False
    return fields


def _output_format(body: Mapping[str, Any]) -> JSONObject | None:
    """Return the JSON that an answer must be, as chat has it; None for any text."""
    config = body.get("output_config")
    form = config.get("format") if isinstance(config, dict) else None
    form = body.get("output_format") if form is None else form  # its name in betas
    if form is None:
        return None
    if not isinstance(form, dict) or form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
        raise fault("output_config.format", "must be an object of type json_schema, with a schema")
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": form["schema"], "strict": True}}


# Answers


def _usage(usage: Usage) -> JSONObject:
    total, cached = usage.total() or {"prompt_tokens": 0, "completion_tokens": 0}, usage.cached_tokens
    return {
        "input_tokens": total["prompt_tokens"] - (cached or 0),
        **({} if cached is None else {"cache_read_input_tokens": cached}),
        "output_tokens": total["completion_tokens"],
    }


def _message_of(header: Header, content: list[JSONObject], reason: str | None, usage: JSONObject) -> JSONObject:
    return {
        "id": header.id,
        "type": "message",
        "role": "assistant",
        "model": header.model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": usage,
    }


def message_answer(
    header: Header, choices: Sequence[Choice], usage: Usage, generation: schemas.Generation
) -> JSONObject:
    """Return a whole message."""
    choice, content = choices[0], []
    if choice.reasoning:
        content.append({"type": "thinking", "thinking": choice.reasoning, "signature": ""})
    if text := choice.text or choice.refusal:
        content.append({"type": "text", "text": text})
    for call in choice.tool_calls:
        function = call["function"]
        content.append({"type": "tool_use", "id": call["id"], "name": function["name"], "input": _input(function)})
    return _message_of(header, content, _STOP_REASONS.get(choice.finish_reason, "end_turn"), _usage(usage))


def _input(function: JSONObject) -> Any:
    try:
        return orjson.loads(function["arguments"] or "{}")
    except orjson.JSONDecodeError:  # cut off by max_tokens
        return {}


class MessageEvents(PieceEvents):
    """The events of a message: it begins, each of its blocks begins, goes on and ends, and it ends."""

    silence = named_event("ping", {})

    def __init__(self, header: Header, usage: Usage, generation: schemas.Generation) -> None:
        super().__init__(header, usage, generation)
        self._block: tuple[str, int] | None = None
        """The kind of the block that has begun, and the number of its call; None between two blocks."""
        self._index = -1

    def begin(self) -> bytes:
        """Return the beginning of the message. Its tokens are estimated: the model has not read the prompt yet."""
        usage = {"input_tokens": prompt_tokens(self._generation.characters), "output_tokens": 0}
        message = _message_of(self._header, [], None, usage)
        return named_event("message_start", {"message": message})

    def _piece(self, piece: str, delta: JSONObject) -> bytes:
        events = b""
        if reasoning := delta.get("reasoning_content"):
            events += self._within(("thinking", 0), {"type": "thinking", "thinking": "", "signature": ""})
            events += self._delta({"type": "thinking_delta", "thinking": reasoning})
        if piece := piece or delta.get("refusal") or "":
            events += self._within(("text", 0), {"type": "text", "text": ""})
            events += self._delta({"type": "text_delta", "text": piece})
        for part in delta.get("tool_calls") or ():
            function = part.get("function") or {}
            block = {"type": "tool_use", "id": part.get("id"), "name": function.get("name"), "input": {}}
            events += self._within(("tool_use", part.get("index", 0)), block)
            if arguments := function.get("arguments"):
                events += self._delta({"type": "input_json_delta", "partial_json": arguments})
        return events

    def _within(self, block: tuple[str, int], content: JSONObject) -> bytes:
        """Return the events that end the last block and begin the next, where ``block`` is not the same."""
        if block == self._block:
            return b""
        events = self._end_block()
        self._block = block
        self._index += 1
        return events + named_event("content_block_start", {"index": self._index, "content_block": content})

    def _delta(self, delta: JSONObject) -> bytes:
        return named_event("content_block_delta", {"index": self._index, "delta": delta})

    def _end_block(self) -> bytes:
        if self._block is None:
            return b""
        # Clients expect the signature of what was thought, and send it back.
        signature = self._delta({"type": "signature_delta", "signature": ""}) if self._block[0] == "thinking" else b""
        self._block = None
        return signature + named_event("content_block_stop", {"index": self._index})

    def end(self) -> bytes:
        """Return the end of the message, with its reason and usage."""
        reason = _STOP_REASONS.get(finish_reason(self._reason), "end_turn")
        delta = {"stop_reason": reason, "stop_sequence": None}
        events = self._end_block() + named_event("message_delta", {"delta": delta, "usage": _usage(self._usage)})
        return events + named_event("message_stop", {})

    def failure(self, error: ModelyardError) -> bytes:
        """Return the event of an error."""
        body = anthropic_document(document(error)["error"], status_of(type(error)))
        return named_event("error", {"error": body["error"]})
