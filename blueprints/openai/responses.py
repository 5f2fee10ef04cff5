"""The requests of OpenAI's responses, which Codex and the AI SDK speak, read as a chat. Nothing is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...types import JSONObject
from ...wire.images import KIND as IMAGE
from ...wire.images import image_part, text_of_parts
from ..request.fields import fault, renamed_faults
from . import schemas

_STATEFUL = ("previous_response_id", "conversation", "background", "prompt")
_ROLES = ("user", "assistant", "system", "developer")
_REASONING = {"role", "reasoning_content"}
"""The keys of a message of the assistant whose text follows."""
COPIED = ("model", "temperature", "top_p", "stream", "parallel_tool_calls")
"""The fields that a response shares with a chat."""
_SENT_AS: Mapping[str, str] = {
    "max_completion_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
}
"""The names of the fields of a response, by those of a chat."""
_ECHOED = ("instructions", "max_output_tokens", "metadata", "reasoning", "text", "tool_choice")
"""The fields of a request that its answer repeats."""


# Requests


def generation(body: Mapping[str, Any], model: str) -> schemas.Generation:
    """Return the request of a response, for ``model``. Raises InvalidRequest."""
    for name in _STATEFUL:
        if body.get(name):
            raise fault(name, "is not supported: nothing is stored here, send the whole input")
    chat: JSONObject = {name: body[name] for name in COPIED if body.get(name) is not None}
    chat["messages"] = _messages(body.get("instructions"), body.get("input"))
    if isinstance(reasoning := body.get("reasoning"), dict) and reasoning.get("effort") is not None:
        chat["reasoning_effort"] = reasoning["effort"]
    if body.get("max_output_tokens") is not None:
        chat["max_completion_tokens"] = body["max_output_tokens"]
    tools = _tools(body["tools"]) if body.get("tools") else []
    chat["tools"] = [{"type": "function", "function": _function(tool)} for tool in tools]
    if body.get("tool_choice") is not None:
        chat["tool_choice"] = _tool_choice(body["tool_choice"])
    form = (body.get("text") or {}).get("format") if isinstance(body.get("text"), dict) else None
    if form is not None:
        chat["response_format"] = _response_format(form)
    with renamed_faults(_SENT_AS):
        made = schemas.chat(chat, model)
    echoed = [{"type": "function", "parameters": None, "strict": None, **tool} for tool in tools]
    made.body = {**made.body, **{name: body.get(name) for name in _ECHOED}, "tools": echoed}
    return made


def _messages(instructions: Any, given: Any) -> list[JSONObject]:
    messages: list[JSONObject] = []
    if isinstance(instructions, str) and instructions:
        messages.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise fault("input", "must be a string, or a list of items")
    images: list[JSONObject] = []
    for index, item in enumerate(given):
        field = f"input[{index}]"
        kind = (item.get("type") or "message") if isinstance(item, dict) else None
        if images and kind != "function_call_output":
            messages.append({"role": "user", "content": images})
            images = []
        if kind == "message":
            _add_message(messages, field, item)
        elif kind == "function_call":
            _add_call(messages, field, item)
        elif kind == "reasoning":
            _add_reasoning(messages, item)
        elif kind == "function_call_output":
            images += _add_output(messages, field, item)
        else:
            raise fault(f"{field}.type", f"is {kind!r}: messages, function calls and their outputs are understood")
    if images:
        messages.append({"role": "user", "content": images})
    return [{"content": "", **message} for message in messages]


def _add_call(messages: list[JSONObject], field: str, item: JSONObject) -> None:
    """Add a call to the assistant's last message, or to a new one where another came last."""
    for name in ("call_id", "name", "arguments"):
        if not isinstance(item.get(name), str):
            raise fault(f"{field}.{name}", "must be a string")
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant"})
    function = {"name": name_of(item), "arguments": item.get("arguments")}
    calls = messages[-1].setdefault("tool_calls", [])
    calls.append({"id": item.get("call_id"), "type": "function", "function": function})


def _add_output(messages: list[JSONObject], field: str, item: JSONObject) -> list[JSONObject]:
    """Add the text that a function has returned, and return its images.

    They follow in a message of the user: few chat templates, and few servers, take one in a tool's message.
    """
    if not isinstance(item.get("call_id"), str):
        raise fault(f"{field}.call_id", "must be the id of the call that this answers")
    output = item.get("output")
    read = output if isinstance(output, str) else _content(f"{field}.output", output)
    messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": text_of_parts(read)})
    return [] if isinstance(read, str) else [part for part in read if part["type"] == IMAGE]


def _add_message(messages: list[JSONObject], field: str, item: JSONObject) -> None:
    """Add a message; that of the assistant is one with the reasoning before it."""
    if item.get("role") not in _ROLES:
        raise fault(f"{field}.role", f"must be one of {', '.join(_ROLES)}")
    content = item.get("content")
    read = content if isinstance(content, str) else _content(f"{field}.content", content)
    if item["role"] == "assistant" and messages and messages[-1].keys() == _REASONING:
        messages[-1]["content"] = read
    else:
        messages.append({"role": item["role"], "content": read})


def _add_reasoning(messages: list[JSONObject], item: JSONObject) -> None:
    parts = item.get("content") or item.get("summary")
    texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    reasoning = "".join(text for text in texts if isinstance(text, str))
    if reasoning:
        messages.append({"role": "assistant", "reasoning_content": reasoning})


def _content(field: str, parts: Any) -> Any:
    """Return parts as the content of a chat's message: a text, or texts with images among them."""
    if not isinstance(parts, list):
        raise fault(field, "must be a string or a list of parts")
    read = [_part(f"{field}[{index}]", part) for index, part in enumerate(parts)]
    return read if any(part["type"] == IMAGE for part in read) else text_of_parts(read)


def _part(field: str, part: Any) -> JSONObject:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "input_image":
        return image_part(field, {IMAGE: part.get(IMAGE)})
    text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, dict) else None
    if kind not in ("input_text", "output_text", "text", "refusal") or not isinstance(text, str):
        raise fault(field, f"is of type {kind!r}: models here take text, and some of them input_image")
    return {"type": "text", "text": text}


def _tools(tools: Any) -> list[JSONObject]:
    """Return the functions that a model may call, those of a namespace with its name.

    Agents offer tools of the server, a web search, beside their functions: the model is not told of them.
    """
    if not isinstance(tools, list):
        raise fault("tools", "must be a list")
    functions: list[JSONObject] = []
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise fault(f"tools[{index}]", "must be an object with a type")
        if tool.get("type") == "function":
            functions.append(tool)
        elif tool.get("type") == "namespace":
            inner = tool.get("tools")
            if not isinstance(inner, list) or not all(isinstance(function, dict) for function in inner):
                raise fault(f"tools[{index}].tools", "must be a list of functions")
            functions += [{**function, "namespace": tool.get("name")} for function in inner]
    if not functions:
        raise fault("tools[0].type", "must be function: tools of the server are not there")
    return functions


def _function(tool: JSONObject) -> JSONObject:
    function = {name: tool[name] for name in ("description", "parameters", "strict") if tool.get(name) is not None}
    return {"name": name_of(tool), **function}


def name_of(function: Mapping[str, Any]) -> Any:
    """Return the name by which a model knows a function, or calls it: in a namespace it begins with its name."""
    namespace = function.get("namespace")
    return f"{namespace}__{function.get('name')}" if namespace else function.get("name")


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": name_of(choice)}}
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
