"""OpenAI's responses, which Codex and the AI SDK speak: read as a chat, answered in items. Nothing is stored."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import ModelyardError
from ...types import JSONObject
from ..request.fields import fault, renamed_faults
from . import schemas
from .answers import Choice, Header, Usage
from .errors import document
from .events import PieceEvents, named_event

_STATEFUL = ("previous_response_id", "conversation", "background", "prompt")
_ROLES = ("user", "assistant", "system", "developer")
COPIED = ("model", "temperature", "top_p", "stream", "parallel_tool_calls")
"""The fields that a response shares with a chat."""
_SENT_AS: Mapping[str, str] = {
    "max_completion_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
}
"""The names of the fields of a response, by those of a chat."""


# Requests


def generation(body: Mapping[str, Any], model: str) -> schemas.Generation:
    """Return the request of a response, for ``model``. Raises InvalidRequest."""
    for name in _STATEFUL:
        if body.get(name):
            raise fault(name, "is not supported: nothing is stored here, send the whole input")
    chat: JSONObject = {name: body[name] for name in COPIED if body.get(name) is not None}
    chat["messages"] = _messages(body.get("instructions"), body.get("input"))
    if body.get("max_output_tokens") is not None:
        chat["max_completion_tokens"] = body["max_output_tokens"]
    if body.get("tools"):
        chat["tools"] = _tools(body["tools"])
    if body.get("tool_choice") is not None:
        chat["tool_choice"] = _tool_choice(body["tool_choice"])
    form = (body.get("text") or {}).get("format") if isinstance(body.get("text"), dict) else None
    if form is not None:
        chat["response_format"] = _response_format(form)
    with renamed_faults(_SENT_AS):
        made = schemas.chat(chat, model)
    made.body = {**made.body, **{name: body.get(name) for name in _ECHOED}}
    return made


def _messages(instructions: Any, given: Any) -> list[JSONObject]:
    messages: list[JSONObject] = []
    if isinstance(instructions, str) and instructions:
        messages.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise fault("input", "must be a string, or a list of items")
    for index, item in enumerate(given):
        field = f"input[{index}]"
        kind = item.get("type", "message") if isinstance(item, dict) else None
        if kind == "message":
            messages.append(_message(field, item))
        elif kind == "function_call":
            _add_call(messages, field, item)
        elif kind == "function_call_output":
            if not isinstance(item.get("call_id"), str):
                raise fault(f"{field}.call_id", "must be the id of the call that this answers")
            output = item.get("output")
            text = output if isinstance(output, str) else _text(f"{field}.output", output)
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text})
        elif kind != "reasoning":
            raise fault(f"{field}.type", f"is {kind!r}: messages, function calls and their outputs are understood")
    return messages


def _add_call(messages: list[JSONObject], field: str, item: JSONObject) -> None:
    """Add a call to the assistant's last message, or to a new one where another came last."""
    for name in ("call_id", "name", "arguments"):
        if not isinstance(item.get(name), str):
            raise fault(f"{field}.{name}", "must be a string")
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    function = {"name": item.get("name"), "arguments": item.get("arguments")}
    calls = messages[-1].setdefault("tool_calls", [])
    calls.append({"id": item.get("call_id"), "type": "function", "function": function})


def _message(field: str, item: JSONObject) -> JSONObject:
    if item.get("role") not in _ROLES:
        raise fault(f"{field}.role", f"must be one of {', '.join(_ROLES)}")
    content = item.get("content")
    text = content if isinstance(content, str) else _text(f"{field}.content", content)
    return {"role": item["role"], "content": text}


def _text(field: str, parts: Any) -> str:
    if not isinstance(parts, list):
        raise fault(field, "must be a string or a list of parts")
    texts: list[str] = []
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, dict) else None
        if kind not in ("input_text", "output_text", "text", "refusal") or not isinstance(text, str):
            raise fault(f"{field}[{index}]", f"is of type {kind!r}: no model here takes anything but text")
        texts.append(text)
    return "".join(texts)


def _tools(tools: Any) -> list[JSONObject]:
    if not isinstance(tools, list):
        raise fault("tools", "must be a list")
    functions: list[JSONObject] = []
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise fault(f"tools[{index}].type", "must be function: tools of the server are not there")
        names = ("name", "description", "parameters", "strict")
        function = {name: tool[name] for name in names if tool.get(name) is not None}
        functions.append({"type": "function", "function": function})
    return functions


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        named = [{"function": tool} for tool in choice.get("tools") or []]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": named}}
    return choice


def _response_format(form: Any) -> Any:
    if not isinstance(form, dict):
        raise fault("text.format", "must be an object")
    if form.get("type") != "json_schema":
        return form
    return {"type": "json_schema", "json_schema": {name: form.get(name) for name in ("name", "schema", "strict")}}


# Answers


_ECHOED = ("instructions", "max_output_tokens", "metadata", "reasoning", "text", "tool_choice", "tools")


def _response(header: Header, generation: schemas.Generation, status: str, **fields: Any) -> JSONObject:
    """Return the object of a response with the fields of its request."""
    body = generation.body
    return {
        "id": header.id,
        "object": "response",
        "created_at": header.created,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "model": header.model,
        "output": [],
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "reasoning": body.get("reasoning") or {"effort": None, "summary": None},
        "store": False,
        "temperature": body.get("temperature", 1.0),
        "text": body.get("text") or {"format": {"type": "text"}},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_p": body.get("top_p", 1.0),
        "truncation": "disabled",
        "usage": None,
        "metadata": body.get("metadata") or {},
        **fields,
    }


