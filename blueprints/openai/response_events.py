"""The answers of OpenAI's responses: whole, or as events, each of its items from its beginning to its end."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from ...errors import ModelyardError, Overloaded
from ...types import JSONObject
from . import schemas
from .answers import Choice, Header, Usage
from .errors import CONTEXT_LENGTH, document, specific_code
from .events import PieceEvents, named_event
from .responses import name_of

_CODES = frozenset(
    {CONTEXT_LENGTH}
    | {"server_error", "rate_limit_exceeded", "invalid_prompt", "data_residency_mismatch", "bio_policy"}
    | {"misalignment_policy_violation", "vector_store_timeout", "invalid_image", "invalid_image_format"}
    | {"invalid_base64_image", "invalid_image_url", "image_too_large", "image_too_small", "image_parse_error"}
    | {"image_content_policy_violation", "invalid_image_mode", "image_file_too_large"}
    | {"unsupported_image_media_type", "empty_image_file", "failed_to_download_image", "image_file_not_found"}
)
"""The codes of a failed response, by OpenAI's document, and that of a long prompt, which Codex looks for."""


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
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": total["total_tokens"],
    }


def _ended(
    header: Header, generation: schemas.Generation, reason: str, output: list[JSONObject], usage: Usage
) -> JSONObject:
    status = _last_status(reason)
    return _response(
        header,
        generation,
        status,
        incomplete_details={"reason": "max_output_tokens"} if status == "incomplete" else None,
        output=output,
        usage=_usage(usage),
    )


def _last_status(reason: str) -> str:
    """Return the status of a response and of its last item."""
    return "incomplete" if reason == "length" else "completed"


def _text_part(text: str) -> JSONObject:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _message_item(number: str, status: str, content: list[JSONObject]) -> JSONObject:
    return {"id": f"msg_{number}", "type": "message", "status": status, "role": "assistant", "content": content}


def _reasoning_item(number: str, status: str, text: str) -> JSONObject:
    part = {"type": "reasoning_text", "text": text}
    return {"id": f"rs_{number}", "type": "reasoning", "status": status, "summary": [], "content": [part]}


def _call_item(number: str, status: str, call: JSONObject, tools: Sequence[JSONObject]) -> JSONObject:
    function = call["function"]
    tool = next((tool for tool in tools if tool.get("namespace") and name_of(tool) == function["name"]), None)
    place = {"name": function["name"]} if tool is None else {"name": tool["name"], "namespace": tool["namespace"]}
    return {
        "id": f"fc_{number}",
        "type": "function_call",
        "status": status,
        "call_id": call["id"],
        **place,
        "arguments": function["arguments"],
    }


def response_answer(
    header: Header, choices: Sequence[Choice], usage: Usage, generation: schemas.Generation
) -> JSONObject:
    """Return a whole response."""
    choice, output = choices[0], []
    if choice.reasoning:
        output.append(_reasoning_item(_number(), "completed", choice.reasoning))
    text = choice.text or choice.refusal
    if text or not choice.tool_calls:
        output.append(_message_item(_number(), "completed", [_text_part(text)]))
    output += [_call_item(_number(), "completed", call, generation.body["tools"]) for call in choice.tool_calls]
    output[-1]["status"] = _last_status(choice.finish_reason)
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
        events = self._reasoning(reasoning) if (reasoning := delta.get("reasoning_content")) else b""
        text = piece or delta.get("refusal")
        events += self._text(text) if text else b""
        for part in delta.get("tool_calls") or ():
            events += self._call(part)
        return events

    def _place(self) -> JSONObject:
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}

    def _reasoning(self, piece: str) -> bytes:
        events = b""
        if self._goes_on != ("reasoning", 0):
            events += self._add(("reasoning", 0), _reasoning_item(_number(), "in_progress", ""))
        self._output[-1]["content"][0]["text"] += piece
        return events + self._event("response.reasoning_text.delta", **self._place(), content_index=0, delta=piece)

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
            item = _call_item(_number(), "in_progress", call, self._generation.body["tools"])
            events += self._add(key, item)
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

    def _finish_item(self, status: str = "completed") -> bytes:
        if self._goes_on is None:
            return b""
        self._goes_on = None
        item, place = self._output[-1], self._place()
        if item["type"] == "message":
            part = item["content"][0]
            events = self._event("response.output_text.done", **place, content_index=0, text=part["text"], logprobs=[])
            events += self._event("response.content_part.done", **place, content_index=0, part=part)
        elif item["type"] == "reasoning":
            text = item["content"][0]["text"]
            events = self._event("response.reasoning_text.done", **place, content_index=0, text=text)
        else:
            events = self._event(
                "response.function_call_arguments.done", **place, name=item["name"], arguments=item["arguments"]
            )
        item["status"] = status
        return events + self._event("response.output_item.done", output_index=place["output_index"], item=item)

    def end(self) -> bytes:
        """Return the end of the response, with all of it."""
        has_more = any(item["type"] != "reasoning" for item in self._output)
        events = b"" if has_more else self._text("")
        events += self._finish_item(_last_status(self._reason))
        response = _ended(self._header, self._generation, self._reason, self._output, self._usage)
        return events + self._event(f"response.{response['status']}", response=response)

    def failure(self, error: ModelyardError) -> bytes:
        """Return the events of an error."""
        code = "rate_limit_exceeded" if isinstance(error, Overloaded) else specific_code(error)
        code = code if code in _CODES else "server_error"
        cause = {"code": code, "message": document(error)["error"]["message"]}
        response = _response(self._header, self._generation, "failed", error=cause, output=self._output)
        return self._event("response.failed", response=response)
