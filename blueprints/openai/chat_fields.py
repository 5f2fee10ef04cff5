"""The messages of a chat, and its fields that an engine may take or not: tools, JSON, probabilities."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ...types import GenerateRequest, JSONObject
from ...wire.images import KIND as IMAGE
from ...wire.images import image_part, text_of_parts
from ...wire.messages import text_of_content
from ..request.fields import fault

MAX_MESSAGES = 10_000
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"} | {
    "function": "tool"
}
"""The roles that chat templates know, by those of messages."""
_TEXT_PARTS = ("text", "refusal")


# Messages


def check_messages(messages: Any) -> list[JSONObject]:
    """Return the messages of a chat, with roles that templates know. Raises InvalidRequest with the one at fault."""
    if not isinstance(messages, list) or not messages:
        raise fault("messages", "must be a list of at least one object with role and content")
    if len(messages) > MAX_MESSAGES:
        raise fault("messages", f"has {len(messages)} entries, at most {MAX_MESSAGES} are taken")
    return [_message(f"messages[{index}]", message) for index, message in enumerate(messages)]


def _message(field: str, message: Any) -> JSONObject:
    if not isinstance(message, dict):
        raise fault(field, "must be an object with role and content")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise fault(f"{field}.role", f"must be one of {', '.join(ROLES)}")
    message = _with_ids(message)
    checked: JSONObject = {"role": ROLES[role], "content": _content(f"{field}.content", message)}
    if message.get("tool_calls"):
        checked["tool_calls"] = _tool_calls(f"{field}.tool_calls", message["tool_calls"])
    if ROLES[role] == "tool":
        if not isinstance(message.get("tool_call_id"), str):
            name, word = ("name", "name") if role == "function" else ("tool_call_id", "id")
            raise fault(f"{field}.{name}", f"is missing: must be the {word} of the call that this answers")
        checked["tool_call_id"] = message["tool_call_id"]
    # vLLM has renamed the first to the second.
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(reasoning, str):
        checked["reasoning_content"] = reasoning
    return checked


def _with_ids(message: JSONObject) -> JSONObject:
    """Return a message of the old form, whose calls have no id, in that of today: the id is the function's name."""
    if message["role"] == "function":
        return {**message, "tool_call_id": message.get("name")}
    call = message.get("function_call")
    if not isinstance(call, dict) or message.get("tool_calls"):
        return message
    return {**message, "tool_calls": [{"id": call.get("name"), "type": "function", "function": call}]}


def _content(field: str, message: JSONObject) -> Any:
    content = message.get("content")
    if content is None:
        if message["role"] == "assistant":  # it has called tools, or refused, or its answer was empty
            return message["refusal"] if isinstance(message.get("refusal"), str) else ""
        raise fault(field, "is missing: must be a string or a list of parts")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise fault(field, "must be a string or a list of parts")
    parts = [_part(f"{field}[{index}]", part) for index, part in enumerate(content)]
    return parts if any(part["type"] == IMAGE for part in parts) else text_of_parts(parts)


def _part(field: str, part: Any) -> JSONObject:
    """Return a part of a content: a text or an image."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == IMAGE:
        return image_part(field, part)
    if kind not in (None, *_TEXT_PARTS):
        raise fault(field, f"is of type {kind!r}: models here take text, and some of them {IMAGE}")
    try:
        return {"type": "text", "text": text_of_content([part["refusal"] if kind == "refusal" else part])}
    except (ValueError, KeyError) as error:
        raise fault(field, str(error)) from None


def _tool_calls(field: str, calls: Any) -> list[JSONObject]:
    if not isinstance(calls, list):
        raise fault(field, "must be a list")
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise fault(f"{field}[{index}].function", "must be an object with name and arguments")
        if not isinstance(function.get("arguments", ""), str):
            raise fault(f"{field}[{index}].function.arguments", "must be a string of JSON")
    return calls


def holds_more(message: Mapping[str, Any]) -> bool:
    """Return whether a message has more than a text of a role that every model knows."""
    return message["role"] == "tool" or "tool_calls" in message or not isinstance(message["content"], str)


def as_text(message: Mapping[str, Any]) -> JSONObject:
    """Return a message as a text, which is all that engines without tools and images read."""
    role = message["role"]
    return {"role": "user" if role == "tool" else role, "content": text_of_parts(message["content"])}


def text_to_count(request: GenerateRequest) -> str:
    """Return what a model reads of a request as one text: messages, reasoning, calls and tools; no images."""
    texts: list[str] = []
    for message in request.options.get("messages") or request.messages:
        texts += [message.get("reasoning_content", ""), text_of_parts(message["content"])]
        texts += [_json(call["function"]) for call in message.get("tool_calls") or ()]
    texts += [_json(tool["function"]) for tool in request.options.get("tools") or ()]
    return "\n".join(text for text in texts if text)


def _json(value: JSONObject) -> str:
    return json.dumps(value, ensure_ascii=False)


# Options


_OF_ENGINES = frozenset(
    {"tools", "tool_choice", "parallel_tool_calls", "response_format", "grammar", "json_schema"}
    | {"logprobs", "top_logprobs", "logit_bias"}
)
"""The fields of a chat that are the engine's."""