def _usage(usage: Usage) -> JSONObject | None:
    total = usage.total()
    if total is None:
        return None
    return {
        "input_tokens": total["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": usage.cached_tokens or 0, "cache_write_tokens": 0},
        "output_tokens": total["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": total["total_tokens"],
    }


def _ended(
    header: Header, generation: schemas.Generation, reason: str, output: list[JSONObject], usage: Usage
) -> JSONObject:
    is_cut = reason == "length"
    return _response(
        header,
        generation,
        "incomplete" if is_cut else "completed",
        incomplete_details={"reason": "max_output_tokens"} if is_cut else None,
        output=output,
        usage=_usage(usage),
    )


def _text_part(text: str) -> JSONObject:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _message_item(number: str, status: str, content: list[JSONObject]) -> JSONObject:
    return {"id": f"msg_{number}", "type": "message", "status": status, "role": "assistant", "content": content}


def _call_item(number: str, status: str, call: JSONObject) -> JSONObject:
    function = call["function"]
    return {
        "id": f"fc_{number}",
        "type": "function_call",
        "status": status,
        "call_id": call["id"],
        "name": function["name"],
        "arguments": function["arguments"],
    }


def response_answer(
    header: Header, choices: Sequence[Choice], usage: Usage, generation: schemas.Generation
) -> JSONObject:
    """Return a whole response."""
    choice, output = choices[0], []
    if choice.text or not choice.tool_calls:
        output.append(_message_item(_number(), "completed", [_text_part(choice.text)]))
    output += [_call_item(_number(), "completed", call) for call in choice.tool_calls]
    return _ended(header, generation, choice.finish_reason, output, usage)


def _number() -> str:
    return uuid.uuid4().hex


class ResponseEvents(PieceEvents):
    """The events of a response: each of its items is added, goes on and is done, and then the response is."""

    def __init__(self, header: Header, usage: Usage, generation: schemas.Generation) -> None:
        super().__init__(header, usage, generation)
        self._count = -1
        self._output: list[JSONObject] = []
        """The items that are done, and the one that goes on as the last."""
        self._goes_on: tuple[str, int] | None = None
        """The kind of the item that goes on, and the number of its call."""

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._count += 1
        return named_event(kind, {"sequence_number": self._count, **fields})

    def begin(self) -> bytes:
        """Return the beginning of the response."""
        response = _response(self._header, self._generation, "in_progress")
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def _piece(self, piece: str, delta: JSONObject) -> bytes:
        events = self._text(piece) if piece else b""
        for part in delta.get("tool_calls") or ():
            events += self._call(part)
        return events

    def _place(self) -> JSONObject:
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}

    def _text(self, piece: str) -> bytes:
        events = b""
        if self._goes_on != ("message", 0):
            events += self._add(("message", 0), _message_item(_number(), "in_progress", []))
            part = _text_part("")
            self._output[-1]["content"] = [part]
            events += self._event("response.content_part.added", **self._place(), content_index=0, part=_text_part(""))
        self._output[-1]["content"][0]["text"] += piece
        return events + self._event(
            "response.output_text.delta", **self._place(), content_index=0, delta=piece, logprobs=[]
        )

    def _call(self, part: JSONObject) -> bytes:
        events, function, key = b"", part.get("function") or {}, ("function_call", part.get("index", 0))
        if self._goes_on != key:
            call = {"id": part.get("id"), "function": {"name": function.get("name"), "arguments": ""}}
            events += self._add(key, _call_item(_number(), "in_progress", call))
        if arguments := function.get("arguments"):
            self._output[-1]["arguments"] += arguments
            events += self._event("response.function_call_arguments.delta", **self._place(), delta=arguments)
        return events

    def _add(self, key: tuple[str, int], item: JSONObject) -> bytes:
        """Return the events that end the item that goes on, and begin ``item``."""
        events = self._finish_item()
        self._goes_on = key
        self._output.append(item)
        return events + self._event("response.output_item.added", output_index=len(self._output) - 1, item=item)

    def _finish_item(self) -> bytes:
        if self._goes_on is None:
            return b""
        self._goes_on = None
        item, place = self._output[-1], self._place()
        if item["type"] == "message":
            part = item["content"][0]
            events = self._event("response.output_text.done", **place, content_index=0, text=part["text"], logprobs=[])
            events += self._event("response.content_part.done", **place, content_index=0, part=part)
        else:
            events = self._event(
                "response.function_call_arguments.done", **place, name=item["name"], arguments=item["arguments"]
            )
        item["status"] = "completed"
        return events + self._event("response.output_item.done", output_index=place["output_index"], item=item)

    def end(self) -> bytes:
        """Return the end of the response, with all of it."""
        events = b"" if self._output else self._text("")
        events += self._finish_item()
        response = _ended(self._header, self._generation, self._reason, self._output, self._usage)
        return events + self._event(f"response.{response['status']}", response=response)

    def failure(self, error: ModelyardError) -> bytes:
        """Return the events of an error."""
        cause = document(error)["error"]
        told = {"code": cause["code"] or cause["type"], "message": cause["message"]}
        response = _response(self._header, self._generation, "failed", error=told, output=self._output)
        return self._event("response.failed", response=response)
