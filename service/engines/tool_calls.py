"""Tool calls of an engine's answer, in the parts that clients add up."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import orjson

from ..types import Burst, JSONObject


def new_call_id() -> str:
    """Return an id for a call."""
    return f"call_{uuid.uuid4().hex[:24]}"


@dataclass
class _Call:
    """What was sent of one call."""

    id: str
    has_name: bool
    has_arguments: bool = False


class ToolCalls:
    """The calls of one answer: its parts in, parts out that have index, id, type and name as clients expect them.

    Clients add strings up, so id, type and name leave once, with the first part of a call. Calls are numbered from 0,
    in order. Arguments are text, and those of a call without any are ``{}``. Engines differ in each of these.
    """

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._places: dict[Any, int] = {}
        """The place of each call by the backend's index, the last one where several calls have the same."""

    def tidied(self, burst: Burst) -> Burst | None:
        """Return a burst of the answer with its parts as clients expect them; None if nothing is left of it."""
        pieces, deltas = burst.pieces, burst.deltas
        if not deltas and not self._calls:
            return burst if pieces or burst.finish_reason is not None else None
        if deltas and any("tool_calls" in delta for delta in deltas):
            given = zip(pieces, map(self._tidied, deltas), strict=True)
            kept = [(piece, delta) for piece, delta in given if piece or delta]
            pieces, deltas = [piece for piece, _ in kept], [delta for _, delta in kept]
        reason = burst.finish_reason
        if reason is not None and self._calls:
            # Some end with stop after a call that they were told to make.
            reason = "tool_calls" if reason == "stop" else reason
            if reason == "tool_calls" and (parts := self.end()):
                deltas = [*(deltas or [{} for _ in pieces]), {"tool_calls": parts}]
                pieces = [*pieces, ""]
        if not pieces and reason is None:
            return None
        return burst._replace(pieces=pieces, deltas=deltas or None, finish_reason=reason)

    def _tidied(self, delta: JSONObject) -> JSONObject:
        rest = {name: value for name, value in delta.items() if name != "tool_calls"}
        parts = self.take(delta.get("tool_calls"))
        return {**rest, "tool_calls": parts} if parts else rest

    def take(self, parts: Any) -> list[JSONObject]:
        """Return what ``parts``, the ``tool_calls`` of a delta, add to the calls."""
        taken: list[JSONObject] = []
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict):
                taken += self._take(part)
        return taken

    def end(self) -> list[JSONObject]:
        """Return the arguments of the last call, if none have come."""
        if not self._calls or self._calls[-1].has_arguments:
            return []
        self._calls[-1].has_arguments = True
        return [{"index": len(self._calls) - 1, "function": {"arguments": "{}"}}]

    def _take(self, part: JSONObject) -> list[JSONObject]:
        function = part["function"] if isinstance(part.get("function"), dict) else {}
        name, call_id = _text(function.get("name")), _text(part.get("id"))
        place = self._place(part, call_id, name)
        sent: JSONObject = {}
        ended: list[JSONObject] = []
        if place is None:
            ended = self.end()
            place = len(self._calls)
            self._places[_index(part)] = place
            self._calls.append(_Call(call_id or new_call_id(), has_name=False))
            sent = {"id": self._calls[place].id, "type": "function"}
        call, arguments = self._calls[place], _arguments(function.get("arguments"))
        call.has_arguments = call.has_arguments or bool(arguments.strip())
        content: JSONObject = {"arguments": arguments}
        if name and not call.has_name:
            call.has_name = True
            content = {"name": name, **content}
        return [*ended, {"index": place, **sent, "function": content}] if sent or len(content) > 1 or arguments else []

    def _place(self, part: JSONObject, call_id: str, name: str) -> int | None:
        """Return the place of the call that ``part`` goes on with; None if it begins one."""
        index = _index(part)
        if index is None and not (call_id or name):
            return len(self._calls) - 1 if self._calls else None
        place = self._places.get(index)
        if place is None or (call_id and call_id != self._calls[place].id):
            return None
        return place if index is not None or call_id else None


def _index(part: JSONObject) -> int | None:
    index = part.get("index")
    return index if isinstance(index, int) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _arguments(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return orjson.dumps(value).decode()