def chat_options(loaded: Mapping[str, Any]) -> JSONObject:
    """Return the fields that are the engine's, without those that ask for nothing. Raises InvalidRequest."""
    if loaded.keys().isdisjoint(_OF_ENGINES):
        return {}
    options = _tool_options(loaded)
    if loaded.get("logprobs"):
        options |= {"logprobs": True, "top_logprobs": loaded.get("top_logprobs", 0)}
    elif loaded.get("top_logprobs") is not None:
        raise fault("top_logprobs", "needs logprobs: true")
    if loaded.get("logit_bias"):
        options["logit_bias"] = _logit_bias(loaded["logit_bias"])
    options |= _grammar(loaded)
    if (form := _response_format(loaded.get("response_format"))) is not None:
        options["response_format"] = form
    return options


def completion_options(loaded: Mapping[str, Any]) -> JSONObject:
    """Return the same of a completion."""
    options = {name: loaded[name] for name in ("logprobs", "suffix") if name in loaded} | _grammar(loaded)
    if loaded.get("logit_bias"):
        options["logit_bias"] = _logit_bias(loaded["logit_bias"])
    copies = loaded.get("n", 1)
    if loaded.get("best_of", copies) != copies:
        if copies != 1:
            raise fault("best_of", f"must be n ({copies}), or n must be 1")
        options["best_of"] = loaded["best_of"]
    return options


def _grammar(loaded: Mapping[str, Any]) -> JSONObject:
    """Return llama.cpp's words for what an answer must look like."""
    return {name: loaded[name] for name in ("grammar", "json_schema") if loaded.get(name) is not None}


def _logit_bias(biases: JSONObject) -> JSONObject:
    for token, bias in biases.items():
        if not token.isdecimal():
            raise fault("logit_bias", f"{token!r} is not the id of a token")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise fault(f"logit_bias.{token}", "must be a number from -100 to 100")
    return biases


def _response_format(form: JSONObject | None) -> JSONObject | None:
    kind = "text" if form is None else form.get("type")
    if form is None or kind == "text":
        return None
    if kind not in ("json_object", "json_schema"):
        raise fault("response_format.type", "must be one of text, json_object, json_schema")
    if kind == "json_schema":
        schema = form.get("json_schema")
        if not isinstance(schema, dict) or not isinstance(schema.get("schema") or {}, dict):
            raise fault("response_format.json_schema", "must be an object with name and schema")
        if schema.get("name") is None:  # clients of llama-server send none
            return {**form, "json_schema": {**schema, "name": "schema"}}
        if not isinstance(schema["name"], str) or not NAME.fullmatch(schema["name"]):
            raise fault("response_format.json_schema.name", "must have 1 to 64 of the characters a-z A-Z 0-9 _ -")
    return form


def _tool_options(loaded: Mapping[str, Any]) -> JSONObject:
    """Return the tools that the model may call, and whether it must."""
    tools, choice = loaded.get("tools") or [], loaded.get("tool_choice", "auto")
    names = [_name_of_tool(index, tool) for index, tool in enumerate(tools)]
    wanted, mode = _tool_choice(choice, names)
    if mode == "none" or not tools:
        return {}
    # llama.cpp and others take the three words alone: a named tool is the only one, and required.
    options: JSONObject = {
        "tools": [tool for tool, name in zip(tools, names, strict=True) if name in wanted],
        "tool_choice": mode,
    }
    if "parallel_tool_calls" in loaded:
        options["parallel_tool_calls"] = loaded["parallel_tool_calls"]
    return options


def _name_of_tool(index: int, tool: JSONObject) -> str:
    if tool.get("type") != "function":
        raise fault(f"tools[{index}].type", "must be function")
    function = tool.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise fault(f"tools[{index}].function.name", "must have 1 to 64 of the characters a-z A-Z 0-9 _ -")
    return name


def _tool_choice(choice: Any, names: list[str]) -> tuple[list[str], str]:
    """Return the names of the tools that may be called, and none, auto or required."""
    if choice in ("none", "auto", "required"):
        if choice == "required" and not names:
            raise fault("tool_choice", "is required, and tools is missing")
        return names, choice
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "function":
        wanted, mode = [choice.get("function")], "required"
    elif kind == "allowed_tools" and isinstance(choice.get("allowed_tools"), dict):
        allowed = choice["allowed_tools"]
        wanted = [tool.get("function") if isinstance(tool, dict) else None for tool in allowed.get("tools") or []]
        mode = "required" if allowed.get("mode") == "required" else "auto"
    else:
        raise fault("tool_choice", "must be none, auto, required, or an object that names a function")
    chosen = [function.get("name") if isinstance(function, dict) else None for function in wanted]
    for name in chosen:
        if name not in names:
            raise fault("tool_choice", f"names {name!r}, which is not in tools")
    return [str(name) for name in chosen], mode
